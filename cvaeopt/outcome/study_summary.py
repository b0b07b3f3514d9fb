"""A study as one entry of a comparison: its recommended trial, and the progress and the cost of its search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from cvaeopt.files import RunFolder
from cvaeopt.outcome.export import estimator
from cvaeopt.outcome.leaders import Confirmation
from cvaeopt.outcome.report_data import report_data
from cvaeopt.outcome.run_files import RunFiles
from cvaeopt.outcome.run_summary import RunSummary
from cvaeopt.outcome.trials import TrialFacts
from cvaeopt.search.definition import Definition


@dataclass(frozen=True)
class Search:
    """The progress of a search: for each trial that has ended, in the order of the ends, what was spent until then.

    epochs   epochs that were trained until the end of the trial
    hours    training time until the end of the trial; empty if the time of a trial was not recorded
    best     the highest value of a complete trial so far, dB; NaN before the first one
    """

    name: str
    epochs: tuple[int, ...]
    hours: tuple[float, ...]
    best: tuple[float, ...]


def study_summary(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    *,
    artifacts: Path,
    now: datetime,
) -> tuple[RunSummary, Search]:
    """The recommended trial of a study, and the progress of its search. The arguments are those of `report_data`.

    If the fresh runs of a confirmation are over, `values` has those of the recommended settings.
    """
    data = report_data(definition, trials, overview, artifacts=artifacts, now=now)
    best = data.best
    files = data.run.files or RunFiles(RunFolder(artifacts / "none"), (), ())
    if best is not None and not files.history:  # The run folder is on another machine; the database has the curve.
        files = replace(files, history=tuple({"epoch": epoch, data.metric: value} for epoch, value in best.curve))
    fresh: Confirmation | None = overview.get("confirmation")
    values: dict[int, float] = {}
    if fresh is not None and fresh.best is not None:
        values = dict(zip(fresh.best.seeds, fresh.best.values, strict=False))
    elif best is not None and best.value is not None and isinstance(best.attributes.get("seed"), int):
        values = {best.attributes["seed"]: best.value}
    where = {} if best is None else {"study": data.name, "trial": best.number, "definition_digest": data.digest}
    last = next(iter(files.history[-1:]), {})
    summary = RunSummary(
        name=data.name,
        kind="study",
        value=None if best is None else best.value,
        estimated=data.estimated,
        late=last.get("val_psnr_late"),
        epoch=None,
        files=files,
        values=values,
        settings=dict(data.run.settings),
        data=data.data_digest or "",
        levels=data.levels,
        facts=where,
        measure=estimator(definition).removesuffix(", one run"),
    )
    return summary, _search(data.name, data.known)


def _search(name: str, known: Sequence[TrialFacts]) -> Search:
    over = [trial for trial in known if trial.state in ("complete", "pruned", "failed")]
    over.sort(key=lambda trial: (trial.finished is None, trial.finished, trial.number))
    seconds = [trial.seconds for trial in over if trial.seconds is not None]
    hours = tuple(total / 3600 for total in accumulate(seconds)) if len(seconds) == len(over) else ()
    best = np.fmax.accumulate([math.nan if trial.value is None else trial.value for trial in over])
    return Search(name, tuple(accumulate(trial.epochs for trial in over)), hours, tuple(best.tolist()))

"""The trials of a study as plain runs: settings, curve over epochs, state, value and provenance.

Other programs keep runs in this form. `trackers` writes the runs into the formats of such programs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cvaeopt import __version__
from cvaeopt.outcome.run_files import RunFiles
from cvaeopt.outcome.trials import TrialFacts, facts, settings_of
from cvaeopt.search.definition import Definition
from cvaeopt.store.damage import named
from cvaeopt.store.identity import of
from cvaeopt.store.status import without_worker
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing
from cvaeopt.text import State

ELAPSED: Final = "elapsed_s"
"""The column with the training time from the first epoch to the end of this epoch, seconds."""

_FACTS: Final = (
    "reason",
    "failed",
    "host",
    "device",
    "worker",
    "attempt",
    "settings_digest",
    "data_digest",
    "versions",
)


@dataclass(frozen=True)
class StudyRun:
    """One trial that has trained, or has ended.

    name       the trial's number with five digits, as in the name of its run folder
    value      the value of a complete trial, dB; None for any other trial
    settings   the complete settings; if they do not fit the study's definition, only those that the trial searched
    rows       one row for each epoch, in order: the columns of history.jsonl and ELAPSED. If the history is not on this
               machine, a row has only the epoch and the value that the database stores.
    facts      state, value, number of epochs, times, and the provenance, without a password
    is_partial whether the history of some epochs is not on this machine
    """

    number: int
    state: State
    value: float | None
    settings: dict[str, Any]
    rows: tuple[dict[str, float], ...]
    facts: dict[str, Any]
    started: datetime | None
    ended: datetime | None
    is_partial: bool

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study, sorted by number, and the provenance of the study."""

    study: str
    metric: str
    facts: dict[str, Any]
    runs: tuple[StudyRun, ...]

    @property
    def epochs(self) -> int:
        """The number of rows of all runs."""
        return sum(len(run.rows) for run in self.runs)

    @property
    def partial(self) -> list[int]:
        """The numbers of the runs of which some history is not on this machine."""
        return [run.number for run in self.runs if run.is_partial]


@named
def study_runs(storage: Storage, name: str, artifacts: Path) -> StudyRuns:
    """The runs of study `name`; StudyError for an unknown study. Trials that have not begun are left out.

    artifacts   folder of the studies' run folders, where the histories are read
    """
    study, definition = open_existing(storage, name)
    identity = of(study)
    folder = identity.find(artifacts)
    trials = study.get_trials(deepcopy=False)
    began = {trial.number: trial.datetime_start for trial in trials}
    known = [trial for trial in facts(trials, without_worker(storage, name)) if trial.state != "waiting" or trial.curve]
    shared = {
        "study": name,
        "identity": identity.value or None,
        "definition_digest": definition.digest(),
        "storage": storage.url,
        "exported_with": f"cvaeopt {__version__}",
    }
    runs = [_run(definition, trial, began[trial.number], RunFiles.read(folder, trial.number)) for trial in known]
    for texts in (texts for run in runs for texts in (run.facts, run.settings)):  # other programs may have written them
        texts |= {key: storage.scrub(value) for key, value in texts.items() if isinstance(value, str)}
    return StudyRuns(name, definition.metric, {**shared, "metric": definition.metric}, tuple(runs))


def _run(definition: Definition, trial: TrialFacts, started: datetime | None, files: RunFiles) -> StudyRun:
    stated = {key: trial.attributes[key] for key in _FACTS if trial.attributes.get(key) not in (None, "")}
    versions = stated.pop("versions", {})
    if isinstance(versions, Mapping):
        stated |= {f"version_{program}": str(version) for program, version in versions.items()}
    config = settings_of(trial, definition)
    rows = _rows(trial.curve, files.history, definition.metric)
    return StudyRun(
        number=trial.number,
        state=trial.state,
        value=trial.value,
        settings=dict(trial.params) if config is None else config.plain(),
        rows=rows,
        facts={
            "trial": trial.number,
            "state": trial.state,
            "value": trial.value,
            "epochs": trial.epochs,
            "seconds": trial.seconds,
            "started": None if started is None else started.isoformat(),
            "ended": None if trial.finished is None else trial.finished.isoformat(),
            **{key: value if isinstance(value, int | float) else str(value) for key, value in stated.items()},
        },
        started=started,
        ended=trial.finished,
        is_partial=trial.epochs > sum("train_loss" in row for row in rows),
    )


def _rows(
    curve: Sequence[tuple[int, float]], history: Sequence[Mapping[str, Any]], metric: str
) -> tuple[dict[str, float], ...]:
    """The rows of a run's epochs from the database's `curve` and the run folder's `history`.

    ELAPSED is missing from the first epoch whose time is not known.
    """
    found: dict[int, dict[str, float]] = {epoch: {"epoch": epoch, metric: value} for epoch, value in curve}
    for row in history:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
        if "epoch" in numbers:
            epoch = int(numbers["epoch"])
            found[epoch] = {**found.get(epoch, {}), **numbers, "epoch": epoch}
    rows = [found[epoch] for epoch in sorted(found)]
    timed = list(itertools.takewhile(lambda row: "seconds" in row, rows))
    for row, elapsed in zip(timed, itertools.accumulate(row["seconds"] for row in timed), strict=True):
        row[ELAPSED] = round(elapsed, 3)
    return tuple(rows)

"""The facts and the charts of a study for a report that is handed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scipy.special import ndtri

from cvaeopt.outcome import settings_charts, study_charts
from cvaeopt.outcome.claims import assess
from cvaeopt.outcome.comparison_charts import lines_per_frame
from cvaeopt.outcome.export import NOISE_DB
from cvaeopt.outcome.importance import MIN_CERTAINTY, Importance, importances
from cvaeopt.outcome.intervals import CONFIDENCE
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.outcome.report_data import ReportData, report_data
from cvaeopt.store.damage import named
from cvaeopt.store.identity import of
from cvaeopt.store.status import status, without_worker
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing

_ARM = ("label", "number", "value", "best", "late", "loss", "mse", "swing")


@dataclass(frozen=True)
class StudyPart:
    """The facts of a study as JSON values, and functions that draw its charts, by name of the file."""

    facts: dict[str, Any]
    charts: dict[str, Callable[[], bytes]]


@named
def study_part(storage: Storage, name: str, artifacts: Path, now: datetime) -> StudyPart:
    """The facts and charts of the study `name` as it is now; it may still run. StudyError for an unknown study.

    artifacts   folder of the studies' run folders
    """
    study, definition = open_existing(storage, name)
    fresh = confirmation(storage, name)
    overview = status(storage, name)
    more = {"left": without_worker(storage, name), "confirmation": fresh, "identity": of(study)}
    trials = study.get_trials(deepcopy=False)
    data = report_data(definition, trials, {**overview, **more}, artifacts=artifacts, now=now)
    shares = importances(definition, trials)
    tested = assess(storage, name)
    counts, best = data.counts, data.best
    ended = counts["complete"] + counts["pruned"] + counts["failed"]
    wanted = overview["budget"]["trials"]
    is_open = counts["running"] + counts["waiting"] > 0 or (ended < (wanted or 0) and not overview["stopped"])
    near = [
        trial.number
        for trial in data.known
        if best is not None and None not in (trial.value, best.value) and trial.number != best.number
        if (best.value or 0.0) - (trial.value or 0.0) <= NOISE_DB
    ]
    facts: dict[str, Any] = {
        "name": name,
        "metric": definition.metric,
        "epochs_a_trial": definition.budget.epochs,
        "trials": len(data.known),
        **counts,
        "epochs_spent": data.epochs_spent,
        "not_ended": counts["running"] + counts["waiting"],
        "is_open": is_open,
        "best": None if best is None else {"trial": best.number, "value": best.value, "estimated": data.estimated},
        "noise_db": NOISE_DB,
        "within_noise": len(near),
        "confirmation": None if fresh is None else {**fresh.plain(), "over": fresh.over},
        "importance": [_importance(one) for one in shares],
        "claims": None if tested is None else tested.plain(),
        "varied": list(data.compared.varied),
        "arms": [{key: getattr(one, key) for key in _ARM} for one in data.compared.variants],
        "definition_digest": data.digest,
    }
    return StudyPart(facts, _charts(data, shares))


def _importance(one: Importance) -> dict[str, Any]:
    """The setting's share, and the largest difference of its effect with the judgement whether noise explains it.

    The difference is the largest one of all pairs of values, so its error rate is divided by the number of pairs. The
    two standard errors are added as if they were independent, which makes the judgement careful.
    """
    high, low = int(one.effect.argmax()), int(one.effect.argmin())
    difference = float(one.effect[high] - one.effect[low])
    error = math.hypot(float(one.error[high]), float(one.error[low]))
    pairs = max(1, math.comb(len(one.values), 2))
    return {
        "name": one.name,
        "share": round(one.share, 4),
        "low": round(one.low, 4),
        "high": round(one.high, 4),
        "certainty": round(one.certainty, 4),
        "certain": one.certainty >= MIN_CERTAINTY,
        "best_at": one.values[high],
        "worst_at": one.values[low],
        "difference_db": round(difference, 4),
        "error_db": round(error, 4),
        "within_noise": difference <= float(ndtri(1 - (1 - CONFIDENCE) / 2 / pairs)) * error,
    }


def _charts(data: ReportData, shares: Sequence[Importance]) -> dict[str, Callable[[], bytes]]:
    complete = sum(trial.value is not None for trial in data.known)
    charts: dict[str, Callable[[], bytes]] = {
        "search": lambda: study_charts.history(data.known, data.levels, data.metric)
    }
    if shares:
        charts["importance"] = lambda: settings_charts.importance(shares, complete)
    runs = {one.label: one.files.history for one in data.compared.variants if one.files.history}
    if runs:
        charts["arms_loss"] = lambda: study_charts.ablation(runs, "train_loss", what="Training loss", unit="")
        charts["arms_psnr"] = lambda: study_charts.ablation(runs, "val_psnr", what="Validation PSNR", unit="dB")
    frames = {one.label: one.files.psnr for one in data.compared.variants if one.files.psnr}
    if frames:
        charts["arms_frames"] = lambda: lines_per_frame(frames, data.levels)
    return charts

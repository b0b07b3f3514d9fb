"""The facts of a report about a study, as typed values. This module draws no picture and writes no HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from optuna.trial import FrozenTrial

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.outcome.ablation import Ablation, ablation
from cvaeopt.outcome.claims import Tested
from cvaeopt.outcome.export import beaten_baselines, estimator, fresh_estimator
from cvaeopt.outcome.leaders import Confirmation, table
from cvaeopt.outcome.report_text import duration, fresh_text, marks, spread, tally, verdict
from cvaeopt.outcome.run_files import RunFiles
from cvaeopt.outcome.run_summary import RunSummary, retrained
from cvaeopt.outcome.trials import Axis, TrialFacts, axes, best_of, facts, settings_of
from cvaeopt.search.definition import Definition
from cvaeopt.store.identity import Identity
from cvaeopt.text import BASELINES_LONG, version_text

MAX_ROWS: Final = 200
MAX_FAILURES: Final = 50
_MAX_NUMBERS: Final = 12
STATES: Final = ("complete", "pruned", "failed", "running", "waiting", "history")


@dataclass(frozen=True)
class Against:
    """A comparison of the best value with one baseline.

    value   PSNR of the baseline, dB
    gain    the best value minus `value`, dB; None if no trial is complete
    """

    name: str
    value: float
    gain: float | None


@dataclass(frozen=True)
class Fresh:
    """The leaders that were trained again: the rows of their table, and a text that explains the table."""

    rows: list[dict[str, str]]
    text: str


@dataclass(frozen=True)
class GoodTrials:
    """The settings of the good trials, which are the best `count` of `total` complete trials.

    rows   (setting, its values in the good trials, its values in all trials); the values are text
    """

    count: int
    total: int
    rows: list[tuple[str, str, str]]


@dataclass(frozen=True)
class BestRun:
    """The best trial's files, host and settings, and the turning points of its schedules.

    files   None if no trial is complete
    host    the machine that finished the trial; '' if it is not known
    marks   (name of the turning point, its time as text)
    """

    files: RunFiles | None
    host: str
    settings: list[tuple[str, Any]]
    marks: list[tuple[str, str]]


@dataclass(frozen=True)
class FailureKind:
    """Trials that failed for the same reason.

    count     number of these trials
    epochs    epochs trained by these trials
    numbers   the numbers of the first of these trials, as text
    """

    reason: str
    count: int
    epochs: int
    numbers: str


@dataclass(frozen=True)
class ReportData:
    """All facts on the page of a report.

    metric         the name of the value, such as val_psnr
    versions       the versions of the definition as text, oldest first
    estimated      a description of how the best value was estimated
    verdict        a sentence with the result of the study
    lost           True if the best trial does not beat every baseline
    claims         the claims about the arms of a grid with their tests; None without claims
    best           the recommended trial: fresh runs decide if they are over, otherwise the values of the search
    searched_best  the trial with the highest value of the search
    levels         PSNR of each baseline, dB
    counts         number of trials in each state
    spent          epochs trained by the trials in each state
    epochs_saved   epochs that were not trained because of pruning
    seconds        training time of all trials that recorded their time; None if no trial did
    known          all trials, sorted by number
    rows           the trials of the table, best first, at most MAX_ROWS
    axes           the searched settings that vary
    all_axes       all searched settings
    good_numbers   the numbers of the good trials, best first
    configs        number of the trial -> its complete settings, for trials whose settings fit the definition
    retrained      the best run of the study's recipe that `retrain` made beside the artifacts; None without such a run
    failures       the reasons of failed trials, the most frequent first, at most MAX_FAILURES
    failure_kinds  number of different reasons, without a limit
    """

    name: str
    description: str
    metric: str
    estimated: str
    date: str
    version: str
    storage: str
    stopped: str | None
    digest: str
    versions: list[str]
    data_digest: str | None
    verdict: str
    fresh: Fresh | None
    claims: Tested | None
    lost: bool
    best: TrialFacts | None
    searched_best: TrialFacts | None
    levels: dict[str, float]
    baselines: list[Against]
    counts: dict[str, int]
    budget: dict[str, Any]
    spent: dict[str, int]
    epochs_saved: int
    seconds: float | None
    known: list[TrialFacts]
    rows: list[TrialFacts]
    axes: list[Axis]
    all_axes: list[Axis]
    good: GoodTrials | None
    good_numbers: list[int]
    configs: dict[int, Config]
    run: BestRun
    retrained: RunSummary | None
    compared: Ablation
    failures: list[FailureKind]
    failure_kinds: int

    @property
    def epochs_spent(self) -> int:
        """The number of epochs that all trials trained."""
        return sum(self.spent.values())

    @property
    def device_time(self) -> str | None:
        """The training time as text with its unit; None if it was not recorded."""
        return duration(self.seconds)

    @property
    def time_saved(self) -> str | None:
        """The estimated time that pruning saved, as text; None if nothing was saved or no time was recorded.

        The estimate assumes that an epoch that was not trained takes as long as the mean trained epoch.
        """
        if not self.seconds or not self.epochs_saved:
            return None
        return duration(self.seconds * self.epochs_saved / self.epochs_spent)

    @property
    def columns(self) -> list[str]:
        """The settings that have a column in the table of trials."""
        return [axis.name for axis in self.axes]


def report_data(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    *,
    artifacts: Path,
    now: datetime,
) -> ReportData:
    """The facts of a report.

    overview    the result of `status`, with four optional keys:
                "left"           the numbers of the trials that wait for a worker
                "confirmation"   the result of `confirmation`; "claims": the result of `assess`
                "identity"       the study's identity; default: none, with files in `artifacts/NAME`
    artifacts   folder of the studies' run folders
    """
    known = facts(trials, overview.get("left", ()))
    failures, good, fresh = _failures(known), _good(known), overview.get("confirmation")
    best, estimated = _recommended(definition, known, fresh)
    searched = _ordered(axes(trials), definition)
    folder = (overview.get("identity") or Identity(definition.name)).find(artifacts)
    levels = {name: level for name, level in overview["baselines"].items() if level is not None}
    return ReportData(
        name=definition.name,
        description=definition.description,
        metric=definition.metric,
        estimated=estimated,
        date=now.isoformat(sep=" ", timespec="minutes"),
        version=__version__,
        storage=overview["storage"],
        stopped=overview.get("stopped"),
        digest=definition.digest(),
        versions=[version_text(one) for one in overview.get("versions", [])],
        data_digest=best.attributes.get("data_digest") if best else None,
        verdict=verdict(best, levels),
        fresh=None if fresh is None else Fresh(table(fresh), fresh_text(fresh)),
        claims=overview.get("claims"),
        lost=bool(best and best.value is not None and beaten_baselines(best.value, levels)),
        best=best,
        searched_best=best_of(known),
        levels=levels,
        baselines=_against(best, levels),
        counts={state: sum(t.state == state for t in known) for state in STATES},
        budget=definition.budget.model_dump(exclude_none=True),
        spent={state: sum(t.epochs for t in known if t.state == state) for state in STATES},
        epochs_saved=sum(max(0, definition.budget.epochs - t.epochs) for t in known if t.state == "pruned"),
        seconds=_seconds(known),
        known=known,
        rows=sorted(known, key=_rank)[:MAX_ROWS],
        axes=searched,
        all_axes=_ordered(axes(trials, constant=True), definition),
        good=_good_trials(good, known, searched),
        good_numbers=[trial.number for trial in good],
        configs={one.number: config for one in known if one.params and (config := settings_of(one, definition))},
        run=_best_run(definition, best, folder),
        retrained=retrained(artifacts, definition.name),
        compared=ablation(definition, known, folder),
        failures=failures[:MAX_FAILURES],
        failure_kinds=len(failures),
    )


def _recommended(
    definition: Definition, known: Sequence[TrialFacts], fresh: Confirmation | None
) -> tuple[TrialFacts | None, str]:
    """The recommended trial, and a description of how its value was estimated. `export-best` decides in the same way.

    The first rank in the search is partly luck. So if all fresh runs are over, only they count.
    """
    if fresh is None or not fresh.over or fresh.best is None:
        return best_of(known), estimator(definition)
    chosen = next(trial for trial in known if trial.number == fresh.best.leader.trials[0])
    runs = len(fresh.best.values)
    return replace(chosen, value=fresh.best.estimate), fresh_estimator(runs)


def _seconds(known: Sequence[TrialFacts]) -> float | None:
    recorded = [trial.seconds for trial in known if trial.seconds is not None]
    return sum(recorded) if recorded else None


def _best_run(definition: Definition, best: TrialFacts | None, folder: Path) -> BestRun:
    if best is None:
        return BestRun(None, "", [], [])
    files = RunFiles.read(folder, best.number)
    host = str(best.attributes.get("host") or "")
    if (config := settings_of(best, definition)) is None:
        return BestRun(files, host, list(best.params.items()), [])
    return BestRun(files, host, list(config.plain().items()), marks(config))


def _failures(known: Sequence[TrialFacts]) -> list[FailureKind]:
    """The failed trials, grouped by reason, with the most frequent reason first."""
    by_reason: dict[str, list[TrialFacts]] = {}
    for trial in known:
        if trial.state == "failed":
            by_reason.setdefault(trial.reason, []).append(trial)
    return [
        FailureKind(
            reason=reason,
            count=len(trials),
            epochs=sum(trial.epochs for trial in trials),
            numbers=", ".join(str(trial.number) for trial in trials[:_MAX_NUMBERS])
            + (" ..." if len(trials) > _MAX_NUMBERS else ""),
        )
        for reason, trials in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1][0].number))
    ]


def _good(known: Sequence[TrialFacts]) -> list[TrialFacts]:
    """The best fifth of the complete trials, but at least three, best first; empty for fewer than five."""
    complete = sorted((t for t in known if t.value is not None), key=lambda t: (-(t.value or 0.0), t.number))
    return complete[: max(3, math.ceil(len(complete) / 5))] if len(complete) >= 5 else []


def _good_trials(
    good: Sequence[TrialFacts], known: Sequence[TrialFacts], searched: Sequence[Axis]
) -> GoodTrials | None:
    if not good:
        return None
    rows = []
    for axis in searched:
        here = [trial.params[axis.name] for trial in good if axis.name in trial.params]
        every = [trial.params[axis.name] for trial in known if axis.name in trial.params]
        if axis.kind == "categorical":
            rows.append((axis.name, tally(here, axis), tally(every, axis)))
        else:
            rows.append((axis.name, spread(here), spread(every)))
    return GoodTrials(len(good), sum(trial.value is not None for trial in known), rows)


def _against(best: TrialFacts | None, baselines: Mapping[str, float]) -> list[Against]:
    reached = None if best is None else best.value
    return [
        Against(BASELINES_LONG.get(name, name), level, None if reached is None else reached - level)
        for name, level in baselines.items()
    ]


def _rank(trial: TrialFacts) -> tuple[int, float, int]:
    """The sort key of the table: the state, then the value or last reported value, then the trial's number.

    Complete trials come first. A higher value comes before a lower value.
    """
    level = trial.level
    return (STATES.index(trial.state), -level if level is not None else math.inf, trial.number)


def _ordered(found: Sequence[Axis], definition: Definition) -> list[Axis]:
    """The settings in the order in which the definition lists them."""
    place = {name: index for index, name in enumerate(definition.search)}
    return sorted(found, key=lambda axis: place.get(axis.name, len(place)))

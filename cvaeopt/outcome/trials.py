"""The facts about trials that charts and pages need. They are read once from Optuna's trials."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import params_to_config
from cvaeopt.store.ranking import is_feasible, place, value_of
from cvaeopt.store.roles import HISTORY
from cvaeopt.text import STATES, State

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialFacts:
    """The facts about one trial.

    value       the value of a complete trial, dB; None for any other trial
    curve       (epochs finished, reported value in dB) of every finite report, in order of epochs
    epochs      number of epochs trained
    seconds     training time; None if it was not recorded
    reason      the reason why the trial ended, or why it is history; '' if it was not recorded; untrusted text from the
                database
    finished    time when the trial ended; None if it has not ended
    attributes  the user attributes of Optuna's trial
    """

    number: int
    state: State
    value: float | None
    params: dict[str, Any]
    curve: tuple[tuple[int, float], ...]
    epochs: int
    seconds: float | None
    reason: str
    finished: datetime | None
    attributes: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def level(self) -> float | None:
        """The value. For a trial without a value, the last reported value; None if there is no report."""
        if self.value is not None:
            return self.value
        return self.curve[-1][1] if self.curve else None


@dataclass(frozen=True)
class Axis:
    """The axis of a searched setting in a chart.

    kind      linear or log for a numeric setting, categorical for a setting with choices
    choices   the choices of a categorical setting in the order of its definition; empty for a numeric setting
    """

    name: str
    kind: Literal["linear", "log", "categorical"]
    choices: tuple[Any, ...] = ()


def facts(trials: Iterable[FrozenTrial], left: Collection[int] = ()) -> list[TrialFacts]:
    """The facts about every trial, sorted by number.

    left   numbers of the trials that have begun and have no worker now. Their state is "waiting", although Optuna's
           state is "running".
    """
    return sorted((_facts(trial, trial.number in left) for trial in trials), key=lambda trial: trial.number)


def axes(trials: Sequence[FrozenTrial], *, constant: bool = False) -> list[Axis]:
    """The axes of all settings that the trials searched, in the order in which the settings appear in the trials.

    constant   whether settings that have the same value in all trials are included
    """
    from optuna.distributions import CategoricalDistribution

    found: dict[str, Axis] = {}
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            values.setdefault(name, set()).add(repr(trial.params[name]))
            if name not in found:
                if isinstance(distribution, CategoricalDistribution):
                    found[name] = Axis(name, "categorical", tuple(distribution.choices))
                else:
                    found[name] = Axis(name, "log" if getattr(distribution, "log", False) else "linear")
    return [axis for name, axis in found.items() if constant or len(values[name]) > 1]


def best_of(trials: Iterable[TrialFacts]) -> TrialFacts | None:
    """The trial with the highest value; the lowest number among equals; None if no trial has a value."""
    complete = [trial for trial in trials if trial.value is not None]
    return min(complete, key=lambda trial: place(trial.value or 0.0, trial.number), default=None)


def settings_of(trial: TrialFacts, definition: Definition) -> Config | None:
    """The complete settings of a trial; None if the trial comes from another version of the definition."""
    try:
        return params_to_config(definition, trial.params, trial.number, trial.attributes.get("seed"))
    except SettingsError:
        return None


def _facts(trial: FrozenTrial, left: bool) -> TrialFacts:
    attributes = trial.user_attrs
    # Optuna stores a diverged trial as pruned, so that samplers learn from it. Users see it as failed.
    bad = attributes.get("failed") or not is_feasible(trial.constraints)
    history = attributes.get(HISTORY)
    state: State = "history" if history else "failed" if bad else STATES[trial.state.name]
    if left and state == "running":
        state = "waiting"
    curve = tuple((step, level) for step, level in sorted(trial.intermediate_values.items()) if math.isfinite(level))
    seconds = attributes.get("seconds")
    return TrialFacts(
        number=trial.number,
        state=state,
        value=value_of(trial) if state == "complete" else None,
        params=dict(trial.params),
        curve=curve,
        # `status` counts in the same way: every reported epoch was spent, even if a crash made its training repeat.
        epochs=max(trial.intermediate_values, default=int(attributes.get("epochs_done") or 0)),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        reason=str((history or attributes).get("reason") or ""),
        finished=trial.datetime_complete,
        attributes=dict(attributes),
    )

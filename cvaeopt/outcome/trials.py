"""What charts and pages need to know of a trial, read from Optuna's trials once."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from cvaeopt.store.ranking import is_feasible, place, value_of
from cvaeopt.text import STATES, State

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


@dataclass(frozen=True)
class TrialFacts:
    """One trial.

    value      of a complete trial, dB; None otherwise
    curve      (epochs finished, reported value) of every report that is finite, in order
    epochs     epochs trained
    seconds    training time; None if it was not recorded
    reason     why it ended, in words ('' if it was not recorded): untrusted text
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
        """The value, or the last report of a trial that has none."""
        if self.value is not None:
            return self.value
        return self.curve[-1][1] if self.curve else None


@dataclass(frozen=True)
class Axis:
    """How a searched parameter is drawn.

    kind       log and linear are numbers; categorical lists its choices in order
    """

    name: str
    kind: Literal["linear", "log", "categorical"]
    choices: tuple[Any, ...] = ()


def facts(trials: Iterable[FrozenTrial], left: Collection[int] = ()) -> list[TrialFacts]:
    """The facts of every trial, by number.

    left   numbers of trials that were begun and have no worker now: they wait for one, whatever Optuna says
    """
    return sorted((_facts(trial, trial.number in left) for trial in trials), key=lambda trial: trial.number)


def axes(trials: Sequence[FrozenTrial], *, constant: bool = False) -> list[Axis]:
    """The searched parameters of all trials, in order of appearance; those that never vary only with `constant`."""
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
    """The complete trial with the highest value (the first of equals), or None."""
    complete = [trial for trial in trials if trial.value is not None]
    return min(complete, key=lambda trial: place(trial.value or 0.0, trial.number), default=None)


def _facts(trial: FrozenTrial, left: bool) -> TrialFacts:
    attributes = trial.user_attrs
    # A diverged trial is told to Optuna as pruned, so that samplers learn from it; for people it failed.
    bad = attributes.get("failed") or not is_feasible(trial.constraints)
    state: State = "failed" if bad else STATES[trial.state.name]
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
        # As `status` counts: an epoch that was reported was spent, also one that is trained again after a crash.
        epochs=max(trial.intermediate_values, default=int(attributes.get("epochs_done") or 0)),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        reason=str(attributes.get("reason") or ""),
        finished=trial.datetime_complete,
        attributes=dict(attributes),
    )

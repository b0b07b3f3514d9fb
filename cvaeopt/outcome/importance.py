"""How much each searched setting mattered, and how sure that is."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from optuna.trial import FrozenTrial

FEWEST_TRIALS: Final = 10
_MOST_TRIALS: Final = 400  # of a resample: the interval is wide anyway, and a page is made in seconds


class _Light(FrozenTrial):
    """A complete trial without curve and attributes, whose copies share its settings.

    A study copies the trials it is given, deeply: for thousands of them in two dozen resamples that is most of the
    time that a report takes.
    """

    @classmethod
    def of(cls, trial: FrozenTrial) -> Self:
        return cls(
            number=trial.number,
            trial_id=trial.number,
            state=trial.state,
            value=trial.value,
            datetime_start=trial.datetime_start,
            datetime_complete=trial.datetime_complete,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return copy.copy(self)


@dataclass(frozen=True)
class Importance:
    """Share of one setting, 0..1, with the 10 % and 90 % quantiles over resampled trials."""

    name: str
    share: float
    low: float
    high: float


def importances(trials: Sequence[FrozenTrial], *, resamples: int = 24, seed: int = 0) -> list[Importance]:
    """Importance of every setting that all complete trials share, largest first; empty below ten such trials.

    PED-ANOVA (Optuna's evaluator): how differently the good trials are spread over a setting's range than all of
    them. Its interval comes from repeating it on trials drawn with replacement.
    """
    from optuna.trial import TrialState

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE and not trial.user_attrs.get("failed")]
    if len(complete) < FEWEST_TRIALS:
        return []
    complete = [_Light.of(trial) for trial in complete]
    shares = _evaluate(complete)
    if not shares:
        return []
    draw = np.random.default_rng(seed)
    repeated: dict[str, list[float]] = {name: [] for name in shares}
    for _ in range(resamples):
        chosen = draw.integers(0, len(complete), min(len(complete), _MOST_TRIALS))
        for name, share in _evaluate([complete[index] for index in chosen]).items():
            if name in repeated:
                repeated[name].append(share)
    result = []
    for name, share in shares.items():
        low, high = np.quantile(repeated[name], (0.1, 0.9)) if repeated[name] else (0.0, 1.0)
        result.append(Importance(name, share, min(float(low), share), max(float(high), share)))
    return sorted(result, key=lambda item: -item.share)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No line per resampled study in the user's terminal; Optuna's verbosity is what it was afterwards."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _evaluate(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Normalised shares by name; empty where the values do not differ enough to tell."""
    import optuna

    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # about settings that hardly vary in this resample
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
        study.add_trials(trials)
        try:
            shares = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        except (ValueError, RuntimeError):  # fewer distinct values than the evaluator needs
            return {}
    return {name: float(share) for name, share in shares.items() if np.isfinite(share)}

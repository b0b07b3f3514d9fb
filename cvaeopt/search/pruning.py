"""A pruner that stops only what it can foretell: Optuna's interface, our estimator.

    study = optuna.create_study(direction="maximize", pruner=ForecastPruner(window=5, warmup_epochs=40))

At a rung the pruner forecasts where the trial would end. It learns how from the study's complete trials: how much they
still gained between that epoch and their end, as a linear function of where they stood and how fast they climbed. The
scatter about that function, and the distance of the trial from those it was learned from, widen the forecast; so where
early epochs say little about late ones, nothing is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.config import Config
from cvaeopt.search.estimate import curve_until, line
from cvaeopt.vae.schedules import beta_at, tfr_at

_COEFFICIENTS = 3  # level, standing and climbing
_LEAST_FREEDOM = 4  # below, the scatter of the forecast is itself guesswork


class ForecastPruner(BasePruner):
    """Stops a trial whose forecast end would not reach the leaders'.

    window             epochs over which standing and end are averaged, as in `estimate`
    warmup_epochs      no trial is pruned before this epoch
    interval_epochs    epochs between two decisions
    n_startup_trials   complete trials from which the forecast is learned; at least 7
    keep               share of the complete trials that a trial must be able to join to go on, in (0, 1]
    confidence         how sure the forecast must be that it cannot, in [0.5, 1)
    shows_at           epoch from which a trial's own settings have shown themselves; the later one counts
    """

    def __init__(
        self,
        *,
        window: int = 1,
        warmup_epochs: int = 1,
        interval_epochs: int = 1,
        n_startup_trials: int = 8,
        keep: float = 0.25,
        confidence: float = 0.9,
        shows_at: Callable[[FrozenTrial], int] = lambda trial: 0,
    ) -> None:
        if n_startup_trials < _COEFFICIENTS + _LEAST_FREEDOM:
            raise ValueError(
                f"n_startup_trials = {n_startup_trials}: at least {_COEFFICIENTS + _LEAST_FREEDOM} are needed"
            )
        if not 0 < keep <= 1 or not 0.5 <= confidence < 1:
            raise ValueError(f"keep = {keep}, confidence = {confidence}: expected (0, 1] and [0.5, 1)")
        self._window = window
        self._warmup_epochs = max(warmup_epochs, 1)
        self._interval_epochs = interval_epochs
        self._n_startup_trials = n_startup_trials
        self._keep = keep
        self._confidence = confidence
        self._shows_at = shows_at
        self._known: dict[tuple[str, int, int], tuple[float, float] | None] = {}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop at its last reported epoch."""
        epoch = trial.last_step
        if epoch is None or not self._is_rung(epoch) or epoch < self._shows_at(trial):
            return False
        own = self._standing(trial, epoch)
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        seen = []
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            last = other.last_step
            if last is None or last <= epoch or other.number == trial.number:
                continue
            standing, end = self._past(study, other, epoch), self._past(study, other, last)
            if standing is not None and end is not None:
                seen.append((*standing, end[0]))
        if own is None or len(seen) < self._n_startup_trials:
            return False
        known = sign * np.array(seen)
        ends = np.sort(known[:, 2])[::-1]
        target = float(ends[math.ceil(self._keep * len(ends)) - 1])
        forecast, error = gain_forecast(known[:, :2], known[:, 2] - known[:, 0], sign * np.array(own))
        reach = _student(self._confidence, len(seen) - _COEFFICIENTS) * error
        return bool(sign * own[0] + forecast + reach < target)

    def _is_rung(self, epoch: int) -> bool:
        return epoch >= self._warmup_epochs and (epoch - self._warmup_epochs) % self._interval_epochs == 0

    def _past(self, study: Study, trial: FrozenTrial, epoch: int) -> tuple[float, float] | None:
        """`_standing` of a complete trial, computed once."""
        key = (study.study_name, trial.number, epoch)
        if key not in self._known:
            self._known[key] = self._standing(trial, epoch)
        return self._known[key]

    def _standing(self, trial: FrozenTrial, epoch: int) -> tuple[float, float] | None:
        """Mean over the window before `epoch` and slope over the last half of the epochs; None without values."""
        curve = curve_until(trial.intermediate_values, epoch)
        if not curve:
            return None
        recent = curve[-self._window :]
        return math.fsum(recent) / len(recent), line(curve[-max(self._window, len(curve) // 2) :])[1]


def shows_at(config: Config) -> int:
    """Epochs after which the schedules of these settings have shown themselves; 0 where there are none.

    Teacher forcing: one epoch was trained after the ratio began to fall; a ratio that never falls hides nothing.
    KL: one epoch was trained with the weight at the top of its first cycle, or of its ramp.
    """
    ratios = [tfr_at(config, epoch) for epoch in range(config.num_epoch)]
    betas = [beta_at(config, epoch) for epoch in range(config.num_epoch)]
    falls = next((epoch for epoch, ratio in enumerate(ratios) if ratio < ratios[0]), None)
    top = next(
        (
            epoch
            for epoch, beta in enumerate(betas)
            if beta == max(betas) or beta > betas[min(epoch + 1, len(betas) - 1)]
        )
    )
    return max(0 if falls is None else falls + 1, 0 if betas[0] == max(betas) else top + 1)


def gain_forecast(
    standings: np.ndarray, gains: np.ndarray, own: np.ndarray, ridge: float = 1e-3
) -> tuple[float, float]:
    """The gain to expect of a trial that stands at `own`, and the standard deviation of that forecast.

    standings   (n, 2) level and slope of the trials that are known to their end
    gains       (n,) what each still gained
    ridge       weight of the assumption that standing does not matter, in trials; it only settles what the known
                trials leave open, when all of them stand alike
    """
    centre, scale = standings.mean(0), standings.std(0) + 1e-9
    design = np.column_stack([np.ones(len(gains)), (standings - centre) / scale])
    normal = design.T @ design + ridge * np.diag([0.0, 1.0, 1.0])
    coefficients = np.linalg.solve(normal, design.T @ gains)
    residuals = gains - design @ coefficients
    variance = float(residuals @ residuals) / (len(gains) - _COEFFICIENTS)
    here = np.concatenate([[1.0], (own - centre) / scale])
    leverage = float(here @ np.linalg.solve(normal, here))
    return float(here @ coefficients), math.sqrt(variance * (1 + leverage))


def _student(probability: float, freedom: int) -> float:
    """Quantile of Student's t, by the expansion of Hill (1970) to the third order; within 2 % from 4 degrees on."""
    z = NormalDist().inv_cdf(probability)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3

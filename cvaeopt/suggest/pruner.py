"""A pruner that uses forecasts: Optuna's interface, our estimator.

    study = optuna.create_study(direction="maximize", pruner=ForecastPruner(window=5, warmup_epochs=40))

At certain epochs the pruner forecasts the value at which the trial would end (`suggest.forecast`). It stops the trial
if a new trial is more likely to become the leader. That second probability is estimated from the study's last trials
without the leader. The leader's own value counts with its standard error too, because the best of many values is
usually also a lucky one. Where early epochs tell little about late ones, forecasts have large errors, and nothing is
stopped. Some trials always run to their end, so that forecasts can be found wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.config import Config
from cvaeopt.suggest.forecast import Forecast, Forecaster, diverged
from cvaeopt.vae.schedules import beta_at, tfr_at

MAX_RECENT = 10  # ended trials that a new one is taken to be like; not all, because suggestions become better
MIN_COMPLETE_FRACTION = 0.2  # of the ended trials; below it the next trial runs to its end whatever its forecast


class ForecastPruner(BasePruner):
    """Stops a trial that is less likely to become the leader than a new trial is; for studies that maximise.

    window             epochs over which standing and end are averaged, as in `estimate`
    warmup_epochs      no trial is pruned before this epoch
    interval_epochs    epochs between two decisions
    n_startup_trials   complete trials from which the forecast is learned; at least 2
    keep               share of the complete trials that count as leaders, in [0, 1]; 0: the best one alone
    odds               stops a trial that is less than so many times as likely to join them as a fresh one; above 0
    seed_noise_db      standard deviation between training seeds, dB
    shows_at           epoch from which a trial's own settings have shown themselves; the later one counts
    """

    def __init__(
        self,
        *,
        window: int = 1,
        warmup_epochs: int = 1,
        interval_epochs: int = 1,
        n_startup_trials: int = 3,
        keep: float = 0.0,
        odds: float = 1.0,
        seed_noise_db: float = 0.35,
        shows_at: Callable[[FrozenTrial], int] = lambda trial: 0,
    ) -> None:
        if n_startup_trials < 2:
            raise ValueError(f"n_startup_trials = {n_startup_trials}: at least 2 are needed")
        if not 0 <= keep <= 1 or not odds > 0:
            raise ValueError(f"keep = {keep}, odds = {odds}: expected [0, 1] and above 0")
        self._forecaster = Forecaster(window, n_startup_trials, seed_noise_db)
        self._warmup_epochs = max(warmup_epochs, 1)
        self._interval_epochs = interval_epochs
        self._keep = keep
        self._odds = odds
        self._shows_at = shows_at

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial should stop at its last reported epoch."""
        epoch = trial.last_step
        if epoch is None or not self._is_rung(epoch) or epoch < self._shows_at(trial):
            return False
        trials = self._forecaster.trials(study)
        own = self._forecaster.forecast(trial)
        if own is None:
            return False
        ended = [one for one in trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        ended = [one for one in ended if not diverged(one)]
        complete = [one for one in ended if one.state == TrialState.COMPLETE and one.value is not None]
        if len(complete) < MIN_COMPLETE_FRACTION * len(ended):
            return False  # otherwise a wrong forecast of how curves go on would never be noticed
        complete.sort(key=lambda one: -(one.value or 0.0))
        best = complete[max(math.ceil(self._keep * len(complete)), 1) - 1]
        leader = self._forecaster.value(best)
        fresh = self._recent([one for one in ended if one.number != best.number])
        if not fresh:
            return False
        chance = math.fsum(_exceeds(one, leader) for one in fresh) / len(fresh)
        return _exceeds(own, leader) < self._odds * chance

    def _recent(self, ended: list[FrozenTrial]) -> list[Forecast]:
        """The values of the last trials, or their forecasts: a trial begun now is taken to be like one of them."""
        known: list[Forecast] = []
        for one in reversed(ended):
            if len(known) == MAX_RECENT:
                break
            if one.state == TrialState.COMPLETE and one.value is not None:
                known.append(self._forecaster.value(one))
            else:
                expected = self._forecaster.forecast(one)
                known += [] if expected is None else [expected]
        return known

    def _is_rung(self, epoch: int) -> bool:
        return epoch >= self._warmup_epochs and (epoch - self._warmup_epochs) % self._interval_epochs == 0


def _exceeds(one: Forecast, other: Forecast) -> float:
    """How likely `one` is worth more than `other`."""
    error = max(math.hypot(one.error, other.error), 1e-9)
    return NormalDist().cdf((one.mean - other.mean) / error)


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

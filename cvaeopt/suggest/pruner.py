"""A pruner with Optuna's interface. It decides by the forecasts of `suggest.forecast`.

    study = optuna.create_study(direction="maximize", pruner=ForecastPruner(window=5, warmup_epochs=40))

At certain epochs the pruner forecasts the final value of the trial. From the forecast it computes the probability that
the trial becomes better than the leader. The pruner stops the trial if a new trial has a higher probability. The
probability of a new trial is estimated from the study's last trials without the leader. The standard error of the
leader's value is taken into account, because the best of many values is usually also a lucky one.

If early epochs say little about late epochs, forecasts have large errors, and few trials are stopped. Some trials
always run to their end, because otherwise nobody would notice that forecasts are wrong.
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

MAX_RECENT = 10  # number of last trials that represent a new trial; older suggestions are usually worse
MIN_COMPLETE_FRACTION = 0.2  # complete trials among those that ended and did not diverge; below it no trial is pruned


class ForecastPruner(BasePruner):
    """Stops a trial that is less likely to become a leader than a new trial; for studies that maximise.

    window             epochs whose mean is the level or the final value of a trial, as in `estimate`
    warmup_epochs      no trial is pruned before this epoch
    interval_epochs    epochs between two decisions
    n_startup_trials   complete trials that a forecast needs; at least 2
    keep               share of the complete trials that count as leaders, in [0, 1]; 0: only the best trial
    odds               a trial is stopped if it is less than `odds` times as likely to become a leader as a new trial;
                       above 0
    seed_noise_db      standard deviation between training seeds, dB
    shows_at           returns the first epoch at which a trial with these settings may be pruned, if this epoch is
                       later than `warmup_epochs`
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
            return False  # otherwise no complete trial could show that the forecasts are wrong
        complete.sort(key=lambda one: -(one.value or 0.0))
        best = complete[max(math.ceil(self._keep * len(complete)), 1) - 1]
        leader = self._forecaster.value(best)
        fresh = self._recent([one for one in ended if one.number != best.number])
        if not fresh:
            return False
        chance = math.fsum(_exceeds(one, leader) for one in fresh) / len(fresh)
        return _exceeds(own, leader) < self._odds * chance

    def _recent(self, ended: list[FrozenTrial]) -> list[Forecast]:
        """The values or forecasts of the last `MAX_RECENT` trials. They represent a new trial."""
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
    """Probability that the value of `one` is higher than the value of `other`."""
    error = max(math.hypot(one.error, other.error), 1e-9)
    return NormalDist().cdf((one.mean - other.mean) / error)


def shows_at(config: Config) -> int:
    """The number of finished epochs after which the effect of the schedules can be seen; 0 if nothing changes.

    Teacher forcing: one epoch must be trained after the ratio began to fall. A ratio that never falls adds no
    condition.
    KL: one epoch must be trained with the weight at the top of its first cycle or ramp. A weight that begins at its
    maximum adds no condition.
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

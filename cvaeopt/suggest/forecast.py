"""Where a training that was looked at for some epochs would end, and how sure that is.

Learned from the study's complete trials: how much they still gained between that epoch and their end, as a linear
function of where they stood and how fast they climbed. It is a Bayesian regression, so three trials are enough to
begin with and every further one counts; where early epochs say little about late ones (a learning rate that falls at
the end, forcing that ends late) the scatter about the line makes every forecast as wide as that.

The priors, in dB: a curve climbs on for 0.4 (+- 0.4) of what its slope promises for the epochs left, a dB that it
stands higher is worth 0 (+- 0.4) dB of further gain, and gains scatter by 0.4 dB beyond what noise between epochs and
seeds adds at both ends, which counts as much as three trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.suggest.estimate import curve_until, epoch_noise, estimate, line

_MEAN = np.array([0.0, 0.0, 0.4])  # of the constant, and per dB of standing and of promised climb
_PRECISION = np.diag([1 / 10.0**2, 1 / 0.4**2, 1 / 0.4**2])
_SCATTER_DB = 0.4
_SCATTER_TRIALS = 3.0
_LEAST_DB = 0.25  # no forecast is surer than this
_UNKNOWN_ERROR_DB = 0.5  # of a value whose curve nobody kept, or of too few epochs to tell
_ROUNDS = 3  # of line and scatter in turn; they settle at once


@dataclass(frozen=True)
class Forecast:
    """Mean and standard deviation of the value at the end, dB."""

    mean: float
    error: float


def standing(curve: Sequence[float], window: int) -> tuple[float, float]:
    """Mean of the last `window` epochs, dB, and slope over the last half of all of them, dB an epoch.

    curve   dB, one finite value an epoch, at least one
    """
    recent = curve[-window:]
    return math.fsum(recent) / len(recent), line(curve[-max(window, len(curve) // 2) :])[1]


def forecast(
    standings: np.ndarray, ends: np.ndarray, own: Sequence[float], remaining: int, noise_db: float = 0.5
) -> Forecast:
    """The end of a trial that stands at `own`, with `remaining` epochs to go.

    standings   (n, 2) level and slope of the complete trials at the same epoch, n at least 1
    ends        (n,) their values
    noise_db    standard deviation of a level or an end about its own mean over epochs and seeds, dB
    """
    scatter = _SCATTER_DB**2 + 2 * noise_db**2
    centre = float(standings[:, 0].mean())

    def features(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(rows)), rows[:, 0] - centre, rows[:, 1] * remaining])

    known, gains = features(standings), ends - standings[:, 0]
    surprise = gains - known @ _MEAN
    variance = scatter
    for _ in range(_ROUNDS):
        spread = np.linalg.inv(known.T @ known / variance + _PRECISION)
        coefficients = _MEAN + spread @ (known.T @ surprise) / variance
        rest = gains - known @ coefficients
        # The constant is fitted to the same trials, so one of them tells nothing about the scatter.
        variance = (_SCATTER_TRIALS * scatter + float(rest @ rest)) / (_SCATTER_TRIALS + len(gains) - 1)
    here = features(np.array([own], dtype=float))[0]
    error = math.sqrt(float(here @ spread @ here) + variance)
    return Forecast(float(own[0] + here @ coefficients), max(error, _LEAST_DB))


class Forecaster:
    """Forecasts for the trials of a study; keeps what it has read of ended trials, which no longer change.

    window             epochs over which standing and end are averaged, as in `estimate`
    n_startup_trials   complete trials from which a forecast is learned, at least 1
    seed_noise_db      standard deviation between training seeds, dB
    """

    def __init__(self, window: int, n_startup_trials: int, seed_noise_db: float) -> None:
        self._window = window
        self._n_startup_trials = n_startup_trials
        self._seed_noise_db = seed_noise_db
        self._noises: dict[tuple[str, int], float] = {}
        self._known: dict[tuple[str, int, int], tuple[float, float] | None] = {}

    def __call__(self, study: Study, trial: FrozenTrial) -> Forecast | None:
        """Where `trial` would end, from its last reported epoch; None where nothing can be said yet."""
        epoch = trial.last_step
        if epoch is None:
            return None
        own = self._past(study, trial, epoch) if trial.state.is_finished() else self._standing(trial, epoch)
        if own is None:
            return None
        standings, ends, noises, last = [], [], [], epoch
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if other.last_step is None or other.last_step <= epoch or other.number == trial.number:
                continue
            then, end = self._past(study, other, epoch), self._past(study, other, other.last_step)
            if then is not None and end is not None:
                standings.append(then)
                ends.append(end[0])
                noises.append(self._noise(study, other))
                last = max(last, other.last_step)
        if len(ends) < self._n_startup_trials:
            return None
        noise = math.hypot(float(np.median(noises)) / math.sqrt(self._window), self._seed_noise_db)
        return forecast(np.array(standings), np.array(ends), own, last - epoch, noise)

    def value(self, trial: FrozenTrial) -> Forecast:
        """What a complete trial came to: its value with its standard error."""
        assert trial.value is not None
        curve = curve_until(trial.intermediate_values, trial.last_step or 0)
        error = estimate(curve, self._window, self._seed_noise_db).error if curve else None
        return Forecast(trial.value, _UNKNOWN_ERROR_DB if error is None else error)

    def _noise(self, study: Study, trial: FrozenTrial) -> float:
        """Standard deviation between the epochs of a complete trial's later half, dB, computed once."""
        key = (study.study_name, trial.number)
        if key not in self._noises:
            curve = curve_until(trial.intermediate_values, trial.last_step or 0)
            self._noises[key] = epoch_noise(curve[len(curve) // 2 :]) or 0.0
        return self._noises[key]

    def _past(self, study: Study, trial: FrozenTrial, epoch: int) -> tuple[float, float] | None:
        """`_standing` of an ended trial, computed once."""
        key = (study.study_name, trial.number, epoch)
        if key not in self._known:
            self._known[key] = self._standing(trial, epoch)
        return self._known[key]

    def _standing(self, trial: FrozenTrial, epoch: int) -> tuple[float, float] | None:
        curve = curve_until(trial.intermediate_values, epoch)
        return standing(curve, self._window) if curve else None

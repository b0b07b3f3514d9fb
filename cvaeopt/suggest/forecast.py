"""Where a training that was looked at for some epochs would end, and how sure that is.

Learned from the study's complete trials: how much they still gained between that epoch and their end, as a linear
function of where they stood and how fast they climbed. It is a Bayesian regression, so three trials are enough to
begin with and every further one counts. Where early epochs say little about late ones (a learning rate that falls at
the end, forcing that ends late), the scatter about the line is large, and so is the error of every forecast.

The priors, in dB: a curve gains 0.4 (+- 0.4) of what its slope promises for the remaining epochs; a curve that stands
1 dB higher gains 0 (+- 0.4) dB more; and gains scatter by 0.4 dB in addition to the noise between epochs and seeds at
both ends. The prior of the scatter has the weight of three trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.suggest.estimate import curve_until, epoch_noise, estimate

_MEAN = np.array([0.0, 0.0, 0.4])  # of the constant, and per dB of standing and of promised climb
_PRECISION = np.diag([1 / 10.0**2, 1 / 0.4**2, 1 / 0.4**2])
_SCATTER_DB = 0.4
_SCATTER_TRIALS = 3.0
_MIN_ERROR_DB = 0.25  # no forecast claims to be more accurate than this
_UNKNOWN_ERROR_DB = 0.5  # of a value without a stored curve, or with too few epochs to tell
_ROUNDS = 3  # of fitting line and scatter in turn; they converge at once


@dataclass(frozen=True)
class Forecast:
    """Mean and standard deviation of the value at the end, dB."""

    mean: float
    error: float


def standing(curves: np.ndarray, window: int) -> np.ndarray:
    """Level and slope of curves of equal length: (..., epochs) -> (..., 2).

    The level is the mean of the last `window` epochs, dB; the slope is that of the least-squares line through the last
    half of the epochs, dB an epoch.

    curves   dB, finite, at least one epoch
    """
    count = curves.shape[-1]
    late = curves[..., -max(window, count // 2) :]
    places = np.arange(late.shape[-1]) - (late.shape[-1] - 1) / 2
    moment = max(float(places @ places), 1e-300)  # 0 for a single epoch, whose slope is 0 too
    return np.stack([curves[..., -window:].mean(-1), (late * places).sum(-1) / moment], -1)


@dataclass(frozen=True)
class Gains:
    """What trials still gain after an epoch, as a function of their standing there.

    centre         mean level of the trials that it was learned from, dB
    remaining      epochs from there to the end
    coefficients   (3,) posterior mean: constant, per dB of standing, per dB of promised climb
    spread         (3, 3) posterior covariance of the coefficients
    scatter        variance of a gain about the line, dB squared
    """

    centre: float
    remaining: int
    coefficients: np.ndarray
    spread: np.ndarray
    scatter: float

    @classmethod
    def learn(cls, standings: np.ndarray, ends: np.ndarray, remaining: int, noise_db: float = 0.5) -> Gains:
        """The regression of complete trials.

        standings   (n, 2) level and slope of the trials at the epoch, n at least 1
        ends        (n,) their values
        noise_db    standard deviation of a level or an end about its own mean over epochs and seeds, dB
        """
        prior = _SCATTER_DB**2 + 2 * noise_db**2
        centre = float(standings[:, 0].mean())
        known, gains = _features(standings, centre, remaining), ends - standings[:, 0]
        surprise = gains - known @ _MEAN
        variance = prior
        for _ in range(_ROUNDS):
            spread = np.linalg.inv(known.T @ known / variance + _PRECISION)
            coefficients = _MEAN + spread @ (known.T @ surprise) / variance
            rest = gains - known @ coefficients
            # The constant is fitted to the same trials, so a single trial says nothing about the scatter.
            variance = (_SCATTER_TRIALS * prior + float(rest @ rest)) / (_SCATTER_TRIALS + len(gains) - 1)
        return cls(centre, remaining, coefficients, spread, variance)

    def forecast(self, own: Sequence[float] | np.ndarray) -> Forecast:
        """The end of a trial whose level and slope at the epoch are `own`."""
        here = _features(np.asarray(own, dtype=float)[None], self.centre, self.remaining)[0]
        error = math.sqrt(float(here @ self.spread @ here) + self.scatter)
        return Forecast(float(own[0] + here @ self.coefficients), max(error, _MIN_ERROR_DB))


def _features(rows: np.ndarray, centre: float, remaining: int) -> np.ndarray:
    return np.column_stack([np.ones(len(rows)), rows[:, 0] - centre, rows[:, 1] * remaining])


class Forecaster:
    """Forecasts for the trials of a study.

    A finished trial no longer changes, so its curve is read once and kept. Everything that depends on the set of
    complete trials is computed anew when that set has grown, once for each epoch; a forecast of 5,000 trials therefore
    takes as many small steps, and one regression for each epoch at which trials were stopped.

    window             epochs over which standing and end are averaged, as in `estimate`
    n_startup_trials   complete trials from which a forecast is learned, at least 1
    seed_noise_db      standard deviation between training seeds, dB
    """

    def __init__(self, window: int, n_startup_trials: int, seed_noise_db: float) -> None:
        self._window = window
        self._n_startup_trials = n_startup_trials
        self._seed_noise_db = seed_noise_db
        self._study = ""
        self._learned = _Learned()
        self._values: dict[int, Forecast] = {}
        self._standings: dict[int, tuple[int, np.ndarray] | None] = {}

    def trials(self, study: Study) -> list[FrozenTrial]:
        """All trials of `study`, read once; later calls of `value` and `forecast` are about this reading."""
        if study.study_name != self._study:
            self._study = study.study_name
            self._learned, self._values, self._standings = _Learned(), {}, {}
        trials = study.get_trials(deepcopy=False)
        self._learned = self._learned.after(trials, self._window)
        return trials

    def value(self, trial: FrozenTrial) -> Forecast:
        """The value of a complete trial with its standard error."""
        known = self._values.get(trial.number)
        if known is None:
            assert trial.value is not None
            curve = curve_until(trial.intermediate_values, trial.last_step or 0)
            error = estimate(curve, self._window, self._seed_noise_db).error if curve else None
            known = Forecast(trial.value, _UNKNOWN_ERROR_DB if error is None else error)
            self._values[trial.number] = known
        return known

    def forecast(self, trial: FrozenTrial) -> Forecast | None:
        """Where `trial` would end, from its last reported epoch; None while too few trials have ended after it."""
        here = self._standing(trial)
        if here is None:
            return None
        epoch, own = here
        if epoch not in self._learned.gains:
            self._learned.gains[epoch] = self._gains(epoch)
        gains = self._learned.gains[epoch]
        return None if gains is None else gains.forecast(own)

    def _gains(self, epoch: int) -> Gains | None:
        learned = self._learned
        used, standings = learned.at(epoch, self._window)
        if len(used) < self._n_startup_trials:
            return None
        noise = math.hypot(float(np.median(learned.noises[used])) / math.sqrt(self._window), self._seed_noise_db)
        return Gains.learn(standings, learned.ends[used], int(learned.lasts[used].max()) - epoch, noise)

    def _standing(self, trial: FrozenTrial) -> tuple[int, np.ndarray] | None:
        """Last epoch, and level and slope there; None without a finite value."""
        if trial.number in self._standings:
            return self._standings[trial.number]
        epoch = trial.last_step
        curve = [] if epoch is None else curve_until(trial.intermediate_values, epoch)
        found = (epoch, standing(np.array(curve), self._window)) if epoch is not None and curve else None
        if trial.state.is_finished():
            self._standings[trial.number] = found
        return found


@dataclass(frozen=True)
class _Curve:
    """The finite values of a complete trial and their epochs; mean of the last ones, and noise between epochs, dB."""

    epochs: np.ndarray
    values: np.ndarray
    end: float
    noise: float

    @classmethod
    def of(cls, trial: FrozenTrial, window: int) -> _Curve:
        reported = trial.intermediate_values
        epochs = [step for step in sorted(reported) if math.isfinite(reported[step])]
        values = [reported[step] for step in epochs]
        end = float(np.mean(values[-window:])) if values else math.nan
        return cls(np.array(epochs), np.array(values), end, epoch_noise(values[len(values) // 2 :]) or 0.0)


@dataclass(frozen=True)
class _Learned:
    """The complete trials that forecasts are learned from: a row for each, in the order of their numbers.

    curves   number of a trial -> what was read of it
    epochs   (n, longest) epochs of the finite values; infinite after the last one
    values   (n, longest) the values, dB
    lasts    (n,) last reported epoch
    ends     (n,) mean of the last values, dB
    noises   (n,) standard deviation between the epochs of the later half, dB
    gains    what was learned of an epoch so far; None where too few trials tell
    """

    curves: dict[int, _Curve] = field(default_factory=dict)
    epochs: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    lasts: np.ndarray = field(default_factory=lambda: np.empty(0))
    ends: np.ndarray = field(default_factory=lambda: np.empty(0))
    noises: np.ndarray = field(default_factory=lambda: np.empty(0))
    gains: dict[int, Gains | None] = field(default_factory=dict)

    def after(self, trials: Sequence[FrozenTrial], window: int) -> _Learned:
        """The same with the complete trials among `trials` that are new."""
        new = [one for one in trials if one.state == TrialState.COMPLETE and one.number not in self.curves]
        if not new:
            return self
        curves = self.curves | {one.number: _Curve.of(one, window) for one in new}
        kept = [curve for _, curve in sorted(curves.items()) if len(curve.values)]
        shape = len(kept), max((len(one.values) for one in kept), default=0)
        epochs, values = np.full(shape, np.inf), np.zeros(shape)
        for row, one in enumerate(kept):
            epochs[row, : len(one.epochs)], values[row, : len(one.values)] = one.epochs, one.values
        lasts = np.array([one.epochs[-1] for one in kept])
        ends, noises = np.array([one.end for one in kept]), np.array([one.noise for one in kept])
        return _Learned(curves, epochs, values, lasts, ends, noises)

    def at(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the trials that went on after `epoch`, and their standings there: (m,), (m, 2)."""
        counts = np.where(self.lasts > epoch, (self.epochs <= epoch).sum(1), 0)
        standings = np.empty((len(counts), 2))
        for count in np.unique(counts[counts > 0]):  # the same for all trials that miss no epoch
            standings[counts == count] = standing(self.values[counts == count, :count], window)
        used = np.flatnonzero(counts)
        return used, standings[used]

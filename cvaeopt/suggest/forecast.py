"""Forecasts: the value that an unfinished training would have at its end, and the forecast's standard error.

A forecast for an epoch is learned from the study's complete trials. The gain of a trial is its final value minus its
level at the epoch. A Bayesian linear regression predicts the gain from the level and the slope of the curve at the
epoch. Because the regression has priors, three trials are enough for a first forecast. Sometimes early epochs say
little about late epochs, for example if the learning rate falls near the end, or if teacher forcing ends late. Then
the scatter about the line is large, and the error of every forecast is large too.

The priors are these. A curve gains 0.4 (+- 0.4) times its slope times the remaining epochs. A level that is 1 dB higher
adds 0 (+- 0.4) dB to the gain. Gains scatter by 0.4 dB in addition to the noise between epochs and seeds at both ends.
The prior of the scatter has the weight of three trials.

The regression describes runs. A run with a lucky seed has high values from an early epoch to its end, so the noise of
the seeds cancels in its gain. With more trials the prior counts less, so the scatter of gains contains less of this
noise. A forecast describes settings, as the value of a complete trial does. Therefore the noise of the seeds is added
to the error of the forecast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.suggest.estimate import curve_until, epoch_noise, estimate

_MEAN = np.array([0.0, 0.0, 0.4])  # prior means of: constant, coefficient of level, coefficient of slope * epochs
_PRECISION = np.diag([1 / 10.0**2, 1 / 0.4**2, 1 / 0.4**2])
_SCATTER_DB = 0.4
_SCATTER_TRIALS = 3.0
_MIN_ERROR_DB = 0.25  # smallest standard error of a forecast
_UNKNOWN_ERROR_DB = 0.5  # standard error of a value whose curve is not stored or has fewer than three epochs
MIN_FRACTION_TRAINED = 0.25  # running trials with a smaller fraction of the epochs get no forecast
_ROUNDS = 3  # fits of the line and of the scatter in turn, which converge fast


@dataclass(frozen=True)
class Forecast:
    """The final value of a trial's settings, as the mean over training seeds, and the mean's standard error; dB."""

    mean: float
    error: float


def standing(curves: np.ndarray, window: int) -> np.ndarray:
    """Level and slope of curves of equal length: (..., epochs) -> (..., 2).

    The level is the mean of the last `window` epochs, dB. The slope is the slope of the least-squares line through the
    last half of the epochs, but at least through `window` epochs; dB per epoch.

    curves   dB, finite, at least one epoch
    """
    count = curves.shape[-1]
    late = curves[..., -max(window, count // 2) :]
    places = np.arange(late.shape[-1]) - (late.shape[-1] - 1) / 2
    moment = max(float(places @ places), 1e-300)  # avoids 0 / 0 for a single epoch, whose slope is 0
    return np.stack([curves[..., -window:].mean(-1), (late * places).sum(-1) / moment], -1)


@dataclass(frozen=True)
class Gains:
    """The gain of trials between an epoch and their end, as a function of their level and slope at the epoch.

    centre         mean level at the epoch of the trials that the function was learned from, dB
    remaining      epochs from this epoch to the end
    coefficients   (3,) posterior mean: constant, coefficient of the level, coefficient of slope * `remaining`
    spread         (3, 3) posterior covariance of the coefficients
    scatter        variance of a gain about the fitted line, dB squared
    """

    centre: float
    remaining: int
    coefficients: np.ndarray
    spread: np.ndarray
    scatter: float

    @classmethod
    def learn(cls, standings: np.ndarray, ends: np.ndarray, remaining: int, noise_db: float = 0.5) -> Gains:
        """Fit the regression to complete trials.

        standings   (n, 2) level and slope of the trials at the epoch, n at least 1
        ends        (n,) values of these trials at their end
        noise_db    standard deviation of a level or of an end value, from the noise between epochs and seeds, dB
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
            # The constant is fitted to the same trials, so a single trial has no information about the scatter.
            variance = (_SCATTER_TRIALS * prior + float(rest @ rest)) / (_SCATTER_TRIALS + len(gains) - 1)
        return cls(centre, remaining, coefficients, spread, variance)

    def forecast(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The final values, and their standard errors, of runs with level and slope `own` (n, 2): (n,) each, dB."""
        here = _features(own, self.centre, self.remaining)
        errors = np.sqrt(np.einsum("ni,ij,nj->n", here, self.spread, here) + self.scatter)
        return own[:, 0] + here @ self.coefficients, np.maximum(errors, _MIN_ERROR_DB)


def _features(rows: np.ndarray, centre: float, remaining: int) -> np.ndarray:
    return np.column_stack([np.ones(len(rows)), rows[:, 0] - centre, rows[:, 1] * remaining])


class Forecaster:
    """Values and forecasts for the trials of a study.

    A finished trial no longer changes, so its curve is read only once. There is one regression for each epoch for which
    a forecast was asked. When more trials are complete, the regressions are fitted again.

    window             epochs whose mean is the level or the final value of a trial, as in `estimate`
    n_startup_trials   complete trials that a forecast needs, at least 1
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
        """Read all trials of `study`, and learn from them for the later calls."""
        trials = study.get_trials(deepcopy=False)
        self.learn(study.study_name, trials)
        return trials

    def learn(self, study: str, trials: Sequence[FrozenTrial]) -> None:
        """Learn from the complete trials among `trials`, which are all trials of the study with the name `study`."""
        if study != self._study:
            self._study = study
            self._learned, self._values, self._standings = _Learned(), {}, {}
        self._learned = self._learned.after(trials, self._window)

    def value(self, trial: FrozenTrial) -> Forecast:
        """The value of a complete trial, and the standard error of the value."""
        known = self._values.get(trial.number)
        if known is None:
            assert trial.value is not None
            curve = curve_until(trial.intermediate_values, trial.last_step or 0)
            error = estimate(curve, self._window, self._seed_noise_db).error if curve else None
            known = Forecast(trial.value, _UNKNOWN_ERROR_DB if error is None else error)
            self._values[trial.number] = known
        return known

    def forecast(self, trial: FrozenTrial) -> Forecast | None:
        """The final value that `trial` is expected to have, from its last reported epoch.

        None if fewer than `n_startup_trials` complete trials were trained beyond this epoch.
        """
        return self.forecasts([trial]).get(trial.number)

    def forecasts(self, trials: Sequence[FrozenTrial]) -> dict[int, Forecast]:
        """The forecasts by trial number; a trial without a forecast is left out."""
        by_epoch: dict[int, list[tuple[int, np.ndarray]]] = {}
        for trial in trials:
            here = self._standing(trial)
            if here is not None:
                by_epoch.setdefault(here[0], []).append((trial.number, here[1]))
        found = {}
        for epoch, rows in by_epoch.items():
            gains = self._gains(epoch)
            if gains is not None:
                means, errors = gains.forecast(np.array([own for _, own in rows]))
                errors = np.hypot(errors, self._seed_noise_db)
                for (number, _), mean, error in zip(rows, means.tolist(), errors.tolist(), strict=True):
                    found[number] = Forecast(mean, error)
        return found

    def estimates(self, trials: Sequence[FrozenTrial]) -> dict[int, Forecast]:
        """The value, or else the forecast of the value, by trial number.

        Trials without a value and without a forecast are left out. Diverged trials get no forecast. Running trials get
        a forecast only after `MIN_FRACTION_TRAINED` of the epochs of the longest complete trial.
        """
        complete = [one for one in trials if one.state == TrialState.COMPLETE]
        early = MIN_FRACTION_TRAINED * max((one.last_step or 0 for one in complete), default=0)
        stopped = [one for one in trials if one.state == TrialState.PRUNED and not diverged(one)]
        running = [one for one in trials if one.state == TrialState.RUNNING and (one.last_step or 0) >= early]
        values = {one.number: self.value(one) for one in complete if one.value is not None and math.isfinite(one.value)}
        return values | self.forecasts(stopped) | self.forecasts(running)

    def _gains(self, epoch: int) -> Gains | None:
        """The regression of the gains after `epoch`; None if fewer than `n_startup_trials` trials have data for it."""
        learned = self._learned
        if epoch not in learned.gains:
            used, standings = learned.at(epoch, self._window)
            learned.gains[epoch] = None
            if len(used) >= self._n_startup_trials:
                noise = math.hypot(
                    float(np.median(learned.noises[used])) / math.sqrt(self._window), self._seed_noise_db
                )
                remaining = int(learned.lasts[used].max()) - epoch
                learned.gains[epoch] = Gains.learn(standings, learned.ends[used], remaining, noise)
        return learned.gains[epoch]

    def _standing(self, trial: FrozenTrial) -> tuple[int, np.ndarray] | None:
        """The last epoch of `trial`, and the level and slope at this epoch; None if the trial has no finite value."""
        if trial.number in self._standings:
            return self._standings[trial.number]
        _, values = _finite(trial.intermediate_values)
        found = (trial.last_step or 0, standing(values, self._window)) if len(values) else None
        if trial.state.is_finished():
            self._standings[trial.number] = found
        return found


def diverged(trial: FrozenTrial) -> bool:
    """Whether the trial failed because of its own settings: it diverged, or it ran out of memory."""
    return trial.state == TrialState.PRUNED and any(value > 0 for value in trial.constraints.values())


def _finite(reported: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The finite reported values and their epochs, in the order of the epochs: (n,) each."""
    epochs = np.fromiter(reported.keys(), dtype=float, count=len(reported))
    values = np.fromiter(reported.values(), dtype=float, count=len(reported))
    order = np.argsort(epochs)
    order = order[np.isfinite(values[order])]
    return epochs[order], values[order]


@dataclass(frozen=True)
class _Curve:
    """The curve of a complete trial.

    epochs   (n,) epochs with a finite value
    values   (n,) the finite values, dB
    end      mean of the last `window` values, dB; NaN if there is no value
    noise    standard deviation between the epochs of the later half, dB
    """

    epochs: np.ndarray
    values: np.ndarray
    end: float
    noise: float

    @classmethod
    def of(cls, trial: FrozenTrial, window: int) -> _Curve:
        epochs, values = _finite(trial.intermediate_values)
        end = float(values[-window:].mean()) if len(values) else math.nan
        return cls(epochs, values, end, epoch_noise(values[len(values) // 2 :].tolist()) or 0.0)


@dataclass(frozen=True)
class _Learned:
    """The complete trials that forecasts are learned from: a row for each, in the order of their numbers.

    curves   number of a trial -> its curve
    epochs   (n, longest) epochs of the finite values; infinite after the last one
    values   (n, longest) the values, dB
    lasts    (n,) last reported epoch
    ends     (n,) mean of the last `window` values, dB
    noises   (n,) standard deviation between the epochs of the later half, dB
    gains    epoch -> its regression, if it was fitted; None if too few trials have data for the epoch
    """

    curves: dict[int, _Curve] = field(default_factory=dict)
    epochs: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    values: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    lasts: np.ndarray = field(default_factory=lambda: np.empty(0))
    ends: np.ndarray = field(default_factory=lambda: np.empty(0))
    noises: np.ndarray = field(default_factory=lambda: np.empty(0))
    gains: dict[int, Gains | None] = field(default_factory=dict)

    def after(self, trials: Sequence[FrozenTrial], window: int) -> _Learned:
        """A copy to which the new complete trials among `trials` are added; `self` if there are none."""
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
        """Rows of the trials that were trained beyond `epoch`, and their level and slope at `epoch`: (m,), (m, 2)."""
        counts = np.where(self.lasts > epoch, (self.epochs <= epoch).sum(1), 0)
        standings = np.empty((len(counts), 2))
        for count in np.unique(counts[counts > 0]):  # all trials without a missing epoch have the same count
            standings[counts == count] = standing(self.values[counts == count, :count], window)
        used = np.flatnonzero(counts)
        return used, standings[used]

"""Forecasts: the value at which a training that has run for some epochs would end, and its standard error.

Learned from the study's complete trials: how much they still gained between that epoch and their end, as a linear
function of where they stood and how fast they climbed. It is a Bayesian regression, so three trials are enough to
begin with and every further one counts. Where early epochs say little about late ones (a learning rate that falls at
the end, forcing that ends late), the scatter about the line is large, and so is the error of every forecast.

The priors, in dB: a curve gains 0.4 (+- 0.4) of what its slope promises for the remaining epochs; a curve that stands
1 dB higher gains 0 (+- 0.4) dB more; and gains scatter by 0.4 dB in addition to the noise between epochs and seeds at
both ends. The prior of the scatter has the weight of three trials.

The regression is about runs: a run whose seed is lucky is so from early on to its end, so that the more trials there
are, the less of the seeds' noise is in the scatter of gains. A forecast is about the settings, as a complete trial's
value is, and has the seeds' noise added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
MIN_FRACTION_TRAINED = 0.25  # part of a complete trial's epochs after which the end of a running trial is forecast
_ROUNDS = 3  # of fitting line and scatter in turn; they converge at once


@dataclass(frozen=True)
class Forecast:
    """Value of a trial's settings at the end, as the mean over training seeds, and its standard error; dB."""

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

    def forecast(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where runs whose level and slope at the epoch are `own` (n, 2) end, and its standard error: (n,) each, dB."""
        here = _features(own, self.centre, self.remaining)
        errors = np.sqrt(np.einsum("ni,ij,nj->n", here, self.spread, here) + self.scatter)
        return own[:, 0] + here @ self.coefficients, np.maximum(errors, _MIN_ERROR_DB)


def _features(rows: np.ndarray, centre: float, remaining: int) -> np.ndarray:
    return np.column_stack([np.ones(len(rows)), rows[:, 0] - centre, rows[:, 1] * remaining])


class Forecaster:
    """Values and forecasts for the trials of a study.

    A finished trial no longer changes, so its curve is read once and kept. Everything that depends on the set of
    complete trials is computed anew when that set has grown: one regression for each epoch at which trials stand.

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
        """All trials of `study`, read once; later calls are about this reading."""
        trials = study.get_trials(deepcopy=False)
        self.learn(study.study_name, trials)
        return trials

    def learn(self, study: str, trials: Sequence[FrozenTrial]) -> None:
        """Learn from the complete trials among `trials`, which are all trials of the study of this name."""
        if study != self._study:
            self._study = study
            self._learned, self._values, self._standings = _Learned(), {}, {}
        self._learned = self._learned.after(trials, self._window)

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
        return self.forecasts([trial]).get(trial.number)

    def forecasts(self, trials: Sequence[FrozenTrial]) -> dict[int, Forecast]:
        """The forecasts of the trials that have one, by their numbers."""
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
        """The value, or the forecast of it, of every trial that has one, by its number.

        Diverged trials have none, nor have running ones whose first quarter of the epochs is not over.
        """
        complete = [one for one in trials if one.state == TrialState.COMPLETE]
        early = MIN_FRACTION_TRAINED * max((one.last_step or 0 for one in complete), default=0)
        stopped = [one for one in trials if one.state == TrialState.PRUNED and not diverged(one)]
        running = [one for one in trials if one.state == TrialState.RUNNING and (one.last_step or 0) >= early]
        values = {one.number: self.value(one) for one in complete if one.value is not None and math.isfinite(one.value)}
        return values | self.forecasts(stopped) | self.forecasts(running)

    def _gains(self, epoch: int) -> Gains | None:
        """What was learned of the gains after `epoch`; None where fewer than `n_startup_trials` tell."""
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
        """Last epoch, and level and slope there; None without a finite value."""
        if trial.number in self._standings:
            return self._standings[trial.number]
        _, values = _finite(trial.intermediate_values)
        found = (trial.last_step or 0, standing(values, self._window)) if len(values) else None
        if trial.state.is_finished():
            self._standings[trial.number] = found
        return found


def diverged(trial: FrozenTrial) -> bool:
    """Whether the trial failed by itself: it diverged, or ran out of memory."""
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
    """The finite values of a complete trial and their epochs; mean of the last ones, and noise between epochs, dB."""

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

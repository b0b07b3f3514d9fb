"""The Gaussian-process sampler: few trials, noisy values, trainings that were cut short, several workers at once.

A suggestion is the point of highest expected improvement over the best point known so far (the process's mean there,
not the luckiest value), less what another noisy look at a well-known place is not worth. It learns from

- complete trials, with the standard error of their value;
- pruned trials, with the forecast of where they would have ended and that forecast's error;
- running trials, likewise once they are well on their way; before, they are believed to end where the process expects,
  so that workers do not repeat each other;
- diverged trials: they lower the chance that a setting near them trains at all;
- trials of equal settings: every one sharpens the same estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.search.space import stream
from cvaeopt.suggest.forecast import Forecast, Forecaster
from cvaeopt.suggest.gaussian_process import Posterior, distances, fit, log_expected_improvement, log_news
from cvaeopt.suggest.quasirandom import primes, radical_inverse, value_at

CANDIDATES = 1024
ROUNDS = 6  # of refinement about the best candidates, each half as wide
MAX_LENGTH = 1.0  # longest correlation length, in widths of the cube, that is used for divergence
MAX_OBSERVATIONS = 300  # that the process is conditioned on: its time grows with their third power
MAX_LEARNED_FROM = 150  # observations that its lengths and variances are learned from, which takes 50 factorisations
MARGIN = 0.1  # correlation lengths
HOPELESS = 1e6  # below every logarithm of an expected improvement
ABSENT = 0.5  # coordinate in the cube of a setting that is not searched
MIN_COMPLETE = 3  # complete trials from which forecasts are made
MIN_FRACTION_TRAINED = 0.25  # part of a complete trial's epochs after which the end of a running trial is forecast


class GaussianProcessSampler(BaseSampler):
    """Expected improvement under noise.

    space              every setting that may be searched, in a fixed order
    n_startup_trials   trials that must say something before the model is used; until then Halton points, which leave
                       no holes
    window             epochs whose mean is a trial's value, as in `estimate`
    seed_noise_db      standard deviation between training seeds, dB; a part of every value's error
    active             names of the settings that are searched beside these values; default: all of them
    deciding           the settings that `active` reads
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        *,
        seed: int,
        n_startup_trials: int = 5,
        window: int = 1,
        seed_noise_db: float = 0.35,
        active: Callable[[Mapping[str, Any]], set[str]] | None = None,
        deciding: Sequence[str] = (),
    ) -> None:
        self._space = dict(space)
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        self._seed_noise_db = seed_noise_db
        self._active = active
        self._deciding = list(deciding)
        self._forecaster = Forecaster(window, MIN_COMPLETE, seed_noise_db)
        self._cube = _Cube(self._space)
        self._bases = dict(zip(self._space, primes(len(self._space)), strict=True))

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return value_at(param_distribution, self._halton(trial.number, param_name))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        draw = np.random.default_rng(stream(self._seed, trial.number, "sampler together"))
        trials = [one for one in self._forecaster.trials(study) if one.number != trial.number]
        lost = [one for one in trials if _diverged(one)]
        forecasts = self._forecasts(trials, {one.number for one in lost})
        if len(forecasts) < max(2, self._n_startup_trials):
            return {name: value_at(one, self._halton(trial.number, name)) for name, one in self._space.items()}
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        known = [one for one in trials if one.number in forecasts]
        values = sign * np.array([forecasts[one.number].mean for one in known])
        kept = best_and_latest(values, MAX_OBSERVATIONS)
        points, values = self._points([known[index] for index in kept]), values[kept]
        errors = np.array([forecasts[known[index].number].error for index in kept])
        process = fit(points, values, errors, best_and_latest(values, MAX_LEARNED_FROM))
        best = float(process.at(points)[0].max())
        noise = math.sqrt(float(process.noise.min()))  # of a training that runs to its end
        running = [one for one in trials if one.state == TrialState.RUNNING]
        silent = self._points([one for one in running if one.number not in forecasts])
        if len(silent):
            process = process.believing(silent, np.full(len(silent), self._seed_noise_db))
        diverged = self._points(lost[-MAX_OBSERVATIONS:])

        def worth(candidates: np.ndarray) -> np.ndarray:
            mean, deviation = process.at(candidates)
            gain = log_expected_improvement(mean, deviation, best) + log_news(deviation, noise)
            total: np.ndarray = gain + _log_survival(candidates, process, diverged)
            return total

        return self._cube.values(self._best(worth, points[np.argsort(-values)[:3]], draw))

    def _halton(self, number: int, name: str) -> float:
        return radical_inverse(number, self._bases[name], self._seed)

    def _forecasts(self, trials: Sequence[FrozenTrial], lost: set[int]) -> dict[int, Forecast]:
        """The value, or the forecast of it, of every trial that has one, by the trial's number."""
        known = (one.last_step or 0 for one in trials if one.state == TrialState.COMPLETE)
        early = MIN_FRACTION_TRAINED * max(known, default=0)
        forecasts = {}
        for trial in trials:
            found: Forecast | None = None
            if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
                found = self._forecaster.value(trial)
            elif (trial.state == TrialState.PRUNED and trial.number not in lost) or (
                trial.state == TrialState.RUNNING and (trial.last_step or 0) >= early
            ):
                found = self._forecaster.forecast(trial)
            if found is not None:
                forecasts[trial.number] = found
        return forecasts

    def _points(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        """The settings of trials as points of the cube: (n, width)."""
        rows = [
            self._cube.point({name: one.params[name] for name in self._space if name in one.params}) for one in trials
        ]
        return np.array(rows).reshape(-1, self._cube.width)

    def _best(
        self, worth: Callable[[np.ndarray], np.ndarray], leaders: np.ndarray, draw: np.random.Generator
    ) -> np.ndarray:
        """The most promising point of the cube: many at random and near the leaders, then nearer and nearer."""
        near = self._cube.near(np.repeat(leaders, CANDIDATES // 4, 0), 0.1, draw)
        points = self._settle(np.vstack([self._cube.random(draw, CANDIDATES), near]))
        scores = worth(points)
        width = 0.1
        for _ in range(ROUNDS):
            kept = np.argsort(-scores)[:8]
            points, scores = points[kept], scores[kept]
            width /= 2
            around = self._settle(self._cube.near(np.repeat(points, 32, 0), width, draw))
            points, scores = np.vstack([points, around]), np.concatenate([scores, worth(around)])
        best: np.ndarray = points[int(np.argmax(scores))]
        return best

    def _settle(self, points: np.ndarray) -> np.ndarray:
        """The same points, on the values that exist and without the settings that are not searched there."""
        points = self._cube.settled(points)
        if self._active is None:
            return points
        # What is searched depends on few settings with few values: each of their combinations is looked up once.
        nothing = np.zeros((len(points), 1))
        deciding = np.hstack([nothing, *(points[:, self._cube.columns[name]] for name in self._deciding)])
        cases, which = np.unique(deciding, axis=0, return_inverse=True)
        which = which.ravel()
        for case in range(len(cases)):
            rows = which == case
            searched = self._active(self._cube.values(points[int(np.argmax(rows))]))
            for name, columns in self._cube.columns.items():
                if name not in searched:
                    points[rows, columns] = ABSENT
        return points


class _Cube:
    """Parameters as points of the unit cube: a column a range, and one a choice; 0.5 where a setting is absent."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = space
        self.columns: dict[str, slice] = {}
        self.width = 0
        for name, one in space.items():
            count = len(one.choices) if isinstance(one, CategoricalDistribution) else 1
            self.columns[name] = slice(self.width, self.width + count)
            self.width += count

    def point(self, values: Mapping[str, Any]) -> np.ndarray:
        found = np.full(self.width, ABSENT)
        for name, value in values.items():
            one = self.space[name]
            if isinstance(one, CategoricalDistribution):
                column = np.zeros(len(one.choices))
                column[int(one.to_internal_repr(value))] = 1.0
                found[self.columns[name]] = column
            else:
                found[self.columns[name]] = _fraction(one, value)
        return found

    def values(self, point: np.ndarray) -> dict[str, Any]:
        found = {}
        for name, one in self.space.items():
            part = point[self.columns[name]]
            if isinstance(one, CategoricalDistribution):
                found[name] = one.choices[int(np.argmax(part))]
            else:
                found[name] = _value(one, float(part[0]))
        return found

    def settled(self, points: np.ndarray) -> np.ndarray:
        """`points` moved to the nearest values that can be suggested."""
        points = points.copy()
        for name, one in self.space.items():
            columns = self.columns[name]
            if isinstance(one, CategoricalDistribution):
                points[:, columns] = np.eye(len(one.choices))[points[:, columns].argmax(1)]
            elif not isinstance(one, FloatDistribution) or one.step is not None or one.single():
                points[:, columns] = [[_fraction(one, _value(one, float(x)))] for x in points[:, columns][:, 0]]
        return points

    def random(self, draw: np.random.Generator, count: int) -> np.ndarray:
        return draw.random((count, self.width))

    def near(self, points: np.ndarray, width: float, draw: np.random.Generator) -> np.ndarray:
        """Neighbours of `points`: ranges by a normal step, about half of them; choices changed once in ten times."""
        moved = points + draw.normal(size=points.shape) * width * (draw.random(points.shape) < 0.5)
        moved = np.where((moved < 0) | (moved > 1), np.clip(points - (moved - points), 0, 1), moved)
        for name, one in self.space.items():
            if isinstance(one, CategoricalDistribution):
                columns = self.columns[name]
                fresh = draw.random(len(points)) < 0.1
                moved[:, columns] = np.where(fresh[:, None], draw.random(moved[:, columns].shape), points[:, columns])
        return moved


def _fraction(one: BaseDistribution, value: float) -> float:
    """Where a value lies between the ends of its range, in [0, 1]."""
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = one.low, one.high
    if low == high:
        return 0.5
    if one.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value(one: BaseDistribution, fraction: float) -> float | int:
    """The value nearest to this place of the range."""
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = one.low, one.high
    raw = low * (high / low) ** fraction if one.log else low + (high - low) * fraction
    if isinstance(one, IntDistribution):
        return int(min(high, max(low, low + round((raw - low) / one.step) * one.step)))
    if one.step is not None:
        raw = low + round((raw - low) / one.step) * one.step
    return min(high, max(low, raw))


def best_and_latest(values: np.ndarray, limit: int) -> np.ndarray:
    """Indices of `values`, rising: all of them, or the latest half of `limit` and the best of the others."""
    if len(values) <= limit:
        return np.arange(len(values))
    latest = np.arange(len(values) - limit // 2, len(values))
    best = np.argsort(-values[: latest[0]], kind="stable")[: limit - len(latest)]
    return np.sort(np.concatenate([best, latest]))


def _diverged(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.PRUNED and any(value > 0 for value in trial.constraints.values())


def _log_survival(points: np.ndarray, process: Posterior, lost: np.ndarray) -> np.ndarray:
    """Logarithm of the chance that a point trains, by the nearest trial that did and the nearest one that did not.

    Not clearly farther from a lost one than from any other, the chance is as good as none, however much could be won:
    the border is found to within `MARGIN` and not halved for ever.
    """
    if not len(lost):
        return np.zeros(len(points))
    lengths = np.minimum(process.lengths, MAX_LENGTH)
    good, bad = distances(points, process.inputs, lengths).min(1), distances(points, lost, lengths).min(1)
    near = np.exp(-bad)
    survival: np.ndarray = np.log1p(-0.5 * near) - HOPELESS * (bad < good + MARGIN)
    return survival

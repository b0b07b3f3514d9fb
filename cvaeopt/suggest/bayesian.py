"""The Gaussian-process sampler: few trials, noisy values, trainings that were cut short, several workers at once.

A suggestion is the point of the highest expected improvement over the best point so far, whose value is the process's
mean there and not the luckiest measurement. A point whose value is already known well is worth less, because another
noisy training tells little about it. The sampler learns from

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
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.search.space import stream
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.forecast import Forecaster, diverged
from cvaeopt.suggest.gaussian_process import distances, fit, log_expected_improvement, log_news
from cvaeopt.suggest.quasirandom import primes, radical_inverse, value_at

CANDIDATES = 1024
ROUNDS = 6  # of refinement about the best candidates, each half as wide
MAX_LENGTH = 1.0  # longest correlation length, in widths of the cube, that is used for divergence
MAX_OBSERVATIONS = 300  # that the process is conditioned on, by `best_and_latest`: its time grows with the third power
MAX_LEARNED_FROM = 150  # observations that its lengths and variances are learned from, which takes 50 factorisations
MARGIN = 0.1  # correlation lengths between a region that diverges and the nearest suggestion
VOTING_DISTANCE = 0.2  # correlation lengths over which a trial's weight beside others falls to 1 / e
MIN_LOST_FRACTION = 0.25  # lost trials for each trained one nearby, below which divergence there counts as chance
LONE_PENALTY = 3.0  # subtracted from the logarithm of the expected improvement around a single lost trial
CLOSED = 1e6  # subtracted from the logarithm of the expected improvement where no suggestion is made
MIN_COMPLETE = 3  # complete trials from which forecasts are made


class GaussianProcessSampler(BaseSampler):
    """Expected improvement under noise, for studies that maximise.

    space              every setting that may be searched, in a fixed order, and under which conditions
    n_startup_trials   trials that must say something before the model is used; until then Halton points, which leave
                       no holes
    window             epochs whose mean is a trial's value, as in `estimate`
    seed_noise_db      standard deviation between training seeds, dB; a part of every value's error
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution] | Cube,
        *,
        seed: int,
        n_startup_trials: int = 5,
        window: int = 1,
        seed_noise_db: float = 0.35,
    ) -> None:
        self._cube = space if isinstance(space, Cube) else Cube(space)
        self._space = self._cube.space
        self._seed = seed
        self._n_startup_trials = n_startup_trials
        self._seed_noise_db = seed_noise_db
        self._forecaster = Forecaster(window, MIN_COMPLETE, seed_noise_db)
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
        estimates = self._forecaster.estimates(trials)
        if len(estimates) < max(2, self._n_startup_trials):
            return {name: value_at(one, self._halton(trial.number, name)) for name, one in self._space.items()}
        known = [one for one in trials if one.number in estimates]
        values = np.array([estimates[one.number].mean for one in known])
        kept = best_and_latest(values, MAX_OBSERVATIONS)
        known, values = [known[index] for index in kept], values[kept]
        points = self._points(known)
        errors = np.array([estimates[one.number].error for one in known])
        process = fit(points, values, errors, best_and_latest(values, MAX_LEARNED_FROM))
        means = process.at(points)[0]
        best = float(means.max())
        # What one more training to the end would be measured with. A forecast's error does not belong to it.
        whole = np.array([one.state == TrialState.COMPLETE for one in known])
        noise = math.sqrt(float(np.median(process.noise[whole]))) if whole.any() else self._seed_noise_db
        silent = self._points(
            [one for one in trials if one.state == TrialState.RUNNING and one.number not in estimates]
        )
        if len(silent):
            process = process.believing(silent, np.full(len(silent), self._seed_noise_db))
        lost = self._points([one for one in trials if diverged(one)][-MAX_OBSERVATIONS:])

        def worth(candidates: np.ndarray) -> np.ndarray:
            mean, deviation = process.at(candidates)
            gain = log_expected_improvement(mean, deviation, best) + log_news(deviation, noise)
            total: np.ndarray = gain + log_survival(candidates, points, lost, process.lengths)
            return total

        return self._cube.values(self._best(worth, points[np.argsort(-means)[:3]], draw))

    def _halton(self, number: int, name: str) -> float:
        if name not in self._bases:  # a parameter that a program of its own asks for
            return stream(self._seed, number, f"sampler {name}") / 2**32
        return radical_inverse(number, self._bases[name], self._seed)

    def _points(self, trials: Sequence[FrozenTrial]) -> np.ndarray:
        return self._cube.points(one.params for one in trials)

    def _best(
        self, worth: Callable[[np.ndarray], np.ndarray], leaders: np.ndarray, draw: np.random.Generator
    ) -> np.ndarray:
        """The most promising point of the cube: many at random and near the leaders, then nearer and nearer."""
        near = self._cube.near(np.repeat(leaders, CANDIDATES // 4, 0), 0.1, draw)
        points = self._cube.settled(np.vstack([self._cube.random(draw, CANDIDATES), near]))
        scores = worth(points)
        width = 0.1
        for _ in range(ROUNDS):
            kept = np.argsort(-scores)[:8]
            points, scores = points[kept], scores[kept]
            width /= 2
            around = self._cube.settled(self._cube.near(np.repeat(points, 32, 0), width, draw))
            points, scores = np.vstack([points, around]), np.concatenate([scores, worth(around)])
        best: np.ndarray = points[int(np.argmax(scores))]
        return best


def best_and_latest(values: np.ndarray, limit: int) -> np.ndarray:
    """Indices of `values`, rising: all of them, or the latest half of `limit` and the best of the others.

    The best ones say where the maximum lies. The latest are where the sampler looks now, which keeps it from asking
    for the same points again, and they are not chosen by their values, so that their noise has no favoured sign.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    latest = np.arange(len(values) - limit // 2, len(values))
    best = np.argsort(-values[: latest[0]], kind="stable")[: limit - len(latest)]
    return np.sort(np.concatenate([best, latest]))


def log_survival(points: np.ndarray, trained: np.ndarray, lost: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Logarithm of the chance that training at (m, d) points does not diverge: (m,).

    A point is closed, however much could be won there, if two lost trials are not clearly farther from it than every
    trained one: the border of a region that diverges is found to within `MARGIN` and not approached for ever. A single
    lost trial may be chance. It closes nothing, but costs its surroundings `LONE_PENALTY`; and where trained trials
    outnumber the lost ones clearly, nothing is closed at all.

    trained   (n, d) points of trials that did not diverge
    lost      (k, d) points of trials that diverged
    lengths   (d,) correlation lengths of the process
    """
    if not len(lost):
        return np.zeros(len(points))
    lengths = np.minimum(lengths, MAX_LENGTH)
    good, bad = distances(points, trained, lengths), np.sort(distances(points, lost, lengths), 1)
    votes, support = (np.exp(-one / VOTING_DISTANCE).sum(1) for one in (bad, good))
    suspect = votes > MIN_LOST_FRACTION * support
    border = good.min(1) + MARGIN
    lone = suspect & (bad[:, 0] < border)
    closed = suspect & (bad[:, min(1, len(lost) - 1)] < border) & (len(lost) > 1)
    survival: np.ndarray = np.log1p(-0.5 * np.exp(-bad[:, 0])) - LONE_PENALTY * lone - CLOSED * closed
    return survival

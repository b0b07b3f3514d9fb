"""The Gaussian-process sampler, for few trials, noisy values, pruned trials and several workers at once.

The sampler suggests the point with the highest expected improvement over the best point so far. The value of the best
point is the process's mean at that point, because the highest measured value is usually a lucky one. A point whose
value is already known well gets a penalty, because another noisy training adds little to that knowledge.

The sampler learns from these trials:

- complete trials: their value and its standard error;
- pruned trials: the forecast of their final value and the forecast's error;
- running trials that have trained long enough: the same as for pruned trials;
- other running trials: the sampler assumes that they end at the process's mean, so that workers do not repeat each
  other;
- diverged trials: they lower the estimated chance that training at a nearby point does not diverge;
- trials with equal settings: each of them makes the standard error at their common point smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.search.space import stream
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.forecast import Forecaster, diverged
from cvaeopt.suggest.gaussian_process import Posterior, distances, fit, log_expected_improvement, log_news
from cvaeopt.suggest.quasirandom import primes, radical_inverse, value_at

CANDIDATES = 1024
ROUNDS = 6  # rounds of refinement around the best candidates; each round searches half as wide as the round before
MAX_LENGTH = 1.0  # upper limit of the correlation lengths that `log_survival` uses, in widths of the cube
MAX_OBSERVATIONS = 300  # observations of the process; its time grows with the third power of their number
MAX_LEARNED_FROM = 150  # observations for the fit of lengths and variances, which takes about 50 factorisations
MARGIN = 0.1  # a lost trial counts as near if it is at most this much farther than the nearest trained trial
VOTING_DISTANCE = 0.2  # distance, in correlation lengths, at which the weight of a trial falls to 1 / e
MIN_LOST_FRACTION = 0.25  # ratio of lost to trained trials nearby; at a lower ratio, divergence counts as chance
LONE_PENALTY = 3.0  # subtracted from the logarithm of the expected improvement near a single lost trial
CLOSED = 1e6  # subtracted from the logarithm of the expected improvement at points that must not be suggested
MIN_COMPLETE = 3  # complete trials that a forecast needs


class GaussianProcessSampler(BaseSampler):
    """A sampler that maximises the expected improvement under noise, for studies that maximise.

    space              every setting that may be searched, in a fixed order; a `Cube` also has the settings' conditions
    n_startup_trials   trials with a value or a forecast that the model needs, at least 2. With fewer trials the
                       suggestions are Halton points, which cover the space evenly.
    window             epochs whose mean is a trial's value, as in `estimate`
    seed_noise_db      standard deviation between training seeds, dB; a part of every value's standard error
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
        found = learn(self._cube, self._forecaster, trials, self._seed_noise_db, self._n_startup_trials)
        if found is None:
            return {name: value_at(one, self._halton(trial.number, name)) for name, one in self._space.items()}
        return self._cube.values(self._best(found.worth_at, found.points[np.argsort(-found.means)[:3]], draw))

    def _halton(self, number: int, name: str) -> float:
        if name not in self._bases:  # a parameter outside the space, which the caller's own objective asks for
            return stream(self._seed, number, f"sampler {name}") / 2**32
        return radical_inverse(number, self._bases[name], self._seed)

    def _best(
        self, worth: Callable[[np.ndarray], np.ndarray], leaders: np.ndarray, draw: np.random.Generator
    ) -> np.ndarray:
        """The point of the cube with the highest `worth`.

        The first candidates are random points and neighbours of the leaders. Each later round adds closer neighbours of
        the best candidates.
        """
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


@dataclass(frozen=True)
class Learned:
    """The knowledge of a search, which decides the next point.

    known     the trials of which the process knows a value or a forecast
    points    (n, d) their points
    means     (n,) the process's means at these points, dB; the highest is the value of the best point
    process   the process of their values; it has also observed its own mean at the points of silent running trials
    noise     standard deviation of the value of one more complete trial about the value of its settings, dB
    lost      (k, d) points of trials that diverged
    """

    known: list[FrozenTrial]
    points: np.ndarray
    means: np.ndarray
    process: Posterior
    noise: float
    lost: np.ndarray

    def worth(self, mean: np.ndarray, deviation: np.ndarray, best: float | np.ndarray) -> np.ndarray:
        """How much the search wants to train at points, from the process's mean and deviation there.

        All arrays have one shape, or shapes that broadcast to one. `best` is the mean of the best point.
        """
        total: np.ndarray = log_expected_improvement(mean, deviation, best) + log_news(deviation, self.noise)
        return total

    def chances(self, candidates: np.ndarray) -> np.ndarray:
        """What `log_survival` says about (m, d) candidates: (m,)."""
        return log_survival(candidates, self.points, self.lost, self.process.lengths)

    def worth_at(self, candidates: np.ndarray) -> np.ndarray:
        """The worth of (m, d) candidates, of which the highest is the next point: (m,)."""
        mean, deviation = self.process.at(candidates)
        total: np.ndarray = self.worth(mean, deviation, float(self.means.max())) + self.chances(candidates)
        return total


def learn(
    cube: Cube, forecaster: Forecaster, trials: Sequence[FrozenTrial], seed_noise_db: float, least: int
) -> Learned | None:
    """What a search knows from `trials`, from which `forecaster` has learned.

    None if fewer than `least` trials, or fewer than two, have a value or a forecast.
    """
    estimates = forecaster.estimates(trials)
    if len(estimates) < max(2, least):
        return None
    known = [one for one in trials if one.number in estimates]
    values = np.array([estimates[one.number].mean for one in known])
    kept = best_and_latest(values, MAX_OBSERVATIONS)
    known, values = [known[index] for index in kept], values[kept]
    points = cube.points(one.params for one in known)
    errors = np.array([estimates[one.number].error for one in known])
    process = fit(points, values, errors, best_and_latest(values, MAX_LEARNED_FROM))
    means = process.at(points)[0]
    # The measurement error of one more complete trial. The errors of forecasts do not count here.
    whole = np.array([one.state == TrialState.COMPLETE for one in known])
    noise = math.sqrt(float(np.median(process.noise[whole]))) if whole.any() else seed_noise_db
    running = [one for one in trials if one.state == TrialState.RUNNING and one.number not in estimates]
    if running:
        silent = cube.points(one.params for one in running)
        process = process.believing(silent, np.full(len(silent), seed_noise_db))
    lost = cube.points(one.params for one in [one for one in trials if diverged(one)][-MAX_OBSERVATIONS:])
    return Learned(known, points, means, process, noise, lost)


def best_and_latest(values: np.ndarray, limit: int) -> np.ndarray:
    """Indices of at most `limit` of the `values`, rising.

    If there are more values, half of the indices are those of the latest values. The other half are those of the best
    earlier values, which show where the maximum lies. The latest values keep the sampler from suggesting recent points
    again. The latest values are not chosen by their size, so their noise is not biased upwards.
    """
    if len(values) <= limit:
        return np.arange(len(values))
    latest = np.arange(len(values) - limit // 2, len(values))
    best = np.argsort(-values[: latest[0]], kind="stable")[: limit - len(latest)]
    return np.sort(np.concatenate([best, latest]))


def log_survival(points: np.ndarray, trained: np.ndarray, lost: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Logarithm of the chance that training at (m, d) points does not diverge, minus penalties: (m,).

    A lost trial is near a point if it is less than `MARGIN` farther from the point than the nearest trained trial. A
    point with two lost trials near it is closed: the penalty `CLOSED` excludes it, whatever its expected improvement.
    So the sampler keeps a distance of about `MARGIN` from a region where trials diverge. A single lost trial may be
    chance, so a point with one lost trial near it only gets the penalty `LONE_PENALTY`. If trained trials clearly
    outnumber lost trials nearby, a point gets no penalty (see `MIN_LOST_FRACTION`).

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

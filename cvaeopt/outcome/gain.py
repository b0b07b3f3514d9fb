"""What more trainings may be expected to gain: an answer to "is another night worth it?".

The rest of the search is simulated many times. Each simulation draws the true values of many points from the Gaussian
process that the sampler uses, among them the points of the trials so far. Then it trains: it chooses the point that the
sampler would choose, draws a noisy value there, updates the process, and goes on. At the end the best trial is the one
with the highest value, as in a real study. The gain is its true value minus the true value of today's best trial. So
the gain counts no luck of the seeds, and it can be below 0 if a lucky trial takes the first place.

The simulation assumes that the process describes the settings well, and that no trial is pruned. `bench/README.md` says
how often such statements were true on real trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.search.definition import Definition
from cvaeopt.search.tables import GpSampler, GridSampler, TpeSampler
from cvaeopt.suggest.bayesian import MIN_COMPLETE, Learned, learn
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.forecast import Forecaster
from cvaeopt.suggest.sampler import cube_of
from cvaeopt.text import count, duration

MIN_TRIALS: Final = 10
MAX_MORE: Final = 200  # largest number of trainings that are simulated
_SIMULATIONS: Final = 200
_EVERYWHERE: Final = 160  # random points of the space in each simulation
_NEAR: Final = 96  # points near the best trials
_KNOWN: Final = 64  # points of trials: those with the highest means
_WIDTHS: Final = (0.1, 0.05, 0.025)  # distances of the near points, as in the sampler's refinement
_SURE: Final = 0.8


@dataclass(frozen=True)
class Gain:
    """The gain that is expected from more trainings, dB.

    trials   number of trainings beyond those so far
    mean     mean of the simulated gains
    low      their 10 % quantile
    high     their 90 % quantile
    sure     the gain is less than this with a probability of 80 %
    hours    device time of these trainings as the study trains them, pruned ones included; None if not recorded
    """

    trials: int
    mean: float
    low: float
    high: float
    sure: float
    hours: float | None

    def text(self, price: float | None = None) -> str:
        """The gain, and the cost, as a sentence. `price`: of one hour of a device, in any currency."""
        said = (
            f"{count(self.trials, 'more trial')} may be expected to gain {self.mean:.2f} dB ({self.low:.2f} to "
            f"{self.high:.2f}); the gain is below {self.sure:.2f} dB with a probability of {_SURE:.0%}"
        )
        if self.hours is None:
            return f"{said}."
        cost = "" if price is None else f", which cost {self.hours * price:,.2f}"
        return f"{said}. They need about {duration(self.hours * 3600)} of one device{cost}."

    def plain(self, price: float | None = None) -> dict[str, float | int | None]:
        """The gain as a dictionary for JSON. `price`: of one hour of a device, in any currency."""
        hours = None if self.hours is None else round(self.hours, 3)
        cost = None if self.hours is None or price is None else round(self.hours * price, 2)
        values = {key: round(getattr(self, key), 3) for key in ("mean", "low", "high", "sure")}
        return {"trials": self.trials, **values, "hours": hours, "cost": cost}


def default_more(trials: Sequence[FrozenTrial]) -> int:
    """Half as many trainings as have ended, but at least 5 and at most MAX_MORE."""
    return min(MAX_MORE, max(5, sum(one.state.is_finished() for one in trials) // 2))


def expected_gain(
    definition: Definition, trials: Sequence[FrozenTrial], more: Sequence[int], *, seed: int = 0
) -> list[Gain]:
    """The expected gain of each number of trainings in `more`, which rise from 1 to at most MAX_MORE.

    The list is empty for a grid, which has no more points, and if fewer than MIN_TRIALS trials have a value or a
    forecast, or none is complete.
    """
    if isinstance(definition.sampler, GridSampler) or not more:
        return []
    cube = cube_of(definition)
    forecaster = Forecaster(definition.window, MIN_COMPLETE, definition.seed_noise_db)
    forecaster.learn(definition.name, trials)
    found = learn(cube, forecaster, trials, definition.seed_noise_db, MIN_TRIALS)
    complete = [one for one in trials if one.state == TrialState.COMPLETE and math.isfinite(one.value or math.nan)]
    if found is None or not complete:
        return []
    best = max(complete, key=lambda one: (one.value or 0.0, -one.number))
    guided = isinstance(definition.sampler, GpSampler | TpeSampler)  # it prefers points that promise a high value
    gains = _simulated(found, cube, best, more, guided, np.random.default_rng(seed))
    each = _hours(trials)
    made = []
    for trained, column in zip(more, gains.T, strict=True):
        low, high, sure = (float(one) for one in np.quantile(column, (0.1, 0.9, _SURE)))
        hours = None if each is None else each * trained
        made.append(Gain(trained, float(column.mean()), low, high, sure, hours))
    return made


def _simulated(
    found: Learned, cube: Cube, best: FrozenTrial, more: Sequence[int], guided: bool, draw: np.random.Generator
) -> np.ndarray:
    """The gains over the `best` trial after each number of trainings in `more`: (simulations, len(more)), dB."""
    points = _points(found, cube, best, draw)
    mean, covariance = found.process.averages(points[:, None, :])
    spreads, directions = np.linalg.eigh(covariance)
    normal = draw.standard_normal((_SIMULATIONS, len(points)))
    truths = mean + normal * np.sqrt(np.maximum(spreads, 0.0)) @ directions.T  # (simulations, points)
    trials = 1 + min(_KNOWN, len(found.points))
    searches = _Searches(found, mean, covariance, found.chances(points), trials)
    rows = np.arange(_SIMULATIONS)
    top, highest = np.zeros(_SIMULATIONS, int), np.full(_SIMULATIONS, best.value, dtype=float)
    gains = []
    for trained in range(1, more[-1] + 1):
        chosen = searches.choose() if guided else draw.integers(trials, trials + _EVERYWHERE, _SIMULATIONS)
        values = truths[rows, chosen] + draw.standard_normal(_SIMULATIONS) * found.noise
        searches.observe(chosen, values)
        better = values > highest
        top, highest = np.where(better, chosen, top), np.where(better, values, highest)
        if trained in more:
            gains.append(truths[rows, top] - truths[:, 0])
    return np.stack(gains, 1)


def _points(found: Learned, cube: Cube, best: FrozenTrial, draw: np.random.Generator) -> np.ndarray:
    """The points between which the simulated searches choose, (m, d).

    They are the point of the `best` trial, those of the trials with the highest means, random points, and points near
    the leaders.
    """
    leaders = found.points[np.argsort(-found.means)]
    near = [cube.near(np.repeat(leaders[:3], _NEAR // 9, 0), width, draw) for width in _WIDTHS]
    new = cube.settled(np.vstack([cube.random(draw, _EVERYWHERE), *near]))
    return np.vstack([cube.points([best.params]), leaders[:_KNOWN], new])


class _Searches:
    """Simulated searches, side by side. Each chooses among the same m points, and learns from its own values.

    mean         (m,) the process's mean at the points before the first training, dB
    covariance   (m, m) its covariance then
    chances      (m,) what is added to the worth of each point
    trained      the first so many points are those of trials
    """

    def __init__(
        self, found: Learned, mean: np.ndarray, covariance: np.ndarray, chances: np.ndarray, trained: int
    ) -> None:
        self._found, self._covariance, self._chances = found, covariance, chances
        self._rows = np.arange(_SIMULATIONS)
        self._mean = np.tile(mean, (_SIMULATIONS, 1))
        self._variance = np.tile(np.diag(covariance), (_SIMULATIONS, 1))
        self._learned = np.empty((_SIMULATIONS, len(mean), 0))  # L: the covariance is now `covariance` - L @ L.T
        self._seen = np.tile(np.arange(len(mean)) < trained, (_SIMULATIONS, 1))

    def choose(self) -> np.ndarray:
        """The index of each search's next point: (simulations,)."""
        best = np.where(self._seen, self._mean, -np.inf).max(1, keepdims=True)
        deviation = np.sqrt(np.maximum(self._variance, 1e-12))
        chosen: np.ndarray = (self._found.worth(self._mean, deviation, best) + self._chances).argmax(1)
        return chosen

    def observe(self, chosen: np.ndarray, values: np.ndarray) -> None:
        """Condition each process on a noisy value at a point, and count the point as trained; (simulations,) each."""
        at = self._rows, chosen
        columns = self._covariance[chosen] - np.einsum("smt,st->sm", self._learned, self._learned[at])
        root = np.sqrt(np.maximum(self._variance[at], 0.0) + self._found.noise**2)[:, None]
        scaled = columns / root
        self._mean += scaled * ((values - self._mean[at])[:, None] / root)
        self._variance -= scaled**2
        self._learned = np.concatenate([self._learned, scaled[:, :, None]], 2)
        self._seen[at] = True


def _hours(trials: Sequence[FrozenTrial]) -> float | None:
    """Mean device time of an ended trial, hours; None if no trial recorded its time."""
    recorded = [one.user_attrs.get("seconds") for one in trials if one.state.is_finished()]
    seconds = [one for one in recorded if isinstance(one, int | float) and one >= 0]
    return sum(seconds) / len(seconds) / 3600 if seconds else None

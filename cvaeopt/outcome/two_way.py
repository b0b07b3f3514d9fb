"""Settings x common seeds: what runs that share their seeds say of each setting's true value, and of the best one.

The value of a run is the true value of its settings, plus what its seed does to all settings alike, plus a rest. The
mean squares of seeds and rest come from least squares with a level for each setting and each seed, so that a table may
have gaps. Three things follow that means and pooled spreads get wrong:

- The mean of three runs is unsure by what the three seeds have in common with other settings' runs, which no number
  of other settings averages out. So the variance has a part of the seeds with its own, few, degrees of freedom
  (Satterthwaite).
- The setting that looks best was partly lucky. So estimates are drawn towards their common mean, the more the larger
  the rest is beside the spread of the settings (empirical Bayes, or best linear unbiased prediction).
- A setting with one run is drawn further than one with three, so that they can be ranked together.

In simulations with the noise of real trainings the 95 % interval of the winner holds its true value in 93-97 % of
confirmations, and its estimate is optimistic by less than 0.1 dB (tests/outcome/test_two_way.py).

Sources: Searle, Casella and McCulloch, Variance Components (1992), chapters 5 and 7; Satterthwaite, Biometrics
Bulletin 2 (1946), rounded down as usual; Morris, JASA 78 (1983) for the error that the shrinkage itself adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cvaeopt.outcome.intervals import Interval, t_interval

LEAST_FREEDOM: Final = 2
"""Degrees of freedom of the rest without which runs say too little of it for this analysis: three settings with two
seeds, or two settings with three."""

_MIN_SPREAD_RATIO: Final = 0.02  # of the settings' variance to the rest's: keeps the ranking where all is noise

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TwoWay:
    """The estimated true value of each setting, dB, with its 95 % interval.

    spread    standard deviation of one run beyond its setting's and its seed's own level, dB
    freedom   degrees of freedom of `spread`
    """

    values: tuple[Interval, ...]
    spread: float
    freedom: int
    _levels: Array
    _covariance: Array
    _estimable: Array

    def difference(self, one: int, other: int) -> Interval | None:
        """How much higher setting `one` is than `other`, seed by seed, not shrunk; None if no seeds connect them."""
        contrast = np.zeros(len(self._levels))
        contrast[one] += 1
        contrast[other] -= 1
        if not np.allclose(contrast @ self._estimable, contrast, atol=1e-8):
            return None
        error = self.spread * math.sqrt(max(0.0, float(contrast @ self._covariance @ contrast)))
        return t_interval(float(contrast @ self._levels), error, self.freedom)


def two_way(groups: Sequence[Mapping[int, float]]) -> TwoWay | None:
    """The analysis of `groups`, for each setting seed -> value in dB; None where there are too few runs for it."""
    seeds = sorted({seed for values in groups for seed in values})
    runs = [(group, seeds.index(seed), value) for group, values in enumerate(groups) for seed, value in values.items()]
    setting_of = np.eye(len(groups))[[group for group, _, _ in runs]]  # (runs, settings)
    seed_of = np.eye(len(seeds))[[seed for _, seed, _ in runs]]  # (runs, seeds)
    values = np.array([value for *_, value in runs])
    centre = float(values.mean()) if runs else 0.0  # subtracted, so that rounding is that of the differences
    values = values - centre
    design = np.hstack([setting_of, seed_of])
    inverse = np.linalg.pinv(design)
    both, settings, seeds_alone = design @ inverse, _projection(setting_of), _projection(seed_of)
    freedom, seed_freedom, setting_freedom = (
        round(float(np.trace(part))) for part in (np.eye(len(runs)) - both, both - settings, both - seeds_alone)
    )
    if freedom < LEAST_FREEDOM or seed_freedom < 1 or setting_freedom < 1:
        return None
    levels = inverse @ values
    # At least this, so that the matrices can be inverted where runs differ by their settings and seeds alone.
    smallest = 1e-8 * float(values @ values) / len(runs) + 1e-12
    rest = max(smallest, float(np.sum((values - design @ levels) ** 2)) / freedom)
    among_seeds = float(values @ (both - settings) @ values) / seed_freedom
    among_settings = float(values @ (both - seeds_alone) @ values) / setting_freedom
    # The expected mean squares are rest + count * variance.
    seed_count = float(np.trace(seed_of.T @ (both - settings) @ seed_of)) / seed_freedom
    setting_count = float(np.trace(setting_of.T @ (both - seeds_alone) @ setting_of)) / setting_freedom
    seed_variance = max(0.0, among_seeds - rest) / seed_count
    setting_variance = max(_MIN_SPREAD_RATIO * rest, (among_settings - rest) / setting_count)
    shrunk = _weights(setting_of, seed_of, rest, seed_variance, setting_variance)
    plain = _weights(setting_of, seed_of, rest, seed_variance, 1e4 * (setting_variance + rest))
    estimates: list[Interval] = []
    for setting, weights in enumerate(shrunk):
        estimate = float(weights @ values)
        from_seeds = float(np.sum((seed_of.T @ weights) ** 2)) / seed_count
        missed = float(np.sum((setting_of.T @ weights - np.eye(len(groups))[setting]) ** 2))
        of_rest = float(weights @ weights) + missed * setting_variance / rest - from_seeds
        parts = np.array([from_seeds * among_seeds, of_rest * rest])
        by_freedom = float(np.sum(parts**2 / [seed_freedom, freedom]))
        least = min(seed_freedom, freedom)
        satterthwaite = max(least, math.floor(parts.sum() ** 2 / by_freedom)) if by_freedom else least
        drawn = estimate - float(plain[setting] @ values)
        variance = max(0.0, float(parts.sum()) + 2 / max(1, len(groups) - 1) * drawn**2)
        estimates.append(t_interval(centre + estimate, math.sqrt(variance), satterthwaite))
    return TwoWay(tuple(estimates), math.sqrt(rest), freedom, levels, inverse @ inverse.T, inverse @ design)


def _projection(groups_of: Array) -> Array:
    """The matrix (runs, runs) that puts the mean of its group in each run's place."""
    projection: Array = groups_of / groups_of.sum(0) @ groups_of.T
    return projection


def _weights(setting_of: Array, seed_of: Array, rest: float, seeds: float, settings: float) -> Array:
    """The weights of the runs (settings, runs) in the best linear prediction of each setting's true value.

    rest, seeds, settings   the variances of the three parts of a run's value
    """
    runs = len(setting_of)
    inverse = np.linalg.inv(rest * np.eye(runs) + seeds * seed_of @ seed_of.T + settings * setting_of @ setting_of.T)
    common = inverse.sum(0) / inverse.sum()  # generalised least squares of the common mean
    weights: Array = common + settings * setting_of.T @ inverse @ (np.eye(runs) - common)
    return weights

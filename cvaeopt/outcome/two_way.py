"""Two-way analysis of runs by settings and seeds: estimates of each setting's true value.

Here "a setting" is one complete combination of settings. All settings are trained with the same seeds. The value of a
run is the sum of three parts: the true value of its setting, the effect of its seed, and a residual, called `rest` in
the code. The effect of a seed is the same for all settings. The mean squares of seeds and residual come from a least
squares fit with a level for each setting and a level for each seed. Such a fit also works if some runs are missing.

Simple means with a pooled standard deviation have three errors that this analysis corrects:

- The effects of the few seeds change the estimates of all settings together. More settings do not reduce this error. So
  the variance of an estimate has a part for the seeds, with its own small number of degrees of freedom (Satterthwaite).
- The setting with the best mean was partly lucky. So each estimate is shrunk towards the common mean. The shrinkage is
  stronger if the residual variance is large compared with the variance of the settings (empirical Bayes, or best linear
  unbiased prediction).
- A setting with one run is less certain than a setting with three runs. So its estimate is shrunk more, and both can be
  ranked together.

In simulations with the noise of real trainings, the 95 % interval of the winner contains its true value in 93-97 % of
the confirmations. The winner's estimate is too high by less than 0.1 dB on average (tests/outcome/test_two_way.py).

Sources: Searle, Casella and McCulloch, Variance Components (1992), chapters 5 and 7. Satterthwaite, Biometrics
Bulletin 2 (1946); the degrees of freedom are rounded down as usual. Morris, JASA 78 (1983), for the additional error
that the shrinkage causes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cvaeopt.outcome.intervals import Interval, t_interval

LEAST_FREEDOM: Final = 2
"""The smallest number of degrees of freedom of the residual for this analysis. Three settings with two seeds have this
number, and so have two settings with three seeds."""

# The smallest ratio of the settings' variance to the residual variance. If the differences are only noise, this minimum
# keeps the estimates different, so that the settings still have a ranking.
_MIN_SPREAD_RATIO: Final = 0.02

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class TwoWay:
    """The result of the two-way analysis.

    values    the estimated true value of each setting, dB, with its 95 % interval
    spread    standard deviation of the residual of one run, dB
    freedom   degrees of freedom of `spread`
    """

    values: tuple[Interval, ...]
    spread: float
    freedom: int
    _levels: Array
    _covariance: Array
    _estimable: Array

    def difference(self, one: int, other: int) -> Interval | None:
        """The value of setting `one` minus the value of setting `other`, dB, compared seed by seed and not shrunk.

        None if the difference cannot be estimated, because no chain of common seeds connects the two settings.
        """
        contrast = np.zeros(len(self._levels))
        contrast[one] += 1
        contrast[other] -= 1
        if not np.allclose(contrast @ self._estimable, contrast, atol=1e-8):
            return None
        error = self.spread * math.sqrt(max(0.0, float(contrast @ self._covariance @ contrast)))
        return t_interval(float(contrast @ self._levels), error, self.freedom)


def two_way(groups: Sequence[Mapping[int, float]]) -> TwoWay | None:
    """The two-way analysis of `groups`; None if there are too few runs for the analysis.

    groups   for each setting: seed -> value of the run in dB
    """
    seeds = sorted({seed for values in groups for seed in values})
    runs = [(group, seeds.index(seed), value) for group, values in enumerate(groups) for seed, value in values.items()]
    setting_of = np.eye(len(groups))[[group for group, _, _ in runs]]  # (runs, settings)
    seed_of = np.eye(len(seeds))[[seed for _, seed, _ in runs]]  # (runs, seeds)
    values = np.array([value for *_, value in runs])
    centre = float(values.mean()) if runs else 0.0  # subtracted to reduce rounding errors
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
    # The lower limit of the residual variance. With it the matrices can be inverted even if the residual is zero.
    smallest = 1e-8 * float(values @ values) / len(runs) + 1e-12
    rest = max(smallest, float(np.sum((values - design @ levels) ** 2)) / freedom)
    among_seeds = float(values @ (both - settings) @ values) / seed_freedom
    among_settings = float(values @ (both - seeds_alone) @ values) / setting_freedom
    # The expected mean square of the seeds (or settings) is rest + count * variance of the seeds (or settings).
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
    """The matrix (runs, runs) that replaces the value of each run by the mean of the run's group."""
    projection: Array = groups_of / groups_of.sum(0) @ groups_of.T
    return projection


def _weights(setting_of: Array, seed_of: Array, rest: float, seeds: float, settings: float) -> Array:
    """The weights (settings, runs) of the runs in the best linear prediction of each setting's true value.

    rest, seeds, settings   the variances of the residual, the effect of the seed, and the true value of the setting
    """
    runs = len(setting_of)
    inverse = np.linalg.inv(rest * np.eye(runs) + seeds * seed_of @ seed_of.T + settings * setting_of @ setting_of.T)
    common = inverse.sum(0) / inverse.sum()  # weights of the common mean by generalised least squares
    weights: Array = common + settings * setting_of.T @ inverse @ (np.eye(runs) - common)
    return weights

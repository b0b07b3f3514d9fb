"""The importance of each searched setting, and its effect on the value.

The importance is computed from the Gaussian process that the sampler uses. The main effect of a setting is the mean of
the process over all other settings of the whole space. So the effect is not biased towards the region in which the
search sampled most. Pruned trials count with the forecast of their value.

The intervals are those of the process. If every trial in a region was stopped early, the true error there may be larger
than the interval, because the forecasts may be too close to the values of the complete trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial

from cvaeopt.search.definition import Definition
from cvaeopt.suggest.bayesian import MAX_LEARNED_FROM, MAX_OBSERVATIONS, MIN_COMPLETE
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.forecast import Forecaster
from cvaeopt.suggest.gaussian_process import Posterior, fit
from cvaeopt.suggest.sampler import cube_of

MIN_TRIALS: Final = 10
MIN_CERTAINTY: Final = 0.9  # lowest `certainty` with which the report names the most important setting
_PLACES: Final = 11  # number of values of a numeric setting at which the effect is computed
_POOL: Final = 512  # number of random points of the space
_OTHERS: Final = 48  # largest number of these points over which an effect is averaged
_DRAWS: Final = 400  # number of random draws of all effects, from which the quantiles are computed


@dataclass(frozen=True)
class Importance:
    """The main effect of one setting.

    share         the setting's share of the variance of all main effects, 0..1
    low, high     10 % and 90 % quantiles of `share`
    certainty     probability that this setting has the largest share, 0..1
    scale         the scale of the setting's values
    values        n values of the setting: evenly spaced over its range, or its choices
    effect        (n,) mean over all other settings at each of `values`, dB
    error         (n,) standard error of each element of `effect`, dB
    """

    name: str
    share: float
    low: float
    high: float
    certainty: float
    scale: Literal["linear", "log", "categorical"]
    values: tuple[Any, ...]
    effect: np.ndarray
    error: np.ndarray


def importances(definition: Definition, trials: Sequence[FrozenTrial], *, seed: int = 0) -> list[Importance]:
    """The importance of every setting that varies, the largest share first.

    The list is empty if fewer than MIN_TRIALS trials have a value or a forecast.
    """
    draw = np.random.default_rng(seed)
    cube = cube_of(definition)
    process = _process(definition, cube, trials, draw)
    if process is None:
        return []
    pool = cube.settled(cube.random(draw, _POOL))
    effects = {}
    for name in cube.space:
        groups, weight = _groups(cube, name, pool)
        if len(groups) > 1:
            effects[name] = (groups, weight, *process.averages(groups))
    if not effects:
        return []
    variances = np.empty((_DRAWS, len(effects)))
    for column, (_, weight, mean, covariance) in enumerate(effects.values()):
        curves = draw.multivariate_normal(mean, covariance, _DRAWS, check_valid="ignore", method="eigh")
        variances[:, column] = weight * curves.var(1)
    shares = variances / np.maximum(variances.sum(1, keepdims=True), 1e-300)
    certainty = np.bincount(variances.argmax(1), minlength=len(effects)) / _DRAWS
    found = []
    for column, (name, (groups, _, mean, covariance)) in enumerate(effects.items()):
        low, high = np.quantile(shares[:, column], (0.1, 0.9))
        share = float(shares[:, column].mean())
        values = tuple(cube.values(group[0])[name] for group in groups)
        error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        bounds = min(float(low), share), max(float(high), share)
        found.append(
            Importance(name, share, *bounds, float(certainty[column]), _scale(cube.space[name]), values, mean, error)
        )
    return sorted(found, key=lambda one: -one.share)


def _process(
    definition: Definition, cube: Cube, trials: Sequence[FrozenTrial], draw: np.random.Generator
) -> Posterior | None:
    """The Gaussian process of the study's values and forecasts; None for fewer than MIN_TRIALS trials.

    If there are more than `MAX_OBSERVATIONS` trials, the process uses a random part of them.
    """
    forecaster = Forecaster(definition.window, MIN_COMPLETE, definition.seed_noise_db)
    forecaster.learn(definition.name, trials)
    estimates = forecaster.estimates(trials)
    known = [one for one in trials if one.number in estimates]
    if len(known) < MIN_TRIALS:
        return None
    if len(known) > MAX_OBSERVATIONS:  # a random part and not the best trials: effects are over the whole space
        known = [known[index] for index in draw.choice(len(known), MAX_OBSERVATIONS, replace=False)]
    values = np.array([estimates[one.number].mean for one in known])
    errors = np.array([estimates[one.number].error for one in known])
    learned_from = np.arange(len(known)) if len(known) <= MAX_LEARNED_FROM else np.arange(MAX_LEARNED_FROM)
    return fit(cube.points(one.params for one in known), values, errors, learned_from)


def _groups(cube: Cube, name: str, pool: np.ndarray) -> tuple[np.ndarray, float]:
    """Copies of the same points of the space for each value of a setting, and the setting's weight.

    returns   (values, points, width): in each group of points the setting has another value; and the fraction of the
              space in which the setting is searched, 0..1
    """
    searched = np.array([cube.searches(name, point) for point in pool])
    others, columns = pool[searched][:_OTHERS], cube.columns[name]
    one = cube.space[name]
    if one.single() or not len(others):
        return np.empty((0, 0, cube.width)), 0.0
    if isinstance(one, CategoricalDistribution):
        places = np.eye(len(one.choices))
    else:
        places = np.linspace(0, 1, _PLACES)[:, None]
    groups = []
    for place in places:
        points = others.copy()
        points[:, columns] = place
        groups.append(cube.settled(points))
    distinct = np.unique([group[0, columns] for group in groups], axis=0, return_index=True)[1]
    return np.array([groups[index] for index in sorted(distinct)]), float(searched.mean())


def _scale(one: BaseDistribution) -> Literal["linear", "log", "categorical"]:
    if isinstance(one, CategoricalDistribution):
        return "categorical"
    return "log" if getattr(one, "log", False) else "linear"

"""How much each searched setting mattered, how the value depends on it, and whether the space should be wider.

Computed from the Gaussian process that the sampler uses: a setting's main effect is the process's mean over all other
settings of the space, so that a search which has concentrated on good places does not hide what it has learned from
the others. Pruned trials count with the forecast of their value. Bands are the process's: where every trial was stopped
early, forecasts may err by more, towards the values of the complete trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.config import Config
from cvaeopt.search.definition import Definition
from cvaeopt.suggest.bayesian import MAX_LEARNED_FROM, MAX_OBSERVATIONS, MIN_COMPLETE
from cvaeopt.suggest.cube import Cube
from cvaeopt.suggest.forecast import Forecaster
from cvaeopt.suggest.gaussian_process import Posterior, fit
from cvaeopt.suggest.sampler import cube_of

MIN_TRIALS: Final = 10
MIN_CERTAINTY: Final = 0.9  # probability from which a setting is said to have mattered most
_PLACES: Final = 11  # of a range, at which its effect is computed
_POOL: Final = 512  # points drawn of the space
_OTHERS: Final = 48  # of them, over which an effect is averaged
_DRAWS: Final = 400  # of all effects, from which intervals are read
_BEST: Final = 10  # trials that are compared with the bounds of the space
_EDGE: Final = 0.05  # part of a range that counts as its end


@dataclass(frozen=True)
class Importance:
    """The main effect of one setting.

    share         of the variance of all main effects, 0..1, and its 10 % and 90 % quantiles `low` and `high`
    certainty     probability that no other setting matters more
    scale         how the setting's values are spread
    values        places of the setting's range, or its choices
    effect        (n,) mean value at each of them over all other settings, dB
    error         (n,) standard error of each, dB
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
    """Importance of every setting that varies, the largest first; empty below ten trials with a value or a forecast."""
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
    """The process of the study's values and forecasts, of at most `MAX_OBSERVATIONS` drawn ones; None for too few."""
    forecaster = Forecaster(definition.window, MIN_COMPLETE, definition.seed_noise_db)
    forecaster.learn(definition.name, trials)
    estimates = forecaster.estimates(trials)
    known = [one for one in trials if one.number in estimates]
    if len(known) < MIN_TRIALS:
        return None
    if len(known) > MAX_OBSERVATIONS:  # not the best ones: an effect is one over the whole space
        known = [known[index] for index in draw.choice(len(known), MAX_OBSERVATIONS, replace=False)]
    values = np.array([estimates[one.number].mean for one in known])
    errors = np.array([estimates[one.number].error for one in known])
    learned_from = np.arange(len(known)) if len(known) <= MAX_LEARNED_FROM else np.arange(MAX_LEARNED_FROM)
    return fit(cube.points(one.params for one in known), values, errors, learned_from)


def _groups(cube: Cube, name: str, pool: np.ndarray) -> tuple[np.ndarray, float]:
    """For each value of a setting the same points of the space with that value: (values, points, width).

    And the part of the space in which the setting is searched.
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


def at_bounds(definition: Definition, trials: Sequence[FrozenTrial]) -> list[str]:
    """A sentence for each bound of the search space near which most of the best trials lie, and which could be moved.

    Of the ten best complete trials, more than half within 5 % of the range; a bound beyond which the setting has no
    meaning (a ratio of 0) is not named, nor are ranges with few values, whose ends are met by chance.
    """
    complete = [one for one in trials if one.state == TrialState.COMPLETE and math.isfinite(one.value or math.nan)]
    best = sorted(complete, key=lambda one: (-(one.value or 0.0), one.number))[:_BEST]
    cube, found = cube_of(definition), []
    for name, one in cube.space.items():
        points = [cube.point({name: trial.params[name]}) for trial in best if name in trial.params]
        few = isinstance(one, CategoricalDistribution) or one.single() or len(points) < _BEST // 2
        if few or 0 < len(definition.search[name].every()) < 0.5 / _EDGE:
            continue
        places = np.array(points)[:, cube.columns[name]]
        for end, word, near, todo in (
            ("high", "upper", places > 1 - _EDGE, "raise"),
            ("low", "lower", places < _EDGE, "lower"),
        ):
            bound, count = getattr(one, end), int(near.sum())
            if count > len(best) / 2 and not _is_limit(name, bound, "le" if end == "high" else "ge"):
                near_bound = f"lie within {_EDGE:.0%} of its {word} end, {bound:g}"
                found.append(f"{name}: {count} of the best {len(best)} trials {near_bound}; {todo} it.")
    return found


def _is_limit(name: str, value: float, kind: str) -> bool:
    """Whether the setting itself allows nothing beyond `value`; `kind` is pydantic's word, le or ge."""
    return value in [getattr(one, kind, None) for one in Config.model_fields[name].metadata]

"""The bounds of a search space that should be moved, because the best trials lie near them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from cvaeopt.config import Config
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import distribution
from cvaeopt.store import ranking
from cvaeopt.suggest.cube import Cube

BEST: Final = 10  # number of trials that are compared with the bounds of the space
_EDGE: Final = 0.05  # a value in this fraction of the range at an end is close to the bound


def at_bounds(definition: Definition, trials: Sequence[FrozenTrial]) -> list[str]:
    """A sentence for each bound of the search space that should be moved, because most of the best trials lie near it.

    A bound is named if more than half of the ten best complete trials lie within 5 % of the range from the bound. A
    bound is left out if the setting allows no value beyond the bound: for example, a ratio cannot be below 0. A range
    with fewer than ten values is left out, too, because trials often lie at its ends by chance.
    """
    best = ranking.ranked(trials)[:BEST]
    cube, found = Cube({name: distribution(one) for name, one in definition.search.items()}), []
    for name, one in cube.space.items():
        points = [cube.point({name: trial.params[name]}) for trial in best if name in trial.params]
        few = isinstance(one, CategoricalDistribution) or one.single() or len(points) < BEST // 2
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
    """Whether the setting allows no value beyond `value`. `kind` is the name of pydantic's constraint, le or ge."""
    return value in [getattr(one, kind, None) for one in Config.model_fields[name].metadata]

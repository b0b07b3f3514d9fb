"""What repeated runs say about a mean: standard errors and Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scipy.special import stdtrit

CONFIDENCE: Final = 0.95
"""How often an interval of this program covers the true mean."""


@dataclass(frozen=True)
class Interval:
    """A mean with its standard error and its 95 % interval; None where one value cannot say."""

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent `values` and its t interval, from their own spread."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, None, None, None)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return t_interval(mean, spread / math.sqrt(len(values)), len(values) - 1)


def t_interval(mean: float, error: float, freedom: float) -> Interval:
    """The t interval around an estimate whose standard error is known to `freedom` degrees of freedom."""
    half = t_quantile(freedom) * error
    return Interval(mean, error, mean - half, mean + half)


def pooled_spread(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """(standard deviation of one value within its group, degrees of freedom); (0, 0) without a repeat.

    All groups are taken to scatter alike, so that every repeat of any of them tells about the scatter.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        if values:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def t_quantile(freedom: float) -> float:
    """Half the width of a two-sided t interval in standard errors: 12.706 for 1 degree of freedom, 1.96 for many."""
    if not freedom > 0:
        raise ValueError(f"freedom = {freedom}")
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))

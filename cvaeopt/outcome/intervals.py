"""Estimates of a mean from repeated runs: standard errors and Student's t intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scipy.special import stdtrit

CONFIDENCE: Final = 0.95
"""The probability that an interval covers the true mean."""


@dataclass(frozen=True)
class Interval:
    """A mean with its standard error and its 95 % interval from `low` to `high`.

    The standard error and the interval are None if there are too few values to estimate them.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent `values` and its t interval. The interval uses the standard deviation of `values`."""
    return mean_interval(values, *pooled_spread([values]))


def mean_interval(values: Sequence[float], spread: float, freedom: int) -> Interval:
    """The mean of `values` and its t interval; without an interval if `freedom` is 0.

    spread   standard deviation of one value, with `freedom` degrees of freedom
    """
    mean = math.fsum(values) / len(values)
    return t_interval(mean, spread / math.sqrt(len(values)), freedom) if freedom else Interval(mean, None, None, None)


def t_interval(mean: float, error: float, freedom: float) -> Interval:
    """The t interval around the estimate `mean`, whose standard error `error` has `freedom` degrees of freedom."""
    half = t_quantile(freedom) * error
    return Interval(mean, error, mean - half, mean + half)


def pooled_spread(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """(standard deviation of one value within its group, degrees of freedom); (0, 0) if no group has two values.

    All groups are assumed to have the same standard deviation, so every group with two values or more contributes to
    the estimate.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        if len(values):
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def t_quantile(freedom: float) -> float:
    """Half the width of a two-sided t interval, in standard errors.

    It is 12.706 for 1 degree of freedom and 1.96 for many. ValueError unless `freedom` > 0.
    """
    if not freedom > 0:
        raise ValueError(f"freedom = {freedom}")
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))

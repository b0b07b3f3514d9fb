"""What repeated runs say about a mean: standard errors and Student's intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
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
    return around(mean, spread, len(values), len(values) - 1)


def around(mean: float, spread: float, count: int, freedom: int) -> Interval:
    """The t interval of a mean of `count` values whose standard deviation is known to `freedom` degrees."""
    error = spread / math.sqrt(count)
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


@dataclass(frozen=True)
class Paired:
    """Groups compared within blocks that they share: what a block does to all of them alike drops out.

    spread    standard deviation of one value beyond its group's and its block's own level
    freedom   degrees of freedom of `spread`
    """

    spread: float
    freedom: int
    _levels: np.ndarray
    _covariance: np.ndarray
    _estimable: np.ndarray

    def difference(self, one: int, other: int) -> tuple[float, float] | None:
        """How much higher group `one` lies than `other`, and the standard error; None if no blocks connect them."""
        contrast = np.zeros(len(self._levels))
        contrast[one] += 1
        contrast[other] -= 1
        if not np.allclose(contrast @ self._estimable, contrast, atol=1e-8):
            return None
        squares = max(0.0, float(contrast @ self._covariance @ contrast))
        return float(contrast @ self._levels), self.spread * math.sqrt(squares)


def paired(groups: Sequence[Mapping[int, float]]) -> Paired:
    """The least-squares fit of a level for each group and each block to `groups`, block -> value; 0 freedom: no noise.

    Source: the analysis of incomplete block designs, Scheffe, The Analysis of Variance (1959), chapter 5.
    """
    blocks = sorted({block for values in groups for block in values})
    rows = [
        (group, blocks.index(block), value) for group, values in enumerate(groups) for block, value in values.items()
    ]
    design = np.zeros((len(rows), len(groups) + len(blocks)))
    for row, (group, block, _) in enumerate(rows):
        design[row, group] = design[row, len(groups) + block] = 1.0
    values = np.array([value for *_, value in rows])
    centre = float(values.mean()) if len(values) else 0.0  # subtracted, so that rounding is that of the differences
    inverse = np.linalg.pinv(design)
    levels = inverse @ (values - centre)
    rest = values - centre - design @ levels
    freedom = len(rows) - int(np.linalg.matrix_rank(design)) if len(rows) else 0
    spread = math.sqrt(float(rest @ rest) / freedom) if freedom else 0.0
    return Paired(spread, freedom, levels, inverse @ inverse.T, inverse @ design)


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Half the width of a two-sided t interval in standard errors: 12.706 for 1 degree of freedom, 1.96 for many."""
    if not freedom > 0 or not 0 < confidence < 1:
        raise ValueError(f"freedom = {freedom}, confidence = {confidence}")
    return float(stdtrit(freedom, (1 + confidence) / 2))

"""The settings of trials as points of the unit cube. The Gaussian process measures distances in this cube."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

ABSENT = 0.5  # coordinate of a setting that is not searched


class Cube:
    """Parameters as points of the unit cube.

    A range has one column. A setting with choices has one column for each choice. The columns of an absent setting
    hold `ABSENT`.

    columns    setting -> its columns
    width      number of all columns
    active     returns the names of the settings that are searched, given the values of a point; default: all settings
    deciding   the settings whose values `active` reads
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        active: Callable[[Mapping[str, Any]], set[str]] | None = None,
        deciding: Sequence[str] = (),
    ) -> None:
        self.space = dict(space)
        self._active = active
        self._deciding = list(deciding)
        self.columns: dict[str, slice] = {}
        self.width = 0
        for name, one in space.items():
            count = len(one.choices) if isinstance(one, CategoricalDistribution) else 1
            self.columns[name] = slice(self.width, self.width + count)
            self.width += count

    def points(self, rows: Iterable[Mapping[str, Any]]) -> np.ndarray:
        """The points of many sets of parameters: (n, width). Parameters that this space does not have are ignored."""
        known = [self.point({name: row[name] for name in self.space if name in row}) for row in rows]
        return np.array(known).reshape(-1, self.width)

    def point(self, values: Mapping[str, Any]) -> np.ndarray:
        """The point of these parameters: (width,)."""
        found = np.full(self.width, ABSENT)
        for name, value in values.items():
            one = self.space[name]
            if isinstance(one, CategoricalDistribution):
                column = np.zeros(len(one.choices))
                column[int(one.to_internal_repr(value))] = 1.0
                found[self.columns[name]] = column
            else:
                found[self.columns[name]] = _fraction(one, value)
        return found

    def values(self, point: np.ndarray) -> dict[str, Any]:
        """For every setting of the space, the value nearest to `point`, also if the setting is not searched there."""
        found = {}
        for name, one in self.space.items():
            part = point[self.columns[name]]
            if isinstance(one, CategoricalDistribution):
                found[name] = one.choices[int(np.argmax(part))]
            else:
                found[name] = _value(one, float(part[0]))
        return found

    def settled(self, points: np.ndarray) -> np.ndarray:
        """`points` moved to values that can be suggested. Settings that are not searched at a point become `ABSENT`."""
        points = self._on_values(points)
        if self._active is None:
            return points
        # Few settings with few values decide which settings are searched, so each combination is looked up once.
        nothing = np.zeros((len(points), 1))
        deciding = np.hstack([nothing, *(points[:, self.columns[name]] for name in self._deciding)])
        cases, which = np.unique(deciding, axis=0, return_inverse=True)
        which = which.ravel()
        for case in range(len(cases)):
            rows = which == case
            searched = self._active(self.values(points[int(np.argmax(rows))]))
            for name, columns in self.columns.items():
                if name not in searched:
                    points[rows, columns] = ABSENT
        return points

    def searches(self, name: str, point: np.ndarray) -> bool:
        """Whether setting `name` is searched at a point that `settled` has returned."""
        return self._active is None or name in self._active(self.values(point))

    def _on_values(self, points: np.ndarray) -> np.ndarray:
        """`points` moved to the nearest values that can be suggested."""
        points = points.copy()
        for name, one in self.space.items():
            columns = self.columns[name]
            if isinstance(one, CategoricalDistribution):
                points[:, columns] = np.eye(len(one.choices))[points[:, columns].argmax(1)]
            elif not isinstance(one, FloatDistribution) or one.step is not None or one.single():
                points[:, columns] = [[_fraction(one, _value(one, float(x)))] for x in points[:, columns][:, 0]]
        return points

    def random(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """Points drawn from the uniform distribution: (count, width)."""
        return draw.random((count, self.width))

    def near(self, points: np.ndarray, width: float, draw: np.random.Generator) -> np.ndarray:
        """One random neighbour for each of `points`.

        About half of the ranges move, by a normal step of standard deviation `width`. Each setting with choices is
        drawn again with probability 0.1.
        """
        moved = points + draw.normal(size=points.shape) * width * (draw.random(points.shape) < 0.5)
        moved = np.where((moved < 0) | (moved > 1), np.clip(points - (moved - points), 0, 1), moved)
        for name, one in self.space.items():
            if isinstance(one, CategoricalDistribution):
                columns = self.columns[name]
                fresh = draw.random(len(points)) < 0.1
                moved[:, columns] = np.where(fresh[:, None], draw.random(moved[:, columns].shape), points[:, columns])
        return moved


def _fraction(one: BaseDistribution, value: float) -> float:
    """The position of a value between the ends of its range, in [0, 1]; on a log scale if the range has one."""
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = one.low, one.high
    if low == high:
        return 0.5
    if one.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _value(one: BaseDistribution, fraction: float) -> float | int:
    """The possible value nearest to position `fraction` of the range, in [0, 1]."""
    assert isinstance(one, FloatDistribution | IntDistribution)
    low, high = one.low, one.high
    raw = low * (high / low) ** fraction if one.log else low + (high - low) * fraction
    if isinstance(one, IntDistribution):
        return int(min(high, max(low, low + round((raw - low) / one.step) * one.step)))
    if one.step is not None:
        raw = low + round((raw - low) / one.step) * one.step
    return min(high, max(low, raw))

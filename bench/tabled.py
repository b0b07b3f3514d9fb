"""What a table of trainings says: the truth of every setting, the seeds' share in it, and where settings lie."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from bench.table import CURVES, SEEDS, Key, Row, Setting, value_of
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import Values, distribution, order, settled


@dataclass(frozen=True)
class Entry(Setting):
    """One setting whose common seeds are trained.

    values    of its trainings by seed, each less what the seed adds to all settings, dB; None where it diverged
    curves    val_psnr of its trainings by seed as they were, dB; shorter where it diverged
    """

    values: Mapping[int, float | None]
    curves: Mapping[int, Sequence[float]]

    @property
    def steady(self) -> bool:
        """Whether every seed came to its end."""
        return None not in self.values.values()

    @property
    def mean(self) -> float:
        """The mean over its seeds, dB; of a steady one."""
        return statistics.fmean(value for value in self.values.values() if value is not None)

    @property
    def half(self) -> int:
        """0: defaults may be chosen on it; 1: figures come from it."""
        return int(self.key, 16) % 2


def entries(rows: Mapping[Key, Row], window: int) -> list[Entry]:
    """The settings whose common seeds have ended, in the table's order; those with an error are left out."""
    by_index: dict[int, dict[int, Row]] = {}
    for (index, seed), row in rows.items():
        by_index.setdefault(index, {})[seed] = row
    whole = {
        index: of
        for index, of in by_index.items()
        if set(SEEDS) <= set(of) and all(row["error"] is None for row in of.values())
    }
    values = {index: {seed: value_of(row, window) for seed, row in of.items()} for index, of in whole.items()}
    added = seed_effects(list(values.values()))
    found = []
    for index, of in whole.items():
        first = of[SEEDS[0]]
        less = {seed: None if value is None else value - added[seed] for seed, value in values[index].items()}
        curves = {seed: row[CURVES[0]] for seed, row in of.items()}
        found.append(Entry(index, first["key"], first["params"], less, curves))
    return found


def seed_effects(values: Sequence[Mapping[int, float | None]]) -> dict[int, float]:
    """What each seed adds, dB: the median over settings of its value less the mean of the common seeds'."""
    beyond: dict[int, list[float]] = {seed: [] for of in values for seed in of}
    for of in values:
        common = [of[seed] for seed in SEEDS]
        if None not in common:
            centre = statistics.fmean(value for value in common if value is not None)
            for seed, value in of.items():
                beyond[seed] += [] if value is None else [value - centre]
    return {seed: statistics.median(several) if several else 0.0 for seed, several in beyond.items()}


def truths(of: Sequence[Entry]) -> np.ndarray:
    """What each setting is worth, (n,) dB; where a seed diverged, as much as the worst of the others."""
    worst = min(one.mean for one in of if one.steady)
    return np.array([one.mean if one.steady else worst for one in of])


def best_of(of: Sequence[Entry], seeds: int = 6) -> float:
    """The highest truth among the settings with so many seeds; among all, as long as none has them."""
    sure = [one.mean for one in of if one.steady and len(one.values) >= seeds]
    return max(sure or [one.mean for one in of if one.steady])


class Cube:
    """Where settings lie: ranges as fractions of the way (of the logarithm, where the space has it).

    names    the searched settings, each after those that decide whether it is searched
    """

    def __init__(self, definition: Definition) -> None:
        self.names = order(definition.search)
        self.distributions = {name: distribution(definition.search[name]) for name in self.names}
        self._definition = definition

    def active(self, params: Values) -> Values:
        """The part of `params` that is searched beside the rest of them."""
        values, found = settled(self._definition.search, self._definition.fixed), {}
        for name in self.names:
            if name in params and self._definition.search[name].active(values):
                values[name] = found[name] = params[name]
        return found

    def distance(self, one: Values, other: Values) -> float:
        """Sum over the settings of both of the squared difference of their places; 1 for another choice."""
        total = 0.0
        for name in one.keys() & other.keys():
            known = self.distributions[name]
            if isinstance(known, CategoricalDistribution):
                total += float(one[name] != other[name])
            else:
                total += (place(known, one[name]) - place(known, other[name])) ** 2
        return total

    def features(self, params: Values) -> list[float]:
        """A column a range and one a choice; -1 where a setting is absent."""
        found: list[float] = []
        for name, known in self.distributions.items():
            if isinstance(known, CategoricalDistribution):
                found += [float(params.get(name) == choice) for choice in known.choices]
            else:
                found.append(place(known, params[name]) if name in params else -1.0)
        return found


def place(known: BaseDistribution, value: float) -> float:
    """Where a value lies between the ends of its range, in [0, 1]."""
    assert isinstance(known, FloatDistribution | IntDistribution)
    low, high = np.log([known.low, known.high]) if known.log else (known.low, known.high)
    return float(((np.log(value) if known.log else value) - low) / (high - low))

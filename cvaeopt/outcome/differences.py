"""Differences between runs and studies, with their uncertainty where the same training seeds were used.

Most of what a seed changes, it changes for all settings alike. So two sets of settings are compared seed by seed: the
differences of the values with equal seeds have a mean and Student's 95 % interval. With fewer than two common seeds, or
with values that mean different things, nobody can tell the difference from noise, and the result says so.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvaeopt.files import digest
from cvaeopt.outcome.intervals import Interval, interval
from cvaeopt.outcome.run_summary import RunSummary
from cvaeopt.text import count


@dataclass(frozen=True)
class Arm:
    """Runs with the same settings, which differ only in their seeds; or one study.

    values   training seed -> value, dB
    value    the mean of `values`; for a study its recommended value; None if no value is known
    measure  the meaning of a value: values with different meanings are not compared
    data     digest of the data; '' if it is not known
    """

    name: str
    members: tuple[str, ...]
    values: Mapping[int, float]
    value: float | None
    measure: str
    data: str


@dataclass(frozen=True)
class Difference:
    """How much higher the value of `arm` is than that of `other`.

    seeds    the training seeds that both have, sorted
    value    the difference, dB, with its 95 % interval if it has one; None if a value is not known
    unknown  why the difference cannot be told from noise; '' if it can be told
    """

    arm: Arm
    other: Arm
    seeds: tuple[int, ...]
    value: Interval | None
    unknown: str

    @property
    def verdict(self) -> str:
        """'better', 'worse', 'within noise' or 'cannot be told'."""
        if self.unknown or self.value is None or self.value.low is None or self.value.high is None:
            return "cannot be told"
        if self.value.low <= 0 <= self.value.high:
            return "within noise"
        return "better" if self.value.mean > 0 else "worse"

    @property
    def sentence(self) -> str:
        """The difference in words. `arm` is called "it"."""
        if self.verdict == "cannot be told" or self.value is None:
            return f"Whether it is better than {self.other.name} cannot be told: {self.unknown}."
        within = (
            f"95 % interval {self.value.low:+.2f} to {self.value.high:+.2f} dB, {count(len(self.seeds), 'common seed')}"
        )
        if self.verdict == "within noise":
            return f"The difference from {self.other.name} is within noise: {self.value.mean:+.2f} dB ({within})."
        return f"It is {self.verdict} than {self.other.name} by {abs(self.value.mean):.2f} dB ({within})."


def arms(runs: Sequence[RunSummary]) -> list[Arm]:
    """The runs, grouped by settings, in the order in which they are given."""
    groups: dict[Any, list[RunSummary]] = {}
    for run in runs:
        settings = {name: value for name, value in run.settings.items() if name != "seed"}
        alike = run.kind != "study" and settings and run.values
        key = digest([settings, run.data, run.start, run.meaning]) if alike else run.name
        groups.setdefault(key, []).append(run)
    return [_arm(group) for group in groups.values()]


def differences(of: Sequence[Arm]) -> list[Difference]:
    """The difference of every arm but the first from the first."""
    return [difference(arm, of[0]) for arm in of[1:]]


def difference(arm: Arm, other: Arm) -> Difference:
    """How much higher the value of `arm` is than that of `other`."""
    seeds = tuple(sorted(arm.values.keys() & other.values.keys()))
    unknown = _unknown(arm, other, len(seeds))
    if arm.value is None or other.value is None:
        return Difference(arm, other, seeds, None, unknown)
    if unknown:
        return Difference(arm, other, seeds, Interval(arm.value - other.value, None, None, None), unknown)
    return Difference(arm, other, seeds, interval([arm.values[seed] - other.values[seed] for seed in seeds]), "")


def _unknown(arm: Arm, other: Arm, shared: int) -> str:
    if arm.value is None or other.value is None:
        return "a value is not known"
    if arm.measure != other.measure:
        return f"one value is the {arm.measure}, the other the {other.measure}"
    if not arm.data or not other.data:
        return "the data of one are not known"
    if arm.data != other.data:
        return "they have other data"
    if shared < 2:
        return "no seed is common" if shared == 0 else "only one seed is common"
    return ""


def _arm(group: Sequence[RunSummary]) -> Arm:
    first = group[0]
    values: dict[int, float] = {}
    for run in group:
        values = {**run.values, **values}
    mean = None if first.kind == "study" or not values else math.fsum(values.values()) / len(values)
    names = tuple(run.name for run in group)
    name = first.name if len(group) == 1 else f"{_prefix(names) or first.name}* ({count(len(values), 'seed')})"
    return Arm(name, names, values, first.value if mean is None else mean, first.meaning, first.data)


def _prefix(names: Sequence[str]) -> str:
    """The first letters that all names have in common."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in alike)

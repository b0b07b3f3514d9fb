"""Points that cover a space evenly: Halton's sequence with scrambled digits, and values from positions in a range.

Source: Halton, Numerische Mathematik 2 (1960).
"""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cvaeopt.search.space import stream


def value_at(distribution: BaseDistribution, fraction: float) -> Any:
    """The value at position `fraction` of the range, 0 <= fraction < 1.

    All choices, and all steps of a range without a log scale, take equally wide parts of [0, 1).
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(fraction * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, FloatDistribution) and distribution.step is None:
        if distribution.log:
            return min(high, low * (high / low) ** fraction)
        return low + (high - low) * fraction
    if distribution.log:  # 0.5 more at both ends, so that rounding gives the first and the last number a whole part
        value = (low - 0.5) * ((high + 0.5) / (low - 0.5)) ** fraction
        return min(int(high), max(int(low), round(value)))
    step = distribution.step or 1
    count = round((high - low) / step) + 1
    return type(low)(low + int(fraction * count) * step)


def radical_inverse(index: int, base: int, seed: int) -> float:
    """A number in [0, 1): the digits of `index` in base `base`, in reverse order after the radix point.

    At each place a random permutation replaces the digit. The permutation depends on `seed`, `base` and the place.
    """
    places = math.ceil(32 / math.log2(base))  # a resolution of 2^-32, which is finer than any setting needs
    value, scale = 0.0, 1.0
    for place in range(places):
        index, digit = divmod(index, base)
        shuffled = sorted(range(base), key=lambda one: stream(seed, one, f"base {base} place {place}"))
        scale /= base
        value += shuffled[digit] * scale
    return min(value, 1 - 2**-53)


def primes(count: int) -> list[int]:
    """The first `count` prime numbers."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found

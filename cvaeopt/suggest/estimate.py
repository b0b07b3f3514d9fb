"""The value of a trial and its standard error. The pruner and the ranking use the same estimator.

The value is the mean of the reported metric over the last `window` epochs. Its squared standard error is the sum of
two variances. The first is the variance of this mean, estimated from the residuals of the epochs about a straight line.
The second is the variance between training seeds (`seed_noise_db`, measured in bench/README.md, Noise). The storage
keeps the curve as it was reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_NOISE_EPOCHS = 5
"""Number of epochs from which the noise between epochs is estimated if the window is shorter. Fewer epochs would give a
poor estimate."""


@dataclass(frozen=True)
class Estimate:
    """A trial's value and its standard error.

    value    dB
    error    standard error of the value as an estimate of the mean over training seeds, dB; None before the third epoch
    epochs   number of epochs whose mean is the value
    """

    value: float
    error: float | None
    epochs: int


def estimate(curve: Sequence[float], window: int, seed_noise_db: float = 0.0) -> Estimate:
    """The estimate after the last epoch of `curve`.

    curve           dB, one value per epoch, at least one value
    window          epochs that are averaged; fewer if the curve is shorter
    seed_noise_db   standard deviation between training seeds, dB
    """
    kept = [float(value) for value in curve[-window:]]
    value = math.fsum(kept) / len(kept)
    spread = epoch_noise(curve[-max(window, MIN_NOISE_EPOCHS) :])
    error = None if spread is None else math.sqrt(spread**2 / len(kept) + seed_noise_db**2)
    return Estimate(value, error, len(kept))


def epoch_noise(curve: Sequence[float]) -> float | None:
    """Standard deviation of `curve` about its least-squares line, dB; None for fewer than three values."""
    count = len(curve)
    if count < 3:
        return None
    level, slope = line(curve)
    residuals = [value - level - slope * (index - (count - 1) / 2) for index, value in enumerate(curve)]
    return math.sqrt(math.fsum(one * one for one in residuals) / (count - 2))


def line(curve: Sequence[float]) -> tuple[float, float]:
    """Mean (dB) and slope (dB per epoch) of the least-squares line through `curve`; a single value has slope 0."""
    count = len(curve)
    centre = (count - 1) / 2
    level = math.fsum(curve) / count
    if count == 1:
        return level, 0.0
    moment = math.fsum((index - centre) * value for index, value in enumerate(curve))
    return level, moment * 12 / (count * (count * count - 1))


def curve_until(intermediate: Mapping[int, float], epoch: int) -> list[float]:
    """The finite values that were reported up to and including `epoch`, in the order of the epochs."""
    return [intermediate[step] for step in sorted(intermediate) if step <= epoch and math.isfinite(intermediate[step])]

"""What a trial is worth: one estimator, for the pruner while it runs and for the ranking when it is over.

The value is the mean of the reported metric over the last `window` epochs. Its standard error has two parts that add
in squares: what the epochs of the window leave uncertain, from their residuals about a straight line, and what another
training seed would change (`seed_noise_db`, measured in bench/README.md, Noise). The curve itself stays in the
storage as it was reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_NOISE_EPOCHS = 5
"""Epochs from which the noise between epochs is read where the window is shorter: three points on a line say little."""


@dataclass(frozen=True)
class Estimate:
    """A trial's value and how sure it is.

    value    dB
    error    standard error of the value as the mean over all training seeds, dB; None before the third epoch
    epochs   epochs that the value is a mean of
    """

    value: float
    error: float | None
    epochs: int


def estimate(curve: Sequence[float], window: int, seed_noise_db: float = 0.0) -> Estimate:
    """The estimate after the last epoch of `curve` (dB, one value an epoch, at least one).

    window          epochs that are averaged; fewer where the curve is shorter
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
    """Mean and slope (dB an epoch) of the least-squares line through `curve`; slope 0 through a single value."""
    count = len(curve)
    centre = (count - 1) / 2
    level = math.fsum(curve) / count
    if count == 1:
        return level, 0.0
    moment = math.fsum((index - centre) * value for index, value in enumerate(curve))
    return level, moment * 12 / (count * (count * count - 1))


def curve_until(intermediate: Mapping[int, float], epoch: int) -> list[float]:
    """The values reported up to and including `epoch`, in order, as far as they are finite."""
    return [intermediate[step] for step in sorted(intermediate) if step <= epoch and math.isfinite(intermediate[step])]

"""Simulated studies: learning curves of a known truth, so that a search can be marked.

Every problem has six settings in [0, 1], trials of 100 epochs, and a noise-free curve for each point. A trial reports
that curve plus an offset of its training seed and plus noise between epochs.

    cross     the settings that end best learn slowest, so early curves rank them wrongly
    benign    all settings learn equally fast
    heavy     cross with the noise of published curves: 1.7 dB between epochs, dips, 0.7 dB between seeds
    null      settings do not matter
    fitted    levels, speeds and noise of published curves; forcing decays shape the early curve
    late      most of the gain comes when the learning rate falls at the end, for some settings more than for others;
              little noise, as measured with recalibrated statistics and a cosine schedule

Hartmann's six-dimensional function is the landscape of all but `null` and `fitted` (Dixon and Szegoe, 1978).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EPOCHS = 100
DIMENSIONS = 6
FIT = Path(__file__).parent / "results" / "curves-fit.json"

_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)

Point = Sequence[float]


def hartmann(x: Point) -> float:
    """Minus Hartmann's function in six dimensions: from 0 to 3.322, at (0.202, 0.150, 0.477, 0.275, 0.312, 0.657)."""
    return float(_ALPHA @ np.exp(-(_A * (np.asarray(x) - _P) ** 2).sum(1)))


@dataclass(frozen=True)
class Noise:
    """What a trial reports beyond the truth, dB.

    seed_db    standard deviation between training seeds, the same in all epochs of a run
    epoch_db   between neighbouring epochs
    memory     correlation of one epoch's noise with the last one's
    dips       share of the epochs that fall by `dip_db` on average (exponentially distributed)
    """

    seed_db: float
    epoch_db: float
    memory: float = 0.0
    dips: float = 0.0
    dip_db: float = 0.0

    def draw(self, generator: np.random.Generator) -> np.ndarray:
        """One run's noise, (EPOCHS,) dB, with mean `mean` for dips."""
        fresh = generator.normal(size=EPOCHS) * self.epoch_db
        if self.memory:
            scale = math.sqrt(1 - self.memory**2)
            for epoch in range(1, EPOCHS):
                fresh[epoch] = self.memory * fresh[epoch - 1] + scale * fresh[epoch]
        if self.dips:
            fresh -= (generator.random(EPOCHS) < self.dips) * generator.exponential(self.dip_db, EPOCHS)
        return fresh + generator.normal() * self.seed_db

    @property
    def mean(self) -> float:
        """What the noise adds on average, dB."""
        return -self.dips * self.dip_db


@dataclass(frozen=True)
class Problem:
    """A simulated study.

    clean      the noise-free curve of a point, (EPOCHS,) dB
    noise      what is reported beyond it
    diverges   the points whose loss becomes NaN after three epochs
    shows_at   epoch from which a point's schedule has shown itself
    """

    name: str
    clean: Callable[[Point], np.ndarray]
    noise: Noise
    diverges: Callable[[Point], bool] = lambda x: False
    shows_at: Callable[[Point], int] = lambda x: 0

    def true(self, x: Point) -> float:
        """What the point is worth: its last epoch, averaged over seeds and epochs, dB; -inf where it diverges."""
        return -math.inf if self.diverges(x) else float(self.clean(x)[-1]) + self.noise.mean

    def run(self, x: Point, generator: np.random.Generator) -> np.ndarray:
        """What one training of the point reports, (EPOCHS,) dB; NaN from the epoch on in which it diverges."""
        curve = self.clean(x) + self.noise.draw(generator)
        if self.diverges(x):
            curve[3:] = np.nan
        return curve


_EPOCH = np.arange(1, EPOCHS + 1)


def _saturating(end: float, time: float, start: float = 15.0) -> np.ndarray:
    return end - (end - start) * np.exp(-_EPOCH / time)


def _end(x: Point) -> float:
    return 24 + 1.8 * hartmann(x)


def _diverges(x: Point) -> bool:
    return x[0] > 0.93


def _cross(x: Point) -> np.ndarray:
    return _saturating(_end(x), 6 + 30 * (1 - x[0]) ** 1.5)


def _late(x: Point) -> np.ndarray:
    # Half of what is above 18 dB, less or more of it by x[4], comes with the end of a cosine schedule.
    end = _end(x)
    held_back = (end - 18) * (0.25 + 0.5 * x[4])
    annealed = (1 - (1 + np.cos(np.pi * _EPOCH / EPOCHS)) / 2) ** 2
    return _saturating(end - held_back, 15) + held_back * annealed


# ---- fitted to published curves


def _fitted() -> Problem:
    """tfr, its start and step of decay as in `main`, log lr and two settings of little weight.

    The file holds what was fitted to public curves of this network: end, start (dB) and time (epochs) of a saturating
    curve, and the noise about it. The run without forcing and the three runs with forcing are the two ends. How forcing
    in between mixes them, and the parabola over log lr, are assumptions, because no public run shows them.
    """
    fit = json.loads(FIT.read_text())["psnr"]
    free = fit["lr_0.001_tfr_0.0_10_0.0"]
    forced = [one for name, one in fit.items() if "_tfr_1.0" in name]

    def middle(key: str) -> float:
        return float(np.median([one[key] for one in forced]))

    def schedule(x: Point) -> np.ndarray:
        begins, step = 5 + 15 * x[1], 0.5 * x[2]
        return np.clip(x[0] - step * np.maximum(0, _EPOCH - 1 - begins), 0, 1)

    def clean(x: Point) -> np.ndarray:
        forcing = schedule(x)
        # A little forcing already costs much: a ratio that falls was as bad as a fixed one.
        lasting = float(forcing.mean()) ** 0.5
        end = free["end_db"] + (middle("end_db") - free["end_db"]) * lasting
        end -= 6 * (x[3] - 0.65) ** 2 + 1.0 * (x[4] - 0.3) ** 2 + 0.5 * (x[5] - 0.5) ** 2
        time = free["time_epochs"] + (middle("time_epochs") - free["time_epochs"]) * lasting
        early = free["start_db"] + (middle("start_db") - free["start_db"]) * x[0]
        curve = end - (end - early) * np.exp(-_EPOCH / (time * (1.6 - 0.9 * x[3])))
        return np.asarray(curve - 1.3 * forcing)  # what the run whose forcing ended still gained afterwards

    def shows_at(x: Point) -> int:
        return math.ceil(5 + 15 * x[1]) + 1 if x[0] > 0 else 0

    pooled = [free, *forced]
    noise = Noise(
        seed_db=0.35,
        epoch_db=sum(one["epoch_db"] for one in pooled) / 4,
        memory=sum(one["memory"] for one in pooled) / 4,
        dips=sum(one["dips"] for one in pooled) / 4,
        dip_db=max(one["dip_db"] for one in pooled),
    )
    return Problem("fitted", clean, noise, lambda x: x[3] > 0.97, shows_at)


def problem(name: str) -> Problem:
    """The problem of this name; KeyError if there is none."""
    pilot = Noise(seed_db=0.35, epoch_db=0.5)
    made: dict[str, Callable[[], Problem]] = {
        "cross": lambda: Problem("cross", _cross, pilot, _diverges),
        "benign": lambda: Problem("benign", lambda x: _saturating(_end(x), 20), pilot, _diverges),
        "heavy": lambda: Problem("heavy", _cross, Noise(0.7, 1.7, dips=0.05, dip_db=4.0), _diverges),
        "null": lambda: Problem("null", lambda x: _saturating(27.0, 20), pilot),
        "fitted": _fitted,
        "late": lambda: Problem("late", _late, Noise(0.3, 0.1), _diverges),
    }
    return made[name]()


PROBLEMS = ("cross", "benign", "null", "fitted", "heavy", "late")

"""Numbers, times, states and baselines in words: one copy of each, for the terminal, the pages and the messages."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

State = Literal["complete", "pruned", "failed", "running", "waiting"]

STATES: Final[dict[str, State]] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""The word for each of Optuna's trial states. A diverged trial is PRUNED for Optuna and "failed" for people, see
`store.status.FAILED`."""

BASELINES: Final = {"copy_first": "copy first", "train_mean": "mean frame", "nearest_pose": "nearest pose"}
"""The short name of each baseline, by its key in JSON."""

BASELINES_LONG: Final = {
    "copy_first": "first frame repeated",
    "train_mean": "mean training frame",
    "nearest_pose": "nearest pose",
}
"""The same in charts and sentences, where there is room."""

SPARKS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The shape of a curve in one line; the newest `width` values, '·' for those that are not finite."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return "·" * len(shown)
    low, span = min(finite) / 2, max(finite) / 2 - min(finite) / 2  # halves: the difference of any two is finite
    top = len(SPARKS) - 1

    def spark(value: float) -> str:
        return SPARKS[round((value / 2 - low) / span * top) if span else 0]

    return "".join(spark(value) if math.isfinite(value) else "·" for value in shown)


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min', '3 h 05', '2 d 4 h'."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d}"
    return f"{hours // 24} d {hours % 24} h"


def baseline_texts(values: Mapping[str, float | None]) -> str:
    """The baselines in one line: 'copy first 20.76, mean frame 22.56'."""
    return ", ".join(f"{BASELINES.get(name, name)} {value:.2f}" for name, value in values.items() if value is not None)


def count(number: int, what: str) -> str:
    """A number of things: '1 epoch', '2 epochs'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


class Advice(str):
    """A sentence that ends with a command of this program, such as 'Let a worker finish one: cvaeopt worker ...'.

    sentence   what stands before the command
    command    the words after `cvaeopt`, so that the command line can spell it as the user has to type it
    """

    sentence: str
    command: tuple[str, ...]

    def __new__(cls, sentence: str, *command: str) -> Self:
        made = super().__new__(cls, f"{sentence} {shlex.join(['cvaeopt', *command])}")
        made.sentence, made.command = sentence, command
        return made

    def __getnewargs__(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.sentence, *self.command)


def short(value: Any) -> str:
    """A setting's value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

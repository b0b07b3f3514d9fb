"""Numbers, times, states and baselines as text. The terminal, the HTML pages and the messages share this text."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Self

State = Literal["complete", "pruned", "failed", "running", "waiting", "history"]

STATES: Final[dict[str, State]] = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""Our word for each of Optuna's trial states. Optuna stores a diverged trial as PRUNED, but users see "failed" (see
`store.status.FAILED`)."""

BASELINES: Final = {"copy_first": "copy first", "train_mean": "mean frame", "nearest_pose": "nearest pose"}
"""The short name of each baseline. The keys are those of the JSON output."""

BASELINES_LONG: Final = {
    "copy_first": "first frame repeated",
    "train_mean": "mean training frame",
    "nearest_pose": "nearest pose",
}
"""The long name of each baseline, for charts and sentences."""

SPARKS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve as one line of text: one character for each of the last `width` values, '·' for NaN or infinity."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return "·" * len(shown)
    low, span = min(finite) / 2, max(finite) / 2 - min(finite) / 2  # halved, so that no difference overflows
    top = len(SPARKS) - 1

    def spark(value: float) -> str:
        return SPARKS[round((value / 2 - low) / span * top) if span else 0]

    return "".join(spark(value) if math.isfinite(value) else "·" for value in shown)


def duration(seconds: float) -> str:
    """A duration as short text: '48 s', '12 min', '3 h 05', '2 d 4 h'; '?' if it is not finite."""
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
    """The baselines in dB on one line: 'copy first 20.76, mean frame 22.56'. A value of None is left out."""
    return ", ".join(f"{BASELINES.get(name, name)} {value:.2f}" for name, value in values.items() if value is not None)


def count(number: int, what: str) -> str:
    """A number with its noun: '1 epoch', '2 epochs'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def version_text(version: Mapping[str, Any]) -> str:
    """The changes of a version of a study's definition, its date and its author; `version` as `status` shows it."""
    when = datetime.fromtimestamp(version["at"]).strftime("%Y-%m-%d %H:%M")
    by = f" by {version['by']}" if version["by"] else ""
    return f"{'; '.join(version['changes']) or 'the first definition'} ({when}{by})"


class Advice(str):
    """A sentence that ends with a command of this program, such as 'Let a worker finish one: cvaeopt worker ...'.

    sentence   the text before the command
    command    the words after `cvaeopt`. The console uses them to write the command as the user has to type it.
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
    """The value of a setting as short text: true or false as in TOML, a float with four significant digits at most."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def settings_text(params: Mapping[str, Any]) -> str:
    """Settings and their values in one line: 'lr 0.001, tfr 0.4'."""
    return ", ".join(f"{name} {short(value)}" for name, value in params.items())

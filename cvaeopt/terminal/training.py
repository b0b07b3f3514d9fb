"""The display of a run while `train` or `retrain` trains it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from cvaeopt.terminal.console import Console
from cvaeopt.terminal.layout import epoch_bar, folded, live_width
from cvaeopt.text import duration, sparkline


@contextlib.contextmanager
def training(
    console: Console, title: str, epochs: int, history: Sequence[dict[str, Any]], metric: str = "val_psnr"
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback for the row of each finished epoch. It updates a bar and a curve, or prints a line in a pipe.

    history   rows of the epochs that an earlier process trained
    """
    rows = list(history)
    finished_at = time.monotonic()

    def pace_s() -> float:
        return statistics.median(float(row["seconds"]) for row in rows[-20:]) if rows else 0.0

    def figures() -> str:
        best = max(rows, key=lambda row: float(row[metric]))
        row = rows[-1]
        return (
            f"{row[metric]:.2f} dB, best {best[metric]:.2f} (epoch {best['epoch']}), "
            f"loss {row['train_loss']:.4g}, lr {row['lr']:.1e}"
        )

    def lines() -> RenderableType:
        width = live_width(console.err)
        done = int(rows[-1]["epoch"]) if rows else 0
        since_s = time.monotonic() - finished_at
        shown = [folded(Text(title, style="bold"), width), epoch_bar(done, epochs, pace_s(), since_s, width)]
        if rows:
            shown.append(folded(Text(f"{sparkline([row[metric] for row in rows], 16)}  {figures()}"), width))
        return Group(*shown)

    def heard(row: dict[str, Any]) -> None:
        nonlocal finished_at
        finished_at = time.monotonic()
        rows.append(row)
        if not console.live:
            left = duration(pace_s() * (epochs - row["epoch"]))
            console.say(f"{title} epoch {row['epoch']}/{epochs}: {figures()}, {row['seconds']:.1f} s, {left} left")

    if not console.live:
        yield heard
        return
    with console.live_lines(lines):
        yield heard
    console.say(f"{title} epoch {rows[-1]['epoch']}/{epochs}: {figures()}" if rows else "")

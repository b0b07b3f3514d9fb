"""Tables, bars and folded lines, made with rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.constrain import Constrain
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cvaeopt.terminal.streams import Terminal
from cvaeopt.text import duration


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Table:
    """A table without lines. Cells are shown as text, not as markup.

    right   indices of the right-aligned columns
    """
    table = Table(header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def live_width(terminal: Terminal) -> int:
    """The width of live lines, in columns: at most 77.

    Then a window that is narrowed to 80 columns does not fold the lines, and the ^C that a terminal echoes fits behind
    them.
    """
    return min(80, terminal.width) - 3


def folded(text: Text, width: int) -> RenderableType:
    """`text` in lines of at most `width` columns."""
    return Constrain(text, width)


def epoch_bar(epoch: int, epochs: int, pace_s: float, since_s: float, width: int) -> RenderableType:
    """A bar of finished epochs, with the seconds per epoch and the remaining time.

    pace_s    seconds per epoch; 0 if unknown
    since_s   seconds since the last epoch ended
    """
    # Between two epochs the bar moves with the clock, up to 95 % of the epoch.
    share = min(since_s / pace_s, 0.95) if pace_s and epoch < epochs else 0.0
    text = f"epoch {epoch}/{epochs}"
    if pace_s:
        text += f", {pace_s:.1f} s each, {duration(pace_s * (epochs - epoch - share))} left"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=epochs, completed=epoch + share, width=max(width - len(text) - 2, 4)), Text(text))
    return bar

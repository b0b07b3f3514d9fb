"""The look of every chart, and small charts of one run, as the bytes of PNG, PDF or SVG files.

Every title is a statement, and every axis has a unit. Colour-blind readers can distinguish the colours (Okabe and
Ito). The letters are large enough for a chart that is shown 360 pixels wide. This module uses matplotlib's object
interface only, so it changes no global state. It imports matplotlib when the first chart is drawn.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cvaeopt.config import Config
from cvaeopt.text import BASELINES
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#00805E"
PURPLE: Final = "#A6478A"
AMBER: Final = "#B87D00"
SKY: Final = "#56B4E9"
INK: Final = "#222222"
QUIET: Final = "#6B6B6B"
FAINT: Final = "#C9CDD2"
SERIES: Final = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY)
DASHES: Final[tuple[Any, ...]] = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))

Kind = Literal["png", "pdf", "svg"]
"""The kinds of files in which charts can be drawn."""

_KIND: ContextVar[Kind] = ContextVar("kind", default="png")

_COPIES: ContextVar[dict[Kind, dict[bytes, bytes]]] = ContextVar("copies", default={})  # noqa: B039, never changed

WIDTH_IN: Final = 5.6
_DPI: Final = 170
_TITLE_CHARACTERS: Final = 52
_LOOK: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 11.5,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#8A8F96",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E7E9EC",
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Apply the common look inside the block. After the block, matplotlib has its earlier settings again."""
    import matplotlib

    with matplotlib.rc_context(_LOOK):
        yield


def figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """An empty figure with space for its labels. Draw on the figure inside `look()`."""
    from matplotlib.figure import Figure as NewFigure

    return NewFigure(figsize=(width_in, height_in), dpi=_DPI, layout="constrained")


@contextlib.contextmanager
def charts_as(kind: Kind) -> Iterator[None]:
    """Inside the block, every chart function returns the bytes of a file of `kind` instead of a PNG file."""
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


@contextlib.contextmanager
def copies_as(kinds: Sequence[Kind]) -> Iterator[None]:
    """Inside the block, every chart is drawn as files of `kinds`, too. `copies_of` returns these files."""
    token = _COPIES.set({kind: {} for kind in kinds})
    try:
        yield
    finally:
        _COPIES.reset(token)


def copies_of(chart: bytes) -> dict[Kind, bytes]:
    """The other files of a chart that was drawn in this block of `copies_as`; empty outside of a block.

    chart   the bytes that the chart's function returned
    """
    return {kind: files[chart] for kind, files in _COPIES.get().items() if chart in files}


def encoded(drawing: Figure) -> bytes:
    """The bytes of a file of the figure: a PNG file, or the kind of file that `charts_as` sets.

    Equal figures give equal bytes: the file has no date, no random names and no version of matplotlib.
    """
    chart = _file(drawing, _KIND.get())
    for kind, files in _COPIES.get().items():
        files[chart] = _file(drawing, kind)
    return chart


def _file(drawing: Figure, kind: Kind) -> bytes:
    import matplotlib

    stream = io.BytesIO()
    unnamed = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate"), "svg": ("Creator", "Date")}[kind]
    # In a PDF file, Type 42 fonts can be edited and searched. In an SVG file, a salt makes the names of parts equal.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "cvaeopt"}):
        drawing.savefig(stream, format=kind, metadata=dict.fromkeys(unnamed))
    return stream.getvalue()


def title(drawing: Figure, text: str) -> None:
    """Write `text` above the figure, aligned to the figure's left edge. Long text is broken into lines."""
    lines = "\n".join(textwrap.wrap(text, _TITLE_CHARACTERS)).replace("$", r"\$")  # "$" starts a formula
    drawing.suptitle(lines, x=0.012, ha="left", fontsize=12.5, fontweight="bold")


def whole_ticks(axes: Axes) -> None:
    """Put the marks of the x axis on whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def legend_below(drawing: Figure, axes: Axes) -> None:
    """Draw a legend under the figure, with as many columns as fit (three at most)."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(3, 52 // (max(map(len, labels)) + 5)))
        drawing.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.6)


def set_rate_scale(axes: Axes, rates: Sequence[float]) -> None:
    """Set the scale of the y axis: logarithmic if the rates span more than one decade, else linear from 0.

    A logarithmic axis shows the largest four decades at most.
    """
    from matplotlib.ticker import NullFormatter

    if 0 < min(rates) < max(rates) / 10:
        axes.set_yscale("log")
        low = max(min(rates), max(rates) / 1e4)
        axes.set_ylim(low / 1.5, max(rates) * 1.5)
        # If the axis has few powers of ten, matplotlib labels small marks too, and these labels overlap.
        ticks = log_ticks([low, max(rates)])
        axes.set_yticks(ticks, [tick_text(tick) for tick in ticks])
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(rates) * 1.1)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))


def log_axis(axis: XAxis | YAxis, values: Sequence[float]) -> None:
    """Set a logarithmic scale with few marks, which lie in the range of `values`."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    ticks = log_ticks(values)
    axis.set_ticks(ticks, [tick_text(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def log_ticks(values: Sequence[float]) -> list[float]:
    """At most four marks for an axis with a logarithmic scale.

    The marks are powers of ten. If fewer than two powers of ten lie in the range, the marks are the smallest value,
    the largest value and their geometric mean. If the range is too narrow for three marks, the smallest value is the
    only mark.
    """
    if not values:
        return []
    low, high = min(values), max(values)
    decades = [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    if len(decades) >= 2:
        return decades[:: math.ceil(len(decades) / 4)]
    return [low] if high < 1.25 * low else [low, math.sqrt(low * high), high]


def tick_text(number: float) -> str:
    """A positive number as short text with about two significant digits: 0.01, 1.2e-4."""
    if 1e-2 <= number < 1e4:
        return f"{number:.2g}" if number < 100 else f"{number:.0f}"
    digits, power = f"{number:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def halo() -> list[AbstractPathEffect]:
    """A white edge around letters, so that letters can be read where they cross a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.6, foreground="white", alpha=0.9)]


def draw_baselines(axes: Axes, baselines: Mapping[str, float], best: tuple[float, str] | None = None) -> None:
    """Draw each baseline as a dashed line. Its name is in the right margin, where it covers no curve and no point.

    best    (height in data units, name) of a curve whose name is also written in the right margin
    """
    low, high = axes.get_ylim()
    for value in baselines.values():
        low, high = min(low, value - 0.5), max(high, value + 0.5)
        axes.axhline(value, color=QUIET, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
    axes.set_ylim(low, high)
    names = [(value, f"{BASELINES.get(name, name)} {value:.1f}", False) for name, value in baselines.items()]
    names += [] if best is None else [(*best, True)]
    names.sort()
    for (_, text, bold), height in zip(
        names, _apart([value for value, _, _ in names], (high - low) * 0.085, high), strict=True
    ):
        axes.annotate(
            text,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            fontweight="bold" if bold else "normal",
            color=BLUE if bold else "#4A4A4A",
            annotation_clip=False,
        )


def _apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """The rising `heights`, moved apart so that neighbours differ by at least `gap` and none is above `top`."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], top)
        top = placed[index] - gap
    return placed


def nothing(name: str, reason: str) -> bytes:
    """A chart that shows only its name and the reason why there is nothing to draw."""
    with look():
        drawing = figure(1.7)
        axes = drawing.subplots()
        axes.set_axis_off()
        title(drawing, name)
        axes.text(0, 0.55, "\n".join(textwrap.wrap(reason, 54)), transform=axes.transAxes, color=QUIET, va="center")
        return encoded(drawing)


def page_of(picture: bytes) -> bytes:
    """The PNG file `picture` as the kind of file that `charts_as` sets. Its pixels are not changed."""
    if _KIND.get() == "png":
        return picture
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    with look():
        drawing = figure(WIDTH_IN * height / width)
        drawing.set_layout_engine("none")
        axes = drawing.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(pixels, interpolation="none", aspect="auto")
        return encoded(drawing)


def psnr_per_frame(
    psnr_frames: NDArray[np.floating[Any]], baselines: Mapping[str, float] | None = None, *, name: str = ""
) -> bytes:
    """A chart of the PSNR of every predicted frame of the validation video, with the baselines' means.

    psnr_frames   (T,) in dB
    baselines     name -> mean PSNR in dB
    """
    values = np.asarray(psnr_frames, dtype=float)
    if not len(values):
        return nothing("PSNR per frame", "No frame was predicted.")
    late = values[-math.ceil(len(values) / 3) :]
    worst = int(values.argmin())
    with look():
        drawing = figure(3.4)
        axes = drawing.subplots()
        text = f"{values.mean():.2f} dB over {len(values)} frames, {late.mean():.2f} dB in the last third"
        title(drawing, f"{name}: {text}" if name else text)
        axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, linewidth=1.3)
        axes.plot(worst + 1, values[worst], "o", color=ORANGE, markersize=6)
        axes.annotate(
            f"worst {values[worst]:.1f}",
            (worst + 1, values[worst]),
            xytext=(0, -6),  # The label is below the lowest point, where no curve can cross it.
            textcoords="offset points",
            ha="left" if worst < len(values) * 0.2 else "right" if worst > len(values) * 0.8 else "center",
            va="top",
            zorder=6,
            path_effects=halo(),
            color=ORANGE,
            fontsize=10,
        )
        low, high = axes.get_ylim()
        axes.set_ylim(low - (high - low) * 0.14, high)
        draw_baselines(axes, baselines or {})
        axes.set_xlabel("frame of the roll-out")
        axes.set_ylabel("PSNR, dB")
        whole_ticks(axes)
        return encoded(drawing)


def schedules(runs: Mapping[str, Config]) -> bytes:
    """A chart of the forcing ratio, the KL weight and the learning rate over epochs, for several runs.

    runs   the label of each run -> its settings
    """
    longest = max(config.num_epoch for config in runs.values())
    with look():
        drawing = figure(5.6)
        forcing, weight, rate = drawing.subplots(3, 1, sharex=True)
        title(drawing, f"Schedules over {longest} epochs: {', '.join(runs)}")
        # The first line is wide, the second is dashed and the third is thin: curves that coincide stay visible.
        styles = ((SKY, 3.2, "-"), (ORANGE, 1.8, (0, (4, 2))), (INK, 0.8, "-"))
        for (name, config), (colour, width, dashes) in zip(runs.items(), itertools.cycle(styles), strict=False):
            span = range(config.num_epoch)
            for axes, at in ((forcing, tfr_at), (weight, beta_at), (rate, lr_at)):
                levels = [at(config, epoch) for epoch in span]
                axes.plot(span, levels, color=colour, linewidth=width, linestyle=dashes, label=name)
        forcing.set_ylabel("forcing ratio")
        forcing.set_ylim(-0.05, 1.05)
        legend_below(drawing, forcing)
        weight.set_ylabel("KL weight")
        weight.set_ylim(-0.05, 1.05)
        rate.set_ylabel("learning rate")
        set_rate_scale(rate, [lr_at(config, e) for config in runs.values() for e in range(config.num_epoch)])
        rate.set_xlabel("epochs finished")
        whole_ticks(rate)
        drawing.align_ylabels()
        return encoded(drawing)


def column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """The value of `key` in every row; NaN for a row without `key`."""
    return [math.nan if row.get(key) is None else float(row[key]) for row in rows]

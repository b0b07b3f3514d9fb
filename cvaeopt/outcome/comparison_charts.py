"""The charts of a comparison: a line for each run or study, over epochs or over hours of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cvaeopt.pictures.curves import (
    DASHES,
    SERIES,
    draw_baselines,
    encoded,
    figure,
    legend_below,
    look,
    nothing,
    title,
    whole_ticks,
)
from cvaeopt.text import count

_MIN_HOURS: Final = 0.5  # a chart of a shorter training counts minutes

Axis = Literal["epochs", "hours"]


@dataclass(frozen=True)
class Line:
    """One line of a chart. `values` are in dB; a NaN is not drawn."""

    name: str
    epochs: Sequence[float]
    hours: Sequence[float]
    values: Sequence[float]

    def over(self, axis: Axis) -> Sequence[float]:
        return self.epochs if axis == "epochs" else self.hours


def lines_over(
    lines: Sequence[Line], axis: Axis, *, what: str, levels: Mapping[str, float], steps: bool = False
) -> bytes:
    """A chart of `lines` over epochs or over hours. A line whose hours are not known is not drawn over hours.

    what     the name of the values in the title and on the axis
    levels   PSNR of each baseline, dB
    steps    whether a value holds until the next one, as a best value so far does
    """
    drawn = [(place, line) for place, line in enumerate(lines) if len(line.over(axis)) and _finite(line.values)]
    if not drawn:
        return nothing(what, "No run has recorded its time." if axis == "hours" else "No run has finished an epoch.")
    longest = max(line.over(axis)[-1] for _, line in drawn)
    scale, unit = (60.0, "GPU-minutes") if axis == "hours" and longest < _MIN_HOURS else (1.0, f"GPU-{axis}")
    best, at = max(((line, _top(line.values)) for _, line in drawn), key=lambda item: item[0].values[item[1]])
    where = best.over(axis)[at]
    after = count(int(where), "epoch") if axis == "epochs" else f"{where * scale:.3g} {unit}"
    text = f"{what}: {best.name} is highest, {best.values[at]:.2f} dB after {after}"
    left_out = len(lines) - len(drawn)
    text += f"; {left_out} without a recorded time" if left_out and axis == "hours" else ""
    label = "epochs finished" if axis == "epochs" else f"{unit}: time of training on one device"
    points = [(place, line.name, [one * scale for one in line.over(axis)], line.values) for place, line in drawn]
    return _chart(points, text, label, levels, "steps-post" if steps else "default", whole=axis == "epochs")


def lines_per_frame(runs: Mapping[str, Sequence[float]], levels: Mapping[str, float]) -> bytes:
    """A chart of the PSNR of each frame of the roll-out, with a line for each run.

    runs   name of the run -> PSNR of each frame, dB; an empty sequence if it is not known
    """
    known = {name: math.fsum(values) / len(values) for name, values in runs.items() if values}
    if not known:
        return nothing("PSNR per frame", "No run kept its roll-out.")
    best = max(known, key=lambda name: known[name])
    points = [
        (place, f"{name} {known[name]:.2f} dB", list(range(1, len(values) + 1)), values)
        for place, (name, values) in enumerate(runs.items())
        if values
    ]
    text = f"PSNR per frame: {best} is best with {known[best]:.2f} dB on average"
    return _chart(points, text, "frame of the roll-out", levels, "default", whole=True)


def _chart(
    points: Sequence[tuple[int, str, Sequence[float], Sequence[float]]],
    text: str,
    label: str,
    levels: Mapping[str, float],
    style: Literal["default", "steps-post"],
    *,
    whole: bool,
) -> bytes:
    """A chart with the title `text`.

    points   for each line: its place among all lines, which gives its colour, its name, and its coordinates
    label    the label of the axis across, which has whole numbers only if `whole`
    """
    with look():
        drawing = figure(3.9 + 0.13 * len(points))  # every name needs space below
        axes = drawing.subplots()
        for place, name, across, up in points:
            axes.plot(
                across,
                up,
                color=SERIES[place % len(SERIES)],
                linestyle=DASHES[place // len(SERIES) % len(DASHES)],
                linewidth=1.4,
                drawstyle=style,
                marker="o" if len(across) < 3 else "",
                label=name,
            )
        title(drawing, text)
        draw_baselines(axes, levels)
        axes.set_xlim(left=0)
        axes.set_xlabel(label)
        axes.set_ylabel("PSNR, dB")
        if whole:
            whole_ticks(axes)
        legend_below(drawing, axes)
        return encoded(drawing)


def _finite(values: Sequence[float]) -> bool:
    return any(math.isfinite(value) for value in values)


def _top(values: Sequence[float]) -> int:
    """The place of the highest value that is finite."""
    return max(range(len(values)), key=lambda place: values[place] if math.isfinite(values[place]) else -math.inf)

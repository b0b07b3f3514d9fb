"""The chart of the values over the two most important settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from cvaeopt.outcome.trials import Axis, TrialFacts
from cvaeopt.pictures.curves import INK, ORANGE, encoded, figure, log_axis, look, title

_CELLS: Final = 60
_REACH: Final = 0.12
"""Standard deviation of the weight of a trial in the smoothed plane, as a fraction of each axis."""

_FAR: Final = 2.5  # A point of the plane stays empty if the nearest trial is farther than _FAR * _REACH.

Array = np.ndarray[Any, np.dtype[np.float64]]


def contour(trials: Sequence[TrialFacts], across: Axis, up: Axis, metric: str) -> bytes | None:
    """A PNG of the smoothed values of the finished trials over two numeric settings.

    A pruned trial counts with its last reported value. Returns None if fewer than ten finished trials have both
    settings, or if a setting has the same value in all of them.
    """
    shown = [
        trial
        for trial in trials
        if trial.level is not None
        and trial.state in ("complete", "pruned")
        and across.name in trial.params
        and up.name in trial.params
    ]
    if len(shown) < 10:
        return None
    at = np.array([[float(trial.params[axis.name]) for axis in (across, up)] for trial in shown])
    values = np.array([trial.level for trial in shown])
    for place, axis in enumerate((across, up)):
        if axis.kind == "log":
            at[:, place] = np.log10(at[:, place])
    low, high = at.min(0), at.max(0)
    if not (high > low).all():
        return None
    grid = [np.linspace(low[place], high[place], _CELLS) for place in (0, 1)]
    # The values of the worst fifth are raised to `floor`. Otherwise they would use most of the colour range.
    floor = float(np.quantile(values, 0.2))
    plane = smoothed((at - low) / (high - low), np.maximum(values, floor))
    best = max(
        (place for place, trial in enumerate(shown) if trial.value is not None),
        key=lambda place: values[place],
        default=int(np.argmax(values)),
    )
    ends = [10 ** grid[place] if axis.kind == "log" else grid[place] for place, axis in enumerate((across, up))]
    points = [10 ** at[:, place] if axis.kind == "log" else at[:, place] for place, axis in enumerate((across, up))]
    with look():
        drawing = figure(4.4)
        axes = drawing.subplots()
        filled = axes.contourf(ends[0], ends[1], plane, levels=10, cmap="cividis_r")
        axes.scatter(points[0], points[1], s=14, facecolors="white", edgecolors=INK, linewidths=0.7)
        axes.plot(points[0][best], points[1][best], "D", color=ORANGE, markersize=8, markeredgecolor="white")
        axes.set_xlabel(across.name)
        axes.set_ylabel(up.name)
        axes.grid(visible=False)
        for axis, which, numbers in ((across, axes.xaxis, ends[0]), (up, axes.yaxis, ends[1])):
            if axis.kind == "log":
                log_axis(which, numbers.tolist())
        bar = drawing.colorbar(filled, ax=axes)
        bar.set_label(f"{metric}, dB (smoothed)")
        bar.outline.set_visible(False)
        title(drawing, f"{across.name} and {up.name}: every dot a trial, orange the best")
        return encoded(drawing)


def smoothed(at: Array, values: Array) -> np.ma.MaskedArray[Any, Any]:
    """The weighted mean of `values` at each cell of the unit square. A near trial has a larger weight than a far one.

    at        (n, 2) places of the trials, each in [0, 1]
    returns   (_CELLS, _CELLS); a cell is masked if every trial is far from it
    """
    cells = np.linspace(0, 1, _CELLS)
    across, up = np.meshgrid(cells, cells)
    distance = (across[..., None] - at[:, 0]) ** 2 + (up[..., None] - at[:, 1]) ** 2
    nearest = np.sqrt(distance.min(-1))
    weights = np.exp(-(distance - distance.min(-1, keepdims=True)) / (2 * _REACH**2))
    mean = (weights * values).sum(-1) / weights.sum(-1)
    return np.ma.masked_where(nearest > _FAR * _REACH, mean)


def first_pair(ordered: Sequence[str], axes_of: Sequence[Axis]) -> tuple[Axis, Axis] | None:
    """The first two numeric settings of `ordered`, the names by importance; None if there are fewer than two."""
    numeric = {axis.name: axis for axis in axes_of if axis.kind != "categorical"}
    chosen = [numeric[name] for name in ordered if name in numeric][:2]
    return (chosen[0], chosen[1]) if len(chosen) == 2 else None

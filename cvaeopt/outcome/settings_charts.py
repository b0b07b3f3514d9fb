"""The charts of a study's settings: the values over the settings, and the importance of each setting.

Each chart is returned as the bytes of a PNG file, in the common look of `pictures.curves`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cvaeopt.config import Config
from cvaeopt.outcome.importance import MIN_CERTAINTY, MIN_TRIALS, Importance
from cvaeopt.outcome.trials import Axis, TrialFacts, best_of
from cvaeopt.pictures.curves import (
    BLUE,
    FAINT,
    INK,
    ORANGE,
    SKY,
    encoded,
    figure,
    log_axis,
    look,
    nothing,
    title,
    whole_ticks,
)
from cvaeopt.pictures.run_pictures import thinned
from cvaeopt.vae.schedules import beta_at, tfr_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_LINES: Final = 300
_MAX_SCHEDULES: Final = 160
_EFFECTS_A_LINE: Final = 3


def parallel(trials: Sequence[TrialFacts], axes_of: Sequence[Axis]) -> bytes:
    """A chart with a line for each complete trial over all settings, coloured by value. The best trial is on top."""
    complete = [trial for trial in trials if trial.value is not None]
    if len(complete) < 2 or len(axes_of) < 2:
        return nothing("Settings side by side", "Needs two complete trials that differ in two settings.")
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    ranked = sorted(complete, key=lambda trial: trial.value or 0.0)
    ranked = [ranked[index] for index in thinned(len(ranked), _MAX_LINES)]
    values = [trial.value or 0.0 for trial in ranked]
    scale = Normalize(float(np.quantile(values, 0.1)), max(values) if max(values) > min(values) else min(values) + 1)
    # The palest colours of the map are left out, because they cannot be seen on white paper.
    colour = ScalarMappable(scale, ListedColormap(colormaps["cividis_r"](np.linspace(0.12, 1, 256))))
    ends = {axis.name: _ends(axis, complete) for axis in axes_of}
    with look():
        drawing = figure(4.6)
        axes = drawing.subplots()
        for place, trial in enumerate(ranked):
            points = [
                (line, height)
                for line, axis in enumerate(axes_of)
                if (height := _height(axis, trial.params.get(axis.name), ends[axis.name])) is not None
            ]
            best = place == len(ranked) - 1
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=ORANGE if best else colour.cmap(float(scale(trial.value or 0.0))),
                linewidth=2.6 if best else 0.9,
                alpha=1 if best else 0.65,
                marker="o" if best else "",
                markersize=5,
            )
        for line, axis in enumerate(axes_of):
            axes.axvline(line, color="#8A8F96", linewidth=0.8, zorder=0)
            for height, text in _marks(axis, ends[axis.name]):
                axes.text(
                    line + 0.04,
                    height,
                    text,
                    fontsize=8.5,
                    color=INK,
                    va="center",
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
                    zorder=5,
                )
        axes.set_xticks(range(len(axes_of)), [axis.name for axis in axes_of], rotation=38, ha="right")
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(-0.15, len(axes_of) - 0.45)
        title(drawing, f"{len(complete)} complete trials; the best, {values[-1]:.2f} dB, in orange")
        bar = drawing.colorbar(colour, ax=axes, orientation="horizontal", shrink=0.7, aspect=38, pad=0.03)
        bar.set_label("value, dB")
        bar.outline.set_visible(False)
        return encoded(drawing)


def slices(trials: Sequence[TrialFacts], axes_of: Sequence[Axis], metric: str) -> bytes:
    """A small chart for each setting: the values of the finished trials against the setting.

    A pruned trial is drawn at its last reported value.
    """
    shown = [trial for trial in trials if trial.level is not None and trial.state in ("complete", "pruned")]
    if len(shown) < 2 or not axes_of:
        return nothing("Value against each setting", "Two finished trials are needed.")
    best = best_of(shown)
    lines = math.ceil(len(axes_of) / 2)
    levels = [trial.level or 0.0 for trial in shown]
    low = float(np.quantile(levels, 0.05)) if len(levels) > 20 else min(levels)
    with look():
        drawing = figure(0.6 + 2.15 * lines)
        drawing.set_layout_engine("constrained", wspace=0.08)  # a gap between the axis marks of neighbouring charts
        grid = drawing.subplots(lines, 2, sharey=True, squeeze=False)
        for place, axis in enumerate(axes_of):
            axes = grid[place // 2][place % 2]
            for state, colour, fill in (("pruned", FAINT, "none"), ("complete", BLUE, BLUE)):
                chosen = [t for t in shown if t.state == state and axis.name in t.params]
                axes.scatter(
                    [_position(axis, trial.params[axis.name], trial.number) for trial in chosen],
                    [trial.level or 0.0 for trial in chosen],
                    s=16 if len(shown) < 300 else 6,
                    facecolors=fill,
                    edgecolors=colour,
                    linewidths=0.8,
                    alpha=0.8,
                )
            if best is not None and axis.name in best.params:
                axes.plot(
                    _position(axis, best.params[axis.name], best.number),
                    best.value or 0.0,
                    "D",
                    color=ORANGE,
                    markersize=7,
                    zorder=4,
                )
            if axis.kind == "log":
                log_axis(axes.xaxis, [trial.params[axis.name] for trial in shown if axis.name in trial.params])
            if axis.kind == "categorical":
                axes.set_xticks(range(len(axis.choices)), [str(choice) for choice in axis.choices], fontsize=9)
                axes.set_xlim(-0.5, len(axis.choices) - 0.5)
            axes.set_xlabel(axis.name)
            axes.set_ylim(low - 0.6, max(levels) + 0.6)
        for place in range(len(axes_of), lines * 2):
            grid[place // 2][place % 2].set_axis_off()
        for row in grid:
            row[0].set_ylabel("dB")
        title(drawing, f"{metric} against each setting: filled complete, hollow pruned, orange the best")
        return encoded(drawing)


def good_schedules(good: Mapping[int, Config], others: Sequence[Config], best: int) -> bytes:
    """A chart of the forcing ratio and the KL weight over epochs. The good trials are drawn over all other trials.

    good     number of the good trial -> its settings
    others   the settings of the other trials
    best     the number of the best trial in `good`
    """
    with look():
        drawing = figure(4.4)
        forcing, weight = drawing.subplots(2, 1, sharex=True)
        title(drawing, f"What the {len(good)} best trials were trained with (orange: the best; grey: the others)")
        for axes, at, name in ((forcing, tfr_at, "forcing ratio"), (weight, beta_at, "KL weight")):
            for config in [others[index] for index in thinned(len(others), _MAX_SCHEDULES)]:
                _draw_schedule(axes, config, at, color=FAINT, linewidth=0.7, alpha=0.6)
            for number, config in list(good.items())[:_MAX_SCHEDULES]:
                if number != best:
                    _draw_schedule(axes, config, at, color=BLUE, linewidth=1.2, alpha=0.6, zorder=3)
            _draw_schedule(axes, good[best], at, color=ORANGE, linewidth=2.4, zorder=4)
            axes.set_ylim(-0.05, 1.08)
            axes.set_ylabel(name)
        weight.set_xlabel("epochs finished")
        whole_ticks(weight)
        drawing.align_ylabels()
        return encoded(drawing)


def _draw_schedule(axes: Axes, config: Config, at: Callable[[Config, int], float], **style: Any) -> None:
    epochs = range(config.num_epoch)
    axes.plot(epochs, [at(config, epoch) for epoch in epochs], marker="o" if len(epochs) < 3 else "", **style)


def importance(items: Sequence[Importance], complete: int) -> bytes:
    """A chart of the importance of the settings as bars, and below the bars the effect of each setting.

    Both have 80 % intervals. `complete` is the number of complete trials.
    """
    if not items:
        return nothing(
            "Too early to say what mattered",
            f"Complete trials: {complete}. At least {MIN_TRIALS} complete or pruned ones are needed.",
        )
    lines = math.ceil(len(items) / _EFFECTS_A_LINE)
    bars_in = 1.2 + 0.42 * len(items)
    with look():
        drawing = figure(bars_in + 1.9 * lines)
        places = drawing.add_gridspec(1 + lines, _EFFECTS_A_LINE, height_ratios=[bars_in, *[1.9] * lines])
        _draw_shares(drawing.add_subplot(places[0, :]), items)
        first: Axes | None = None
        for place, item in enumerate(items):
            cell = places[1 + place // _EFFECTS_A_LINE, place % _EFFECTS_A_LINE]
            axes = drawing.add_subplot(cell, sharey=first)
            first = first or axes
            _draw_effect(axes, item)
            if place % _EFFECTS_A_LINE == 0:
                axes.set_ylabel("dB")
        clear = items[0].certainty >= MIN_CERTAINTY
        text = f"{items[0].name} mattered most" if clear else "The trials cannot tell which setting mattered most"
        title(drawing, f"{text} ({complete} complete trials, and forecasts of pruned ones)")
        return encoded(drawing)


def _draw_shares(axes: Axes, items: Sequence[Importance]) -> None:
    shares = np.array([item.share for item in items])[::-1] * 100
    spread = np.array([[item.share - item.low, item.high - item.share] for item in items])[::-1].T * 100
    axes.barh([item.name for item in items][::-1], shares, color=SKY, height=0.62)
    axes.errorbar(shares, range(len(items)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1.3, capsize=3.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the main effects' variance, %")
    axes.grid(visible=False, axis="y")


def _draw_effect(axes: Axes, item: Importance) -> None:
    """Draw the effect of a setting: the mean over all other settings at each of its values, with 80 % intervals."""
    half = NormalDist().inv_cdf(0.9) * item.error
    if item.scale == "categorical":
        places = range(len(item.values))
        axes.errorbar(places, item.effect, yerr=half, fmt="o", color=BLUE, ecolor=INK, capsize=3.5, markersize=4)
        axes.set_xticks(places, [str(value) for value in item.values], fontsize=9)
        axes.set_xlim(-0.5, len(item.values) - 0.5)
    else:
        axes.fill_between(item.values, item.effect - half, item.effect + half, color=SKY, alpha=0.35, linewidth=0)
        axes.plot(item.values, item.effect, color=BLUE, linewidth=1.6)
        if item.scale == "log":
            log_axis(axes.xaxis, item.values)
    axes.set_xlabel(item.name, fontsize=9)


def _ends(axis: Axis, trials: Sequence[TrialFacts]) -> tuple[float, float]:
    """The smallest and the largest value of a setting on its scale; 0 and 1 for a setting without numeric values."""
    if axis.kind == "categorical":
        return 0.0, 1.0
    numbers = [float(trial.params[axis.name]) for trial in trials if axis.name in trial.params]
    if axis.kind == "log":
        numbers = [math.log(number) for number in numbers]
    return (min(numbers), max(numbers)) if numbers else (0.0, 1.0)


def _height(axis: Axis, value: Any, ends: tuple[float, float]) -> float | None:
    """The position of `value` on the axis, 0..1; None if `value` is None (the trial does not have the setting)."""
    if value is None:
        return None
    if axis.kind == "categorical":
        return axis.choices.index(value) / max(1, len(axis.choices) - 1)
    low, high = ends
    number = math.log(value) if axis.kind == "log" else float(value)
    return (number - low) / (high - low) if high > low else 0.5


def _marks(axis: Axis, ends: tuple[float, float]) -> list[tuple[float, str]]:
    """The marks of an axis as (height, text): a mark for each choice, or a mark for each end."""
    if axis.kind == "categorical":
        return [(place / max(1, len(axis.choices) - 1), str(c)) for place, c in enumerate(axis.choices)]
    low, high = ends
    if axis.kind == "log":
        low, high = math.exp(low), math.exp(high)
    return [(0.0, f"{low:.2g}"), (1.0, f"{high:.2g}")]


def _position(axis: Axis, value: Any, number: int) -> float:
    """The x position of a value. Trials with the same choice get slightly different positions by trial number."""
    if axis.kind != "categorical":
        return float(value)
    return axis.choices.index(value) + ((number * 7919) % 101 / 100 - 0.5) * 0.4

"""The charts of a study: what was tried, what it cost, what mattered. PNG bytes in the common look of `charts`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cvaeopt.config import Config
from cvaeopt.outcome.charts import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SERIES,
    SHORT_NAMES,
    SKY,
    column,
    draw_baselines,
    figure,
    legend_below,
    log_ticks,
    look,
    nothing,
    png,
    tick_text,
    title,
    whole_ticks,
)
from cvaeopt.outcome.importance import FEWEST_TRIALS, Importance
from cvaeopt.outcome.pictures import thinned
from cvaeopt.outcome.trials import Axis, TrialFacts, best_of
from cvaeopt.vae.schedules import beta_at, tfr_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CURVES: Final = 160
_DASHES: Final[tuple[Any, ...]] = ("-", (0, (4, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_MOST_LINES: Final = 300


def history(trials: Sequence[TrialFacts], baselines: Mapping[str, float], metric: str) -> bytes:
    """Value of every trial over the epochs spent until it ended, with the best so far.

    The epochs of failed trials are counted, too; they have no value that could be drawn.
    """
    over = [trial for trial in trials if trial.state in ("complete", "pruned", "failed")]
    over.sort(key=lambda trial: (trial.finished is None, trial.finished, trial.number))
    every = np.cumsum([trial.epochs for trial in over])
    drawn = [index for index, trial in enumerate(over) if trial.level is not None and trial.state != "failed"]
    ended = [over[index] for index in drawn]
    if not ended:
        return nothing("No trial has ended yet", "The optimisation history starts with the first finished trial.")
    spent = every[drawn]
    best = best_of(ended)
    with look():
        drawing = figure(3.9)
        axes = drawing.subplots()
        for state, colour, fill, label in (("pruned", QUIET, "none", "pruned"), ("complete", BLUE, BLUE, "complete")):
            chosen = [index for index, trial in enumerate(ended) if trial.state == state]
            if not chosen:
                continue
            axes.scatter(
                spent[chosen],
                [ended[index].level or 0.0 for index in chosen],
                s=26 if len(ended) < 300 else 9,
                facecolors=fill,
                edgecolors=colour,
                linewidths=0.9,
                alpha=0.85,
                label=label,
                zorder=2,
            )
        if best is None or best.value is None:
            title(drawing, f"No trial is complete after {_epochs(every[-1])}")
        else:
            so_far = np.fmax.accumulate([math.nan if t.value is None else t.value for t in ended])
            axes.step(spent, so_far, where="post", color=ORANGE, label="best so far", zorder=3)
            found = next(index for index, trial in enumerate(ended) if trial.number == best.number)
            text = f"Best {best.value:.2f} dB (trial {best.number}), found after {spent[found]:,} of "
            text += _epochs(every[-1])
            if baselines:
                name, bar = max(baselines.items(), key=lambda item: item[1])
                side = "above" if best.value >= bar else "BELOW"
                text += f", {abs(best.value - bar):.1f} dB {side} {SHORT_NAMES.get(name, name)}"
            title(drawing, text)
        levels = [trial.level or 0.0 for trial in ended]
        if len(levels) > 20:  # a few lost trials must not flatten the rest
            bottom = float(np.quantile(levels, 0.03))
            top = max(levels)
            axes.set_ylim(bottom - 0.08 * (top - bottom) - 0.2, top + 0.08 * (top - bottom) + 0.2)
        draw_baselines(axes, baselines)
        axes.set_xlabel("epochs spent by the study")
        axes.set_ylabel(f"{metric}, dB")
        whole_ticks(axes)
        legend_below(drawing, axes)
        return png(drawing)


def curves(trials: Sequence[TrialFacts], baselines: Mapping[str, float], metric: str) -> bytes:
    """Reported values over epochs, every trial a line; a cross where the pruner stopped one."""
    from matplotlib.collections import LineCollection

    shown = [trial for trial in trials if trial.curve]
    if not shown:
        return nothing("No curve yet", "No trial has reported an epoch.")
    best = best_of(shown)
    pruned = [trial for trial in shown if trial.state == "pruned"]
    with look():
        drawing = figure(3.9)
        axes = drawing.subplots()
        drawn = [shown[index] for index in thinned(len(shown), _MOST_CURVES)]
        for states, colour, width in (
            (("pruned", "failed"), FAINT, 0.9),
            (("complete", "running", "waiting"), SKY, 1.1),
        ):
            lines = [np.array(trial.curve) for trial in drawn if trial.state in states]
            axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, alpha=0.9))
        stopped = np.array([trial.curve[-1] for trial in drawn if trial.state == "pruned"])
        if len(stopped):
            axes.scatter(stopped[:, 0], stopped[:, 1], marker="x", s=20, color=QUIET, linewidths=1, zorder=3)
        if best is not None:
            points = np.array(best.curve)
            axes.plot(points[:, 0], points[:, 1], color=BLUE, linewidth=2.4, zorder=4)
        levels = np.concatenate([np.array(trial.curve)[:, 1] for trial in drawn])
        low, high = (float(np.quantile(levels, 0.02)), float(levels.max()))
        axes.set_ylim(low - 0.3, high + (high - low) * 0.12 + 0.3)
        axes.set_xlim(0, max(trial.curve[-1][0] for trial in shown) * 1.03)
        draw_baselines(axes, baselines, None if best is None else (best.curve[-1][1], f"trial {best.number}"))
        text = f"{len(shown)} learning curve{'s' if len(shown) > 1 else ''}"
        if pruned:
            text += f", {len(pruned)} ended early by the pruner (crosses)"
        if len(drawn) < len(shown):
            text += f"; {len(drawn)} drawn"
        title(drawing, text)
        axes.set_xlabel("epochs finished")
        axes.set_ylabel(f"{metric}, dB")
        whole_ticks(axes)
        return png(drawing)


def parallel(trials: Sequence[TrialFacts], axes_of: Sequence[Axis]) -> bytes:
    """Complete trials as lines over all settings, coloured by value; the best one is drawn on top."""
    complete = [trial for trial in trials if trial.value is not None]
    if len(complete) < 2 or len(axes_of) < 2:
        return nothing("Settings side by side", "Needs two complete trials that differ in two settings.")
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    ranked = sorted(complete, key=lambda trial: trial.value or 0.0)
    ranked = [ranked[index] for index in thinned(len(ranked), _MOST_LINES)]
    values = [trial.value or 0.0 for trial in ranked]
    scale = Normalize(float(np.quantile(values, 0.1)), max(values) if max(values) > min(values) else min(values) + 1)
    # Without its palest end, which is lost on paper.
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
        return png(drawing)


def slices(trials: Sequence[TrialFacts], axes_of: Sequence[Axis], metric: str) -> bytes:
    """The value against each setting, one small chart each; pruned trials stand at their last report."""
    shown = [trial for trial in trials if trial.level is not None and trial.state in ("complete", "pruned")]
    if len(shown) < 2 or not axes_of:
        return nothing("Value against each setting", "Two finished trials are needed.")
    best = best_of(shown)
    lines = math.ceil(len(axes_of) / 2)
    levels = [trial.level or 0.0 for trial in shown]
    low = float(np.quantile(levels, 0.05)) if len(levels) > 20 else min(levels)
    with look():
        drawing = figure(0.6 + 2.15 * lines)
        drawing.set_layout_engine("constrained", wspace=0.08)  # the outermost marks of neighbours stay apart
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
                axes.set_xscale("log")
                ticks = log_ticks([float(trial.params[axis.name]) for trial in shown if axis.name in trial.params])
                axes.set_xticks(ticks, [tick_text(tick) for tick in ticks], fontsize=9)
                axes.set_xticks([], minor=True)
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
        return png(drawing)


def good_schedules(good: Mapping[int, Config], others: Sequence[Config], best: int) -> bytes:
    """Forcing ratio and KL weight over the epochs of a trial: the good trials over all others.

    good    number of the trial -> its settings;  best   the number of the best one
    """
    with look():
        drawing = figure(4.4)
        forcing, weight = drawing.subplots(2, 1, sharex=True)
        title(drawing, f"What the {len(good)} best trials were trained with (orange: the best; grey: the others)")
        for axes, at, name in ((forcing, tfr_at, "forcing ratio"), (weight, beta_at, "KL weight")):
            for config in [others[index] for index in thinned(len(others), _MOST_CURVES)]:
                _draw_schedule(axes, config, at, color=FAINT, linewidth=0.7, alpha=0.6)
            for number, config in list(good.items())[:_MOST_CURVES]:
                if number != best:
                    _draw_schedule(axes, config, at, color=BLUE, linewidth=1.2, alpha=0.6, zorder=3)
            _draw_schedule(axes, good[best], at, color=ORANGE, linewidth=2.4, zorder=4)
            axes.set_ylim(-0.05, 1.08)
            axes.set_ylabel(name)
        weight.set_xlabel("epochs finished")
        whole_ticks(weight)
        drawing.align_ylabels()
        return png(drawing)


def _draw_schedule(axes: Axes, config: Config, at: Callable[[Config, int], float], **style: Any) -> None:
    epochs = range(config.num_epoch)
    axes.plot(epochs, [at(config, epoch) for epoch in epochs], marker="o" if len(epochs) < 3 else "", **style)


def importance(items: Sequence[Importance], complete: int) -> bytes:
    """Bars of the settings' importance with the interval over resampled trials."""
    if not items:
        return nothing(
            "Too early to say what mattered",
            f"Complete trials: {complete}. At least {FEWEST_TRIALS} that differ are needed.",
        )
    with look():
        drawing = figure(1.5 + 0.42 * len(items))
        axes = drawing.subplots()
        names = [item.name for item in items][::-1]
        shares = np.array([item.share for item in items])[::-1] * 100
        spread = np.array([[item.share - item.low, item.high - item.share] for item in items])[::-1].T * 100
        axes.barh(names, shares, color=SKY, height=0.62)
        axes.errorbar(shares, range(len(items)), xerr=spread, fmt="none", ecolor=INK, elinewidth=1.3, capsize=3.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of importance, % (line: 80 % interval)")
        axes.grid(visible=False, axis="y")
        clear = items[0].low > max((item.high for item in items[1:]), default=0)
        text = f"{items[0].name} mattered most" if clear else "No setting clearly mattered most"
        title(drawing, f"{text} ({complete} complete trials)")
        return png(drawing)


def cost(spent: Mapping[str, int], saved: int, device_time: str | None) -> bytes:
    """One bar: epochs by how their trials ended, and the epochs that pruning saved.

    spent         state -> epochs trained by its trials
    device_time   with its unit; None if it was not recorded
    """
    total = sum(spent.values())
    if not total:
        return nothing("Nothing was spent yet", "No epoch has been trained.")
    colours = {"complete": BLUE, "pruned": AMBER, "failed": PURPLE, "running": SKY, "waiting": FAINT}
    with look():
        drawing = figure(2.2)
        axes = drawing.subplots()
        left = 0
        for state, epochs in spent.items():
            if epochs:
                axes.barh(0, epochs, left=left, color=colours[state], height=0.5, label=f"{state} {epochs:,}")
                left += epochs
        if saved:
            axes.barh(
                0,
                saved,
                left=left,
                facecolor="white",
                edgecolor=GREEN,
                hatch="///",
                height=0.5,
                label=f"saved by pruning {saved:,}",
            )
        axes.set_yticks([])
        axes.set_ylim(-0.4, 0.4)
        axes.set_xlim(0, (left + saved) * 1.01)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("epochs")
        hours = "" if device_time is None else f" in {device_time} of device time"
        share = f"; pruning saved {saved / (total + saved):.0%}" if saved else ""
        title(drawing, f"{_epochs(total)} trained{hours}{share}")
        legend_below(drawing, axes)
        return png(drawing)


def ablation(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    key: str,
    *,
    what: str,
    unit: str,
    lower_is_better: bool,
    beside: Sequence[tuple[str, str]] = (),
) -> bytes:
    """One curve per variant over epochs, the comparison that an ablation study is made for, over what was varied.

    runs     variant -> lines of history.jsonl;  key   the column to draw
    beside   (column, name) of the schedules to draw below on the same epochs, each from 0 to 1
    """
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        return nothing(what, "No run of this comparison has finished an epoch.")
    last = {name: column(rows, key)[-1] for name, rows in runs.items()}
    order = sorted(last, key=lambda name: last[name], reverse=not lower_is_better)
    with look():
        drawing = figure(3.9 + 1.3 * len(beside))
        panels = drawing.subplots(
            1 + len(beside), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.6, *[1] * len(beside)]}
        )[:, 0]
        every = [value for rows in runs.values() for value in column(rows, key)]
        drawn = ((key, what, True), *((name, label, False) for name, label in beside))
        for axes, (name, label, main) in zip(panels, drawn, strict=True):
            for (variant, rows), colour, dashes in zip(
                runs.items(), itertools.cycle(SERIES), itertools.cycle(_DASHES), strict=False
            ):
                epochs = column(rows, "epoch")
                axes.plot(
                    epochs,
                    column(rows, name),
                    color=colour,
                    linestyle="-" if main else dashes,  # schedules often coincide
                    label=variant,
                    marker="o" if len(epochs) < 3 else "",
                )
            axes.set_ylabel(f"{label[:1].lower() + label[1:] if main else label}{', ' + unit if main and unit else ''}")
            if not main:
                axes.set_ylim(-0.07, 1.1)
        if lower_is_better and min(every) > 0 and max(every) > 20 * min(every):
            panels[0].set_yscale("log")
        better = "lowest" if lower_is_better else "highest"
        title(drawing, f"{what}: {order[0]} ends {better}, at {last[order[0]]:.4g} {unit}".rstrip())
        panels[-1].set_xlabel("epochs finished")
        whole_ticks(panels[-1])
        legend_below(drawing, panels[0])
        drawing.align_ylabels()
        return png(drawing)


def frames_compared(runs: Mapping[str, Sequence[float]], baselines: Mapping[str, float]) -> bytes:
    """PSNR per frame of several runs, the seed reports' last picture."""
    if not runs:
        return nothing("PSNR per frame", "No run of this comparison kept its roll-out.")
    means = {name: float(np.mean(values)) for name, values in runs.items()}
    best = max(means, key=lambda name: means[name])
    with look():
        drawing = figure(3.9)
        axes = drawing.subplots()
        for (name, values), colour in zip(runs.items(), itertools.cycle(SERIES), strict=False):
            axes.plot(
                range(1, len(values) + 1), values, color=colour, linewidth=1.2, label=f"{name} {means[name]:.1f} dB"
            )
        draw_baselines(axes, baselines)
        title(drawing, f"PSNR per frame: {best} is best with {means[best]:.2f} dB on average")
        axes.set_xlabel("frame of the roll-out")
        axes.set_ylabel("PSNR, dB")
        whole_ticks(axes)
        legend_below(drawing, axes)
        return png(drawing)


def _epochs(number: int) -> str:
    return f"{number:,} epoch{'' if number == 1 else 's'}"


def _ends(axis: Axis, trials: Sequence[TrialFacts]) -> tuple[float, float]:
    """The smallest and largest value of a setting, on its scale; 0 and 1 for one without numbers."""
    if axis.kind == "categorical":
        return 0.0, 1.0
    numbers = [float(trial.params[axis.name]) for trial in trials if axis.name in trial.params]
    if axis.kind == "log":
        numbers = [math.log(number) for number in numbers]
    return (min(numbers), max(numbers)) if numbers else (0.0, 1.0)


def _height(axis: Axis, value: Any, ends: tuple[float, float]) -> float | None:
    """Where `value` stands on its axis, 0..1; None where the trial has no such setting."""
    if value is None:
        return None
    if axis.kind == "categorical":
        return axis.choices.index(value) / max(1, len(axis.choices) - 1)
    low, high = ends
    number = math.log(value) if axis.kind == "log" else float(value)
    return (number - low) / (high - low) if high > low else 0.5


def _marks(axis: Axis, ends: tuple[float, float]) -> list[tuple[float, str]]:
    """(height, text) of an axis: its choices, or its two ends."""
    if axis.kind == "categorical":
        return [(place / max(1, len(axis.choices) - 1), str(c)) for place, c in enumerate(axis.choices)]
    low, high = ends
    if axis.kind == "log":
        low, high = math.exp(low), math.exp(high)
    return [(0.0, f"{low:.2g}"), (1.0, f"{high:.2g}")]


def _position(axis: Axis, value: Any, number: int) -> float:
    """The x position of a value; equal categories are spread a little by trial number."""
    if axis.kind != "categorical":
        return float(value)
    return axis.choices.index(value) + ((number * 7919) % 101 / 100 - 0.5) * 0.4

"""The charts of a study: its history, its learning curves, its cost, and the comparison of its arms.

Each chart is returned as the bytes of a PNG file, in the common look of `pictures.curves`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from cvaeopt.outcome.trials import TrialFacts, best_of
from cvaeopt.pictures.curves import (
    AMBER,
    BLUE,
    DASHES,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    QUIET,
    SERIES,
    SKY,
    column,
    draw_baselines,
    encoded,
    figure,
    legend_below,
    look,
    nothing,
    title,
    whole_ticks,
)
from cvaeopt.pictures.run_pictures import thinned
from cvaeopt.text import BASELINES

_MAX_CURVES: Final = 160


def history(trials: Sequence[TrialFacts], baselines: Mapping[str, float], metric: str) -> bytes:
    """A chart of the finished trials' values, and of the best value so far, over the epochs that the study has spent.

    The epochs of failed trials and of trials that are history are counted, too, but these trials are not drawn.
    """
    over = [trial for trial in trials if trial.state in ("complete", "pruned", "failed", "history")]
    over.sort(key=lambda trial: (trial.finished is None, trial.finished, trial.number))
    every = np.cumsum([trial.epochs for trial in over])
    drawn = [
        index for index, trial in enumerate(over) if trial.level is not None and trial.state in ("complete", "pruned")
    ]
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
                text += f", {abs(best.value - bar):.1f} dB {side} {BASELINES.get(name, name)}"
            title(drawing, text)
        levels = [trial.level or 0.0 for trial in ended]
        if len(levels) > 20:  # A few very bad trials must not compress the range of all others.
            bottom = float(np.quantile(levels, 0.03))
            top = max(levels)
            axes.set_ylim(bottom - 0.08 * (top - bottom) - 0.2, top + 0.08 * (top - bottom) + 0.2)
        draw_baselines(axes, baselines)
        axes.set_xlabel("epochs spent by the study")
        axes.set_ylabel(f"{metric}, dB")
        whole_ticks(axes)
        legend_below(drawing, axes)
        return encoded(drawing)


def curves(trials: Sequence[TrialFacts], baselines: Mapping[str, float], metric: str) -> bytes:
    """A chart of the reported values over epochs, with a line for each trial. A cross is the end of a pruned trial."""
    from matplotlib.collections import LineCollection

    shown = [trial for trial in trials if trial.curve]
    if not shown:
        return nothing("No curve yet", "No trial has reported an epoch.")
    best = best_of(shown)
    pruned = [trial for trial in shown if trial.state == "pruned"]
    with look():
        drawing = figure(3.9)
        axes = drawing.subplots()
        drawn = [shown[index] for index in thinned(len(shown), _MAX_CURVES)]
        for states, colour, width in (
            (("pruned", "failed", "history"), FAINT, 0.9),
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
        return encoded(drawing)


def cost(spent: Mapping[str, int], saved: int, device_time: str | None) -> bytes:
    """A chart with one bar: the epochs trained by the trials in each state, and the epochs that pruning saved.

    spent         state -> epochs trained by the trials in this state
    saved         number of epochs that pruning saved
    device_time   training time as text with its unit; None if it was not recorded
    """
    total = sum(spent.values())
    if not total:
        return nothing("Nothing was spent yet", "No epoch has been trained.")
    colours = {"complete": BLUE, "pruned": AMBER, "failed": PURPLE, "running": SKY, "waiting": FAINT, "history": QUIET}
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
        return encoded(drawing)


def ablation(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    key: str,
    *,
    what: str,
    unit: str,
    beside: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The chart of an ablation study: a curve over epochs for each variant, and the varied schedules below.

    runs     name of the variant -> rows of its history.jsonl
    key      the column to draw
    what     name of the column in the title and on the axis
    unit     unit of the column; '' for none. A column without a unit is a loss: lower values are better.
    beside   (column, name) of each schedule to draw below, with values from 0 to 1
    """
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        return nothing(what, "No run of this comparison has finished an epoch.")
    last = {name: column(rows, key)[-1] for name, rows in runs.items()}
    order = sorted(last, key=lambda name: last[name], reverse=bool(unit))
    with look():
        drawing = figure(3.9 + 1.3 * len(beside))
        panels = drawing.subplots(
            1 + len(beside), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.6, *[1] * len(beside)]}
        )[:, 0]
        every = [value for rows in runs.values() for value in column(rows, key)]
        drawn = ((key, what, True), *((name, label, False) for name, label in beside))
        for axes, (name, label, main) in zip(panels, drawn, strict=True):
            for (variant, rows), colour, dashes in zip(
                runs.items(), itertools.cycle(SERIES), itertools.cycle(DASHES), strict=False
            ):
                epochs = column(rows, "epoch")
                axes.plot(
                    epochs,
                    column(rows, name),
                    color=colour,
                    linestyle="-" if main else dashes,  # With dashes, schedules that coincide stay visible.
                    label=variant,
                    marker="o" if len(epochs) < 3 else "",
                )
            axes.set_ylabel(f"{label[:1].lower() + label[1:] if main else label}{', ' + unit if main and unit else ''}")
            if not main:
                axes.set_ylim(-0.07, 1.1)
        if not unit and min(every) > 0 and max(every) > 20 * min(every):
            panels[0].set_yscale("log")
        better = "highest" if unit else "lowest"
        title(drawing, f"{what}: {order[0]} ends {better}, at {last[order[0]]:.4g} {unit}".rstrip())
        panels[-1].set_xlabel("epochs finished")
        whole_ticks(panels[-1])
        legend_below(drawing, panels[0])
        drawing.align_ylabels()
        return encoded(drawing)


def _epochs(number: int) -> str:
    return f"{number:,} epoch{'' if number == 1 else 's'}"

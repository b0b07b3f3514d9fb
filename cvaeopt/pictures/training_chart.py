"""The chart of a run's epochs: validation PSNR, losses, schedules and learning rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cvaeopt.pictures.curves import (
    AMBER,
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    QUIET,
    SKY,
    column,
    encoded,
    figure,
    look,
    nothing,
    set_rate_scale,
    title,
    whole_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def run_curves(rows: Sequence[Mapping[str, Any]], *, name: str = "") -> bytes:
    """Four charts of one run, above each other: validation PSNR, losses, schedules and learning rate.

    The chart of the losses also shows the squared error of validation. The colour of its background shows which epochs
    used teacher forcing. The chart of the schedules shows the forcing ratio and the KL weight.

    rows   the lines of history.jsonl; rows of older versions have no val_mse
    """
    if not rows:
        return nothing(f"{name}: no epoch yet" if name else "No epoch yet", "This run has not finished an epoch.")
    epochs = [int(row["epoch"]) for row in rows]
    marker = "o" if len(epochs) < 3 else ""
    with look():
        drawing = figure(8.9)
        quality, loss, schedule, rate = drawing.subplots(
            4, 1, sharex=True, gridspec_kw={"height_ratios": [2.4, 2.5, 1.5, 1.2]}
        )
        best = max(rows, key=lambda row: float(row["val_psnr"]))
        last = f"best {best['val_psnr']:.2f} dB at epoch {best['epoch']} of {epochs[-1]}"
        title(drawing, f"{name}: {last}" if name else last[:1].upper() + last[1:])
        quality.plot(epochs, column(rows, "val_psnr"), marker=marker, color=BLUE, label="all frames")
        quality.plot(epochs, column(rows, "val_psnr_late"), marker=marker, color=SKY, linewidth=1.3, label="last third")
        quality.plot(best["epoch"], best["val_psnr"], "o", color=BLUE, markersize=6)
        quality.set_ylabel("validation\nPSNR, dB")
        quality.legend(loc="best", ncols=2)
        _draw_losses(loss, rows, epochs, marker)
        schedule.plot(epochs, column(rows, "tfr"), marker=marker, color=GREEN, label="forcing ratio")
        schedule.plot(epochs, column(rows, "beta"), marker=marker, color=AMBER, label="KL weight")
        schedule.set_ylim(-0.05, 1.3)
        schedule.set_yticks([0, 0.5, 1])
        schedule.set_ylabel("schedules")
        schedule.legend(loc="upper right", ncols=2, handlelength=1.2)
        rate.plot(epochs, column(rows, "lr"), marker=marker, color=QUIET)
        set_rate_scale(rate, column(rows, "lr"))
        rate.set_ylabel("learning\nrate")
        rate.set_xlabel("epochs finished")
        whole_ticks(rate)
        drawing.align_ylabels()
        return encoded(drawing)


def _draw_losses(axes: Axes, rows: Sequence[Mapping[str, Any]], epochs: Sequence[int], marker: str) -> None:
    """The losses of training and the squared error of validation; forced and free epochs have different backgrounds."""
    shade_forcing(axes, rows)
    lines = {"train_loss": ("total", INK), "train_mse": ("squared error", ORANGE), "train_kl": ("KL", PURPLE)}
    for key, (label, colour) in lines.items():
        axes.plot(epochs, column(rows, key), marker=marker, color=colour, linewidth=1.5, label=label)
    validation = column(rows, "val_mse")
    if not all(math.isnan(value) for value in validation):
        label = "validation squared error"
        axes.plot(epochs, validation, marker=marker, color=BLUE, linewidth=1.5, linestyle=(0, (4, 1.5)), label=label)
    # A forced step of report 003 has no squared error. A logarithmic axis leaves zeros out.
    if any(value > 0 for value in column(rows, "train_mse")):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("loss")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handlelength=1.4, columnspacing=1, fontsize=9.5)


def shade_forcing(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Shade the epochs with teacher forcing green and those without it grey, and name both in the legend.

    An epoch in which a part of the steps was forced has a lighter green. Each epoch ends at its number.
    """
    for grounds in itertools.groupby(rows, key=lambda row: float(row["teacher_forced"])):
        share, group = grounds[0], [int(row["epoch"]) for row in grounds[1]]
        colour, alpha = (GREEN, 0.06 + 0.16 * share) if share else (FAINT, 0.35)
        axes.axvspan(group[0] - 1, group[-1], color=colour, alpha=alpha, linewidth=0, zorder=0)
    shares = [float(row["teacher_forced"]) for row in rows]
    if any(shares):
        axes.fill_between([], [], color=GREEN, alpha=0.22, linewidth=0, label="forced epochs")
    if not all(shares):
        axes.fill_between([], [], color=FAINT, alpha=0.6, linewidth=0, label="free epochs")

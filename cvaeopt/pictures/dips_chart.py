"""A chart of the PSNR per frame over aligned strips of the measures that may explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvaeopt.pictures.curves import BLUE, FAINT, ORANGE, PURPLE, QUIET, encoded, figure, halo, look, title, whole_ticks


@dataclass(frozen=True)
class Strip:
    """One measure of every predicted frame.

    values      (T,); NaN where the measure is unknown
    label       the name of the measure with its unit
    text        the correlation with its interval, and the verdict
    is_found    whether a relation was found, which is drawn in colour
    """

    values: NDArray[np.floating[Any]] = field(repr=False)
    label: str
    text: str
    is_found: bool


def dips_chart(psnr: NDArray[np.floating[Any]], strips: Sequence[Strip], worst: Sequence[int]) -> bytes:
    """The chart. The frames `worst` (indices) are marked through all strips.

    psnr   (T,) PSNR of the predicted frames, dB
    """
    frames = np.arange(1, len(psnr) + 1)
    found = sum(strip.is_found for strip in strips)
    with look():
        drawing = figure(2.4 + 1.45 * len(strips))
        every = drawing.subplots(
            1 + len(strips), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": [1.7, *[1] * len(strips)]}
        )[:, 0]
        title(drawing, f"PSNR per frame: a relation is found for {found or 'none'} of {len(strips)} measures")
        quality = every[0]
        quality.plot(frames, psnr, color=BLUE, linewidth=1.3)
        quality.set_ylabel("PSNR, dB")
        low, high = float(np.min(psnr)), float(np.max(psnr))
        span = (high - low) or 1.0
        quality.set_ylim(low - 0.22 * span, high + 0.05 * span)
        for index in worst:
            quality.plot(index + 1, psnr[index], "o", color=ORANGE, markersize=5)
            quality.annotate(
                str(index + 1),
                (index + 1, float(psnr[index])),
                xytext=(0, -6),
                textcoords="offset points",
                ha="center",
                va="top",
                color=ORANGE,
                fontsize=9.5,
                path_effects=halo(),
            )
        for axes, strip in zip(every[1:], strips, strict=True):
            colour = PURPLE if strip.is_found else QUIET
            axes.plot(frames, strip.values, color=colour, linewidth=1.2)
            axes.set_title(f"{strip.label}\n{strip.text}", loc="left", fontsize=10, color=colour)
            top = float(np.nanmax(strip.values)) if np.isfinite(strip.values).any() else 0.0
            axes.set_ylim(0, 1.1 * top or 1.0)
            axes.locator_params(axis="y", nbins=3)
        for axes in every:
            for index in worst:
                axes.axvline(index + 1, color=ORANGE if axes is quality else FAINT, linewidth=0.8, zorder=1)
        every[-1].set_xlabel("frame of the roll-out")
        whole_ticks(every[-1])
        return encoded(drawing)

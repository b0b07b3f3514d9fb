"""The chart of a run's snapshots: PSNR of every validation frame after different numbers of epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cvaeopt.files import write_bytes
from cvaeopt.pictures import curves
from cvaeopt.pictures.run_pictures import thinned
from cvaeopt.vae import snapshots

CHART: Final = "snapshots.png"
_MAX_LINES: Final = 8


def write(
    folder: Path,
    baselines: Mapping[str, float] | None = None,
    *,
    title: str = "",
    kinds: Sequence[curves.Kind] = ("png",),
) -> list[Path]:
    """Draw the chart of the snapshots in a run's folder, as one file of each kind; returns the paths of the files.

    Nothing is drawn if there is no snapshot.
    """
    known = snapshots.read(folder)
    made = []
    for kind in kinds if known else ():
        made.append((folder / CHART).with_suffix(f".{kind}"))
        with curves.charts_as(kind):
            write_bytes(made[-1], chart(known, baselines, name=title))
    return made


def chart(
    known: Mapping[int, Sequence[float]], baselines: Mapping[str, float] | None = None, *, name: str = ""
) -> bytes:
    """The chart as a PNG file, or as the kind of file that `curves.charts_as` sets. Later epochs have darker lines.

    known       epoch -> PSNR of every validation frame, dB. Of many snapshots, evenly spaced ones are drawn.
    baselines   name -> mean PSNR in dB
    """
    epochs = sorted(known)
    if not epochs:
        return curves.nothing("Snapshots", "No epoch was kept.")
    means = {epoch: statistics.fmean(known[epoch]) for epoch in epochs}
    best = max(epochs, key=lambda epoch: means[epoch])
    with curves.look():
        import matplotlib
        from matplotlib.ticker import MaxNLocator

        shades = matplotlib.colormaps["viridis_r"]
        drawing = curves.figure(4.2)
        axes = drawing.subplots()
        text = f"{len(epochs)} snapshots, best {means[best]:.2f} dB (epoch {best})"
        curves.title(drawing, f"{name}: {text}" if name else text)
        drawn = [epochs[place] for place in thinned(len(epochs), _MAX_LINES)]
        for place, epoch in enumerate(drawn):
            shade = 0.12 + 0.88 * place / max(len(drawn) - 1, 1)  # the lightest tenth is hard to see on white
            frames = range(1, len(known[epoch]) + 1)
            label = f"epoch {epoch}: {means[epoch]:.1f} dB"
            axes.plot(frames, known[epoch], color=shades(shade), linewidth=1.3, label=label)
        curves.draw_baselines(axes, baselines or {})
        axes.set_xlabel("frame of the roll-out")
        axes.set_ylabel("PSNR, dB")
        curves.whole_ticks(axes)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))  # long labels would be cut at the left edge
        curves.legend_below(drawing, axes)
        return curves.encoded(drawing)

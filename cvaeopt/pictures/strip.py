"""The frames of a run's animation one by one, so that a page can show them without a script."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from cvaeopt.pictures.run_pictures import COMPARISON_FRAME_MS, MOST_FRAMES, thinned

_MAX_SHOWN: Final = 24


@dataclass(frozen=True)
class StripFrame:
    """One frame of the roll-out: truth, prediction and pose beside each other, as a PNG.

    number   counts predicted frames from 1
    mark     'best', 'median', 'worst', or ''
    """

    number: int
    psnr: float
    mark: str
    data: bytes = field(repr=False)


def strip_frames(animation: Path, psnr: Sequence[float]) -> list[StripFrame]:
    """Frames of prediction.gif in order: best, median and worst by `psnr`, and others evenly spaced between them.

    psnr   dB, of each predicted frame of the whole roll-out, of which the animation may have fewer
    Empty where the file is missing, or does not fit to the values.
    """
    try:
        with Image.open(animation) as image:
            kept = thinned(len(psnr), MOST_FRAMES)
            page_of = _pages(image)
            if not kept or len(page_of) != len(kept):
                return []
            ranked = sorted(range(len(kept)), key=lambda place: psnr[kept[place]])
            marks = {ranked[-1]: "best", ranked[len(ranked) // 2]: "median", ranked[0]: "worst"}
            frames = []
            for place in sorted({*thinned(len(kept), _MAX_SHOWN), *marks}):
                image.seek(page_of[place])
                stream = io.BytesIO()
                image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
                number = kept[place] + 1
                frames.append(StripFrame(number, psnr[kept[place]], marks.get(place, ""), stream.getvalue()))
            return frames
    except (OSError, UnidentifiedImageError, ValueError):
        return []


def _pages(image: Image.Image) -> list[int]:
    """The page of the GIF for each frame: equal frames that follow each other share a page that is shown longer."""
    found: list[int] = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        found += [page] * round(image.info.get("duration", 0) / COMPARISON_FRAME_MS)
    return found

"""Single frames of a run's animation. A page can show these frames without a script."""

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
    """One frame of the roll-out: truth, prediction and pose beside each other.

    number   the number of the predicted frame, counted from 1
    psnr     PSNR of the frame, dB
    mark     'best', 'median', 'worst', or ''
    data     the PNG file's bytes
    """

    number: int
    psnr: float
    mark: str
    data: bytes = field(repr=False)


def strip_frames(animation: Path, psnr: Sequence[float]) -> list[StripFrame]:
    """The best, the median and the worst frame of prediction.gif by `psnr`, and evenly spaced frames, in order of time.

    psnr   PSNR of each predicted frame of the whole roll-out, dB. The animation may show fewer frames.

    The list is empty if the file is missing or cannot be read, or if its number of frames does not fit `psnr`.
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
    """The index of the GIF page for each frame. Equal neighbouring frames share a page, which is shown longer."""
    found: list[int] = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        found += [page] * round(image.info.get("duration", 0) / COMPARISON_FRAME_MS)
    return found

"""Frames as GIFs and PNGs, and the pictures of every finished run in its folder.

Frames are uint8 (T, 3, H, W) everywhere. The caller clips and rounds them before, so no pixel value can overflow.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cvaeopt.files import whole, write_bytes, write_json
from cvaeopt.pictures import curves
from cvaeopt.pictures.training_chart import run_curves

Frames = NDArray[np.uint8]

LAB_FRAME_MS: Final = 20
COMPARISON_FRAME_MS: Final = 60
MOST_FRAMES: Final = 120
"""The largest number of frames in the animation. Of a longer video, evenly spaced frames are shown. This keeps the
file small and the drawing fast."""

CURVES: Final = "curves.png"
PSNR_CHART: Final = "psnr_per_frame.png"
WORST: Final = "worst_frames.png"
GIF: Final = "prediction.gif"
PSNR_VALUES: Final = "psnr_per_frame.json"
_LETTERS: Final = (34, 34, 34)
_PAPER: Final = (255, 255, 255)
_COLUMNS: Final = 4
_GIF_SCALE: Final = 4  # enlargement of the animation
_SHEET_SCALE: Final = 3  # enlargement of pictures with several frames
_GAP_PX: Final = 2  # gap between neighbouring videos of the animation, before the enlargement


def trial_artifacts(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    psnr_frames: NDArray[np.floating[Any]] | None = None,
    prediction: Frames | None = None,
    truth: Frames | None = None,
    labels: Frames | None = None,
    baselines: Mapping[str, float] | None = None,
    title: str = "",
) -> list[Path]:
    """Write the pictures of a run into `folder` and return their paths. A picture without data is left out.

    rows                       the lines of history.jsonl
    psnr_frames                (T,) PSNR of the predicted frames, dB
    prediction, truth, labels  (T, 3, H, W) uint8 of the frames in `psnr_frames`

    If `psnr_frames` is given, this function writes its values to psnr_per_frame.json, too. A report draws its chart
    from this file. Its path is not returned.
    """
    made = [folder / CURVES]
    write_bytes(made[0], run_curves(rows, name=title))
    if psnr_frames is not None:
        made.append(folder / PSNR_CHART)
        write_bytes(made[-1], curves.psnr_per_frame(psnr_frames, baselines, name=title))
        write_json(folder / PSNR_VALUES, {"psnr_db": [round(float(value), 4) for value in psnr_frames]})
    if prediction is None or truth is None or labels is None:
        return made
    if psnr_frames is not None:
        made.append(folder / WORST)
        rows_of_frames = {"truth": truth, "pose": labels, "prediction": prediction}
        write_bytes(made[-1], worst_frames(rows_of_frames, psnr_frames))
    made.append(folder / GIF)
    write_comparison_gif(made[-1], {"truth": truth, "prediction": prediction, "pose": labels})
    return made


def write_gif(path: Path, frames: Iterable[Frames]) -> None:
    """Write frames (3, H, W) as an endless GIF. If the writing fails, the file at `path` is unchanged.

    Each frame has its own palette of 256 colours, which is fitted to the frame. There is no dithering, because
    dithering would make still areas flicker.
    """
    _save_gif(path, (_quantised(_image(frame), 256) for frame in frames), LAB_FRAME_MS)


def write_comparison_gif(path: Path, parts: Mapping[str, Frames]) -> None:
    """Write several videos of equal size beside each other as one endless GIF, with the name above each video.

    parts   name -> frames (T, 3, H, W). The frames are enlarged by nearest neighbour, so that pixels have sharp edges.
    """
    length = min(len(frames) for frames in parts.values())
    chosen = thinned(length, MOST_FRAMES)
    height, width = next(iter(parts.values())).shape[2:]
    band = _band(list(parts), (width + _GAP_PX) * _GIF_SCALE)

    def pictures() -> Iterator[Image.Image]:
        for index in chosen:
            joined = np.full((height, (width + _GAP_PX) * len(parts) - _GAP_PX, 3), 255, np.uint8)
            for place, frames in enumerate(parts.values()):
                left = place * (width + _GAP_PX)
                joined[:, left : left + width] = frames[index].transpose(1, 2, 0)
            # The colours are quantised before the enlargement, on sixteen times fewer pixels. The last two palette
            # entries are the colours of the band with the names.
            small = _quantised(Image.fromarray(joined), 254)
            palette = small.getpalette() or []
            palette = palette[: 254 * 3] + [0] * (254 * 3 - len(palette)) + [*_PAPER, *_LETTERS]
            large = small.resize((small.width * _GIF_SCALE, small.height * _GIF_SCALE), Image.Resampling.NEAREST)
            page = Image.new("P", (large.width, large.height + band.height), 254)
            page.putpalette(palette)
            page.paste(large, (0, band.height))
            page.paste(255, (0, 0), band.crop((0, 0, large.width, band.height)))
            yield page

    _save_gif(path, pictures(), COMPARISON_FRAME_MS)


def film_strip(rows: Mapping[str, Frames]) -> bytes:
    """A PNG of four evenly spaced frames: a row for each name, with the frames' numbers above the first row."""
    length = min(len(frames) for frames in rows.values())
    chosen = thinned(length, _COLUMNS)
    return _sheet(rows, chosen, [f"frame {index + 1}" for index in chosen])


def worst_frames(rows: Mapping[str, Frames], psnr_frames: NDArray[np.floating[Any]]) -> bytes:
    """A PNG of the four frames with the lowest PSNR, each from another part of the video.

    psnr_frames   (T,) PSNR of the frames in `rows`, dB
    """
    chosen = worst_indices(psnr_frames, _COLUMNS)
    captions = [f"frame {index + 1}\n{psnr_frames[index]:.1f} dB" for index in chosen]
    return _sheet(rows, chosen, captions)


def worst_indices(psnr_frames: NDArray[np.floating[Any]], count: int) -> list[int]:
    """Up to `count` indices of the lowest values, worst first. Any two differ by at least 1/(3 count) of the video."""
    apart = max(1, len(psnr_frames) // (3 * count))
    chosen: list[int] = []
    for index in np.argsort(psnr_frames, kind="stable"):
        if all(abs(int(index) - other) >= apart for other in chosen):
            chosen.append(int(index))
        if len(chosen) == count:
            break
    return chosen


def thinned(length: int, most: int) -> list[int]:
    """At most `most` evenly spaced indices of range(length), with the first and the last index (only 0 if most = 1)."""
    if length <= most:
        return list(range(length))
    return [round(place * (length - 1) / (most - 1)) for place in range(most)] if most > 1 else [0]


def _image(frame: Frames) -> Image.Image:
    if frame.dtype != np.uint8:
        raise TypeError(f"frames are uint8 (clip and round first), not {frame.dtype}")
    return Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))


def _quantised(image: Image.Image, colours: int) -> Image.Image:
    return image.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)


def _save_gif(path: Path, images: Iterator[Image.Image], frame_ms: int) -> None:
    first = next(images, None)
    if first is None:
        raise ValueError(f"{path.name} would have no frame")
    with whole(path) as stream:
        first.save(
            stream,
            format="GIF",
            save_all=True,
            append_images=images,
            duration=frame_ms,
            loop=0,
            optimize=False,
            disposal=1,
        )


def _sheet(rows: Mapping[str, Frames], chosen: Sequence[int], captions: Sequence[str]) -> bytes:
    height, width = (side * _SHEET_SCALE for side in next(iter(rows.values())).shape[2:])
    gap, font = 6, _font(19)
    margin = max(int(font.getlength(name)) for name in rows) + 2 * gap
    lines = max((caption.count("\n") + 1 for caption in captions), default=1)
    top = lines * 23 + gap
    page = Image.new("RGB", (margin + len(chosen) * (width + gap), top + len(rows) * (height + gap)), _PAPER)
    draw = ImageDraw.Draw(page)
    for place, caption in enumerate(captions):
        centre = margin + place * (width + gap) + width / 2
        draw.multiline_text((centre, 2), caption, _LETTERS, font, anchor="ma", align="center", spacing=3)
    for line, (name, frames) in enumerate(rows.items()):
        y = top + line * (height + gap)
        draw.text((gap, y + height / 2), name, _LETTERS, font, anchor="lm")
        for place, index in enumerate(chosen):
            picture = _image(frames[index]).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (margin + place * (width + gap), y))
    stream = io.BytesIO()
    page.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _band(names: Sequence[str], step_px: int) -> Image.Image:
    """A 1-bit image with the names in one line, which start `step_px` pixels apart."""
    band = Image.new("1", (step_px * len(names), 28), 0)
    draw = ImageDraw.Draw(band)
    for place, name in enumerate(names):
        draw.text((place * step_px + 4, 14), name, 1, _font(20), anchor="lm")
    return band


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels contain FreeType.
    return font

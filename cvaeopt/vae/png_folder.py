"""Folders of numbered PNG files: list them in the order of their numbers, check them and decode them.

Each problem is passed to a `Report`, which is a function. Callers that need good data use the report `stop`, which
raises the first problem. `data_check` uses a report that collects all problems.
"""

from __future__ import annotations

import itertools
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from cvaeopt.errors import DataError

Report = Callable[[str, str, str], None]  # (found, expected, todo), the parts of a DataError

_NAME = re.compile(r"[^0-9]*([0-9]+)\.png", re.IGNORECASE)
_BLOCK = 512  # number of pictures that are decoded together: 3 MB at 32 x 64
_THREADS = 8  # PIL releases the interpreter lock while it decodes, and a network disk has long delays
# The formats that PIL reads without starting another program. For PostScript, PIL would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "JPEG2000", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM")
_KINDS = {  # kinds of other files; the keys are the first bytes after white space, in lower case
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched (git lfs pull)",
    b"<!doctype html": "a page of HTML",
    b"<html": "a page of HTML",
    b"<?xml": "XML, as SVG drawings are",
    b"<svg": "an SVG drawing",
    b"%!ps": "PostScript",
    b"%pdf": "a PDF document",
    b"pk\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x93numpy": "a NumPy array",
    b"8bps": "a Photoshop file",
}
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Png:
    """One PNG file of a folder of numbered files.

    size       bytes
    mtime_ns   time of the last modification, nanoseconds
    """

    number: int
    path: Path
    size: int
    mtime_ns: int


def stop(found: str, expected: str, todo: str) -> NoReturn:
    """A `Report` that raises the problem."""
    raise DataError(found, expected, todo)


def list_folder(folder: Path, report: Report) -> list[Png]:
    """The PNG files of a folder in the order of the numbers in their names (`17.png`, `frame000017.png`).

    Three problems are reported: a folder that is unreadable or empty, a name that does not have exactly one number, and
    a number that occurs twice. Hidden files and files of other kinds are ignored.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        listed = [(name, (folder / name).stat()) for name in found if name.lower().endswith(".png")]
    except OSError as error:
        report(
            f"{folder} cannot be read: {error.strerror}.",
            "Expected a folder that can be read.",
            "Check the path and its permissions.",
        )
        return []
    if not listed:
        others = f" (but {len(found)} other files, such as {found[0]})" if found else ""
        report(
            f"{folder} holds no PNG file{others}.",
            "Expected frames named 0.png, 1.png, ... or frame000000.png, ...",
            "Copy the frames there.",
        )
    by_number: dict[int, Png] = {}
    for name, status in listed:
        path = folder / name
        match = _NAME.fullmatch(name)
        if not match:
            report(
                f"{path} does not have one number in its name.",
                "Expected a name like 17.png or frame000017.png.",
                "Rename the file or move it out of the folder.",
            )
            continue
        number = int(match[1])
        if number in by_number:
            report(
                f"{path} has the same number as {by_number[number].path.name}.",
                "Expected one file for each number.",
                "Remove one of them.",
            )
            continue
        by_number[number] = Png(number, path, status.st_size, status.st_mtime_ns)
    return [by_number[number] for number in sorted(by_number)]


def check_pairs(frames_folder: Path, frames: list[Png], labels_folder: Path, labels: list[Png], report: Report) -> None:
    """Report frames without a label, labels without a frame, and numbers that are missing in both folders.

    An empty list is not reported here, because `list_folder` has already reported it.
    """
    if not frames or not labels:
        return
    framed, labelled = {png.number for png in frames}, {png.number for png in labels}
    for pngs, partners, folder in ((frames, labelled, labels_folder), (labels, framed, frames_folder)):
        for png in pngs:
            if png.number not in partners:
                report(
                    f"{png.path} has no partner in {folder}.",
                    f"Expected a file with the number {png.number} in both folders.",
                    "Copy the missing file, or remove this one.",
                )
    check_gaps(frames_folder, sorted(framed | labelled), report)


def check_gaps(folder: Path, numbers: list[int], report: Report) -> None:
    """Report the gaps in the ascending `numbers`, and a first number above 1."""
    if numbers[0] > 1:
        report(
            f"{folder} starts at number {numbers[0]}: {numbers[0] - 1}.png is missing.",
            "Expected numbers from 0 or 1 on.",
            "Copy the missing frames, or renumber the others.",
        )
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            missing = f"{before + 1}.png is" if after == before + 2 else f"{before + 1}.png to {after - 1}.png are"
            report(
                f"{folder} has a gap in its numbers: {missing} missing.",
                "Expected every number once: a clip must not jump.",
                "Copy the missing frames, or renumber those after the gap.",
            )


def blocks(
    pngs: list[Png], height: int, width: int, report: Report, sizes: Counter[str] | None = None
) -> Iterator[np.ndarray]:
    """Yield the pictures in order, in blocks of uint8 (n, 3, height, width), RGB. PIL resizes them (bilinear).

    sizes   a counter to which the native sizes, "WxH", are added

    A picture is reported and left out if it cannot be decoded, or if its native size is not the most frequent size in
    the first block.
    """
    sizes = Counter() if sizes is None else sizes
    usual = ""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(pngs), _BLOCK):
            block = pngs[start : start + _BLOCK]
            decoded = list(pool.map(lambda png: _decode(png.path, height, width), block))
            sizes.update(result[1] for result in decoded if not isinstance(result, DataError))
            usual = usual or next((size for size, _ in sizes.most_common(1)), "")
            pictures = []
            for png, result in zip(block, decoded, strict=True):
                if isinstance(result, DataError):
                    report(result.found, result.expected, result.todo)
                elif result[1] != usual:
                    report(
                        f"{png.path} is {result[1]} pixels.",
                        f"Expected {usual}, like the rest of its folder.",
                        "Replace the file.",
                    )
                else:
                    pictures.append(result[0])
            if pictures:
                yield np.stack(pictures)


def _decode(path: Path, height: int, width: int) -> tuple[np.ndarray, str] | DataError:
    """The picture as uint8 (3, height, width), and its native size as "WxH".

    If the picture cannot be decoded, a DataError is returned, not raised.
    """
    data = b""
    try:
        data = path.read_bytes()
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            size = f"{image.width}x{image.height}"
            # PIL warns if such a picture is converted directly to RGB. Both ways give the same pixels.
            if image.mode == "P" and "transparency" in image.info:
                rgb = image.convert("RGBA").convert("RGB")
            else:
                rgb = image.convert("RGB")
    except _UNREADABLE as error:
        reason = _what_it_is(data) if isinstance(error, UnidentifiedImageError) else str(error).rstrip(".")
        return DataError(
            f"{path} cannot be decoded: {reason}.",
            "Expected a PNG file, or another picture, that PIL reads as the lab's loader does.",
            "Copy it again from where it came, or convert it.",
        )
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(rgb).transpose(2, 0, 1)), size


def _what_it_is(data: bytes) -> str:
    """A description of a file that PIL does not recognise as a picture. `data` is the content of the file."""
    if not data:
        return "it is empty"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        try:
            PngImageFile(BytesIO(data)).close()
        except _UNREADABLE as error:
            return str(error).rstrip(".") or "it is a broken PNG file"
    start = data.lstrip()[:32].lower()
    kind = next((kind for mark, kind in _KINDS.items() if start.startswith(mark)), None)
    if kind is None and start[4:8] == b"ftyp":  # the container format of HEIC and MP4
        brand = data[8:12].decode("ascii", "replace").strip()
        kind = (
            "a HEIC picture" if brand.lower() in ("heic", "heix", "mif1", "msf1") else f"a file of the kind '{brand}'"
        )
    if kind is None:
        return "it is no picture" if data.strip(b"\0") else "it holds nothing but zeros"
    return f"it is {kind}"

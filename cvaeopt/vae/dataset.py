"""The training and the validation video of a data folder, as memory-mapped arrays.

    train/train_img/N.png      train/train_label/N.png
    val/val_img/N.png          val/val_label/N.png

N is a number, alone or after a word (`frame000017.png`). The numbers start at 0 or 1 and have no gaps. For the folder
`test` of the same layout, see `sequences`. For the place of the decoded frames, see `frame_cache`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from cvaeopt.config import Config
from cvaeopt.errors import DataError
from cvaeopt.vae.frame_cache import Listing, Progress, decoded
from cvaeopt.vae.png_folder import Png, Report, blocks, check_pairs, list_folder, stop

FOLDERS = ("train/train_img", "train/train_label", "val/val_img", "val/val_label")


@dataclass(frozen=True, eq=False)
class Split:
    """One video.

    frames, labels   uint8 (N, 3, H, W), values 0 to 255, read-only
    """

    frames: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training and the validation video of a data folder.

    digest   12 hex digits computed from the decoded frames and labels. The same pictures at the same size have the same
             digest on every machine.
    """

    root: Path
    train: Split
    val: Split
    digest: str


def load(
    root: Path,
    height: int = 32,
    width: int = 64,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The training and the validation video under `root`, in RGB, resized to (height, width) pixels.

    cache      the folder for decoded frames; None: `frame_cache` chooses the folder
    progress   called while PNG files are decoded. The files are decoded only once. Later calls map the cache, and other
               processes that call this function at the same time wait for it.

    DataError names the wrong file or folder: a missing partner, a gap, a number that occurs twice, an unreadable PNG, a
    size that differs from the others, an empty or missing folder, a validation video of one frame. DataError is also
    raised if no cache can be written.
    """
    arrays, digest = decoded(root, list_videos(root, stop), height, width, cache, progress)
    return Dataset(root, Split(*arrays[:2]), Split(*arrays[2:]), digest)


def validation_video(root: Path, height: int = 32, width: int = 64) -> Split | None:
    """The validation video under `root`, decoded without the cache. DataError as in `load`.

    None if a folder of the validation video does not exist.
    """
    folders = FOLDERS[2:]
    if not all((root / folder).is_dir() for folder in folders):
        return None
    frames, labels = (list_part(root, folder, stop) for folder in folders)
    check_pairs(root / folders[0], frames, root / folders[1], labels, stop)
    return Split(*(np.concatenate(list(blocks(pngs, height, width, stop))) for pngs in (frames, labels)))


def clip_starts(frames: int, train_vi_len: int, partial: float) -> list[int]:
    """The index of the first frame of every clip. Clips are windows of `train_vi_len` frames that do not overlap.

    The clips are in the first floor(frames * partial) frames, 0 < partial <= 1. A last window that is too short is left
    out. `partial` is used as an exact decimal number: 0.29 of 100 frames are 29 frames, although 100 * 0.29 < 29 in
    floating-point arithmetic.
    """
    prefix = int(frames * Fraction(str(float(partial))))
    return list(range(0, prefix - train_vi_len + 1, train_vi_len))


def require_clips(dataset: Dataset, train_vi_len: int, partial: float) -> list[int]:
    """`clip_starts` of the training video. DataError if the video is too short for one clip."""
    starts = clip_starts(len(dataset.train), train_vi_len, partial)
    if not starts:
        raise DataError(
            f"{dataset.root / FOLDERS[0]} holds {len(dataset.train)} frames; "
            f"partial = {partial} leaves too few for one clip.",
            f"Expected at least {train_vi_len} (train_vi_len) in that part.",
            "Add frames, or change partial or train_vi_len.",
        )
    return starts


def require_batch(dataset: Dataset, config: Config) -> list[int]:
    """`clip_starts` of the training video. DataError if the video has too few clips for one batch of `config`."""
    starts = require_clips(dataset, config.train_vi_len, config.partial)
    if len(starts) < config.batch_size:
        raise DataError(
            f"{dataset.root}: {len(starts)} clips of {config.train_vi_len} frames.",
            f"Expected: at least one batch of {config.batch_size}.",
            "Lower batch_size, raise partial or add frames.",
        )
    return starts


def list_videos(root: Path, report: Report) -> Listing:
    """The PNG files of both videos.

    If nothing is reported, every frame has a label, every label has a frame, and no number is missing.
    """
    if not root.is_dir():
        _report_missing(root, root, report)
        return {folder: [] for folder in FOLDERS}
    if not any((root / folder).exists() for folder in FOLDERS):
        _report_missing(root, root / FOLDERS[0], report)
        return {folder: [] for folder in FOLDERS}
    listing = {folder: list_part(root, folder, report) for folder in FOLDERS}
    for frames, labels in (FOLDERS[:2], FOLDERS[2:]):
        check_pairs(root / frames, listing[frames], root / labels, listing[labels], report)
    if len(listing["val/val_img"]) == 1:
        report(
            f"{root / 'val/val_img'} holds a single frame, {listing['val/val_img'][0].path.name}.",
            "Expected a validation video of at least 2 frames: the first is given, the others are predicted.",
            "Copy the whole video there.",
        )
    return listing


def list_part(root: Path, folder: str, report: Report) -> list[Png]:
    """The PNG files of one folder of the layout, such as "val/val_img", in the order of their numbers."""
    if (root / folder).is_dir():
        return list_folder(root / folder, report)
    _report_missing(root, root / folder, report)
    return []


def _report_missing(root: Path, missing: Path, report: Report) -> None:
    below = [path.parent.parent for path in sorted(root.glob("*/train/train_img"))]
    above = [place for place in root.absolute().parents[:2] if (place / FOLDERS[0]).is_dir()]
    beside = [] if root.exists() else [path.name for path in sorted(root.parent.glob("*/"))]
    alike = [root.with_name(name) for name in difflib.get_close_matches(root.name, beside, n=1)]
    near = next(iter([*below, *above, *alike]), None)
    report(
        f"{missing} {'is not a folder' if missing.exists() else 'does not exist'}.",
        f"Expected a data folder with {', '.join(FOLDERS)}.",
        f"Did you mean {near}?" if near else "Check the path, or make a set with `cvaeopt demo-data DIR`.",
    )

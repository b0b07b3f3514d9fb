"""Folders of PNG frames in the lab's layout, decoded once into memory-mapped uint8 arrays.

    train/train_img/N.png      train/train_label/N.png
    val/val_img/N.png          val/val_label/N.png
    test/test_img/K/N.png      test/test_label/K/N.png      [test/test_truth/K/N.png]

N is a number from 0 or 1 on without gaps, alone or after a word (`frame000017.png`); K names a test sequence,
which has one frame and many labels; where its frames are known, they stand in test_truth (or all in test_img).

The decoded frames of a data folder are kept in `<root>/.cvaeopt-cache` or, where that cannot be written, in the
user's own cache folder; CVAEOPT_CACHE puts them elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from cvaeopt import files
from cvaeopt.errors import DataError
from cvaeopt.vae.metrics import Baselines, baselines
from cvaeopt.vae.png_folder import Png, Report, blocks, check_gaps, check_pairs, list_folder, stop

Progress = Callable[[str, int, int], None]  # (what, done, total)

CACHE_FOLDER = ".cvaeopt-cache"
CLIP_FRAMES = 16  # the lab's clip, which `check` counts

_FORMAT = 2  # of the cache; another number is another generation
_FOLDERS = ("train/train_img", "train/train_label", "val/val_img", "val/val_label")
_TEST_FRAMES, _TEST_LABELS, _TEST_TRUTH = "test/test_img", "test/test_label", "test/test_truth"
_SHOWN = 20  # problems that a check lists; the others are counted


@dataclass(frozen=True, eq=False)
class Split:
    """One video: frames and labels, uint8 (N, 3, H, W), read-only and memory-mapped."""

    frames: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The training and the validation video of a data folder.

    digest   12 hex digits of the decoded content: equal wherever the same pictures are loaded at one size
    """

    root: Path
    train: Split
    val: Split
    digest: str


@dataclass(frozen=True, eq=False)
class Sequence:
    """One test sequence.

    name     of its folder
    first    uint8 (3, H, W), the given frame
    labels   uint8 (T, 3, H, W), T >= 2; label 0 belongs to the given frame
    truth    uint8 (T, 3, H, W), or None where the frames are not known
    """

    name: str
    first: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    counts          PNG files by folder (train and val)
    sizes           native sizes by folder, "WxH", the most frequent first
    sequences       test sequences: {"name", "labels", "truth"}, truth telling whether the frames are there
    clips           clips of 16 frames in the whole training video
    baselines       None where the videos cannot be read
    problems        at most 20 messages, each naming its file; `problem_count` counts all of them
    """

    root: Path
    height: int
    width: int
    counts: dict[str, int]
    sizes: dict[str, list[str]]
    sequences: list[dict[str, Any]]
    clips: int
    digest: str | None
    baselines: Baselines | None
    problems: list[str]
    problem_count: int

    @property
    def ok(self) -> bool:
        """Whether the folder can be trained on and predicted from."""
        return self.problem_count == 0

    def plain(self) -> dict[str, Any]:
        """Everything as JSON values, with `ok`."""
        return {"ok": self.ok, **asdict(self), "root": str(self.root)}


def load(
    root: Path,
    height: int = 32,
    width: int = 64,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """The training and validation videos under `root`, RGB, resized to (height, width), memory-mapped.

    cache      where decoded frames are kept; default: see the module's description
    progress   called while PNGs are decoded, which happens once: later calls, and other processes that ask at
               the same time, map what the first one wrote

    DataError names the file: missing partner, gap, duplicate number, unreadable or truncated PNG, odd size,
    empty or missing folder, a validation video of one frame; or says where a cache could not be written.
    """
    listing = _list_videos(root, stop)
    caches = _caches(root, listing, height, width, cache)
    for candidate in caches:
        if found := _map(root, listing, candidate):
            return found
    for candidate in caches:
        with _lock(candidate, progress) as writable:
            if writable:  # another process may have decoded while this one waited
                return _map(root, listing, candidate) or _build(root, listing, candidate, progress)
    raise _no_room(listing, caches, "cannot be written")


def validation_video(root: Path, height: int = 32, width: int = 64) -> Split | None:
    """The validation video under `root` alone, decoded anew; None if there is none. DataError as in `load`."""
    folders = _FOLDERS[2:]
    if not all((root / folder).is_dir() for folder in folders):
        return None
    listed = [_list(root, root / folder, stop) for folder in folders]
    check_pairs(root / folders[0], listed[0], root / folders[1], listed[1], stop)
    return Split(*(np.concatenate(list(blocks(pngs, height, width, stop))) for pngs in listed))


def test_sequences(root: Path, height: int = 32, width: int = 64) -> Iterator[Sequence]:
    """The test sequences under `root`, one at a time, in natural order of their folders' names.

    DataError, naming the file, as in `load`; also for a sequence without a first frame or without labels, or
    with another number of truth frames than labels.
    """
    for name in _sequence_names(root, stop):
        yield _read_sequence(_sequence_files(root, name, stop), height, width)


def count_test_sequences(root: Path) -> int:
    """The number of test sequences under `root`; 0 when it has no test folders at all. DataError as above."""
    if not any((root / folder).exists() for folder in (_TEST_FRAMES, _TEST_LABELS)):
        return 0
    return len(_sequence_names(root, stop))


def clip_starts(frames: int, train_vi_len: int, partial: float) -> list[int]:
    """First frames of the clips: non-overlapping windows of `train_vi_len` frames in the video's prefix.

    The prefix is the first floor(frames * partial) frames; a window that does not fit into it is left out.
    `partial` counts as the decimal number it is written as: 0.29 of 100 frames is 29, though 100 * 0.29 < 29.
    """
    prefix = int(frames * Fraction(str(float(partial))))
    return list(range(0, prefix - train_vi_len + 1, train_vi_len))


def require_clips(dataset: Dataset, train_vi_len: int, partial: float) -> list[int]:
    """`clip_starts` of the training video, at least one; DataError if it has too few frames for one clip."""
    starts = clip_starts(len(dataset.train), train_vi_len, partial)
    if not starts:
        raise _too_few(dataset.root, len(dataset.train), train_vi_len, partial)
    return starts


def check(root: Path, height: int = 32, width: int = 64, *, progress: Progress | None = None) -> CheckReport:
    """Everything that can be said about the data folder `root`; bad data is reported, never raised.

    A sound folder is decoded into its cache on the way, so that the next `load` finds it. Test sequences are
    optional, but those that are there must be sound.
    """
    problems = _Problems()
    listing = _list_videos(root, problems.add)
    counts = {folder: len(pngs) for folder, pngs in listing.items()}
    sizes: dict[str, Counter[str]] = {folder: Counter() for folder in listing}
    dataset: Dataset | None = None
    obstacle: DataError | None = None
    if not problems.count:
        try:
            dataset = load(root, height, width, progress=progress)
        except DataError as error:
            obstacle = error
    done = 0
    for folder, pngs in listing.items():
        # A folder that loads has one size throughout; otherwise every file is opened, to find all that is wrong.
        for block in blocks(pngs[:1] if dataset else pngs, height, width, problems.add, sizes[folder]):
            done += len(block)
            if progress and not dataset:
                progress("checking frames", done, sum(counts.values()))
    if obstacle and not problems.count:
        problems.add(obstacle)  # sound pictures, but no room for the cache
    clips = len(clip_starts(counts[_FOLDERS[0]], CLIP_FRAMES, 1.0))
    if dataset and not clips:
        problems.add(_too_few(root, len(dataset.train), CLIP_FRAMES, 1.0))
    sequences = _check_sequences(root, height, width, problems, progress) if root.is_dir() else []
    return CheckReport(
        root=root,
        height=height,
        width=width,
        counts=counts,
        sizes={folder: [size for size, _ in found.most_common()] for folder, found in sizes.items()},
        sequences=sequences,
        clips=clips,
        digest=dataset.digest if dataset else None,
        baselines=baselines(dataset.train, dataset.val) if dataset else None,
        problems=problems.shown,
        problem_count=problems.count,
    )


# Listing


@dataclass
class _Problems:
    """Collects what a check finds, in full number but bounded length."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, error: DataError) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(str(error))


_Listing = dict[str, list[Png]]  # by folder, in the order of _FOLDERS, each in the order of its numbers


def _list_videos(root: Path, report: Report) -> _Listing:
    """The files of both videos, frames and labels of one length and without gaps if nothing was reported."""
    if not root.is_dir():
        report(_not_a_data_folder(root, root))
        return {folder: [] for folder in _FOLDERS}
    listing = {folder: _list(root, root / folder, report) for folder in _FOLDERS}
    for frames, labels in (_FOLDERS[:2], _FOLDERS[2:]):
        check_pairs(root / frames, listing[frames], root / labels, listing[labels], report)
    if len(listing["val/val_img"]) == 1:
        report(
            DataError(
                f"{root / 'val/val_img'} holds a single frame, {listing['val/val_img'][0].path.name}.",
                "Expected a validation video of at least 2 frames: the first is given, the rest predicted.",
                "Copy the whole video there.",
            )
        )
    return listing


def _list(root: Path, folder: Path, report: Report) -> list[Png]:
    """The files of one folder of the layout."""
    if folder.is_dir():
        return list_folder(folder, report)
    report(_not_a_data_folder(root, folder))
    return []


def _not_a_data_folder(root: Path, missing: Path) -> DataError:
    near = next((path.parent.parent for path in sorted(root.glob("*/train/train_img"))), None)
    return DataError(
        f"{missing} {'is not a folder' if missing.exists() else 'does not exist'}.",
        f"Expected a data folder with {', '.join(_FOLDERS)}.",
        f"Did you mean {near}?" if near else "Check the path, or make a set with `cvaeopt demo-data DIR`.",
    )


def _too_few(root: Path, frames: int, train_vi_len: int, partial: float) -> DataError:
    return DataError(
        f"{root / _FOLDERS[0]} holds {frames} frames; partial = {partial} leaves too few for one clip.",
        f"Expected at least {train_vi_len} (train_vi_len) in that part.",
        "Add frames, or change partial or train_vi_len.",
    )


# Test sequences


@dataclass(frozen=True)
class _SequenceFiles:
    name: str
    first: list[Png]  # one, unless a problem was reported
    labels: list[Png]
    truth: list[Png]  # as many as labels, or none


def _sequence_names(root: Path, report: Report) -> list[str]:
    """Names of the test sequences, those with a number in its order, before those without."""
    names: dict[str, set[str]] = {}
    for folder in (_TEST_FRAMES, _TEST_LABELS):
        try:
            names[folder] = {path.name for path in (root / folder).iterdir() if path.is_dir() and path.name[0] != "."}
        except OSError:
            report(
                DataError(
                    f"{root / folder} is not a folder that can be read.",
                    f"Expected test sequences in {_TEST_FRAMES}/0, {_TEST_LABELS}/0 and so on.",
                    "Check the path.",
                )
            )
            return []
    for here, there in ((_TEST_FRAMES, _TEST_LABELS), (_TEST_LABELS, _TEST_FRAMES)):
        for name in sorted(names[here] - names[there], key=_natural):
            report(
                DataError(
                    f"{root / here / name} has no partner {root / there / name}.",
                    "Expected a first frame and labels for each test sequence.",
                    "Copy the missing folder, or remove the other.",
                )
            )
    both = sorted(names[_TEST_FRAMES] & names[_TEST_LABELS], key=_natural)
    if not both:
        report(
            DataError(
                f"{root / _TEST_FRAMES} holds no test sequence.",
                f"Expected folders {_TEST_FRAMES}/0, {_TEST_FRAMES}/1 and so on.",
                "Copy them there.",
            )
        )
    return both


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts runs of digits by their value: '2' before '10', 'seq2' before 'seq10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(not part[0].isdecimal(), int(part) if part[0].isdecimal() else 0, part) for part in parts]


def _sequence_files(root: Path, name: str, report: Report) -> _SequenceFiles:
    frames_folder, labels_folder = root / _TEST_FRAMES / name, root / _TEST_LABELS / name
    frames = _list(root, frames_folder, report)
    labels = _list(root, labels_folder, report)
    truth = frames if len(frames) == len(labels) else []
    if len(frames) > 1 and not truth:
        report(
            DataError(
                f"{frames_folder} holds {len(frames)} frames and {labels_folder} {len(labels)} labels.",
                "Expected the first frame alone, or as many frames as labels.",
                "Remove the others, or copy the missing ones.",
            )
        )
    if len(labels) == 1:
        report(
            DataError(
                f"{labels_folder} holds a single label, {labels[0].path.name}.",
                "Expected at least 2: the first belongs to the given frame.",
                "Copy the whole sequence there.",
            )
        )
    if labels:
        check_gaps(labels_folder, [png.number for png in labels], report)
    truth_folder = root / _TEST_TRUTH / name
    if truth_folder.is_dir():
        truth = _list(root, truth_folder, report)
        check_pairs(truth_folder, truth, labels_folder, labels, report)
    return _SequenceFiles(name, frames[:1], labels, truth)


def _read_sequence(files: _SequenceFiles, height: int, width: int) -> Sequence:
    """The decoded sequence, of files that were listed without a problem."""
    first, labels, truth = (
        np.concatenate(list(blocks(pngs, height, width, stop))) if pngs else None
        for pngs in (files.first, files.labels, files.truth)
    )
    assert first is not None and labels is not None
    return Sequence(files.name, first[0], labels, truth)


def _check_sequences(
    root: Path, height: int, width: int, problems: _Problems, progress: Progress | None
) -> list[dict[str, Any]]:
    if not any((root / folder).exists() for folder in (_TEST_FRAMES, _TEST_LABELS)):
        return []
    names = _sequence_names(root, problems.add)
    found = []
    for done, name in enumerate(names, 1):
        listed = _sequence_files(root, name, problems.add)
        for pngs in (listed.first, listed.labels, listed.truth):
            for _ in blocks(pngs, height, width, problems.add):
                pass
        found.append({"name": name, "labels": len(listed.labels), "truth": bool(listed.truth)})
        if progress:
            progress("checking test sequences", done, len(names))
    return found


# The cache: <place>/<owner>-<H>x<W>-<listing>/{four arrays .npy, meta.json}, written whole


@dataclass(frozen=True)
class _Cache:
    """Where the decoded frames of one listing are, or will be.

    owner    tells data folders apart that share a place; within a data folder it is the same at any mount point
    """

    place: Path
    owner: str
    height: int
    width: int
    listing: str

    @property
    def family(self) -> str:
        """What all generations of one data folder at one size have in common."""
        return f"{self.owner}-{self.height}x{self.width}"

    @property
    def folder(self) -> Path:
        return self.place / f"{self.family}-{self.listing}"


def _caches(root: Path, listing: _Listing, height: int, width: int, cache: Path | None) -> list[_Cache]:
    """The places for the decoded frames of this listing, the preferred one first."""
    stamp = files.digest(
        [
            [_FORMAT, height, width],
            [[folder, png.path.name, png.size, png.mtime_ns] for folder in listing for png in listing[folder]],
        ],
        16,
    )
    by_path = files.digest(str(root.resolve()))
    chosen = cache or os.environ.get("CVAEOPT_CACHE")
    if chosen:
        return [_Cache(Path(chosen), by_path, height, width, stamp)]
    caches = [_Cache(root / CACHE_FOLDER, "data", height, width, stamp)]
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        caches.append(_Cache(home / "cvaeopt", by_path, height, width, stamp))
    return caches


def _map(root: Path, listing: _Listing, cache: _Cache) -> Dataset | None:
    """The cached data set, or None if there is none, or one that is not, byte for byte, what was decoded."""
    content = hashlib.sha256()
    arrays = []
    try:
        meta = json.loads((cache.folder / "meta.json").read_text())
        for folder in _FOLDERS:
            path = cache.folder / _array_name(folder)
            shape = (len(listing[folder]), 3, cache.height, cache.width)
            header = _header(shape)
            with path.open("rb") as stream:
                if stream.read(len(header)) != header:
                    return None
            array = np.asarray(np.memmap(path, np.uint8, "r", len(header), shape))
            content.update(header)
            content.update(array.reshape(-1).data)  # also warms the page cache: 0.3 s for the lab's 290 MB
            arrays.append(array)
        if meta["digest"] != content.hexdigest()[:12]:
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return Dataset(root, Split(*arrays[:2]), Split(*arrays[2:]), meta["digest"])


def _build(root: Path, listing: _Listing, cache: _Cache, progress: Progress | None) -> Dataset:
    """Decode everything into `cache` (whole or not at all), remove its older generations, and map it."""
    scratch = cache.place / f".{cache.family}-{secrets.token_hex(4)}.part"
    damaged = scratch.with_suffix(".damaged.part")
    total = sum(len(pngs) for pngs in listing.values())
    done = 0
    content = hashlib.sha256()
    try:
        scratch.mkdir()
        for folder, pngs in listing.items():
            header = _header((len(pngs), 3, cache.height, cache.width))
            content.update(header)
            # Plain writes, not a writable map: a full disk is then an error and not a bus error.
            with (scratch / _array_name(folder)).open("wb") as stream:
                stream.write(header)
                for block in blocks(pngs, cache.height, cache.width, stop):
                    content.update(block.reshape(-1).data)
                    stream.write(block.data)
                    done += len(block)
                    if progress:
                        progress("decoding frames", done, total)
        files.write_json(scratch / "meta.json", {"digest": content.hexdigest()[:12]})
        if cache.folder.exists():  # a damaged one, or it would have been mapped
            cache.folder.rename(damaged)
        scratch.rename(cache.folder)
    except OSError as error:
        raise _no_room(listing, [cache], f"cannot hold them: {error.strerror}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)
    for old in cache.place.glob(f"{cache.family}-*"):
        if old != cache.folder:
            shutil.rmtree(old, ignore_errors=True)
    built = _map(root, listing, cache)
    if built is None:
        raise DataError(
            f"The decoded frames in {cache.folder} are not what was written there a moment ago.",
            "Expected a disk that keeps what it is given.",
            "Set CVAEOPT_CACHE to a folder on another disk.",
        )
    return built


@contextlib.contextmanager
def _lock(cache: _Cache, progress: Progress | None) -> Iterator[bool]:
    """Hold the right to write this data folder's cache; False if nothing can be written there.

    The system releases the lock of a process that is killed; what that one left half-written is removed here.
    """
    try:
        cache.place.mkdir(parents=True, exist_ok=True)
        lock = (cache.place / f"{cache.family}.lock").open("a")
    except OSError:
        yield False
        return
    with lock:
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress:
                    progress("waiting for another process that decodes the same frames", 0, 1)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: several may decode, and the last to rename wins
        else:
            for leftover in cache.place.glob(f".{cache.family}-*.part"):
                shutil.rmtree(leftover, ignore_errors=True)
        yield True


def _array_name(folder: str) -> str:
    return f"{folder.partition('/')[2]}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file of uint8 in C order."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _no_room(listing: _Listing, caches: list[_Cache], reason: str) -> DataError:
    frames = sum(len(pngs) for pngs in listing.values())
    room_mb = math.ceil(frames * 3 * caches[0].height * caches[0].width / 1e6) + 1
    return DataError(
        f"No place for the decoded frames: {' and '.join(str(cache.place) for cache in caches)} {reason}.",
        f"Expected a folder with {room_mb} MB of room.",
        "Set CVAEOPT_CACHE to one, or free the disk.",
    )

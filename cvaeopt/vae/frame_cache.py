"""A cache of decoded frames on the disk, so that the PNG files of a data folder are decoded only once.

    <place>/<owner>-<H>x<W>-<stamp>/    one .npy file for each folder of PNG files, and meta.json

The place is `<root>/.cvaeopt-cache`. If this folder cannot be written, the place is in the user's cache folder. If the
environment variable CVAEOPT_CACHE is set, its value is the place. The stamp depends on the names, sizes and
modification times of the PNG files. A cache is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from cvaeopt import files
from cvaeopt.errors import DataError
from cvaeopt.vae.png_folder import Png, blocks, stop

Progress = Callable[[str, int, int], None]  # (what, done, total)
Listing = dict[str, list[Png]]  # the files by folder, in the order of their numbers
Decoded = tuple[list[np.ndarray], str]  # uint8 (N, 3, H, W) for each folder, and the digest of all of them

CACHE_FOLDER = ".cvaeopt-cache"

_FORMAT = 2  # number of the cache format; caches of another format are not read


def decoded(
    root: Path, listing: Listing, height: int, width: int, place: Path | None = None, progress: Progress | None = None
) -> Decoded:
    """The decoded frames of `listing` in RGB, and their digest of 12 hex digits.

    The arrays are memory-mapped and read-only. DataError if a picture cannot be decoded, or if no cache can be
    written. The message names the picture or the folders.
    """
    caches = _caches(root, listing, height, width, place)
    for cache in caches:
        if (mapped := cache.map()) is not None:
            return mapped
    for cache in caches:
        with cache.lock(progress) as is_writable:
            if is_writable:  # another process may have written the cache during the wait
                return cache.map() or cache.build(progress)
    raise _no_room(caches, "cannot be written")


def _caches(root: Path, listing: Listing, height: int, width: int, place: Path | None) -> list[_Cache]:
    """The caches that may hold the frames of `listing`, in order of preference."""
    stamp = files.digest(
        [
            [_FORMAT, height, width],
            [[folder, png.path.name, png.size, png.mtime_ns] for folder in listing for png in listing[folder]],
        ],
        16,
    )
    by_path = files.digest(str(root.resolve()))
    chosen = place or os.environ.get("CVAEOPT_CACHE")
    if chosen:
        return [_Cache(Path(chosen), by_path, listing, height, width, stamp)]
    caches = [_Cache(root / CACHE_FOLDER, "data", listing, height, width, stamp)]
    with contextlib.suppress(RuntimeError):  # the user has no home folder
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        caches.append(_Cache(home / "cvaeopt", by_path, listing, height, width, stamp))
    return caches


@dataclass(frozen=True)
class _Cache:
    """The cache for one listing at one size. It need not exist yet.

    place    the folder of this cache, which may also hold other caches
    owner    the data folder's part of the cache's name. It is "data" if the place is inside the data folder, so that it
             does not depend on the mount point. Otherwise it is a digest of the data folder's path.
    """

    place: Path
    owner: str
    listing: Listing
    height: int
    width: int
    stamp: str

    @property
    def family(self) -> str:
        """The part of the cache's name that does not change when the PNG files change."""
        return f"{self.owner}-{self.height}x{self.width}"

    @property
    def folder(self) -> Path:
        return self.place / f"{self.family}-{self.stamp}"

    def map(self) -> Decoded | None:
        """The cached frames and their digest. None if the cache does not exist or is damaged."""
        content = hashlib.sha256()
        arrays = []
        try:
            digest = json.loads((self.folder / "meta.json").read_text())["digest"]
            for folder, pngs in self.listing.items():
                path, shape = self.folder / _array_name(folder), (len(pngs), 3, self.height, self.width)
                header = _header(shape)
                with path.open("rb") as stream:
                    if stream.read(len(header)) != header:
                        return None
                array = np.asarray(np.memmap(path, np.uint8, "r", len(header), shape))
                content.update(header)
                content.update(array.reshape(-1).data)  # also loads the file into memory: 0.3 s for the lab's 290 MB
                arrays.append(array)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return (arrays, digest) if digest == content.hexdigest()[:12] else None

    def build(self, progress: Progress | None) -> Decoded:
        """Decode all files into the cache, and return the cached frames and their digest.

        Caches of earlier versions of the PNG files are deleted. DataError if the cache cannot be written.
        """
        scratch = self.place / f".{self.family}-{secrets.token_hex(4)}.part"
        damaged = scratch.with_suffix(".damaged.part")
        try:
            scratch.mkdir()
            self._decode(scratch, progress)
            if self.folder.exists():  # this cache is damaged, because `map` did not return it
                self.folder.rename(damaged)
            scratch.rename(self.folder)
        except OSError as error:
            raise _no_room([self], f"cannot hold them: {error.strerror}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.rmtree(damaged, ignore_errors=True)
        for old in self.place.glob(f"{self.family}-*"):
            if old != self.folder:
                shutil.rmtree(old, ignore_errors=True)
        built = self.map()
        if built is None:
            raise DataError(
                f"The decoded frames in {self.folder} are not what was written there a moment ago.",
                "Expected a disk that keeps what it is given.",
                "Set CVAEOPT_CACHE to a folder on another disk.",
            )
        return built

    def _decode(self, scratch: Path, progress: Progress | None) -> None:
        """Write the decoded frames and their digest into the folder `scratch`."""
        content = hashlib.sha256()
        total, done = sum(map(len, self.listing.values())), 0
        for folder, pngs in self.listing.items():
            header = _header((len(pngs), 3, self.height, self.width))
            content.update(header)
            # Plain writes instead of a writable memory map: if the disk is full, a plain write raises an error, but a
            # memory map kills the process.
            with (scratch / _array_name(folder)).open("wb") as stream:
                stream.write(header)
                for block in blocks(pngs, self.height, self.width, stop):
                    content.update(block.reshape(-1).data)
                    stream.write(block.data)
                    done += len(block)
                    if progress:
                        progress("decoding frames", done, total)
        files.write_json(scratch / "meta.json", {"digest": content.hexdigest()[:12]})

    @contextlib.contextmanager
    def lock(self, progress: Progress | None) -> Iterator[bool]:
        """Inside the block no other process writes this cache. Yield False if the place cannot be written, else True.

        If a process is killed, the operating system releases its lock. Incomplete files of such a process are deleted
        before the block begins.
        """
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            lock = (self.place / f"{self.family}.lock").open("a")
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
                pass  # the file system has no locks: several processes may decode, and the last result is kept
            else:
                for leftover in self.place.glob(f".{self.family}-*.part"):
                    shutil.rmtree(leftover, ignore_errors=True)
            yield True


def _array_name(folder: str) -> str:
    return f"{folder.partition('/')[2]}.npy"


def _header(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy file with a uint8 array of `shape` in C order."""
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def _no_room(caches: list[_Cache], reason: str) -> DataError:
    cache = caches[0]
    room_mb = math.ceil(sum(map(len, cache.listing.values())) * 3 * cache.height * cache.width / 1e6) + 1
    return DataError(
        f"No place for the decoded frames: {' and '.join(str(cache.place) for cache in caches)} {reason}.",
        f"Expected a folder with {room_mb} MB of room.",
        "Set CVAEOPT_CACHE to one, or free the disk.",
    )

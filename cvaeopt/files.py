"""Functions that write a file whole or not at all, and the paths of one run."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream for the new content of `path`. If the block fails, `path` stays as it was.

    The bytes go to a scratch file beside `path`. When the block ends, the scratch file is flushed to the disk and
    renamed to `path`. So a reader sees the old file or the new file, never a part of a file, even after a crash.
    FileExistsError if `path` exists and is not a file, such as a device, because the renaming would replace the device.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "It exists and is no file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        scratch.chmod(0o666 & ~umask())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder for the files of `path`. If the block fails, `path` stays as it was.

    The folder gets the name `path` when the block ends. A folder that had this name before is deleted then. Scratch
    folders that killed processes left for `path` are deleted at the start.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    outer = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    made, old = outer / "new", outer / "old"
    lock = os.open(outer, os.O_RDONLY)  # held as long as this process lives, so that no other process deletes `outer`
    try:
        with contextlib.suppress(OSError):  # the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        made.mkdir()
        yield made
        if path.exists():
            path.rename(old)
        try:
            made.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """Delete the scratch folders of `whole_folder(path)` whose processes have ended."""
    scratch = re.compile(rf"\.{re.escape(path.name)}\.[^.]+\.part")
    for folder in path.parent.iterdir():
        # A folder without `new` may belong to a process that is about to lock it. If `path` was moved to `old` and
        # nothing replaced it, `old` is the only copy of the user's files.
        if not scratch.fullmatch(folder.name) or not (folder / "new").is_dir():
            continue
        if (folder / "old").exists() and not path.exists():
            continue
        with contextlib.suppress(OSError):  # another process writes into this folder, or it may not be deleted
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with whole(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON (no NaN), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def digest(value: Any, length: int = 12) -> str:
    """The first `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def inside(root: Path, relative: str) -> Path:
    """The path `relative` under `root`; ValueError if this path is outside `root` or is `root` itself.

    Use this function for names from a database, because another program may have written them.
    """
    base = root.resolve()
    path = (base / relative).resolve()
    if path == base or not path.is_relative_to(base):
        raise ValueError(f"{relative!r} is not inside {root}")
    return path


@dataclass(frozen=True)
class RunFolder:
    """All paths of one run (a trial or a retrain).

    config.json      the resolved settings, written before the first step
    history.jsonl    one JSON object per finished epoch
    last.pt          the checkpoint of the last epoch, from which the run continues
    best.pt          the checkpoint of the best epoch (only in the folder of a retrain)
    """

    root: Path

    @classmethod
    def of_trial(cls, artifacts: Path, study: str, number: int) -> RunFolder:
        """The folder of a trial, such as `artifacts/main/00042`; ValueError if it would be outside `artifacts`."""
        return cls(inside(artifacts, study) / f"{number:05d}")

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def history(self) -> Path:
        return self.root / "history.jsonl"

    @property
    def last(self) -> Path:
        return self.root / "last.pt"

    @property
    def best(self) -> Path:
        return self.root / "best.pt"

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """Write all rows of the history, one JSON object per line. They replace the old file, whole or not at all."""
        write_text(self.history, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def read_history(self) -> list[dict[str, Any]]:
        """The rows of history.jsonl, or an empty list if the file does not exist."""
        if not self.history.exists():
            return []
        return [json.loads(line) for line in self.history.read_text().splitlines() if line.strip()]


FULL = (errno.ENOSPC, errno.EDQUOT)
"""The error numbers of a full disk and of a used-up quota."""


def trouble(folder: Path, error: OSError) -> str:
    """Why nothing could be written into `folder`, with the free space if the disk is full. `folder` need not exist."""
    if error.errno == errno.EDQUOT:
        return f"the quota of the disk of {folder} is used up"
    if error.errno == errno.ENOSPC:
        return f"the disk of {folder} is full ({_free_mb(folder)} MB free)"
    return f"{folder} cannot be written ({error.strerror or error})"


def _free_mb(folder: Path) -> int:
    for place in (folder, *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free // 1_000_000
    return 0


def umask() -> int:
    """The process's umask: the permission bits that are not set on new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

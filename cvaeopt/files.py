"""Files that are whole or absent, and the paths of one run."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary stream that becomes `path` when the block ends, or nothing when it fails.

    The bytes go to a scratch file beside the target, are flushed to the disk and renamed over it, so a
    reader (or a crash) sees the old file or the new one, never a part. OSError where something else than a file is,
    such as a device, which the renaming would replace.
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
    """The path `relative` under `root`; ValueError if it would leave `root`.

    For names that come from a database, which another program may have written.
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
    last.pt          where to continue
    best.pt          the best epoch by the metric
    """

    root: Path

    @classmethod
    def of_trial(cls, artifacts: Path, study: str, number: int) -> RunFolder:
        """`artifacts/study/00042`; ValueError if the study's name would leave `artifacts`."""
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
        """Write the whole history, one JSON object a line (whole or not at all: a resumed run rewrites it)."""
        write_text(self.history, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def read_history(self) -> list[dict[str, Any]]:
        """The rows of history.jsonl; an empty list when there is none yet."""
        if not self.history.exists():
            return []
        return [json.loads(line) for line in self.history.read_text().splitlines() if line.strip()]


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk, or a used-up quota, says."""


def trouble(folder: Path, error: OSError) -> str:
    """Why nothing could be written into `folder`, which need not exist: what the disk said, and how full it is."""
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
    """The permissions that a new file of this process does not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

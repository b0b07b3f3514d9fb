"""Read a file that torch.save wrote, without running code from the file. If this fails, the error gives the reason.

Besides tensors and plain data, only objects of the classes in `ALLOWED` are created. People save such objects beside
their weights, and it is safe to create them. A file with any other class is refused, and the error names the class.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from cvaeopt.errors import CheckpointError


def _dict(*_: Any) -> dict[Any, Any]:
    """Return a plain dict in place of a defaultdict, which torch creates but then refuses to fill."""
    return {}


# In a pair, the second part is the name of the class in files that another version of Python or numpy wrote. Paths
# become pure paths, because pure paths have no access to the disk and exist on every system.
ALLOWED: Final[list[Any]] = [
    argparse.Namespace,
    (_dict, "collections.defaultdict"),
    *(list, dict, int, float, str, set, tuple),  # factories of a defaultdict: people keep losses in defaultdict(list)
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in (
            (np.float64(0).__reduce__()[0], "scalar"),
            (np.empty(0).__reduce__()[0], "_reconstruct"),
        )
    ),
    *(
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, names in (
            (pathlib.PurePosixPath, ("PosixPath", "PurePosixPath")),
            (pathlib.PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
]

_COPY: Final = "Copy it again from where it was made, or name another one."
_CUT: Final = f"A file that ends in the middle was copied in part only. {_COPY}"
_SAVE: Final = (
    "Where it was made, save the weights alone: torch.save({'state_dict': model.state_dict()}, 'weights.pt')."
)
_BAD_ARCHIVE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
)
# Kinds of files that people pass as a checkpoint by mistake. The keys are the first bytes of the file.
_OTHERS: Final = {
    b"version https://git-lfs": ("it is a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull."),
    b"<": ("it is a web page", "Download the file itself, not the page that offers it."),
    b"\x1f\x8b": ("it is compressed (gzip)", "Unpack it first."),
    b"\x89HDF": ("it is an HDF5 file", _SAVE),
}


def content(path: Path) -> Any:
    """The content of `path`, with tensors on the CPU. CheckpointError gives the reason if the file cannot be read."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.", "Expected: a checkpoint (.pt, .ckpt, .pth).") from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), "Name another one, or change its permissions.") from None
    if not start:
        raise _unreadable(path, "it is empty", _COPY)
    archive = start.startswith(b"PK\x03\x04")
    if archive:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old formats, but it can read them
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # an old format has no checksums, so damaged bytes can cause any error
        raise _refused(path, start, error, archive) from None


def _check_archive(path: Path) -> None:
    """Raise CheckpointError if the zip archive `path` is incomplete, damaged, or not written by torch.save.

    A wrong checksum counts as damage. This check is needed because torch ignores the checksums.
    """
    if not zipfile.is_zipfile(path):
        raise _unreadable(path, f"it ends after {path.stat().st_size} bytes, in the middle", _CUT)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # All checksums are 0 if torch.save was called with the option to write no checksums.
            known = any(entry.CRC for entry in archive.infolist())
            damaged = archive.testzip() if known else None
    except _BAD_ARCHIVE as error:
        raise _unreadable(path, f"its bytes are damaged: {error}", _COPY) from None
    if damaged is not None:
        raise _unreadable(path, f"its bytes are damaged: {damaged} does not have its checksum", _COPY)
    if any(name.endswith("/constants.pkl") for name in names):
        raise _unreadable(path, "it is a TorchScript archive", _SAVE)
    if not any(name.endswith("data.pkl") for name in names):
        inside = ", ".join(names[:3])
        raise _unreadable(path, f"it is a zip archive that torch.save did not write, of {inside}", "Unpack it first.")


def _refused(path: Path, start: bytes, error: Exception, archive: bool) -> CheckpointError:
    """The error for a file that torch could not read, with the cause and what to do."""
    message = str(error)
    if names := _classes(path, message):
        return _unreadable(path, f"it holds objects of {names}, which could run code", _SAVE)
    if "Unsupported operand" in message and archive:
        return _unreadable(
            path, "it was pickled with a newer protocol", "Save it with torch.save's own pickle_protocol."
        )
    if archive and (reason := re.search(r"WeightsUnpickler error:\s*(.+)", message)):
        return _unreadable(path, f"torch does not rebuild all that it holds: {reason[1].strip()[:200]}", _SAVE)
    if archive:
        return _unreadable(path, f"its bytes are damaged: {message.splitlines()[0] if message else error!r}", _COPY)
    ended = isinstance(error, EOFError | IndexError | struct.error) or "EOF" in message or "GLOBAL" in message
    if start.startswith(b"\x80\x02\x8a\nl\xfc") and ended:  # the format before 2020 starts with this pickled number
        return _unreadable(path, f"it ends after {path.stat().st_size} bytes, in the middle", _CUT)
    return _unreadable(path, *_other(start))


def _other(start: bytes) -> tuple[str, str]:
    """The kind of a file whose first bytes are `start`, and what to do."""
    for beginning, answer in _OTHERS.items():
        if start.startswith(beginning):
            return answer
    if start[8:9] == b"{":
        return "it is a safetensors file", "Save it with torch.save({'state_dict': weights}, 'weights.pt')."
    return "it was not written by torch.save", "Name another one."


def _classes(path: Path, message: str) -> str:
    """The names of at most five classes in `path` that are not allowed; empty if all classes are allowed."""
    names: list[str] = []
    with contextlib.suppress(Exception), torch.serialization.safe_globals(ALLOWED):
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names = names or [name for name in re.findall(r"GLOBAL (\S+)", message) if not _ends_with(path, name)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _ends_with(path: Path, name: str) -> bool:
    """Whether the file ends with `name`. If so, the file was cut, and `name` is only the beginning of a name."""
    tail = name.rpartition(".")[2].encode()
    with path.open("rb") as stream:
        stream.seek(-min(len(tail) + 1, path.stat().st_size), os.SEEK_END)
        return tail in stream.read()


def _unreadable(path: Path, why: str, todo: str) -> CheckpointError:
    expected = "Expected: a whole file of tensors and plain data, as torch.save writes it."
    return CheckpointError(f"{path} is not a readable checkpoint ({why}).", expected, todo)

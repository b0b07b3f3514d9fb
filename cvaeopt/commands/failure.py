"""Turns exceptions into messages with exit codes, and removes the empty folders of a failed command."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from cvaeopt.errors import CvaeoptError, TryAgain, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_WRONG_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def explained(error: Exception) -> CvaeoptError:
    """`error` as a message in three parts with an exit code. The traceback shows `error` as its cause."""
    if isinstance(error, CvaeoptError):
        return error
    shown = _of_a_path(error) if isinstance(error, OSError) else None
    shown = shown or _of_the_device(error) or _of_a_bug(error)
    shown.__cause__ = error
    return shown


def _of_a_path(error: OSError) -> CvaeoptError | None:
    if error.errno in _FULL:
        where = f" ({_target(error.filename)})" if error.filename else ""
        return UserError(
            f"The disk is full{where}: {error.strerror}.",
            "Expected: room for what this command writes.",
            "Make room, then run the same command again; what was written before is whole.",
        )
    if error.filename is not None and error.errno in _WRONG_PATH:
        taken = error.errno in (errno.EEXIST, errno.ENOTDIR)
        return UserError(
            f"{_target(error.filename)}: {error.strerror}.",
            "Expected: a folder." if taken else "Expected: a path that this command can read or write.",
            "Name another one." if taken else "Name another one, or change its permissions.",
        )
    return None


def _of_the_device(error: Exception) -> CvaeoptError | None:
    from cvaeopt.run.failures import kind_of

    kind, reason = kind_of(error)
    if kind == "out of memory":
        return CvaeoptError(
            f"Out of memory ({reason}).", todo="Use a device with more memory, or a smaller batch_size."
        )
    if kind == "device fault":
        return TryAgain(f"The device failed ({reason}).", todo="Run the same command again.")
    return None


def _of_a_bug(error: Exception) -> CvaeoptError:
    if isinstance(error, UnicodeEncodeError):
        return UserError(
            f"A name or path has characters that this environment cannot spell ({error.reason}).",
            "Expected: names in UTF-8, and an environment that uses it.",
            "Set LC_ALL=C.UTF-8, then run the same command again.",
        )
    name, message = type(error).__name__, str(error).strip()
    return CvaeoptError(
        f"{name}: {message.rstrip('.')}." if message else f"{name}.",
        todo="This looks like a bug; run again with -v to see where it happened, and report it.",
    )


def _target(path: str) -> str:
    """The final path of a scratch file of `files.whole`; any other path unchanged."""
    folder, slash, name = path.rpartition("/")
    scratch = re.fullmatch(r"\.(.+)\.[^.]+\.part", name)
    return f"{folder}{slash}{scratch[1]}" if scratch else path


@contextlib.contextmanager
def writing(target: Path, *, folder: bool = False) -> Iterator[None]:
    """Clean up if the block fails.

    If the disk is full and the error names no file, `target` is added to the error. New folders in the path of `target`
    are removed if they are empty.

    folder   whether `target` is a folder
    """
    inner = target if folder else target.parent
    made = [place for place in (inner, *inner.parents) if not place.exists()]
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:
            error.filename = str(target)
        for place in made:
            with contextlib.suppress(OSError):  # the folder is not empty, or was never made
                place.rmdir()
        raise

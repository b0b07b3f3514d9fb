"""Checks of a SQLite file, its folder and its disk; each check raises an error that explains the problem."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy.engine import URL

from cvaeopt.errors import StorageUnreachable, StudyError, UserError
from cvaeopt.store.outage import first_line

_MIN_FREE_BYTES: Final = 65536
"""With fewer free bytes on the disk, SQLite cannot create the files that it needs beside the database file."""

_NOT_WRITABLE: Final = (
    "Expected: a file, in a folder, that this user may write.",
    "Change their permissions, or name another file with --storage.",
)


def check_path(target: URL, shown: str, create: bool) -> None:
    """Make the folder of the file.

    create   False if the file must exist already: StudyError if it does not exist

    UserError if the folder cannot be made, or if the path is a folder.
    """
    path = Path(target.database or "")
    if path.is_dir():
        raise UserError(f"{shown} is a folder.", "Expected a file.", "Change --storage.")
    if not create and not path.exists():
        raise StudyError(
            f"There is no database {path.absolute()} yet.",
            todo="Start a worker, which creates it, or change --storage.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder of {shown} cannot be made ({error.strerror}).", todo="Change --storage.") from None


def files_of(target: URL) -> list[Path]:
    """The files that may be created when a SQLite database is opened."""
    return [Path(f"{target.database}{ending}") for ending in ("", ".lock", "-journal", "-wal", "-shm")]


def check_disk(error: BaseException, target: URL, absent: list[Path]) -> None:
    """StorageUnreachable if `error` means that the disk is full, UserError if it means that the folder is read-only.

    absent   files that did not exist before this command; if the disk is full, the empty files among them are deleted

    This check is used at the start of a command, where the user should see the error at once. During a run a full disk
    counts as an outage, and calls are repeated, because somebody may make room on the disk.
    """
    codes = _codes(error)
    folder = Path(target.database or "").absolute().parent
    if sqlite3.SQLITE_CANTOPEN in codes and folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(
            f"The SQLite database {target.database} may not be written (its folder is read-only).", *_NOT_WRITABLE
        ) from None
    if sqlite3.SQLITE_FULL not in codes:
        # If the disk has no room for SQLite's other files, SQLite reports an I/O error or a file that it cannot open.
        if not codes & {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
            return
        try:
            if shutil.disk_usage(folder).free >= _MIN_FREE_BYTES:
                return
        except OSError:
            return
    for path in absent:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
    raise StorageUnreachable(
        f"The disk of {folder} is full: the database cannot be written.",
        todo="Make room there, or put the database on another disk with --storage; then run the same command again.",
    ) from None


def check_content(error: BaseException, shown: str) -> None:
    """UserError if `error` means that the file is not a database, is damaged, or cannot be written."""
    codes = _codes(error)
    if sqlite3.SQLITE_NOTADB in codes:
        raise UserError(
            f"{shown} is not a SQLite database: the file holds something else.",
            "Expected: a file that cvaeopt has made, or the name of a file that does not exist yet.",
            "Name another file with --storage; nothing was changed in this one.",
        ) from None
    if sqlite3.SQLITE_CORRUPT in codes:
        raise UserError(
            f"The SQLite database {shown} is damaged ({first_line(error)}).",
            "Expected: a complete file. A copy that cp made while workers were writing is not complete.",
            "Stop the workers, move the file away, and restore a backup (cvaeopt admin restore).",
        ) from None
    if codes & {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        raise UserError(
            f"The SQLite database {shown} may not be written ({first_line(error)}).", *_NOT_WRITABLE
        ) from None


def _codes(error: BaseException) -> set[int]:
    """SQLite's primary result codes in `error` and in the errors that it wraps."""
    origins = [error, error.__cause__, getattr(error, "orig", None), getattr(error.__cause__, "orig", None)]
    return {getattr(origin, "sqlite_errorcode", 0) & 0xFF for origin in origins if isinstance(origin, sqlite3.Error)}

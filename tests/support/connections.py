"""SQLite connections that are counted, and that warn when they are collected without having been closed.

Python 3.13 warns of such a connection; this does the same on every version that is supported.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest


class Connection(sqlite3.Connection):
    """A connection that is entered in `open` until `close` is called; being collected does not count."""

    open: ClassVar[Counter[str]] = Counter()
    made: ClassVar[Counter[str]] = Counter()
    database: str | None = None  # None before it is opened, and after it is closed

    def __init__(self, database: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(database, *arguments, **options)
        self.database = str(database)
        self.open[self.database] += 1
        self.made[self.database] += 1

    def close(self) -> None:
        super().close()
        if self.database is not None:
            self.open[self.database] -= 1
            self.database = None

    def __del__(self) -> None:
        if self.database is not None:
            warnings.warn(f"unclosed database {self.database}", ResourceWarning, source=self, stacklevel=1)


@contextlib.contextmanager
def counted() -> Iterator[type[Connection]]:
    """Within the block every connection of this process to a SQLite database is a `Connection`."""
    connect = sqlite3.connect

    def counting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return connect(*arguments, **{"factory": Connection, **options})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", counting)
        patch.setattr(sqlite3.dbapi2, "connect", counting)  # the name that SQLAlchemy uses
        yield Connection


def files_held(folder: Path) -> list[str]:
    """The files below `folder` that this process has open; nothing where the system does not say (not Linux)."""
    found = []
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(descriptor.readlink()))
    return sorted(path for path in found if path.startswith(f"{folder}/"))

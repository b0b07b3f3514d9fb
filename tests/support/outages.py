"""Databases that go away for a while, and storages that lose the answer of a COMMIT."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy
from sqlalchemy import orm

from cvaeopt.store.storage import Storage


class Lossy(Storage):
    """A storage that loses the acknowledgement of the next commits, although they happened."""

    losses = 0

    def __init__(self, url: str) -> None:
        super().__init__(url, sleep=lambda seconds: None)
        outer = self

        class Session(orm.Session):
            def commit(self) -> None:
                wrote = self.in_transaction()
                super().commit()
                if wrote:
                    outer.lose()

        self.scoped_session = orm.scoped_session(orm.sessionmaker(bind=self.engine, class_=Session))

    def lose(self) -> None:
        if self.losses and not getattr(self._local, "reading", False):
            self.losses -= 1
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, OSError("gone"), connection_invalidated=True)

    @contextmanager
    def transaction(self) -> Iterator[sqlalchemy.Connection]:
        with super().transaction() as connection:
            yield connection
        self.lose()


def hold_sqlite(path: str) -> sqlite3.Connection:
    """A connection that locks the database file `path` until it is closed."""
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


class Outages:
    """The database goes away now and comes back when the storage has slept `naps` times."""

    def __init__(self, leave: Callable[[], None], come_back: Callable[[], None], naps: int = 3) -> None:
        self.naps = naps
        self.come_back = come_back
        leave()

    def sleep(self, _seconds: float) -> None:
        self.naps -= 1
        if self.naps == 0:
            self.come_back()

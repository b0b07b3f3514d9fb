"""An Optuna storage that repeats its calls during an outage of the database, and offers transactions to this program.

Plain Optuna ends a worker at the first lost connection. `Storage` repeats every call, with growing pauses, until the
database answers. After a time limit the call fails with StorageUnreachable.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from sqlalchemy import Connection, event

from cvaeopt.errors import StorageRefused, StudyError
from cvaeopt.store import sqlite_file, urls, watchdog
from cvaeopt.store.optuna_private import RepeatedStorage
from cvaeopt.store.outage import first_line, is_outage, is_refusal, refused
from cvaeopt.store.retries import ignore, repeat
from cvaeopt.store.tables import study_table
from cvaeopt.text import Advice

T = TypeVar("T")

_CLOCKS = {
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
}


class Storage(RepeatedStorage):
    """Optuna's SQL storage, which repeats calls. `open_storage` makes it; the end of a `with` block closes it.

    url           the URL with its password masked
    limit_s       how long a call is repeated before StorageUnreachable, seconds
    on_retry      called before each repetition with (seconds of the outage so far, the database's message)
    on_recovery   called when a repeated call succeeded, with the seconds of the outage
    hurry         returns True if the process was asked to stop; calls are then repeated only for a few seconds
    silence_s     PostgreSQL: how long the server may be silent during one statement, seconds; a longer silence is an
                  outage
    """

    def __init__(
        self,
        url: str,
        *,
        limit_s: float = 900.0,
        busy_s: float = 10.0,
        silence_s: float = watchdog.SILENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = urls.parse(url)
        self.limit_s = limit_s
        self.on_retry: Callable[[float, str], None] = ignore
        self.on_recovery: Callable[[float], None] = ignore
        self.hurry: Callable[[], bool] = lambda: False
        self._source = url
        self._busy_s = busy_s
        self._silence_s = silence_s
        self._sleep = sleep
        self._clock = clock
        self._local = threading.local()
        try:
            super().__init__(
                urls.template(target),
                engine_kwargs=urls.engine_options(target, busy_s, silence_s, lambda: self.hurry()),
                skip_table_creation=True,
            )
        except BaseException:
            if hasattr(self, "scoped_session"):
                self.close()
            raise
        self.url = urls.as_typed(url, target)
        event.listen(self.engine, "handle_error", self._refuse)
        if self.engine.name == "sqlite":
            self._harden_sqlite()

    def __reduce__(self) -> tuple[Callable[..., Storage], tuple[str]]:
        make = functools.partial(type(self), limit_s=self.limit_s, busy_s=self._busy_s, silence_s=self._silence_s)
        return (make, (self._source,))

    def _refuse(self, context: sqlalchemy.engine.ExceptionContext) -> StorageRefused | None:
        """The error that replaces a driver's error; None if the driver's error is not a refusal."""
        error = context.sqlalchemy_exception
        if error is None or not is_refusal(error):
            return None
        return refused(self.url, self.scrub(first_line(error)))

    def _harden_sqlite(self) -> None:
        # The listeners are added after construction, because Optuna's schema check opens two transactions at once.
        self.engine.dispose()

        @event.listens_for(self.engine, "connect")
        def _connected(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin with the statement in `_begun`
            connection.execute("PRAGMA synchronous=NORMAL")
            with contextlib.suppress(sqlite3.OperationalError):  # a copy of the file may have lost this mode
                connection.execute("PRAGMA journal_mode=WAL")

        @event.listens_for(self.engine, "begin")
        def _begun(connection: Connection) -> None:
            # Without IMMEDIATE, two writers could read the same row and take the same trial.
            # A reading transaction takes no write lock: the status of a large study must not make workers wait.
            reading = getattr(self._local, "reading", False)
            connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self.remove_session()
        self.engine.dispose()

    # ---- repetition

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Inside this block, and in this thread only, calls are repeated for at most `seconds`."""
        before = getattr(self._local, "limit_s", None)
        self._local.limit_s = seconds
        try:
            yield
        finally:
            self._local.limit_s = before

    def retry(self, call: Callable[[], T]) -> T:
        """The result of `call`, which is repeated while the database does not answer. StorageUnreachable after limit_s.

        If an acknowledgement was lost, `call` seems to fail although it took effect. So a second `call` must do no
        harm.
        """
        return self.persist(lambda _: call())

    def persist(self, call: Callable[[int], T], *, reading: bool = False) -> T:
        """The result of `call(attempt)`, which is repeated as in `retry`.

        attempt   the number of the attempt, from 0
        reading   True if `call` only reads: the transaction then takes no write lock
        """
        limit_s = getattr(self._local, "limit_s", None)

        def attempt(number: int) -> T:
            with self._mode(reading):
                return call(number)

        return repeat(
            attempt,
            self._describe,
            url=self.url,
            limit_s=self.limit_s if limit_s is None else min(limit_s, self.limit_s),
            hurry=self.hurry,
            on_retry=self.on_retry,
            on_recovery=self.on_recovery,
            sleep=self._sleep,
            clock=self._clock,
        )

    def _describe(self, error: Exception) -> str | None:
        """The database's message if `error` is an outage; None otherwise.

        UserError if the SQLite file is damaged, is not a database or cannot be written.
        """
        if not isinstance(error, (StorageInternalError, sqlalchemy.exc.SQLAlchemyError)):
            return None
        if not is_outage(error):
            sqlite_file.check_content(error, self.url)
            return None
        return self.scrub(first_line(error))

    def scrub(self, text: str) -> str:
        """`text` with the password of this database masked, in any spelling."""
        return urls.scrub(text, self._source)

    # ---- transactions of this program

    @contextlib.contextmanager
    def _mode(self, reading: bool) -> Iterator[None]:
        before = getattr(self._local, "reading", False)
        self._local.reading = reading
        try:
            yield
        finally:
            self._local.reading = before

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in one writing transaction. The transaction is committed when the block ends.

        SQLite runs only one writing transaction at a time. In PostgreSQL, lock the rows that you read (`lock_study`).
        The block is not repeated during an outage; `write` repeats it.
        """
        with self._mode(False), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in one reading transaction. No writer waits for this transaction."""
        with self._mode(True), self.engine.begin() as connection:
            yield connection

    def read(self, query: Callable[[Connection], T]) -> T:
        """The result of `query` in one reading transaction, which is repeated as in `retry`."""

        def attempt() -> T:
            with self.reading() as connection:
                return query(connection)

        return self.retry(attempt)

    def write(self, change: Callable[[Connection], T]) -> T:
        """The result of `change` in one writing transaction, which is repeated as in `retry`."""

        def attempt() -> T:
            with self.transaction() as connection:
                return change(connection)

        return self.retry(attempt)

    def now(self, connection: Connection) -> float:
        """The present time of the database's clock, not the start of the transaction; seconds since 1970, UTC."""
        return float(connection.execute(sqlalchemy.text(_CLOCKS[self.engine.name])).scalar_one())

    def lock_study(self, connection: Connection, name: str) -> sqlalchemy.Row[Any]:
        """The study's row in cvaeopt_study, locked until the transaction ends; StudyError for an unknown study."""
        query = sqlalchemy.select(study_table).where(study_table.c.name == name).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise StudyError(
                f"Study {name!r} is not in {self.url}.",
                todo=Advice("Create it:", "worker", "--study", name),
            )
        return row

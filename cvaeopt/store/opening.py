"""Open the database, and create its tables if they are missing. Errors explain why the database cannot be opened."""

from __future__ import annotations

import contextlib
import functools
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import event
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from cvaeopt.errors import CvaeoptError, SchemaError, StudyError, UserError
from cvaeopt.store import sqlite_file, urls, watchdog
from cvaeopt.store.outage import first_line, is_outage, refused
from cvaeopt.store.retries import ignore, repeat
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import SCHEMA_VERSION, metadata, schema_table


def open_storage(
    url: str,
    *,
    create: bool = True,
    limit_s: float = 900.0,
    start_limit_s: float = 30.0,
    busy_s: float = 10.0,
    silence_s: float = watchdog.SILENCE_S,
    on_retry: Callable[[float, str], None] = ignore,
) -> Storage:
    """The storage at `url`; missing tables are created. Any number of processes may call this at the same time.

    create          True: make the folder, the database file and the tables. False: StudyError if there are no tables
    limit_s         how long every later call is repeated during an outage, seconds
    start_limit_s   how long this call waits for the database, seconds; short, because the host name may be wrong
    busy_s          SQLite: how long one attempt waits for another process' lock, seconds
    silence_s       PostgreSQL: how long the server may be silent during one statement, seconds
    on_retry        called before each repetition of this call with (seconds of the outage so far, the database's
                    message); never called if the database refuses

    UserError for a URL that cannot work, StorageRefused if the server refuses, SchemaError for tables of another
    version, StorageUnreachable if no server answers, and at once if the disk of a SQLite file is full.
    """
    target = urls.parse(url)
    shown = urls.mask(url)
    absent: list[Path] = []
    if target.get_backend_name() == "sqlite":
        absent = [path for path in sqlite_file.files_of(target) if not path.exists()]
        sqlite_file.check_path(target, shown, create)

    def attempt(_: int) -> Storage:
        _make_tables(target, shown, create, busy_s, silence_s)
        return Storage(url, limit_s=limit_s, busy_s=busy_s, silence_s=silence_s)

    def describe(error: Exception) -> str | None:
        return _describe(error, url, target, absent)

    return repeat(attempt, describe, url=shown, limit_s=min(start_limit_s, limit_s), on_retry=on_retry)


def _describe(error: Exception, url: str, target: URL, absent: list[Path]) -> str | None:
    """The database's message if `error` is an outage; None if `error` shall be raised unchanged.

    Other errors of the database or of its driver raise a CvaeoptError that explains them.
    """
    shown = urls.mask(url)
    if isinstance(error, CvaeoptError):
        return None
    if isinstance(error, (ImportError, sqlalchemy.exc.NoSuchModuleError)):
        raise UserError(
            f"No driver is installed for {shown} ({first_line(error)}).", todo=_driver_advice(target)
        ) from None
    if isinstance(error, TypeError) and target.query and target.drivername != urls.PSYCOPG:
        # A driver other than psycopg raises TypeError for an option that it does not know.
        raise UserError(
            f"The driver of {shown} does not take an option of this URL ({urls.scrub(first_line(error), url)}).",
            todo="Change --storage.",
        ) from None
    if isinstance(error, sqlite3.DatabaseError):  # from `_creation_lock`, whose lock is a SQLite file
        sqlite_file.check_content(error, shown)
        sqlite_file.check_disk(error, target, absent)
        return str(error)
    if not isinstance(error, (RuntimeError, StorageInternalError, sqlalchemy.exc.SQLAlchemyError)):
        return None
    said = urls.scrub(first_line(error), url)
    sqlite_file.check_disk(error, target, absent)
    sqlite_file.check_content(error, shown)
    if isinstance(error, RuntimeError):  # from Optuna, about the version of its tables
        raise SchemaError(
            f"The Optuna tables in {shown} are of another version ({urls.scrub(str(error), url)})",
            todo="Stop the workers, then: cvaeopt admin upgrade COPY --storage URL",
        ) from None
    if not is_outage(error):
        raise refused(shown, said) from None
    return said


def _driver_advice(target: URL) -> str:
    """Advice on how to install the driver that the URL names."""
    backend, _, driver = target.drivername.partition("+")
    if backend == "postgresql" and driver == "psycopg":
        return "For PostgreSQL: pip install 'cvaeopt[postgres]'"
    return f"Install the driver that the URL names: pip install {driver}; or write {backend}://..."


def _make_tables(target: URL, shown: str, create: bool, busy_s: float, silence_s: float) -> None:
    """Create all missing tables; SchemaError if the `cvaeopt_` tables are of another version."""
    options = urls.engine_options(target, busy_s, silence_s)
    own: dict[str, Any] = {key: options[key] for key in ("connect_args", "creator") if key in options}
    engine = sqlalchemy.create_engine(target, poolclass=NullPool, **own)
    if target.drivername == urls.PSYCOPG:
        # This check runs before SQLAlchemy's first query. If text comes as bytes, that query fails without a message.
        event.listen(engine, "connect", functools.partial(_require_utf8, shown), insert=True)
    try:
        if _is_ready(engine, shown):
            return
        if not create:
            raise StudyError(
                f"The database {shown} holds no study yet.",
                todo="Start a worker, which creates its tables, or change --storage.",
            )
        with _creation_lock(engine, target):
            if _is_ready(engine, shown):
                return
            if engine.name == "sqlite":
                with engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            # Without a pool no connection stays open if Optuna fails here.
            RDBStorage(urls.template(target), engine_kwargs={**own, "poolclass": NullPool}).remove_session()
            metadata.create_all(engine)
            with engine.begin() as connection:  # written last: this row means that all tables exist
                connection.execute(schema_table.insert().values(version=SCHEMA_VERSION))
    finally:
        engine.dispose()


def _require_utf8(shown: str, connection: Any, _record: Any) -> None:
    """UserError if the database's encoding is not UTF-8.

    Other encodings cannot store every text. With SQL_ASCII the driver returns bytes, even for the server's version.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UserError(
            f"The database {shown} has the encoding {encoding}.",
            "Expected: UTF8.",
            "Make another one: createdb --encoding=UTF8 --template=template0 NAME, and name it with --storage.",
        )


def _is_ready(engine: sqlalchemy.Engine, shown: str) -> bool:
    """Whether all tables exist; SchemaError if the `cvaeopt_` tables are of another version."""
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table(schema_table.name):
            return False
        versions = connection.execute(sqlalchemy.select(schema_table.c.version)).scalars().all()
    if not versions:
        return False
    version = max(versions)
    if version != SCHEMA_VERSION:
        todo = (
            "Install the newer cvaeopt (pip install --upgrade cvaeopt), or use another --storage."
            if version > SCHEMA_VERSION
            else "Finish its studies with the cvaeopt that made them, or use another --storage."
        )
        raise SchemaError(
            f"The cvaeopt tables in {shown} are of version {version}.", f"Expected: {SCHEMA_VERSION}.", todo
        )
    return True


@contextlib.contextmanager
def _creation_lock(engine: sqlalchemy.Engine, target: URL) -> Iterator[None]:
    """Inside this block no other process creates tables. The lock is freed even if this process is killed."""
    if engine.name == "sqlite":
        # A lock on a second SQLite file works on every platform.
        guard = sqlite3.connect(f"{target.database}.lock", timeout=60, isolation_level=None)
        try:
            guard.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            guard.close()
        return
    # The lock belongs to the transaction. A lock of the session could remain on a pooler's connection. A process that
    # waits for the lock holds no connection, because the lock's owner may need that connection.
    give_up_at = time.monotonic() + 60.0
    while time.monotonic() < give_up_at:
        with engine.connect() as connection:
            if connection.execute(sqlalchemy.text("SELECT pg_try_advisory_xact_lock(7170313)")).scalar_one():
                yield
                return
        time.sleep(random.uniform(0.1, 0.3))
    raise sqlalchemy.exc.TimeoutError("another process is making the tables")

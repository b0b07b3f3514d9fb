"""Copy a database, and upgrade Optuna's tables in it to the version of the installed Optuna.

`optuna storage upgrade` is not used, because it would show the password in the list of processes. It also reads URLs
differently: in this program postgresql:// means the driver psycopg.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL

from cvaeopt import files
from cvaeopt.admin import studies
from cvaeopt.errors import SchemaError, StudyError, UserError
from cvaeopt.store import password_file, urls
from cvaeopt.store.opening import open_storage
from cvaeopt.store.outage import first_line, is_outage, unreachable
from cvaeopt.store.urls import mask


def refuse_workers(url: str) -> None:
    """UserError if workers run. Tables of another version cannot be read: their workers are not detected."""
    try:
        with open_storage(url, create=False, start_limit_s=10.0) as storage:
            with studies.snapshot(storage) as connection:
                names = studies.names(connection)
            for name in names:
                studies.refuse_live_workers(storage, name, "Nothing was upgraded.")
    except (SchemaError, StudyError):
        return


def parse(url: str) -> URL:
    """`urls.parse(url)`, with the PostgreSQL password from PGPASSWORD_FILE if the URL has none.

    UserError if the URL cannot work, or if its SQLite file does not exist.
    """
    parsed = urls.parse(url)
    if parsed.get_backend_name() == "postgresql" and parsed.password is None:
        parsed = parsed.set(password=password_file.from_file())
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise UserError(f"There is no database {Path(parsed.database or '').absolute()}.", todo="Change --storage.")
    return parsed


def copy(url: URL, target: Path) -> None:
    """Copy the whole database to the file `target`, which is written completely or not at all.

    The copy of a SQLite database is a SQLite file. The copy of a PostgreSQL database has pg_dump's custom format.
    UserError if `target` exists, or if pg_dump is missing or fails.
    """
    if target.exists():
        raise UserError(f"{target} exists.", todo="Name another file: a copy is never overwritten.")
    if url.get_backend_name() == "sqlite":
        source = sqlite3.connect(str(url.database))
        memory = sqlite3.connect(":memory:")
        try:
            source.backup(memory)  # one consistent state, even while another program writes
            files.write_bytes(target, memory.serialize())
        finally:
            source.close()
            memory.close()
        return
    if url.get_backend_name() != "postgresql":
        raise UserError(f"{mask(str(url))} is copied with its own tools.", todo="Then add --no-copy.")
    environment = {**os.environ, **({"PGPASSWORD": url.password} if url.password else {})}
    # Not `set`, which ignores a password of None: every user of the machine can read the arguments of a process.
    plain = urls.libpq_url(url).set(drivername="postgresql")._replace(password=None).render_as_string()
    with files.whole(target) as stream:
        try:
            subprocess.run(
                ["pg_dump", "--format=custom", "--no-owner", f"--dbname={plain}"],
                check=True,
                stdout=stream,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except FileNotFoundError:
            raise UserError(
                "pg_dump is not installed.", todo="Install it, or copy elsewhere and add --no-copy."
            ) from None
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            raise UserError(
                f"pg_dump failed: {said}",
                "Expected: a pg_dump as new as the server.",
                "Nothing was upgraded. Copy with the server's own pg_dump, then add --no-copy.",
            ) from None


def upgrade(url: URL) -> tuple[str, str]:
    """Upgrade Optuna's tables; returns their schema version before and after the upgrade.

    StorageUnreachable during an outage, UserError if the upgrade fails.
    """
    try:
        options = urls.engine_options(url, 10.0)
        storage = RDBStorage(
            urls.template(url), engine_kwargs=options, skip_compatibility_check=True, skip_table_creation=True
        )
        try:
            before = storage.get_current_version()
            storage.upgrade()
            return before, storage.get_current_version()
        finally:
            storage.remove_session()
            storage.engine.dispose()
    except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
        said = urls.scrub(first_line(error), url.render_as_string(hide_password=False))
        if is_outage(error):
            raise unreachable(mask(str(url)), 0.0, said) from None
        raise UserError(f"The tables in {mask(str(url))} could not be upgraded ({said}).") from None

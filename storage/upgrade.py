"""Bring the database's tables to the installed Optuna, after an upgrade of Optuna; a copy is made first.

  python storage/upgrade.py before.db                      SQLite: a copy of the file
  python storage/upgrade.py before.dump                    PostgreSQL: pg_dump's custom format, for pg_restore
  python storage/upgrade.py --no-copy                      you have a copy

Stop all workers first. The same as `optuna storage upgrade`, which does not know our URLs (postgresql:// means the
driver psycopg here) and would show a password in the list of processes.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from pathlib import Path

import care
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import URL

from cvaeopt import files
from cvaeopt.errors import SchemaError, StudyError, UserError
from cvaeopt.store import password, urls
from cvaeopt.store.outage import first_line, is_outage, unreachable
from cvaeopt.store.urls import mask


def main(arguments: list[str] | None = None) -> None:
    """Parse, copy, upgrade, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("copy", type=Path, nargs="?", help="where the copy goes")
    options.add_argument("--no-copy", action="store_true", help="make none")
    care.add_storage(options)
    given = options.parse_args(arguments)
    if (given.copy is None) != given.no_copy:
        raise UserError("Where shall the copy go?", "Expected: a file name, or --no-copy.")
    url = parse(given.storage)
    refuse_workers(given.storage)
    if given.copy is not None:
        copy(url, given.copy)
        care.say(f"{given.copy} is the database as it was")
    before, after = upgrade(url)
    with care.opened(given.storage) as storage:
        care.say(f"{storage.url}: Optuna's tables are of version {after} (before: {before})")


def refuse_workers(url: str) -> None:
    """UserError if workers run on tables that this version can read; on older ones it cannot tell."""
    try:
        with care.opened(url) as storage:
            with care.snapshot(storage) as rows:
                studies = care.names(rows)
            for name in studies:
                care.refuse_live(storage, name, "Nothing was upgraded.")
    except (SchemaError, StudyError):
        return


def parse(url: str) -> URL:
    """The URL with the driver we use; UserError if it cannot work, or its database does not exist."""
    parsed = urls.parse(url)
    if parsed.get_backend_name() == "postgresql" and parsed.password is None:
        parsed = parsed.set(password=password.from_file())
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise UserError(f"There is no database {mask(url)}.", todo="Change --storage.")
    return parsed


def copy(url: URL, target: Path) -> None:
    """Copy the whole database, whatever is in it, to `target`, whole or not at all."""
    if target.exists():
        raise UserError(f"{target} exists.", todo="Name another file: a copy is never overwritten.")
    if url.get_backend_name() == "sqlite":
        source = sqlite3.connect(str(url.database))
        memory = sqlite3.connect(":memory:")
        try:
            source.backup(memory)  # one consistent state, also while somebody writes
            files.write_bytes(target, memory.serialize())
        finally:
            source.close()
            memory.close()
        return
    if url.get_backend_name() != "postgresql":
        raise UserError(f"{mask(str(url))} is copied with its own tools.", todo="Then add --no-copy.")
    environment = {**os.environ, **({"PGPASSWORD": url.password} if url.password else {})}
    plain = urls.libpq_url(url).set(drivername="postgresql", password=None).render_as_string(hide_password=False)
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
    """Optuna's schema version before and after."""
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


if __name__ == "__main__":
    care.run(main)

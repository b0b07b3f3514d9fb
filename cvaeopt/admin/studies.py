"""Facts about the studies of a database: their names, their confirmations, and the places of their files."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from sqlalchemy import Connection, select

from cvaeopt.admin.rows import rows_of, tables_of
from cvaeopt.errors import StudyError, UserError
from cvaeopt.search.tables import NAME
from cvaeopt.store import identity
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table
from cvaeopt.store.workers import workers

_ARTIFACT = re.compile(r"^(?:dashboard:)?artifacts:(?:\d+:)?([0-9a-f-]{36})$")
"""Matches a key that names a file of the dashboard's artifact store."""


@contextlib.contextmanager
def snapshot(storage: Storage) -> Iterator[Connection]:
    """A connection that reads the state of the database at one moment, and never makes a writer wait."""
    if storage.engine.name == "sqlite":
        with storage.reading() as connection:
            yield connection
        return
    with storage.engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if storage.engine.name == "postgresql":  # copying may take longer than this time-out
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection


def names(connection: Connection) -> list[str]:
    """The names of all studies, sorted."""
    studies = tables_of(connection).tables["studies"]
    return sorted(connection.execute(select(studies.c.study_name)).scalars())


def with_confirmations(connection: Connection, wanted: list[str], url: str) -> list[str]:
    """The names in `wanted`, each followed by the names of its confirmations; if `wanted` is empty, all studies.

    StudyError if a study does not exist, or if the database has no study. The message names the database `url`.
    """
    existing = names(connection)
    for name in wanted:
        if name not in existing:
            raise StudyError(f"{url} has no study {name!r}.", f"There are: {', '.join(existing) or 'none'}.")
    if not existing:
        raise StudyError(f"{url} has no study.")
    if not wanted:
        return existing
    return list(dict.fromkeys(member for name in wanted for member in (name, *confirmations(connection, name))))


def confirmations(connection: Connection, name: str) -> list[str]:
    """The names of the confirmations of study `name` (`cvaeopt confirm`), oldest first.

    Confirmations of an earlier, deleted study of the same name are included, because no other study can use them.
    """
    rows = connection.execute(select(study_table.c.name, study_table.c.definition).order_by(study_table.c.created_at))
    existing = set(names(connection))
    return [
        other
        for other, definition in rows
        if other in existing
        and str(json.loads(definition).get("study", {}).get("confirms", "")).rpartition("@")[0] == name
    ]


def refuse_live_workers(storage: Storage, study: str, todo: str = "") -> None:
    """UserError if a worker of `study` runs: it has not stopped, and it is not dead (`workers.WorkerRow`)."""
    live = [worker.id for worker in workers(storage, study) if worker.state not in ("stopped", "dead")]
    if live:
        raise UserError(
            f"Study {study!r} has {len(live)} running worker(s): {', '.join(live)}.",
            "Expected: none.",
            f"Stop them first (cvaeopt stop --study {study}), or wait two minutes if they were killed. {todo}".strip(),
        )


def dashboard_files(connection: Connection, name: str) -> list[str]:
    """The sorted names of the study's files in the dashboard's artifact store."""
    rows = rows_of(connection, name)
    keys = [row["key"] for table in ("study_system_attributes", "trial_system_attributes") for row in rows[table]]
    return sorted({match[1] for key in keys if (match := _ARTIFACT.match(key))})


def complete_trials(connection: Connection, name: str) -> set[int]:
    """The numbers of the study's trials that are complete."""
    trials = rows_of(connection, name)["trials"]
    return {row["number"] for row in trials if getattr(row["state"], "name", row["state"]) == "COMPLETE"}


def object_stores(connection: Connection, name: str) -> list[str]:
    """The object stores (s3://BUCKET/PREFIX) with checkpoints of the study, from the trials' attributes."""
    attributes = rows_of(connection, name)["trial_user_attributes"]
    places = [row["value_json"] for row in attributes if row["key"] == "checkpoints"]
    place = re.compile(
        rf'"(s3://.+)/{re.escape(name)}(?:/[0-9a-f]{{12}})?/\d+"'
    )  # the row may come from another program, so other texts are ignored
    return sorted({match[1] for text in places if (match := place.fullmatch(text))})


def identity_of(connection: Connection, name: str) -> identity.Identity:
    """The identity of study `name`, which owns the study's files; StudyError if the identity's row is damaged."""
    attributes = rows_of(connection, name)["study_system_attributes"]
    value = next((row["value_json"] for row in attributes if row["key"] == identity.KEY), None)
    return identity.stated(name, None if value is None else json.loads(value))


def without_files(connection: Connection, name: str, entries: Iterable[str]) -> dict[int, str]:
    """Number and host of each trial of study `name` that reported an epoch and has none of the files `entries`.

    entries   files of the study in a backup, such as 'NAME/00042/config.json'

    The host is '' if no host is recorded. The id of a worker begins with its host (`workers.Place.new_id`).
    """
    held = {parts[1] for parts in (Path(entry).parts for entry in entries) if parts[0] == name and len(parts) > 2}
    rows = connection.execute(
        select(lease_table.c.number, lease_table.c.checkpoint_host, lease_table.c.owner)
        .where(lease_table.c.study == name, lease_table.c.epochs_done > 0)
        .order_by(lease_table.c.number)
    )
    return {
        number: host or (owner or "").rsplit("-", 2)[0] for number, host, owner in rows if f"{number:05d}" not in held
    }


def study_folder(artifacts: Path, owner: identity.Identity) -> Path | None:
    """The folder of the study's trials, which may not exist.

    None if the study's name is not allowed in this program, such as '../other'. Another program made such a study, and
    it has no files in `artifacts`.
    """
    return owner.find(artifacts) if NAME.fullmatch(owner.study) else None

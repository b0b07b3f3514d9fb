"""What the scripts beside this file share: a study's rows, copied from any database to any other, and its files.

Rows are copied as they are, within one transaction on each side: the source is seen at one moment although workers
write to it, and the target has the whole study or nothing of it. Only ids change (every database numbers its own),
wherever they occur. `optuna.copy_study` would copy trial by trial, and lose the dashboard's notes, whose keys hold
ids, and our own tables.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import optuna
from sqlalchemy import URL, Connection, MetaData, Table, delete, insert, select

from cvaeopt.errors import CvaeoptError, StorageUnreachable, StudyError, UserError
from cvaeopt.run.object_store import Checkpoints, open_checkpoints
from cvaeopt.search.definition import NAME
from cvaeopt.store import identity, leases
from cvaeopt.store.storage import DEFAULT_URL, Storage, lease_table, open_storage, study_table, worker_table

DASHBOARD = "_dashboard"
"""The folder of the dashboard's files under the artifact folder (`cvaeopt.run.dashboard_notes.DASHBOARD_STORE`)."""

_ID_IN_KEY = re.compile(r"^(dashboard:(?:artifacts:)?)(\d+)(:.*)$", re.DOTALL)
"""Keys of the dashboard's notes and files that hold a trial's id."""

_ARTIFACT = re.compile(r"^(?:dashboard:)?artifacts:(?:\d+:)?([0-9a-f-]{36})$")
"""Keys that name a file of the dashboard's artifact store."""


# ---- the command line of every script


def parser(description: str) -> argparse.ArgumentParser:
    """A parser that shows the script's own docstring."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_storage(options: argparse.ArgumentParser) -> None:
    """Add --storage, which `cvaeopt` has too."""
    options.add_argument(
        "--storage",
        default=os.environ.get("CVAEOPT_STORAGE") or DEFAULT_URL,
        help=f"URL of the database; default: CVAEOPT_STORAGE, else {DEFAULT_URL}",
    )


def add_artifacts(options: argparse.ArgumentParser) -> None:
    """Add --artifacts, which `cvaeopt` has too."""
    options.add_argument(
        "--artifacts",
        type=Path,
        default=Path(os.environ.get("CVAEOPT_ARTIFACTS") or "storage/artifacts"),
        help="folder of the trials' files; default: CVAEOPT_ARTIFACTS, else storage/artifacts",
    )


def add_checkpoints(options: argparse.ArgumentParser, what: str) -> None:
    """Add --checkpoints, which `cvaeopt` has too; `what` the script does with the objects."""
    options.add_argument(
        "--checkpoints",
        default=os.environ.get("CVAEOPT_CHECKPOINTS") or None,
        metavar="s3://BUCKET/PREFIX",
        help=f"object store of the workers: {what}; default: CVAEOPT_CHECKPOINTS, else none",
    )


def object_store(url: str | None) -> Checkpoints | None:
    """The object store at `url`, which answers now; UserError or StorageUnreachable if it does not."""
    if url is None:
        return None
    remote = open_checkpoints(url)
    silent = remote.check()
    if silent:
        raise StorageUnreachable(
            f"The object store {remote.url} does not answer ({silent}).",
            todo="Nothing was done: bring it back, or leave its objects out by leaving --checkpoints out.",
        )
    return remote


def run(main: Callable[[list[str]], None]) -> NoReturn:
    """Run a script's `main` and exit with the codes of `cvaeopt`."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        main(sys.argv[1:])
    except CvaeoptError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        where = error.filename2 or error.filename
        sys.stderr.write(
            f"{error.strerror or error}{f': {where}' if where else ''}. Expected: a place with room, that this user may"
            " write. Make room or name another place, then run the same command again; nothing half-written is left.\n"
        )
        sys.exit(UserError.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def say(text: str) -> None:
    """Print one line of result."""
    sys.stdout.write(text + "\n")


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def opened(url: str, *, create: bool = False) -> Storage:
    """The storage at `url`, for a `with` block; there must be one already, unless it may be created."""
    return open_storage(url, create=create)


# ---- reading


@contextlib.contextmanager
def snapshot(storage: Storage) -> Iterator[Connection]:
    """A connection that sees the database as it is at one moment, and keeps no writer waiting."""
    if storage.engine.name == "sqlite":
        with storage.reading() as connection:
            yield connection
        return
    with storage.engine.connect() as plain:
        connection = plain.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if storage.engine.name == "postgresql":  # a large study may take longer to write than workers may idle
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield connection


def names(connection: Connection) -> list[str]:
    """The names of all studies, sorted."""
    studies = _tables(connection).tables["studies"]
    return sorted(connection.execute(select(studies.c.study_name)).scalars())


def chosen(connection: Connection, wanted: list[str], url: str) -> list[str]:
    """`wanted`, each with its confirmations, or all studies when it is empty.

    StudyError for one that does not exist, or when there is none.
    """
    there = names(connection)
    for name in wanted:
        if name not in there:
            raise StudyError(f"{url} has no study {name!r}.", f"There are: {', '.join(there) or 'none'}.")
    if not there:
        raise StudyError(f"{url} has no study.")
    if not wanted:
        return there
    return list(dict.fromkeys(one for name in wanted for one in (name, *confirmations(connection, name))))


def confirmations(connection: Connection, name: str) -> list[str]:
    """The studies that train the leaders of study `name` again (`cvaeopt confirm`), oldest first.

    Also those of an earlier study of this name: without it they are of no use.
    """
    rows = connection.execute(select(study_table.c.name, study_table.c.definition).order_by(study_table.c.created_at))
    there = set(names(connection))
    return [
        other
        for other, definition in rows
        if other in there
        and str(json.loads(definition).get("study", {}).get("confirms", "")).rpartition("@")[0] == name
    ]


def refuse_live(storage: Storage, study: str, todo: str) -> None:
    """UserError if a worker of `study` gave a sign of life within the time of its lease."""
    live = [worker.id for worker in leases.workers(storage, study) if worker.state not in ("stopped", "dead")]
    if live:
        raise UserError(
            f"Study {study!r} has {len(live)} running worker(s): {', '.join(live)}.",
            "Expected: none.",
            f"Stop them first (cvaeopt stop --study {study}), or wait two minutes if they were killed. {todo}".strip(),
        )


def refuse_taken(connection: Connection, name: str, url: str) -> None:
    """StudyError if the database, named `url` in the message, has a study of this name."""
    if name in names(connection):
        raise StudyError(
            f"{url} has a study {name!r} already.",
            "Expected: none of this name; nothing was copied.",
            "Name another database. What is there is never replaced: if it shall go, make a backup of it first, then "
            f"python storage/delete_study.py {name} --storage URL, whose --artifacts are the files that go with it.",
        )


def content(connection: Connection, name: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a study by table, without the ids: equal for equal studies in different databases."""
    tables = _tables(connection)
    return _plain(tables, _rows(connection, tables, name))


def dashboard_files(connection: Connection, name: str) -> list[str]:
    """The names of the study's files in the dashboard's artifact store."""
    rows = _rows(connection, _tables(connection), name)
    keys = [row["key"] for table in ("study_system_attributes", "trial_system_attributes") for row in rows[table]]
    return sorted({match[1] for key in keys if (match := _ARTIFACT.match(key))})


def complete_trials(connection: Connection, name: str) -> set[int]:
    """The numbers of the trials that are complete."""
    rows = _rows(connection, _tables(connection), name)
    return {row["number"] for row in rows["trials"] if getattr(row["state"], "name", row["state"]) == "COMPLETE"}


def object_stores(connection: Connection, name: str) -> list[str]:
    """The object stores that hold checkpoints of the study, as its trials say (s3://BUCKET/PREFIX)."""
    rows = _rows(connection, _tables(connection), name)
    said = [row["value_json"] for row in rows["trial_user_attributes"] if row["key"] == "checkpoints"]
    place = re.compile(rf'"(s3://.+)/{re.escape(name)}(?:/[0-9a-f]{{12}})?/\d+"')  # JSON, of whoever wrote the row
    return sorted({match[1] for url in said if (match := place.fullmatch(url))})


def identity_of(connection: Connection, name: str) -> identity.Identity:
    """Whose files are those of the study; StudyError if what the database says of it is damaged."""
    rows = _rows(connection, _tables(connection), name)["study_system_attributes"]
    value = next((row["value_json"] for row in rows if row["key"] == identity.KEY), None)
    return identity.stated(name, None if value is None else json.loads(value))


def study_folder(artifacts: Path, owner: identity.Identity) -> Path | None:
    """The folder of the study's trials, which may not be there.

    None for a study of another program whose name none of ours can have, such as '../other': it has no files here.
    """
    return owner.find(artifacts) if NAME.fullmatch(owner.study) else None


# ---- copying


def copy(source: Connection, target: Connection, name: str, url: str) -> dict[str, int]:
    """Copy study `name` and compare it afterwards; how many rows each of Optuna's and our tables got.

    StudyError if `target` (named `url` in messages) has a study of this name. Undone when the caller's transaction is.
    """
    rows = _rows(source, _tables(source), name)
    tables = _tables(target)
    refuse_taken(target, name, url)
    # What is left under this name belonged to a study that was deleted in the dashboard.
    target.execute(delete(study_table).where(study_table.c.name == name))
    target.execute(delete(lease_table).where(lease_table.c.study == name))

    study_id = _inserted(target, tables.tables["studies"], rows["studies"][0])
    # By number, so that ids rise with numbers here too.
    trials = {
        row["trial_id"]: _inserted(target, tables.tables["trials"], {**row, "study_id": study_id})
        for row in sorted(rows["trials"], key=lambda row: row["number"])
    }
    for table, entries in rows.items():
        if table in ("studies", "trials") or not entries:
            continue
        target.execute(
            insert(tables.tables[table]),
            [_without_own_id(tables.tables[table], _renumbered(row, study_id, trials)) for row in entries],
        )
    workers = source.execute(select(worker_table).where(worker_table.c.study == name)).mappings().all()
    known = set(target.execute(select(worker_table.c.id)).scalars())
    for worker in workers:
        if worker["id"] not in known:
            target.execute(insert(worker_table).values(**worker))
    before, after = _plain(tables, rows), content(target, name)
    if before != after:
        different = ", ".join(table for table in before if before[table] != after.get(table))
        raise CvaeoptError(f"The copy of study {name!r} differs in {different}.", todo="Nothing was kept of it.")
    return {table: len(entries) for table, entries in rows.items()}


# ---- deleting

_ROUNDS = 3  # how often rows are deleted that somebody wrote meanwhile


def delete_rows(storage: Storage, name: str) -> None:
    """Delete all rows of study `name`, of Optuna and ours; UserError if somebody still writes some.

    In one transaction, which `optuna.delete_study` is not. A program that writes to a trial which it has read before
    leaves rows of a study that is gone where the database does not check references (SQLite): these are looked for
    afterwards. Nothing is deleted of a study that got the same numbers meanwhile.
    """
    trials = storage.retry(lambda: _delete_all(storage, name))
    for _ in range(_ROUNDS):
        if not storage.retry(lambda: _delete_orphans(storage, *trials)):
            return
    raise UserError(
        f"Some program still writes rows of study {name!r}, which is deleted, into {storage.url}.",
        "Expected: nobody uses a study while it is deleted.",
        "Stop that program. The files of the trials are still there: remove them by hand.",
    )


def _delete_all(storage: Storage, name: str) -> tuple[int, list[int]]:
    """The id of the study and those of its trials, whose rows are gone."""
    with storage.transaction() as connection:
        tables = _tables(connection)
        studies, trials = tables.tables["studies"], tables.tables["trials"]
        of_name = select(studies.c.study_id).where(studies.c.study_name == name).with_for_update()
        study_id = connection.execute(of_name).scalar_one_or_none()
        study_id = -1 if study_id is None else int(study_id)  # None: deleted before, its acknowledgement was lost
        of_study = select(trials.c.trial_id).where(trials.c.study_id == study_id).with_for_update()
        trial_ids = list(connection.execute(of_study).scalars())
        for table in reversed(tables.sorted_tables):
            if table.name in (study_table.name, lease_table.name):
                continue
            if "study_id" in table.c:
                connection.execute(delete(table).where(table.c.study_id == study_id))
            elif "trial_id" in table.c:
                for some in _portions(trial_ids):
                    connection.execute(delete(table).where(table.c.trial_id.in_(some)))
        connection.execute(delete(lease_table).where(lease_table.c.study == name))
        connection.execute(delete(worker_table).where(worker_table.c.study == name))
        connection.execute(delete(study_table).where(study_table.c.name == name))
        return study_id, trial_ids


def _delete_orphans(storage: Storage, study_id: int, trial_ids: list[int]) -> int:
    """How many rows of a study that is gone were there, and are gone now too."""
    with storage.transaction() as connection:
        tables = _tables(connection)
        studies, trials = tables.tables["studies"], tables.tables["trials"]
        gone = 0
        nobodys = trials.c.study_id.not_in(select(studies.c.study_id))
        late = list(
            connection.execute(select(trials.c.trial_id).where(trials.c.study_id == study_id, nobodys)).scalars()
        )
        for table in reversed(tables.sorted_tables):
            if table.name in (study_table.name, lease_table.name, studies.name):
                continue
            if table.name == trials.name or "trial_id" not in table.c:
                if "study_id" in table.c:
                    orphaned = table.c.study_id.not_in(select(studies.c.study_id))
                    gone += connection.execute(delete(table).where(table.c.study_id == study_id, orphaned)).rowcount
                continue
            for some in _portions([*trial_ids, *late]):
                kept = select(trials.c.trial_id).where(trials.c.trial_id.not_in(late))
                mine = delete(table).where(table.c.trial_id.in_(some), table.c.trial_id.not_in(kept))
                gone += connection.execute(mine).rowcount
        return gone


def _portions(ids: list[int]) -> Iterator[list[int]]:
    """The ids in lists that fit into one statement."""
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


_IDS = ("study_id", "trial_id")


def _tables(connection: Connection) -> MetaData:
    """The tables that hold studies: Optuna's as this database has them, and ours (not that of workers)."""
    tables = MetaData()
    tables.reflect(connection, only=lambda table, _: not table.startswith("cvaeopt_"))
    for own in (study_table, lease_table):
        own.to_metadata(tables)
    return tables


def _rows(connection: Connection, tables: MetaData, name: str) -> dict[str, list[dict[str, Any]]]:
    """The study's rows by table, whole."""
    studies, trials = tables.tables["studies"], tables.tables["trials"]
    study_id = connection.execute(select(studies.c.study_id).where(studies.c.study_name == name)).scalar_one()
    trial_ids = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    found = {}
    for table in tables.sorted_tables:
        if table.name == study_table.name:
            condition = table.c.name == name
        elif table.name == lease_table.name:
            condition = table.c.study == name
        elif "study_id" in table.c:
            condition = table.c.study_id == study_id
        elif "trial_id" in table.c:
            condition = table.c.trial_id.in_(trial_ids)
        else:
            continue  # versions
        found[table.name] = [dict(row) for row in connection.execute(select(table).where(condition)).mappings()]
    return found


def _plain(tables: MetaData, rows: dict[str, list[dict[str, Any]]]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows without the numbering of their database: trials by their numbers, everything sorted."""
    numbers = {trial["trial_id"]: trial["number"] for trial in rows["trials"]}
    return {
        table: sorted(
            (
                tuple(sorted(_without_own_id(tables.tables[table], _renumbered(row, 0, numbers)).items()))
                for row in entries
            ),
            key=repr,
        )
        for table, entries in rows.items()
    }


def _without_own_id(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """The row without the table's own numbering, which each database does for itself."""
    keys = [column.name for column in table.primary_key.columns]
    own = keys[0] if len(keys) == 1 and keys[0].endswith("_id") and keys[0] not in _IDS else None
    return {key: value for key, value in row.items() if key != own}


def _renumbered(row: dict[str, Any], study_id: int, trials: dict[int, int]) -> dict[str, Any]:
    """The row with other ids."""
    changed = dict(row)
    if "study_id" in row:
        changed["study_id"] = study_id
    if "trial_id" in row:
        changed["trial_id"] = trials[row["trial_id"]]
    match = _ID_IN_KEY.match(row["key"]) if isinstance(row.get("key"), str) else None
    if match and int(match[2]) in trials:
        changed["key"] = f"{match[1]}{trials[int(match[2])]}{match[3]}"
    return changed


def _inserted(connection: Connection, table: Table, row: dict[str, Any]) -> int:
    """The id that the database gave to the row of a study or a trial."""
    (key,) = (column.name for column in table.primary_key.columns)
    result = connection.execute(insert(table).values(**{name: value for name, value in row.items() if name != key}))
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])

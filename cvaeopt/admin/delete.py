"""Delete a study and its confirmations: their rows, their files, and their objects in an object store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, delete, select

from cvaeopt.admin import studies
from cvaeopt.admin.rows import tables_of
from cvaeopt.errors import UserError
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table

_ROUNDS = 3
"""How many times `delete_rows` looks for rows that another program wrote meanwhile."""


@dataclass(frozen=True)
class Plan:
    """The effect of a deletion.

    names      the study and its confirmations
    places     the database, the folders and the prefixes in an object store from which these studies are deleted
    remaining  prefixes in other object stores with checkpoints of these studies, which are not deleted
    """

    names: list[str]
    places: list[str]
    remaining: list[str]


def plan(storage: Storage, study: str, artifacts: Path, remote: Checkpoints | None) -> Plan:
    """The plan for the deletion of `study`; UserError if a worker of the study or of a confirmation runs."""
    with studies.snapshot(storage) as connection:
        names = studies.with_confirmations(connection, [study], storage.url)
        stores = {name: studies.object_stores(connection, name) for name in names}
        owners = [studies.identity_of(connection, name) for name in names]
    for name in names:
        studies.refuse_live_workers(storage, name)
    ours = None if remote is None else remote.url
    folders = [studies.study_folder(artifacts, owner) for owner in owners]
    places = [storage.url, *(str(folder) for folder in folders if folder is not None)]
    places += [f"{ours}/{owner.objects}" for owner in owners if ours is not None]
    remaining = [f"{store}/{owner.objects}" for owner in owners for store in stores[owner.study] if store != ours]
    return Plan(names, places, remaining)


def remove(storage: Storage, name: str, artifacts: Path, remote: Checkpoints | None = None) -> tuple[int, int]:
    """Delete one study; returns the numbers of deleted files and of objects deleted from `remote`.

    The objects are deleted first: if the object store fails, the command can be repeated. The rows are deleted next,
    and the files last, because files without a study do no harm, but a study without its files does. UserError if
    another program still writes rows of the study; the files are then not deleted.
    """
    with studies.snapshot(storage) as connection:
        owner = studies.identity_of(connection, name)
        dashboard_files = studies.dashboard_files(connection, name)
    folder = studies.study_folder(artifacts, owner)
    objects = 0 if remote is None else remote.delete(owner.objects)
    delete_rows(storage, name)
    files = [path for path in folder.rglob("*") if path.is_file()] if folder is not None else []
    files += [path for file in dashboard_files if (path := artifacts / DASHBOARD_STORE / file).is_file()]
    for path in files:
        path.unlink(missing_ok=True)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return len(files), objects


def delete_rows(storage: Storage, name: str) -> None:
    """Delete all rows of study `name` from Optuna's tables and the `cvaeopt_` tables.

    The rows are deleted in one transaction; `optuna.delete_study` does not do this. SQLite does not check references.
    So if a program reads a trial before the deletion and writes to the trial afterwards, it leaves rows without a
    study. These rows are deleted, too. A new study may get the same ids meanwhile; its rows are kept. UserError if
    another program still writes rows of the deleted study.
    """
    study_id, trial_ids = storage.write(lambda connection: _delete_all(connection, name))
    for _ in range(_ROUNDS):
        if not storage.write(lambda connection: _delete_orphans(connection, study_id, trial_ids)):
            return
    raise UserError(
        f"Some program still writes rows of study {name!r}, which is deleted, into {storage.url}.",
        "Expected: nobody uses a study while it is deleted.",
        "Stop that program. The files of the trials are still there: remove them by hand.",
    )


def _delete_all(connection: Connection, name: str) -> tuple[int, list[int]]:
    """Delete the rows of the study; returns the study's id and the ids of its trials."""
    tables = tables_of(connection)
    study_rows, trials = tables.tables["studies"], tables.tables["trials"]
    of_name = select(study_rows.c.study_id).where(study_rows.c.study_name == name).with_for_update()
    study_id = connection.execute(of_name).scalar_one_or_none()
    # None: an earlier attempt has deleted the rows, but its answer was lost.
    study_id = -1 if study_id is None else int(study_id)
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


def _delete_orphans(connection: Connection, study_id: int, trial_ids: list[int]) -> int:
    """Delete rows of a study that no longer exists; returns the number of deleted rows."""
    tables = tables_of(connection)
    study_rows, trials = tables.tables["studies"], tables.tables["trials"]
    deleted = 0
    orphan = trials.c.study_id.not_in(select(study_rows.c.study_id))
    late = list(connection.execute(select(trials.c.trial_id).where(trials.c.study_id == study_id, orphan)).scalars())
    for table in reversed(tables.sorted_tables):
        if table.name in (study_table.name, lease_table.name, study_rows.name):
            continue
        if table.name == trials.name or "trial_id" not in table.c:
            if "study_id" in table.c:
                no_study = table.c.study_id.not_in(select(study_rows.c.study_id))
                deleted += connection.execute(delete(table).where(table.c.study_id == study_id, no_study)).rowcount
            continue
        for some in _portions([*trial_ids, *late]):
            kept = select(trials.c.trial_id).where(trials.c.trial_id.not_in(late))
            statement = delete(table).where(table.c.trial_id.in_(some), table.c.trial_id.not_in(kept))
            deleted += connection.execute(statement).rowcount
    return deleted


def _portions(ids: list[int]) -> Iterator[list[int]]:
    """Split the ids into lists that are short enough for one SQL statement."""
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]

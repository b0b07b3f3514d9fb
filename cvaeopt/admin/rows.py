"""Read the rows of one study from a database, and copy them into another database.

One transaction reads the source, so the copy has the state of one moment, even if workers write meanwhile. One
transaction writes the target, so the target receives the whole study or nothing. The rows are not changed, except for
the ids, because every database assigns its own ids. `optuna.copy_study` is not used: it copies each trial separately,
and it loses the `cvaeopt_` tables and the dashboard's notes, whose keys contain ids.
"""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, MetaData, Table, delete, insert, select

from cvaeopt.errors import CvaeoptError, StudyError
from cvaeopt.store.tables import lease_table, study_table, worker_table

_ID_IN_KEY = re.compile(r"^(dashboard:(?:artifacts:)?)(\d+)(:.*)$", re.DOTALL)
"""Matches a key of a note or a file of the dashboard if the key contains a trial's id."""

Rows = dict[str, list[dict[str, Any]]]
"""The rows of each table, by the table's name."""


def tables_of(connection: Connection) -> MetaData:
    """The tables that hold studies: Optuna's tables as they are in this database, cvaeopt_study and cvaeopt_lease."""
    tables = MetaData()
    tables.reflect(connection, only=lambda table, _: not table.startswith("cvaeopt_"))
    for own in (study_table, lease_table):
        own.to_metadata(tables)
    return tables


def rows_of(connection: Connection, name: str, tables: MetaData | None = None) -> Rows:
    """All rows of study `name`, by table."""
    tables = tables or tables_of(connection)
    studies, trials = tables.tables["studies"], tables.tables["trials"]
    study_id = connection.execute(select(studies.c.study_id).where(studies.c.study_name == name)).scalar_one()
    trial_ids = select(trials.c.trial_id).where(trials.c.study_id == study_id)
    rows: Rows = {}
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
            continue  # a table without studies, such as Optuna's schema version
        rows[table.name] = [dict(row) for row in connection.execute(select(table).where(condition)).mappings()]
    return rows


def copy(source: Connection, target: Connection, name: str, url: str) -> dict[str, int]:
    """Copy study `name` and compare the copy with the original; returns the number of rows by table.

    url   the name of `target` in messages

    StudyError if `target` has a study of this name, CvaeoptError if the copy differs. After an error the caller's
    transaction must be rolled back, which removes the copy.
    """
    source_tables, tables = tables_of(source), tables_of(target)
    rows = rows_of(source, name, source_tables)
    refuse_taken(target, name, url)
    # Rows with this name are left from a study that was deleted in the dashboard.
    target.execute(delete(study_table).where(study_table.c.name == name))
    target.execute(delete(lease_table).where(lease_table.c.study == name))

    study_id = _inserted(target, tables.tables["studies"], rows["studies"][0])
    # Trials are inserted in the order of their numbers, so that their new ids have the same order.
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
    _copy_workers(source, target, name)
    before, after = _comparable(source_tables, rows), content(target, name)
    if before != after:
        different = ", ".join(table for table in before if before[table] != after.get(table))
        raise CvaeoptError(f"The copy of study {name!r} differs in {different}.", todo="Nothing was kept of it.")
    return {table: len(entries) for table, entries in rows.items()}


def refuse_taken(connection: Connection, name: str, url: str) -> None:
    """StudyError if the database already has a study of this name. The message names the database `url`."""
    studies = tables_of(connection).tables["studies"]
    if connection.execute(select(studies.c.study_id).where(studies.c.study_name == name)).first() is not None:
        raise StudyError(
            f"{url} has a study {name!r} already.",
            "Expected: none of this name; nothing was copied.",
            "Name another database. An existing study is never replaced: to remove it, make a backup of it first, then "
            f"cvaeopt admin delete {name} --storage URL, whose --artifacts are the files that go with it.",
        )


def content(connection: Connection, name: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of a study by table, without ids. Equal studies in different databases have equal content."""
    tables = tables_of(connection)
    return _comparable(tables, rows_of(connection, name, tables))


def _comparable(tables: MetaData, rows: Rows) -> dict[str, list[tuple[Any, ...]]]:
    """The sorted rows of each table, without the ids of their database. Each trial's number replaces its id."""
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


def _copy_workers(source: Connection, target: Connection, name: str) -> None:
    workers = source.execute(select(worker_table).where(worker_table.c.study == name)).mappings().all()
    known = set(target.execute(select(worker_table.c.id)).scalars())
    for worker in workers:
        if worker["id"] not in known:
            target.execute(insert(worker_table).values(**worker))


def _without_own_id(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    """The row without the table's own primary key, which each database assigns itself."""
    keys = [column.name for column in table.primary_key.columns]
    own = keys[0] if len(keys) == 1 and keys[0].endswith("_id") and keys[0] not in ("study_id", "trial_id") else None
    return {key: value for key, value in row.items() if key != own}


def _renumbered(row: dict[str, Any], study_id: int, trials: dict[int, int]) -> dict[str, Any]:
    """The row with new ids: `study_id` and, for each old trial id, the new trial id in `trials`."""
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
    """Insert the row of a study or a trial; returns the id that the database assigned."""
    (key,) = (column.name for column in table.primary_key.columns)
    result = connection.execute(insert(table).values(**{name: value for name, value in row.items() if name != key}))
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])

"""Write studies, with the files of their trials, into one tar file. Workers may run during the backup.

The tar file holds manifest.json, cvaeopt.db, artifacts/ and checkpoints/. cvaeopt.db is always a SQLite database, even
if the studies were in PostgreSQL. `cvaeopt.admin.restore` puts the studies of a backup into any database.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import URL, create_engine

from cvaeopt import __version__, files
from cvaeopt.admin import studies
from cvaeopt.admin.rows import copy
from cvaeopt.errors import UserError
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.identity import Identity
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage

FORMAT = 1
"""The version of the layout of a backup."""


@dataclass(frozen=True)
class Backup:
    """The content of a backup.

    counts         numbers of trials, files and objects, by study
    stores         the object stores with checkpoints of these studies, from the trials' attributes
    fileless       the studies that have trials but no files in the backup
    without_files  number and host of the trials without files, by study (`studies.without_files`)
    """

    counts: dict[str, dict[str, int]]
    stores: set[str]
    fileless: list[str]
    without_files: dict[str, dict[int, str]]


def backup(
    storage: Storage,
    artifacts: Path,
    target: Path,
    wanted: list[str],
    *,
    checkpoints: bool = True,
    remote: Checkpoints | None = None,
) -> Backup:
    """Write the studies `wanted` and their confirmations into the file `target`.

    wanted        names of studies; if empty, all studies
    checkpoints   whether to include checkpoints from the folder `artifacts`
    remote        the object store whose checkpoints are included; None for no objects

    The file is written completely or not at all. UserError if `target` exists, or if its folder does not exist.
    """
    _refuse_target(target)
    with tempfile.TemporaryDirectory(prefix="cvaeopt-backup-") as scratch:
        database = Path(scratch) / "cvaeopt.db"
        counts: dict[str, dict[str, int]] = {}
        dashboard_files: dict[str, list[str]] = {}
        owners: dict[str, Identity] = {}
        stores: set[str] = set()
        # Rows are read before files, so files may be newer than rows. Then a resumed trial only reports its last
        # epochs again.
        with studies.snapshot(storage) as source, open_storage(sqlite_url(database)) as target_storage:
            for name in studies.with_confirmations(source, wanted, storage.url):
                with target_storage.transaction() as connection:
                    rows = copy(source, connection, name, "the backup")
                counts[name] = {"trials": rows["trials"], "files": 0, "objects": 0}
                dashboard_files[name] = studies.dashboard_files(source, name)
                owners[name] = studies.identity_of(source, name)
                stores |= set(studies.object_stores(source, name))
        _fold_log(database)
        content = database.read_bytes()
        entries: dict[str, list[str]] = {}
        with files.whole(target) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            _add(tar, "cvaeopt.db", content)
            for name, owner in owners.items():
                added = _add_files(tar, artifacts, owner, dashboard_files[name], checkpoints)
                objects = [] if remote is None else _add_objects(tar, remote, owner)
                counts[name] |= {"files": len(added), "objects": len(objects)}
                entries[name] = [*added, *objects]
            manifest = _manifest(storage, content, checkpoints, remote, counts)
            _add(tar, "manifest.json", json.dumps(manifest, indent=2).encode())  # last: it marks a complete backup
        missing = without_files(database, entries)
    fileless = [name for name, facts in counts.items() if facts["trials"] and not facts["files"]]
    return Backup(counts, stores, fileless, missing)


def without_files(database: Path, entries: dict[str, list[str]]) -> dict[str, dict[int, str]]:
    """`studies.without_files` for each study of a backup's `database`; `entries` has the names of files by study."""
    engine = create_engine(sqlite_url(database))
    try:
        with engine.connect() as connection:
            return {name: studies.without_files(connection, name, held) for name, held in entries.items()}
    finally:
        engine.dispose()


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file. Its path may contain any characters."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def _refuse_target(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target} exists.", todo="Name another file: a backup is never overwritten.")
    # A missing folder is not made, because its name may be mistyped, or its disk may not be mounted.
    if not target.parent.is_dir():
        raise UserError(
            f"There is no folder {target.parent}.",
            "Expected: the backup's folder exists, and its disk is mounted.",
            f"Make it (mkdir -p {shlex.quote(str(target.parent))}), or name another file.",
        )


def _manifest(
    storage: Storage, database: bytes, checkpoints: bool, remote: Checkpoints | None, counts: dict[str, dict[str, int]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cvaeopt": __version__,
        "optuna": optuna.__version__,
        "storage": storage.url,
        "database_sha256": hashlib.sha256(database).hexdigest(),
        "checkpoints": checkpoints,
        "object_store": None if remote is None else remote.url,
        "studies": counts,
    }


def _add_files(
    tar: tarfile.TarFile, artifacts: Path, owner: Identity, dashboard_files: list[str], checkpoints: bool
) -> list[str]:
    """Add the files of a study; returns their names."""
    added = []
    for entry, path in _files(artifacts, owner, dashboard_files):
        if not checkpoints and path.suffix == ".pt":
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # a worker has replaced or removed the file meanwhile
            continue
        _add(tar, f"artifacts/{entry}", data)
        added.append(entry)
    return added


def _files(artifacts: Path, owner: Identity, dashboard_files: list[str]) -> Iterator[tuple[str, Path]]:
    """Pairs (name in the backup, path) for the study's files and for the files that the dashboard shows with it."""
    folder = studies.study_folder(artifacts, owner)
    if folder is not None:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".part":
                yield f"{owner.study}/{path.relative_to(folder).as_posix()}", path
    for file in dashboard_files:
        if (artifacts / DASHBOARD_STORE / file).is_file():
            yield f"{DASHBOARD_STORE}/{file}", artifacts / DASHBOARD_STORE / file


def _add_objects(tar: tarfile.TarFile, remote: Checkpoints, owner: Identity) -> list[str]:
    """Add the study's checkpoints from the object store; returns their names."""
    added = []
    for file in remote.of_study(owner.objects):
        data = remote.read(owner.objects, file)
        if data is not None:
            _add(tar, f"checkpoints/{owner.study}/{file}", data)
            added.append(f"{owner.study}/{file}")
    return added


def _fold_log(database: Path) -> None:
    """Move the write-ahead log into the database file. The database file is then complete without other files."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        connection.close()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
    tar.addfile(entry, io.BytesIO(data))

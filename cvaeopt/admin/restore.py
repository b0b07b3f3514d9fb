"""Restore the studies of a backup, with their files, into any database."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from cvaeopt.admin import studies
from cvaeopt.admin.backup import FORMAT, without_files
from cvaeopt.admin.rows import copy, refuse_taken
from cvaeopt.errors import UserError
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.identity import Identity
from cvaeopt.store.storage import Storage

_EXPECTED = "Expected: a file that `cvaeopt admin backup` wrote."


def unpack(file: Path, folder: Path) -> dict[str, Any]:
    """Unpack a backup into `folder`; returns its manifest. UserError if `file` is not a complete backup."""
    if not file.exists():
        raise UserError(f"{file} does not exist.", _EXPECTED, "Give the path of a backup.")
    try:
        with tarfile.open(file) as tar:
            tar.extractall(folder, filter="data")
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "cvaeopt.db").read_bytes()).hexdigest()
    except (FileNotFoundError, IsADirectoryError, tarfile.TarError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a backup ({error}).", _EXPECTED) from None
    if manifest.get("format") != FORMAT or manifest.get("database_sha256") != digest:
        raise UserError(f"{file} is damaged, or from a newer cvaeopt.", _EXPECTED)
    return manifest


def contents(manifest: dict[str, Any], unpacked: Path) -> dict[str, Any]:
    """`manifest` with the key 'trials_without_files' for each study: a list of {'trial': number, 'host': name}.

    unpacked   the folder into which `unpack` has put the backup
    """
    entries = {
        name: [
            path.relative_to(folder).as_posix()
            for folder in (unpacked / "artifacts", unpacked / "checkpoints")
            for path in (folder / name).rglob("*")
        ]
        for name in manifest["studies"]
    }
    missing = without_files(unpacked / "cvaeopt.db", entries)
    described = {
        name: {**facts, "trials_without_files": [{"trial": key, "host": host} for key, host in missing[name].items()]}
        for name, facts in manifest["studies"].items()
    }
    return {**manifest, "studies": described}


def restore(
    source: Storage,
    target: Storage,
    unpacked: Path,
    artifacts: Path,
    wanted: list[str],
    keep_files: bool = False,
    remote: Checkpoints | None = None,
) -> list[str]:
    """Restore the studies `wanted` and their confirmations; returns the names of the restored studies.

    source      the database of the backup, which `unpack` put into the folder `unpacked`
    wanted      names of studies; if empty, all studies
    keep_files  True: existing files of the studies are kept, and missing files are added. False: UserError if the
                folder or objects of a study exist already.
    remote      the object store for checkpoints that the backup took from an object store; None: they are put into the
                folder `artifacts`

    Each study is restored with all its rows, or without any row.
    """
    with studies.snapshot(source) as rows:
        names = studies.with_confirmations(rows, wanted, "The backup")
        owners = {name: studies.identity_of(rows, name) for name in names}
        for name, owner in owners.items():
            folder = studies.study_folder(artifacts, owner)
            if folder is not None and folder.exists() and not keep_files:
                raise UserError(
                    f"There are files of a study {name!r} in {folder}.",
                    todo="Move them away, or add --keep-files if they belong to the study of the backup.",
                )
        with studies.snapshot(target) as existing:
            for name in names:
                refuse_taken(existing, name, target.url)
        for owner in owners.values():
            objects = sorted((unpacked / "checkpoints" / owner.study).glob("*/*.pt"))
            if remote is not None:
                _upload(objects, owner, remote, keep_files)
                objects = []

            def put(connection: Connection, owner: Identity = owner, objects: list[Path] = objects) -> None:
                copy(rows, connection, owner.study, target.url)
                _place_files(rows, owner, unpacked, artifacts, objects)

            target.write(put)
    return names


def _place_files(rows: Connection, owner: Identity, unpacked: Path, artifacts: Path, objects: list[Path]) -> None:
    """Move a study's files and the checkpoints `objects` from the unpacked backup into the folder `artifacts`."""
    folder = studies.study_folder(artifacts, owner)
    if folder is None:
        return
    _place(unpacked / "artifacts" / owner.study, folder)
    if objects:
        folder = owner.claim(artifacts)
    complete = studies.complete_trials(rows, owner.study)
    for path in objects:  # use the file names that workers use in the folder
        number = path.parent.name
        _place(path, folder / number / ("last.pt" if int(number) in complete else path.name))
    for file in studies.dashboard_files(rows, owner.study):
        _place(unpacked / "artifacts" / DASHBOARD_STORE / file, artifacts / DASHBOARD_STORE / file)


def _upload(objects: list[Path], owner: Identity, remote: Checkpoints, keep: bool) -> None:
    """Put a study's checkpoints into the object store.

    keep   True: existing checkpoints are kept. False: UserError if the study has checkpoints there.

    Checkpoints are written before the study's rows, because objects without a study do no harm.
    """
    existing = remote.of_study(owner.objects)
    if existing and not keep:
        raise UserError(
            f"There are {len(existing)} checkpoints of a study {owner.study!r} in {remote.url}.",
            todo="Name another prefix, or add --keep-files if they belong to the study of the backup.",
        )
    for path in objects:
        file = f"{path.parent.name}/{path.name}"
        if file not in existing:
            remote.write(owner.objects, file, path.read_bytes())


def _place(source: Path, target: Path) -> None:
    """Move a file or folder to `target`. A file that already exists there is kept unchanged."""
    if source.is_dir() and target.is_dir():
        for entry in list(source.iterdir()):
            _place(entry, target / entry.name)
    elif source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)

"""Put studies of a backup (storage/backup.py) back, with their files, into any database.

  python storage/restore.py backup.tar                     every study of the backup
  python storage/restore.py backup.tar --study main        one of them, with its confirmations
  python storage/restore.py backup.tar --list              say what is in it, and do nothing
  python storage/restore.py backup.tar --keep-files        files that are there already stay, missing ones are added
  python storage/restore.py backup.tar --checkpoints s3://bucket/prefix
                                                           what was in an object store goes there again; without
                                                           this it goes into the artifact folder

A study that the database has already is refused, and so is one whose folder is there, unless --keep-files says that
it belongs to the study (after the loss of the database alone). Workers then continue the study.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import care

from cvaeopt.errors import UserError
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.identity import Identity
from cvaeopt.store.storage import Storage


def main(arguments: list[str] | None = None) -> None:
    """Parse, restore, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("file", type=Path, help="a backup")
    options.add_argument("--study", action="append", default=[], help="only this study; may be repeated")
    options.add_argument("--keep-files", action="store_true", help="keep the files that are there")
    options.add_argument("--list", action="store_true", help="say what is in the backup")
    care.add_storage(options)
    care.add_artifacts(options)
    care.add_checkpoints(options, "the objects of the backup go there")
    given = options.parse_args(arguments)
    given.artifacts.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that whole folders can be renamed into place.
    with tempfile.TemporaryDirectory(prefix=".restore-", suffix=".part", dir=given.artifacts) as scratch:
        manifest = unpack(given.file, Path(scratch))
        if given.list:
            care.say(json.dumps(manifest, indent=2))
            return
        with (
            care.opened(care.sqlite_url(Path(scratch) / "cvaeopt.db")) as source,
            care.opened(given.storage, create=True) as target,
        ):
            remote = care.object_store(given.checkpoints)
            done = restore(source, target, Path(scratch), given.artifacts, given.study, given.keep_files, remote)
            care.say(
                f"{', '.join(done)} restored into {target.url} and {given.artifacts}"
                + ("" if remote is None else f" and {remote.url}")
            )


def unpack(file: Path, folder: Path) -> dict[str, Any]:
    """The backup's manifest; its contents are in `folder`. UserError if it is none, or not whole."""
    try:
        with tarfile.open(file) as tar:
            tar.extractall(folder, filter="data")
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        digest = hashlib.sha256((folder / "cvaeopt.db").read_bytes()).hexdigest()
    except (FileNotFoundError, IsADirectoryError, tarfile.TarError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a backup ({error}).", "Expected what backup.py wrote.") from None
    if manifest.get("format") != 1 or manifest.get("database_sha256") != digest:
        raise UserError(f"{file} is damaged, or from a newer cvaeopt.", "Expected what backup.py wrote.")
    return manifest


def restore(
    source: Storage,
    target: Storage,
    unpacked: Path,
    artifacts: Path,
    wanted: list[str],
    keep_files: bool = False,
    remote: Checkpoints | None = None,
) -> list[str]:
    """The studies that were restored, each with its files, whole or not at all."""
    with care.snapshot(source) as rows:
        studies = care.chosen(rows, wanted, "The backup")
        owners = {name: care.identity_of(rows, name) for name in studies}
        for name, owner in owners.items():
            folder = care.study_folder(artifacts, owner)
            if folder is not None and folder.exists() and not keep_files:
                raise UserError(
                    f"There are files of a study {name!r} in {folder}.",
                    todo="Move them away, or add --keep-files if they belong to the study of the backup.",
                )
        with care.snapshot(target) as there:
            for name in studies:
                care.refuse_taken(there, name, target.url)
        for name in studies:
            objects = sorted((unpacked / "checkpoints" / name).glob("*/*.pt"))
            if remote is not None:
                _upload(objects, owners[name], remote, keep_files)
                objects = []

            def put(name: str = name, objects: list[Path] = objects) -> None:
                folder = care.study_folder(artifacts, owners[name])
                with target.transaction() as connection:
                    care.copy(rows, connection, name, target.url)
                    complete = care.complete_trials(rows, name)
                    if folder is None:
                        return
                    _place(unpacked / "artifacts" / name, folder)
                    if objects:
                        folder = owners[name].claim(artifacts)
                    for path in objects:  # as the workers name them in the folder
                        number = path.parent.name
                        _place(path, folder / number / ("last.pt" if int(number) in complete else path.name))
                    for file in care.dashboard_files(rows, name):
                        if (unpacked / "artifacts" / care.DASHBOARD / file).exists():
                            _place(unpacked / "artifacts" / care.DASHBOARD / file, artifacts / care.DASHBOARD / file)

            target.retry(put)
    return studies


def _upload(objects: list[Path], owner: Identity, remote: Checkpoints, keep: bool) -> None:
    """Put a study's objects into the store, before its rows: objects without a study do no harm."""
    there = remote.of_study(owner.objects)
    if there and not keep:
        raise UserError(
            f"There are {len(there)} checkpoints of a study {owner.study!r} in {remote.url}.",
            todo="Name another prefix, or add --keep-files if they belong to the study of the backup.",
        )
    for path in objects:
        file = f"{path.parent.name}/{path.name}"
        if file not in there:
            remote.write(owner.objects, file, path.read_bytes())


def _place(source: Path, target: Path) -> None:
    """Move a file or folder to its place; where both have a file, the target's stays."""
    if source.is_dir() and target.is_dir():
        for entry in list(source.iterdir()):
            _place(entry, target / entry.name)
    elif source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)


if __name__ == "__main__":
    care.run(main)

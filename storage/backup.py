"""Back up studies, with the files of their trials, into one tar file; workers may go on meanwhile.

  python storage/backup.py backup.tar                      every study of the database
  python storage/backup.py main.tar --study main           one of them, with its confirmations
  python storage/backup.py small.tar --no-checkpoints      without the networks (*.pt)
  python storage/backup.py backup.tar --checkpoints s3://bucket/prefix
                                                           with those that workers keep in an object store

The tar holds manifest.json, cvaeopt.db (a SQLite database, whatever the studies were in), artifacts/ and checkpoints/.
`storage/restore.py` puts it back, into any database.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import care
import optuna

from cvaeopt import __version__, files
from cvaeopt.errors import UserError
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.identity import Identity
from cvaeopt.store.storage import Storage

FORMAT = 1


def main(arguments: list[str] | None = None) -> None:
    """Parse, back up, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("file", type=Path, help="the tar file to write")
    options.add_argument("--study", action="append", default=[], help="only this study; may be repeated")
    options.add_argument("--no-checkpoints", action="store_true", help="leave the networks (*.pt) out")
    care.add_storage(options)
    care.add_artifacts(options)
    care.add_checkpoints(options, "its objects are backed up too")
    given = options.parse_args(arguments)
    with care.opened(given.storage) as storage:
        remote = None if given.no_checkpoints else care.object_store(given.checkpoints)
        studies = backup(
            storage, given.artifacts, given.file, given.study, checkpoints=not given.no_checkpoints, remote=remote
        )
        with care.snapshot(storage) as connection:
            left = {store for name in studies for store in care.object_stores(connection, name)}
    counts = ", ".join(
        f"{name} ({facts['trials']} trials, {facts['files']} files"
        + (f", {facts['objects']} objects)" if remote is not None else ")")
        for name, facts in studies.items()
    )
    care.say(f"{given.file}: {counts}, {given.file.stat().st_size / 1e6:.1f} MB")
    for store in sorted(left - {remote.url if remote is not None else ""}):
        if not given.no_checkpoints:
            care.say(f"The checkpoints in {store} are not in it; to have them: another file and --checkpoints {store}")


def backup(
    storage: Storage,
    artifacts: Path,
    target: Path,
    wanted: list[str],
    *,
    checkpoints: bool = True,
    remote: Checkpoints | None = None,
) -> dict[str, dict[str, int]]:
    """Write `target`, whole or not at all; trials, files and objects of `remote` by study.

    UserError if it exists, or if its folder does not.

    Rows first: files that are newer than their rows only mean that a resumed trial reports again what it has.
    """
    if target.exists():
        raise UserError(f"{target} exists.", todo="Name another file: a backup is never overwritten.")
    if not target.parent.is_dir():  # made silently, a mistyped folder, or a disk that is not mounted, is a backup lost
        raise UserError(
            f"There is no folder {target.parent}.",
            "Expected: the backup's folder to be there, its disk mounted.",
            f"Make it (mkdir -p {shlex.quote(str(target.parent))}), or name another file.",
        )
    with tempfile.TemporaryDirectory(prefix="cvaeopt-backup-") as scratch:
        database = Path(scratch) / "cvaeopt.db"
        stored: dict[str, list[str]] = {}
        owners: dict[str, Identity] = {}
        studies: dict[str, dict[str, int]] = {}
        with care.snapshot(storage) as source, care.opened(care.sqlite_url(database), create=True) as copy:
            for name in care.chosen(source, wanted, storage.url):
                with copy.transaction() as target_rows:
                    rows = care.copy(source, target_rows, name, "the backup")
                studies[name] = {"trials": rows["trials"], "files": 0, "objects": 0}
                stored[name] = care.dashboard_files(source, name)
                owners[name] = care.identity_of(source, name)
        _one_file(database)
        content = database.read_bytes()
        with files.whole(target) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            _add(tar, "cvaeopt.db", content)
            for name in studies:
                for entry, path in _files(artifacts, owners[name], stored[name]):
                    if not checkpoints and path.suffix == ".pt":
                        continue
                    try:
                        data = path.read_bytes()
                    except FileNotFoundError:  # a worker replaced or tidied it meanwhile
                        continue
                    _add(tar, f"artifacts/{entry}", data)
                    studies[name]["files"] += 1
                place = owners[name].objects
                for file in remote.of_study(place) if remote is not None else []:
                    held = remote.read(place, file) if remote is not None else None
                    if held is not None:
                        _add(tar, f"checkpoints/{name}/{file}", held)
                        studies[name]["objects"] += 1
            manifest = {
                "format": FORMAT,
                "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "cvaeopt": __version__,
                "optuna": optuna.__version__,
                "storage": storage.url,
                "database_sha256": hashlib.sha256(content).hexdigest(),
                "checkpoints": checkpoints,
                "object_store": None if remote is None else remote.url,
                "studies": studies,
            }
            _add(tar, "manifest.json", json.dumps(manifest, indent=2).encode())  # last: its presence means complete
    return studies


def _files(artifacts: Path, owner: Identity, stored: list[str]) -> Iterator[tuple[str, Path]]:
    """The study's own files and those that the dashboard shows with it, each with its name in the backup."""
    folder = care.study_folder(artifacts, owner)
    for path in sorted(folder.rglob("*")) if folder is not None else ():
        if path.is_file() and path.suffix != ".part":
            yield f"{owner.study}/{path.relative_to(folder).as_posix()}", path
    for file in stored:
        if (artifacts / care.DASHBOARD / file).is_file():
            yield f"{care.DASHBOARD}/{file}", artifacts / care.DASHBOARD / file


def _one_file(database: Path) -> None:
    """Fold the write-ahead log into the database, so that the file alone is all of it."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("PRAGMA journal_mode=DELETE")
    finally:
        connection.close()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o644
    stream: IO[bytes] = io.BytesIO(data)
    tar.addfile(entry, stream)


if __name__ == "__main__":
    care.run(main)

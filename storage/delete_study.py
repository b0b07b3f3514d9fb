"""Delete a study, its confirmations and the files of their trials; archive them first with --archive.

  python storage/delete_study.py main                      asks for the name once more
  python storage/delete_study.py main --archive main.tar   backs it up first (storage/backup.py)
  python storage/delete_study.py main --yes                does not ask
  python storage/delete_study.py main --checkpoints s3://bucket/prefix
                                                           with the checkpoints that workers keep in an object store

Refused while workers of any of them run. `main.confirm` as the name deletes that confirmation alone. Recipes, reports
and retrained networks are not the study's, and stay.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import backup
import care

from cvaeopt.errors import UserError
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.storage import Storage


def main(arguments: list[str] | None = None) -> None:
    """Parse, ask, archive, delete, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("study", help="name of the study")
    options.add_argument("--archive", type=Path, help="back the study up into this tar file first")
    options.add_argument("--yes", action="store_true", help="do not ask")
    care.add_storage(options)
    care.add_artifacts(options)
    care.add_checkpoints(options, "the study's objects are deleted too (and archived)")
    given = options.parse_args(arguments)
    with care.opened(given.storage) as storage:
        with care.snapshot(storage) as connection:
            doomed = care.chosen(connection, [given.study], storage.url)
            stores = {name: care.object_stores(connection, name) for name in doomed}
            owners = {name: care.identity_of(connection, name) for name in doomed}
        for name in doomed:
            care.refuse_live(storage, name, "")
        remote = care.object_store(given.checkpoints)
        ours = None if remote is None else remote.url
        left = [f"{store}/{owners[name].objects}" for name in doomed for store in stores[name] if store != ours]
        if not given.yes:
            folders = [care.study_folder(given.artifacts, owner) for owner in owners.values()]
            places = [storage.url, *(str(folder) for folder in folders if folder is not None)]
            places += [f"{ours}/{owner.objects}" for owner in owners.values() if ours is not None]
            _ask(doomed, places, left, archived=given.archive is not None)
        if given.archive is not None:
            backup.backup(storage, given.artifacts, given.archive, [given.study], remote=remote)
            care.say(f"{given.archive} holds {' and '.join(doomed)} now")
        for name in reversed(doomed):  # a failure half-way leaves the study, so that the same command goes on
            files, objects = remove(storage, name, given.artifacts, remote)
            care.say(f"{name} is deleted, with {files} files" + (f" and {objects} objects" if remote else ""))
    for place in left:
        care.say(f"Its checkpoints in {place} stay; to delete them: aws s3 rm --recursive {place}/")


def remove(storage: Storage, name: str, artifacts: Path, remote: Checkpoints | None = None) -> tuple[int, int]:
    """How many files and objects of `remote` went.

    The object store first: should it fail, the same command can be repeated. Then the database: files without a study
    do no harm, the reverse would. UserError, with all files still there, while somebody writes rows of the study.
    """
    with care.snapshot(storage) as connection:
        owner = care.identity_of(connection, name)
        shown = care.dashboard_files(connection, name)
    folder = care.study_folder(artifacts, owner)
    objects = 0 if remote is None else remote.delete(owner.objects)
    care.delete_rows(storage, name)
    doomed = [path for path in folder.rglob("*") if path.is_file()] if folder is not None else []
    doomed += [path for file in shown if (path := artifacts / care.DASHBOARD / file).is_file()]
    for path in doomed:
        path.unlink(missing_ok=True)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return len(doomed), objects


def _ask(doomed: list[str], places: list[str], left: list[str], *, archived: bool) -> None:
    name, *confirmations = doomed
    also = f" and what confirms it ({', '.join(confirmations)})" if confirmations else ""
    stays = f" Checkpoints in {', '.join(left)} stay, unless --checkpoints names their store." if left else ""
    question = (
        f"This deletes study {name!r}{also} from {', '.join(places)}{'' if archived else ', without an archive'}."
    )
    try:
        typed = input(f"{question}{stays} Type its name again: ")
    except EOFError:
        typed = ""
    if typed.strip() != name:
        raise UserError(f"{typed.strip()!r} is not {name!r}.", todo="Nothing was deleted.")


if __name__ == "__main__":
    care.run(main)

"""Delete a study from the database, with the files of its trials; archive it first with --archive.

  python storage/delete_study.py main                      asks for the name once more
  python storage/delete_study.py main --archive main.tar   backs it up first (storage/backup.py)
  python storage/delete_study.py main --yes                does not ask

Refused while its workers run. Recipes, reports and retrained networks are not the study's, and stay.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import backup
import care
from sqlalchemy import delete

from cvaeopt.errors import UserError
from cvaeopt.search.storage import Storage, lease_table, study_table, worker_table


def main(arguments: list[str] | None = None) -> None:
    """Parse, ask, archive, delete, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("study", help="name of the study")
    options.add_argument("--archive", type=Path, help="back the study up into this tar file first")
    options.add_argument("--yes", action="store_true", help="do not ask")
    care.add_storage(options)
    care.add_artifacts(options)
    given = options.parse_args(arguments)
    with care.opened(given.storage) as storage:
        with care.snapshot(storage) as connection:
            care.chosen(connection, [given.study], storage.url)
        care.refuse_live(storage, given.study, "")
        folder = care.study_folder(given.artifacts, given.study)
        if not given.yes:
            _ask(given.study, f"{storage.url} and {folder}" + ("" if given.archive else ", without an archive"))
        if given.archive is not None:
            backup.backup(storage, given.artifacts, given.archive, [given.study])
            care.say(f"{given.archive} holds it now")
        deleted = remove(storage, given.study, given.artifacts)
    care.say(f"{given.study} is deleted, with {deleted} files")


def remove(storage: Storage, name: str, artifacts: Path) -> int:
    """How many files went. Database first: files without a study do no harm, the reverse would."""
    with care.snapshot(storage) as connection:
        shown = care.dashboard_files(connection, name)
    storage.delete_study(storage.get_study_id_from_name(name))

    def forget() -> None:
        with storage.transaction() as connection:
            connection.execute(delete(lease_table).where(lease_table.c.study == name))
            connection.execute(delete(worker_table).where(worker_table.c.study == name))
            connection.execute(delete(study_table).where(study_table.c.name == name))

    storage.retry(forget)
    folder = care.study_folder(artifacts, name)
    doomed = [path for path in folder.rglob("*") if path.is_file()]
    doomed += [path for file in shown if (path := artifacts / care.DASHBOARD / file).is_file()]
    for path in doomed:
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return len(doomed)


def _ask(name: str, where: str) -> None:
    try:
        typed = input(f"This deletes study {name!r} from {where}. Type its name again: ")
    except EOFError:
        typed = ""
    if typed.strip() != name:
        raise UserError(f"{typed.strip()!r} is not {name!r}.", todo="Nothing was deleted.")


if __name__ == "__main__":
    care.run(main)

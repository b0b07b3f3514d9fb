"""`cvaeopt admin`: back up, restore, move and delete studies with their files, and upgrade the database."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvaeopt.commands.help import examples, study_names
from cvaeopt.commands.opening import open_console
from cvaeopt.commands.options import Verbose
from cvaeopt.commands.places import DEFAULT_ARTIFACTS, DEFAULT_STORAGE
from cvaeopt.errors import StorageUnreachable, UserError
from cvaeopt.terminal.backups import backup_table, missing_files
from cvaeopt.terminal.console import Console

if TYPE_CHECKING:
    from cvaeopt.admin.delete import Plan
    from cvaeopt.run.object_store import Checkpoints

app = typer.Typer(help="Back up, restore, move and delete studies.", no_args_is_help=True)

StorageUrl = Annotated[str, typer.Option("--storage", envvar="CVAEOPT_STORAGE", help="URL of the SQL storage.")]
Artifacts = Annotated[
    Path, typer.Option("--artifacts", envvar="CVAEOPT_ARTIFACTS", help="Folder of the trials' files.")
]
Store = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        envvar="CVAEOPT_CHECKPOINTS",
        metavar="s3://BUCKET/PREFIX",
        help="The workers' object store, whose checkpoints are backed up, restored or deleted too. Default: none.",
    ),
]
Studies = Annotated[
    list[str] | None,
    typer.Option("--study", help="Only this study; repeatable. Default: all.", autocompletion=study_names),
]


@app.command(epilog=examples("admin backup"))
def backup(
    file: Annotated[Path, typer.Argument(help="The tar file to write.")],
    study: Studies = None,
    no_checkpoints: Annotated[bool, typer.Option("--no-checkpoints", help="Leave the networks (*.pt) out.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = Path(DEFAULT_ARTIFACTS),
    checkpoints: Store = None,
    verbose: Verbose = False,
) -> None:
    """Back up studies and their files into a tar file.

    The confirmations of these studies are backed up, too. Workers may keep running during the backup.
    """
    from cvaeopt.admin.backup import backup as write
    from cvaeopt.store.opening import open_storage

    console = _console(verbose)
    with open_storage(storage, create=False) as opened:
        remote = None if no_checkpoints else _object_store(checkpoints)
        made = write(opened, artifacts, file, study or [], checkpoints=not no_checkpoints, remote=remote)
    written = []
    for name, facts in made.counts.items():
        objects = "" if remote is None else f", {facts['objects']} objects"
        written.append(f"{name} ({facts['trials']} trials, {facts['files']} files{objects})")
    console.result(f"{file}: {', '.join(written)}, {file.stat().st_size / 1e6:.1f} MB")
    for name in made.fileless:
        console.warn(f"{name} has no files in {artifacts}; to have them: another file, and --artifacts DIR")
    for name, hosts in made.without_files.items():
        if hosts and name not in made.fileless:
            console.warn(
                f"{missing_files(name, hosts, f'in {artifacts} here')}. To have them, copy their folders from there "
                f"into {artifacts}, and write another backup."
            )
    for store in sorted(made.stores - {remote.url if remote is not None else ""}):
        if not no_checkpoints:
            console.result(
                f"The checkpoints in {store} are not in it; to have them: another file and --checkpoints {store}"
            )


@app.command(epilog=examples("admin restore"))
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    study: Studies = None,
    keep_files: Annotated[
        bool, typer.Option("--keep-files", help="Keep the files that exist (a lost database); add missing ones.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Show what the backup holds, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --list: print JSON on stdout.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = Path(DEFAULT_ARTIFACTS),
    checkpoints: Store = None,
    verbose: Verbose = False,
) -> None:
    """Put the studies of a backup into a database.

    The files of these studies are restored, too. Workers can then continue the studies.

    The command refuses a study that the database already has. It also refuses a study whose folder exists, unless
    --keep-files is given.
    """
    from cvaeopt.admin.backup import sqlite_url
    from cvaeopt.admin.restore import contents, unpack
    from cvaeopt.admin.restore import restore as put_back
    from cvaeopt.store.opening import open_storage

    console = _console(verbose)
    if as_json and not listed:
        raise UserError("--json shows what a backup holds.", todo="Add --list, or leave --json out.")
    if not listed:
        artifacts.mkdir(parents=True, exist_ok=True)
    # The scratch folder is inside `artifacts`, so that whole folders can be moved to their place by a rename.
    place = None if listed else artifacts
    with tempfile.TemporaryDirectory(prefix=".restore-", suffix=".part", dir=place) as scratch:
        manifest = unpack(file, Path(scratch))
        if listed:
            content = contents(manifest, Path(scratch))
            console.json(content) if as_json else backup_table(console, file, content)
            return
        with (
            open_storage(sqlite_url(Path(scratch) / "cvaeopt.db"), create=False) as source,
            open_storage(storage) as target,
        ):
            remote = _object_store(checkpoints)
            done = put_back(source, target, Path(scratch), artifacts, study or [], keep_files, remote)
            console.result(
                f"{', '.join(done)} restored into {target.url} and {artifacts}"
                + ("" if remote is None else f" and {remote.url}")
            )


@app.command(epilog=examples("admin move"))
def move(
    source: Annotated[str, typer.Option("--from", help="URL of the database that has the studies.")],
    target: Annotated[str, typer.Option("--to", help="URL of the database that receives them.")],
    study: Studies = None,
    verbose: Verbose = False,
) -> None:
    """Copy studies to another database.

    The copies are compared with the originals. The source and all files stay unchanged.

    Stop the workers first, and start them with the new --storage afterwards. When you have checked the new database,
    you can remove the old database.
    """
    from cvaeopt.admin.move import move as copy
    from cvaeopt.store.opening import open_storage
    from cvaeopt.store.urls import mask

    console = _console(verbose)
    with open_storage(source, create=False) as old, open_storage(target) as new:
        for name, rows in copy(old, new, study or []).items():
            console.result(
                f"{name}: {rows['trials']} trials and {rows['trial_intermediate_values']} reports are in {new.url}, "
                "and equal"
            )
        secret = "the URL that you gave as --to (its password is not shown)"
        url = shlex.quote(new.url) if mask(target) == target else secret
        console.result("The trials' files stay where they are: start workers with the same --artifacts as before.")
        console.result(f"Now start workers with --storage, or CVAEOPT_STORAGE: {url}")


@app.command(epilog=examples("admin delete"))
def delete(
    study: Annotated[
        str,
        typer.Argument(help="Name of the study; of a confirmation, to delete it alone.", autocompletion=study_names),
    ],
    archive: Annotated[Path | None, typer.Option("--archive", help="Back it up into this tar file first.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
    artifacts: Artifacts = Path(DEFAULT_ARTIFACTS),
    checkpoints: Store = None,
    verbose: Verbose = False,
) -> None:
    """Delete a study and the files of its trials.

    The confirmations of the study are deleted, too. The command refuses to delete while a worker of the study or of a
    confirmation runs.

    Recipes, reports and retrained networks do not belong to the study and are kept.
    """
    from cvaeopt.admin import delete as deletion
    from cvaeopt.admin.backup import backup as write
    from cvaeopt.store.opening import open_storage

    console = _console(verbose)
    with open_storage(storage, create=False) as opened:
        remote = _object_store(checkpoints)
        plan = deletion.plan(opened, study, artifacts, remote)
        if not yes:
            _ask(console, plan, archived=archive is not None)
        if archive is not None:
            write(opened, artifacts, archive, [study], remote=remote)
            console.result(f"{archive} holds {' and '.join(plan.names)} now")
        for name in reversed(plan.names):  # the study last, so that the same command can continue after a failure
            files, objects = deletion.remove(opened, name, artifacts, remote)
            console.result(f"{name} is deleted, with {files} files" + (f" and {objects} objects" if remote else ""))
    for place in plan.remaining:
        console.result(f"Its checkpoints in {place} stay; to delete them: aws s3 rm --recursive {place}/")


@app.command(epilog=examples("admin upgrade"))
def upgrade(
    copy: Annotated[
        Path | None, typer.Argument(help="Where a copy of the database is written first (PostgreSQL: for pg_restore).")
    ] = None,
    no_copy: Annotated[bool, typer.Option("--no-copy", help="Write no copy.")] = False,
    storage: StorageUrl = DEFAULT_STORAGE,
    verbose: Verbose = False,
) -> None:
    """Upgrade the database to the installed Optuna.

    This is needed after an upgrade of Optuna. Stop all workers first.
    """
    from cvaeopt.admin import upgrade as upgrading
    from cvaeopt.store.opening import open_storage

    console = _console(verbose)
    if (copy is None) != no_copy:
        raise UserError("Where shall the copy go?", "Expected: a file name, or --no-copy.")
    url = upgrading.parse(storage)
    upgrading.refuse_workers(storage)
    if copy is not None:
        upgrading.copy(url, copy)
        console.result(f"{copy} is the database as it was")
    before, after = upgrading.upgrade(url)
    with open_storage(storage, create=False) as opened:
        console.result(f"{opened.url}: Optuna's tables are of version {after} (before: {before})")


def _console(verbose: bool) -> Console:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return open_console(verbose)


def _object_store(url: str | None) -> Checkpoints | None:
    """The object store at `url`; None without a URL. UserError: wrong URL. StorageUnreachable: no answer."""
    if url is None:
        return None
    from cvaeopt.run.object_store import open_checkpoints

    remote = open_checkpoints(url)
    problem = remote.check()
    if problem:
        raise StorageUnreachable(
            f"The object store {remote.url} does not answer ({problem}).",
            todo="Nothing was done: bring it back, or leave its objects out by leaving --checkpoints out.",
        )
    return remote


def _ask(console: Console, plan: Plan, *, archived: bool) -> None:
    """Ask the user to type the study's name again; UserError if the answer is not this name."""
    name, *confirmations = plan.names
    also = f" and what confirms it ({', '.join(confirmations)})" if confirmations else ""
    question = f"This deletes study {name!r}{also} from {', '.join(plan.places)}"
    console.say(question + ("." if archived else ", without an archive."))
    if plan.remaining:
        console.say(f"Checkpoints in {', '.join(plan.remaining)} stay, unless --checkpoints names their store.")
    try:
        typed = input("Type its name again: ").strip()
    except EOFError:
        typed = ""
    if typed != name:
        raise UserError(f"{typed!r} is not {name!r}.", todo="Nothing was deleted.")

"""The command that goes on with a study under a changed definition: extend."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvaeopt.commands.opening import open_console, open_object_store, open_study
from cvaeopt.commands.options import Artifacts, CheckpointStore, DryRun, Json, Quiet, StorageUrl, Study, Verbose
from cvaeopt.commands.places import Flags, Places, definition_file
from cvaeopt.errors import UserError
from cvaeopt.terminal import results as show
from cvaeopt.terminal.console import Console
from cvaeopt.text import Advice

_NEEDS = ("storage", "artifacts", "checkpoints")

if TYPE_CHECKING:
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.storage import Storage


def extend(
    study: Study,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="New number of trials of the study.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="New number of epochs of a trial.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Changed definition. Default: the study's own file, if no other flag changes it."),
    ] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    checkpoints: CheckpointStore = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a study, changed: more trials, ranges.

    The changed definition becomes the newest version of the study's definition. Workers end their trials and then take
    the newest version; they are not restarted. Trials that still mean the same count for the new version.
    """
    from cvaeopt.store import extension

    console = open_console(verbose, quiet, results=True)
    places, store = open_study(console, Flags(study, storage, None, artifacts, checkpoints), _NEEDS)
    changed = _changed(store, places.study, study, file, {"trials": trials, "epochs": epochs})
    kept = _kept(console, store, places)
    if dry_run:
        done = extension.plan(store, places.study, changed, kept)
    else:
        done = extension.extend(store, places.study, changed, _person(), kept)
    if as_json:
        console.json({**done.plain(), "dry_run": dry_run})
        return
    show.extension(console, done.plain(), dry_run)
    if not dry_run:
        console.result(
            Advice("Running workers take it after their trials. Start more with:", "worker", "--study", study)
        )


def _kept(console: Console, store: Storage, places: Places) -> Callable[[int], bool]:
    """A function that says whether a trial's checkpoint is kept, in the artifact folder or in the object store."""
    from cvaeopt.store.study import identity_of

    identity = identity_of(store, places.study)
    remote = open_object_store(console, places.checkpoints)
    folder = places.artifact_folder()

    def kept(number: int) -> bool:
        here = any(identity.run(folder, number).root.glob("last*.pt"))
        return here or (remote is not None and remote.holds(identity.objects, number))

    return kept


def _changed(store: Storage, name: str, study: str, file: Path | None, asked: Mapping[str, int | None]) -> Definition:
    """The changed definition: that of `file` or, without a file, the newest version; with the `asked` numbers.

    asked   keys of [budget] and their new values; None: not changed
    """
    from cvaeopt import tomlfile
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.study import stored_definition

    numbers = {key: value for key, value in asked.items() if value is not None}
    tables: dict[str, Any] = stored_definition(store, name).plain()
    where = f"study '{name}'"
    if file is not None or not numbers:
        path = file or definition_file(study)
        if not path.is_file():
            raise UserError(
                f"There is no file {path}.",
                "Expected: the study's changed definition, or a flag that changes it.",
                "Name the file with --file, or give --trials or --epochs.",
            )
        tables, where = tomlfile.read(path), str(path)
    if numbers:
        tables["budget"] = {**tables.get("budget", {}), **numbers}
        where += "".join(f" with --{key} {value}" for key, value in numbers.items())
    return Definition.parse(tables, name, where)


def _person() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a user id without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"

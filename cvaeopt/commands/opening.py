"""Functions that open the console, the database, the data and the object store of a command."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from cvaeopt.commands.places import Flags, Places, definition_file
from cvaeopt.errors import CheckpointError
from cvaeopt.terminal.console import Console

if TYPE_CHECKING:
    from cvaeopt.run.object_store import Checkpoints
    from cvaeopt.search.tables import ServiceTable
    from cvaeopt.store.storage import Storage
    from cvaeopt.vae.dataset import Dataset

READ_LIMIT_S = 10.0
"""The time that a command without training waits for the database, seconds."""

START_LIMIT_S = 60.0
"""The time that a worker waits for the database when it starts, seconds. Later outages may last longer."""

_SAY_AFTER_S = 0.5
"""The time without an answer after which a command says that it waits for the database, seconds."""

OPENED = contextlib.ExitStack()
"""The resources that the command has opened. They are closed when the command ends."""

_latest = Console()


def latest_console() -> Console:
    """The console of the running command. The error of the command is shown on this console."""
    return _latest


def open_console(verbose: bool, quiet: bool = False, *, results: bool = True) -> Console:
    """A new console for the running command. It also prints the warnings that the package logs."""
    global _latest
    _latest = Console(quiet=quiet, verbose=verbose, results=results)
    _latest.show_warnings("cvaeopt")
    return _latest


def open_study(console: Console, flags: Flags, needs: tuple[str, ...] = ("storage",)) -> tuple[Places, Storage]:
    """The places and the database of an existing study.

    needs   names of the flags that the command needs. If all of them are given, the study's definition is not read, so
            the command works in any folder and on any machine.
    """
    given = all(getattr(flags, name) is not None for name in needs)
    places = Places.resolve(flags, os.environ, None if given else stated_service(flags.study))
    console.spell = places.command
    return places, open_existing(console, places.storage)


def stated_service(study: str | None) -> ServiceTable | None:
    """The table [service] of a study's definition; None if there is no study or its file does not exist."""
    from cvaeopt.search.definition import load_definition

    path = definition_file(study) if study else None
    return load_definition(str(path)).service if path is not None and path.exists() else None


def open_existing(console: Console, url: str) -> Storage:
    """The existing database at `url`. It is closed when the command ends."""
    return _open(console, url, create=False, limit_s=READ_LIMIT_S, start_limit_s=READ_LIMIT_S)


def open_or_create(console: Console, url: str, start_limit_s: float) -> Storage:
    """The database at `url`, which is created if it is missing. It is closed when the command ends."""
    return _open(console, url, create=True, limit_s=900.0, start_limit_s=start_limit_s)


def _open(console: Console, url: str, *, create: bool, limit_s: float, start_limit_s: float) -> Storage:
    import optuna

    from cvaeopt.store.opening import open_storage
    from cvaeopt.store.urls import mask

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console.show_warnings("optuna")  # through the console, because Optuna's warnings hold texts from the database
    conceal_password(console, url)
    shown = mask(url)
    said = False

    def say_once(outage_s: float, reason: str) -> None:
        nonlocal said
        if outage_s >= _SAY_AFTER_S and not said:
            state = f"cannot be used yet ({reason})" if url.startswith("sqlite") else "has not answered yet"
            console.say(f"{shown} {state}; waiting up to {start_limit_s:.0f} s ...")
            said = True

    store = open_storage(url, create=create, limit_s=limit_s, start_limit_s=start_limit_s, on_retry=say_once)
    return OPENED.enter_context(store)


def conceal_password(console: Console, url: str) -> None:
    """Hide the password of `url` in all later warnings and errors."""
    from cvaeopt.store.urls import mask

    console.conceal(url, mask(url))
    # An error may repeat a URL that cannot be parsed: hide all text between the first colon and the last @.
    password = re.match(r"\w*(?:\+\w+)?:/*[^:]*(:.*@)", url)
    console.conceal(password[1] if password else "", ":***@")


def open_object_store(console: Console, url: str | None) -> Checkpoints | None:
    """The object store at `url`; None without a URL.

    UserError if the URL can never be used. If the store does not answer now, the console shows a warning.
    """
    if not url:
        return None
    from cvaeopt.run.object_store import open_checkpoints

    remote = open_checkpoints(url)
    silent = remote.check()
    if silent:
        console.warn(f"{remote.url} does not answer ({silent}); checkpoints stay on this machine until it does")
    return remote


def data_folder(data: Path | None) -> Path:
    """The data folder of a command without a study; DataError if no folder was given."""
    return Places.resolve(Flags(data=data), os.environ).data_folder()


def load_data(console: Console, root: Path, size: tuple[int, int]) -> Dataset:
    """The data in folder `root`, with frames of `size` (height, width). A progress bar shows the decoding."""
    from cvaeopt.vae import dataset

    with console.progress() as progress:
        return dataset.load(root, *size, progress=progress)


def require_checkpoint(path: Path) -> None:
    """CheckpointError if `path` does not exist. Commands check this before they look for data and load torch."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "Expected: a checkpoint (.pt, .ckpt, .pth).")

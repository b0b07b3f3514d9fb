"""The commands about data folders: demo-data and check-data."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cvaeopt.commands.opening import open_console
from cvaeopt.commands.options import Json, Quiet, Verbose
from cvaeopt.terminal import results as show


def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal videos.")] = 0,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw a small data set in the lab's layout.

    Its videos show a moving figure, and its labels show the figure's skeleton.
    """
    from cvaeopt.demo_data import writer

    console = open_console(verbose, quiet)
    with console.progress() as progress:
        writer.write(folder, seed=seed, progress=progress)
    console.say(f"{folder} is ready. Look at it with: cvaeopt check-data {shlex.quote(str(folder))}")


def check_data(
    folder: Annotated[Path, typer.Argument(help="Data folder to check.")],
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Count and check the files of a data folder.

    The exit code is 0 if the folder can be used, else 2.
    """
    from cvaeopt.vae.data_check import check

    console = open_console(verbose, quiet)
    with console.progress() as progress:
        report = check(folder, progress=progress)
    if as_json:
        console.json(report.plain())
    else:
        show.check_report(console, report.plain())
    if not report.ok:
        raise typer.Exit(2)

"""The command hand-in: the check of a submission."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvaeopt.commands.opening import open_console
from cvaeopt.commands.options import Data, Json, Quiet, Verbose
from cvaeopt.errors import DataError
from cvaeopt.terminal.console import Console
from cvaeopt.text import count


def hand_in(
    check: Annotated[Path, typer.Option("--check", metavar="FILE", help="Only check this submission.csv.")],
    data: Data = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check a submission.csv.

    The first faults are shown with their rows and columns. The exit code is 0 without a fault, else 2.
    """
    _check(open_console(verbose, quiet), check, data, as_json)


def _check(console: Console, file: Path, data: Path | None, as_json: bool) -> None:
    from cvaeopt.outcome import submission

    if data is not None and not data.is_dir():
        raise DataError(f"{data} is no folder.", "Expected: a data folder.", "Name another one with --data.")
    checked = submission.check(file, submission.Expected.of(data))
    if as_json:
        console.json(checked.plain())
    else:
        for fault in checked.faults:
            console.result(f"- {fault.text}")
        hidden = checked.fault_count - len(checked.faults)
        if hidden:
            console.result(f"- and {count(hidden, 'fault')} more")
        if checked.ok:
            against = "compared with the given frames" if checked.firsts else "without given frames to compare with"
            shown = f"{count(checked.rows, 'row')} of {count(checked.sequences or 0, 'sequence')}"
            console.result(f"{file}: {shown}, {against}. It has the format.")
        else:
            console.result(f"{file} does not have the format.")
    if not checked.ok:
        raise typer.Exit(2)

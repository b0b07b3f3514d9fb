"""The command init, which writes a project folder."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import open_console
from cvaeopt.commands.options import DryRun, Json, Quiet, Verbose
from cvaeopt.errors import UserError


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Folder of the project.")] = Path(),
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a project folder to start from.

    The folder has studies, a README and settings. Existing files are not changed.
    """
    from cvaeopt.admin.project import project_files
    from cvaeopt.files import write_text

    console = open_console(verbose, quiet)
    if taken := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise UserError(f"{taken} is a file.", "Expected: a folder, or a name for a new one.", "Name another folder.")
    wanted = project_files()
    kept = [name for name in wanted if (folder / name).exists()]
    missing = [name for name in wanted if name not in kept]
    if not dry_run:
        for name in missing:
            with writing(folder / name):
                write_text(folder / name, wanted[name])
    if as_json:
        console.json({"folder": str(folder), "written": missing, "kept": kept})
        return
    for name in missing:
        console.result(f"{'would write' if dry_run else 'written'}: {folder / name}")
    for name in kept:
        console.result(f"already there, kept: {folder / name}")
    if not dry_run:
        enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))}, then: "
        console.say(f"Next: {enter}cvaeopt check-data DIR (README.md has the whole way)")

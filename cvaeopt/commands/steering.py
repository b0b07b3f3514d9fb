"""The command enqueue, which gives a study points to train next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cvaeopt.commands.opening import open_console, open_study
from cvaeopt.commands.options import DryRun, Json, Quiet, StorageUrl, Study, Verbose, assignments
from cvaeopt.commands.places import Flags
from cvaeopt.errors import SettingsError
from cvaeopt.text import Advice, count, settings_text


def enqueue(
    study: Study,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of a point. A repeated KEY begins another point."),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="TOML file with a table [[enqueue]] for each point.")
    ] = None,
    storage: StorageUrl = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Give a study points to train next.

    The next free workers train these points, before the sampler suggests another one. The sampler chooses the settings
    that a point leaves out. A point takes one of the study's trials when a worker begins it. A point that waits
    already is not added again.
    """
    from cvaeopt.store import steering

    console = open_console(verbose, quiet)
    points = [*_of_file(file), *_of_options(settings or [])]
    if not points:
        raise SettingsError(
            "No point was given.", "Expected: --set KEY=VALUE, or --file with [[enqueue]] tables.", "Give at least one."
        )
    places, store = open_study(console, Flags(study, storage))
    made = steering.enqueue(store, places.study, points, dry_run=dry_run)
    if as_json:
        console.json({**made.plain(), "dry_run": dry_run})
    else:
        for point in made.points:
            will = ("Would enqueue" if dry_run else "Enqueued") if point in made.added else "Waits already:"
            console.result(f"{will} {settings_text(point)}")
    if made.free is not None and made.waiting > made.free:
        wait = f"{count(made.waiting, 'point')} wait{'s' if made.waiting == 1 else ''}"
        text = f"{wait}, and the budget has room for {count(made.free, 'more trial')}. Give it more:"
        console.warn(Advice(text, "extend", "--study", places.study, "--trials", "N"))


def _of_options(given: Sequence[str]) -> list[dict[str, Any]]:
    """The points in the texts of --set. A setting that the present point has already begins the next point."""
    points: list[dict[str, Any]] = []
    for name, value in assignments(given):
        if not points or name in points[-1]:
            points.append({})
        points[-1][name] = value
    return points


def _of_file(file: Path | None) -> list[dict[str, Any]]:
    """The points in the [[enqueue]] tables of a TOML file. SettingsError if the file has no such table."""
    from cvaeopt import tomlfile

    if file is None:
        return []
    try:
        points = tomlfile.read(file).get("enqueue")
    except FileNotFoundError:
        raise SettingsError(f"There is no file {file}.", "Expected: a TOML file with [[enqueue]] tables.") from None
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise SettingsError(f"{file} has no table [[enqueue]].", "Expected: one such table for each point.")
    return points

"""The commands that use a study's results: export-best, fetch and show."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import open_console, open_object_store, open_study
from cvaeopt.commands.options import Artifacts, CheckpointStore, Json, Quiet, StorageUrl, Study, Verbose
from cvaeopt.commands.places import Flags
from cvaeopt.terminal import results as shown
from cvaeopt.terminal.console import Console
from cvaeopt.text import Advice

if TYPE_CHECKING:
    from cvaeopt.outcome.fetch import Located


def export_best(
    study: Study,
    storage: StorageUrl = None,
    out: Annotated[Path | None, typer.Option(help="Recipe to write. Default: studies/best/NAME.toml.")] = None,
    lab: Annotated[bool, typer.Option("--lab", help="Set output = linear, as the lab's own tester needs.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the settings of the best trial as a recipe.

    The recipe also holds the origin of the settings: the study, the trial and its value.
    """
    from cvaeopt.outcome import export
    from cvaeopt.outcome.leaders import table

    console = open_console(verbose, quiet)
    places, store = open_study(console, Flags(study, storage))
    target = out or Path("studies") / "best" / f"{places.study}.toml"
    with writing(target):
        written = export.export_best(store, places.study, target, now=datetime.now(UTC), lab=lab)
    facts = written.recipe.provenance
    if as_json:
        console.json({"written": str(target), "warnings": list(written.warnings), "provenance": facts})
        return
    low, high = facts.get("low"), facts.get("high")
    within = "" if low is None else f", 95 % interval {low:.2f} to {high:.2f} dB"
    console.result(f"{target}: trial {facts['trial']}, {facts['value']:.2f} dB ({facts['estimated']}{within})")
    if written.confirmed is not None:
        shown.confirmed(console, table(written.confirmed), written.confirmed.spread, written.confirmed.paired)
    else:
        for trial in facts["runners_up"]:
            console.result(f"within noise: trial {trial['trial']}, {trial['value']:.2f} dB")
    for warning in written.warnings:
        console.warn(warning)
    fetch_it = ("fetch", "--study", places.study, "--trial", str(facts["trial"]))
    console.say(Advice("Its checkpoint, if it is wanted:", *fetch_it))


def fetch(
    study: Study,
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="Number of a trial. Default: the best.")] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    checkpoints: CheckpointStore = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Print the path of a trial's checkpoint.

    If the checkpoint is not on this machine, it is first copied from the object store.
    """
    from cvaeopt.outcome.fetch import locate

    console = open_console(verbose, quiet)
    flags = Flags(study, storage, artifacts=artifacts, checkpoints=checkpoints)
    places, store = open_study(console, flags, needs=("storage", "artifacts", "checkpoints"))
    located = locate(store, places.study, trial, places.artifact_folder())
    bring(console, located, places.checkpoints)
    if as_json:
        console.json({"study": places.study, "trial": located.number, "checkpoint": str(located.path)})
    else:
        console.result(str(located.path))


def bring(console: Console, located: Located, checkpoints: str | None) -> None:
    """Copy the checkpoint of a trial from the object store, if it is not on this machine.

    checkpoints   URL of the object store; None for the store that the trial names

    CheckpointError if it is in no object store either.
    """
    if located.path.exists():
        return
    remote = open_object_store(console, checkpoints or located.store)
    if remote is None:
        raise located.elsewhere()
    with writing(located.path):
        remote.download(located.objects, located.number, located.path)


def show(
    file: Annotated[Path, typer.Argument(help="A recipe, a checkpoint, a prediction folder or submission.csv.")],
    verbose: Verbose = False,
) -> None:
    """Print the provenance of a file as JSON."""
    from cvaeopt.outcome.score import show as provenance

    open_console(verbose).json(provenance(file))

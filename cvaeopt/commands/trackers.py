"""The command export-runs, which writes a study's trials for other programs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import open_console, open_study
from cvaeopt.commands.options import Artifacts, DryRun, Json, Quiet, StorageUrl, Study, Verbose
from cvaeopt.commands.places import Flags
from cvaeopt.text import count

if TYPE_CHECKING:
    from cvaeopt.outcome.study_runs import StudyRuns


_OPEN_WITH = {
    "tensorboard": "tensorboard --logdir {folder}",
    "wandb": "wandb sync {folder}/wandb/offline-run-*",
    "mlflow": "MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {folder}",
}


def export_runs(
    study: Study,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the export.")],
    to: Annotated[
        Literal["tensorboard", "wandb", "mlflow", "csv"],
        typer.Option("--to", help="The program that reads the folder."),
    ],
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export in the folder.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the trials for TensorBoard, W&B or MLflow.

    Each trial is a run, with its curves, settings, state, value and provenance. Nothing is sent to a network.
    """
    from cvaeopt.outcome import trackers
    from cvaeopt.outcome.study_runs import study_runs

    console = open_console(verbose, quiet)
    trackers.check(to, folder, overwrite=overwrite)
    places, store = open_study(console, Flags(study, storage, artifacts=artifacts), needs=("storage", "artifacts"))
    runs = study_runs(store, places.study, places.artifact_folder())
    if not dry_run:
        with writing(folder, folder=True), console.progress() as progress:
            trackers.write(runs, to, folder, progress)
    if as_json:
        console.json({"folder": str(folder), "to": to, "written": not dry_run, **_counts(runs)})
        return
    would = "would get" if dry_run else "has"
    console.result(f"{folder} {would} {count(len(runs.runs), 'trial')} with {count(runs.epochs, 'epoch')}.")
    if runs.partial:
        console.warn(
            f"The history of {count(len(runs.partial), 'trial')} is not, or not complete, in {places.artifacts}. Their "
            f"epochs without a history have only {runs.metric}, as the database stores it."
        )
    if not dry_run and to in _OPEN_WITH:
        console.say(f"Open it with: {_OPEN_WITH[to].format(folder=shlex.quote(str(folder)))}")


def _counts(runs: StudyRuns) -> dict[str, Any]:
    return {"study": runs.study, "trials": len(runs.runs), "epochs": runs.epochs, "without_history": runs.partial}

"""Write the runs of a study in the formats of other programs: CSV, TensorBoard, Weights & Biases and MLflow.

Every format is written by its own library, which is an optional extra of this package. Nothing is sent to a network.
A folder appears whole or not at all.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from cvaeopt.errors import UserError
from cvaeopt.files import whole_folder, write_json
from cvaeopt.outcome.study_runs import ELAPSED, StudyRun, StudyRuns

Tracker = Literal["csv", "tensorboard", "wandb", "mlflow"]

MARKER: Final = "cvaeopt-runs.json"
"""The file in an exported folder that says what the folder holds. Only a folder with this file is ever replaced."""

TRIALS: Final = "trials.csv"
EPOCHS: Final = "epochs.csv"

_PACKAGES: Final[dict[Tracker, str]] = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
_MLFLOW_STATUS: Final = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
_MAX_TEXT: Final = 5000  # characters of a text; MLflow refuses longer ones

Progress = Callable[[str, int, int], None]


def check(to: Tracker, folder: Path, *, overwrite: bool = False) -> None:
    """UserError if the library of `to` is not installed, or if `folder` may not be written.

    An existing folder may be written if it is empty. With `overwrite`, an earlier export may be replaced, too.
    """
    package = _PACKAGES.get(to)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"The package {package} is not installed.",
            f"Expected: the extra {to} of cvaeopt.",
            f"pip install 'cvaeopt[{to}]'",
        )
    if taken := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise UserError(f"{taken} is a file.", "Expected: a folder, or a name for a new one.", "Name another folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MARKER).is_file():
        raise UserError(
            f"{folder} holds other files.", "Expected: a new folder, or an earlier export.", "Name another folder."
        )
    if not overwrite:
        raise UserError(
            f"{folder} holds an export already.", "Expected: a new folder.", "Replace the export with --overwrite."
        )


def write(runs: StudyRuns, to: Tracker, folder: Path, progress: Progress = lambda what, done, total: None) -> None:
    """Write the runs into `folder` for the program `to`. An existing folder is replaced: see `check`."""
    writers: dict[Tracker, Callable[[StudyRuns, Iterable[StudyRun], Path, Path], None]] = {
        "csv": _csv,
        "tensorboard": _tensorboard,
        "wandb": _wandb,
        "mlflow": _mlflow,
    }
    assert writers.keys() == set(get_args(Tracker))
    final = folder.resolve()
    with whole_folder(final) as scratch:
        writers[to](runs, _counted(runs.runs, progress), scratch, final)
        write_json(
            scratch / MARKER,
            {
                "kind": "runs",
                "to": to,
                **runs.facts,
                "trials": len(runs.runs),
                "epochs": runs.epochs,
                "without_history": runs.partial,
            },
        )


def _counted(runs: Sequence[StudyRun], progress: Progress) -> Iterator[StudyRun]:
    for done, run in enumerate(runs):
        yield run
        progress("trials written", done + 1, len(runs))


def _csv(study: StudyRuns, runs: Iterable[StudyRun], folder: Path, final: Path) -> None:
    """One row for each trial with its settings in trials.csv, and one row for each epoch in epochs.csv."""
    every = list(runs)
    trials = [{**run.facts, **{key: _plain(value) for key, value in run.settings.items()}} for run in every]
    epochs = [{"trial": run.number, **row} for run in every for row in run.rows]
    _table(folder / TRIALS, trials, ["trial", "state", "value"])
    _table(folder / EPOCHS, epochs, ["trial", "epoch", study.metric])


def _table(path: Path, rows: Sequence[dict[str, Any]], first: Sequence[str]) -> None:
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _tensorboard(study: StudyRuns, runs: Iterable[StudyRun], folder: Path, final: Path) -> None:
    """One log folder for each trial. The settings are hyperparameters, and the trial's value is their metric."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for run in runs:
        began = run.started.timestamp() if run.started else 0.0
        settings = {key: _plain(value) for key, value in run.settings.items()}
        value = {} if run.value is None else {"value": run.value}
        with SummaryWriter(folder / run.name) as writer:
            assert writer.file_writer is not None
            for summary in hparams(settings, value):
                writer.file_writer.add_summary(summary)
            for row in run.rows:
                for key, number in _metrics(row):
                    writer.add_scalar(key, number, int(row["epoch"]), began + row.get(ELAPSED, 0.0))
            for key, number in value.items():
                writer.add_scalar(key, number, int(run.facts["epochs"]))
            facts = json.dumps({**study.facts, **run.facts}, indent=2)
            writer.add_text("provenance", "\n".join(f"    {line}" for line in facts.splitlines()))


def _wandb(study: StudyRuns, runs: Iterable[StudyRun], folder: Path, final: Path) -> None:
    """One offline run for each trial. `wandb sync` sends the runs to a server later."""
    import wandb

    name = re.sub(r"[/\\#?%:]", "-", study.study)[:128]
    owner = str(study.facts["identity"] or study.facts["definition_digest"])
    quiet = wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        # The command line may hold the URL of the database, with its password.
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
    )
    try:
        for run in runs:
            logged = wandb.init(
                project=name,
                dir=folder,
                id=f"{owner}-{run.number}",  # so that a second `wandb sync` adds no second run
                name=f"{study.study}/{run.name}",
                group=study.study,
                job_type="trial",
                tags=[run.state],
                config={**run.settings, "provenance": {**study.facts, **run.facts}},
                settings=quiet,
            )
            for row in run.rows:
                logged.log(dict(_metrics(row)), step=int(row["epoch"]))
            logged.summary.update({"state": run.state, **({} if run.value is None else {"value": run.value})})
            logged.finish(exit_code=1 if run.state == "failed" else 0)
    finally:
        wandb.teardown()
    for logs in (*folder.glob("wandb/*run-*/logs"), *folder.glob("wandb/debug*.log")):  # about this export, not the run
        shutil.rmtree(logs) if logs.is_dir() else logs.unlink()


def _mlflow(study: StudyRuns, runs: Iterable[StudyRun], folder: Path, final: Path) -> None:
    """One run for each trial in an experiment with the study's name, in MLflow's file store."""
    # A new MLflow refuses a file store, and sends telemetry, unless these variables say otherwise.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.entities import Metric, Param, RunStatus, RunTag
    from mlflow.store.tracking.file_store import FileStore

    store = FileStore(str(folder), artifact_root_uri=final.as_uri())
    tags = [_tag(RunTag, key, value) for key, value in study.facts.items() if value is not None]
    experiment = store.create_experiment(study.study, tags=tags)
    for run in runs:
        began = _milliseconds(run.started)
        run_id = store.create_run(experiment, "", began, list(tags), run.name).info.run_id
        metrics = [
            Metric(key, number, began + int(1000 * row.get(ELAPSED, 0.0)), int(row["epoch"]))
            for row in run.rows
            for key, number in _metrics(row)
        ]
        if run.value is not None:
            metrics.append(Metric("value", run.value, _milliseconds(run.ended), int(run.facts["epochs"])))
        stated = [_tag(RunTag, key, value) for key, value in run.facts.items() if value is not None]
        parameters = [Param(key, str(_plain(value))) for key, value in run.settings.items()]
        store.log_batch(run_id, metrics, parameters, stated)
        status = RunStatus.from_string(_MLFLOW_STATUS.get(run.state, "RUNNING"))
        store.update_run_info(run_id, status, _milliseconds(run.ended) if run.ended else None, run.name)


def _tag(kind: Callable[[str, str], Any], key: str, value: Any) -> Any:
    return kind(f"cvaeopt.{key}", str(value)[:_MAX_TEXT])


def _milliseconds(moment: datetime | None) -> int:
    return 0 if moment is None else int(1000 * moment.timestamp())


def _metrics(row: dict[str, float]) -> Iterator[tuple[str, float]]:
    return ((key, float(value)) for key, value in row.items() if key != "epoch")


def _plain(value: Any) -> Any:
    """The value of a setting as a number, a bool or a text."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)

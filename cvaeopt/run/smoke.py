"""The smoke study: a tiny study on the CPU that uses every part of the program once, through its commands.

Two worker processes share one SQLite file. At the end the results are checked: all trials of the budget are complete,
the recipe can be trained, the submission has all of its rows, and the report is written.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cvaeopt.demo_data import writer
from cvaeopt.errors import CvaeoptError
from cvaeopt.search.definition import SHIPPED

STUDY = "smoke.toml"
RETRAIN_EPOCHS = 3


class SmokeFailure(CvaeoptError):  # noqa: N818 - it describes a run
    """A step of the smoke study failed."""


def run(folder: Path | None = None) -> Iterator[str]:
    """Run the smoke study and yield a line of text after each step.

    folder   the folder of all files; None for a temporary folder

    SmokeFailure if a command or a check fails. For a command, its message holds the command's output.
    """
    with contextlib.ExitStack() as stack:
        root = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvaeopt-smoke-")))
        root.mkdir(parents=True, exist_ok=True)
        root = root.resolve()
        (root / STUDY).write_text((SHIPPED / STUDY).read_text())
        yield from _steps(_Shell(root))


class _Shell:
    """Runs `cvaeopt` commands that write into one folder only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")},
            "CVAEOPT_STORAGE": f"sqlite:///{root / 'smoke.db'}",
            "CVAEOPT_DATA": str(root / "data"),
            "CVAEOPT_ARTIFACTS": str(root / "artifacts"),
            "CVAEOPT_GPU": "cpu",
            "CVAEOPT_THREADS": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `cvaeopt ARGUMENTS`, with standard output and errors in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "cvaeopt.cli", *arguments],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str) -> str:
        """The output of `cvaeopt ARGUMENTS`; SmokeFailure unless it exits 0."""
        return _output(self.start(*arguments), arguments)


def _output(process: subprocess.Popen[str], arguments: tuple[str, ...]) -> str:
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SmokeFailure(
            f"`cvaeopt {' '.join(arguments)}` ended with code {process.returncode}:\n{output.strip()}",
            "Expected: 0.",
        )
    return output


def _steps(shell: _Shell) -> Iterator[str]:
    root = shell.root
    # These are fewer frames than `demo-data` draws, so that the smoke study is fast.
    writer.write(root / "data", clips=8, val_frames=24, sequences=2, sequence_frames=16)
    shell.run("check-data", "data")
    yield "demonstration data drawn"
    arguments = ("worker", "--study", STUDY)
    workers = [shell.start(*arguments) for _ in range(2)]
    try:
        for worker in workers:
            _output(worker, arguments)
    finally:
        for worker in workers:
            if worker.poll() is None:  # after a failure or Ctrl-C
                worker.kill()
                worker.communicate()
    facts = json.loads(shell.run("status", "--study", STUDY, "--json"))
    trials, budget = facts["trials"], facts["budget"]["trials"]
    if trials != {"complete": budget, "pruned": 0, "running": 0, "waiting": 0, "failed": 0}:
        reasons = "; ".join(f"trial {one['number']}: {one['reason']}" for one in facts["failures"])
        raise SmokeFailure(f"The study ended with {trials} ({reasons}).", f"Expected: {budget} complete trials.")
    yield f"{budget} trials trained by two workers, best {facts['best']['value']:.2f} dB"
    shell.run("export-best", "--study", STUDY, "--out", "best.toml")
    shell.run("retrain", "best.toml", "--epochs", str(RETRAIN_EPOCHS), "--out", "retrain")
    history = (root / "retrain" / "history.jsonl").read_text().splitlines()
    if len(history) != RETRAIN_EPOCHS:
        raise SmokeFailure(f"The retrain has {len(history)} epochs.", f"Expected: {RETRAIN_EPOCHS}.")
    yield "best trial exported and retrained"
    shell.run("predict", "retrain/best.pt", "--out", "predictions")
    with (root / "predictions" / "submission.csv").open(newline="") as stream:
        rows = list(csv.reader(stream))
    labels = len(list((root / "data" / "test" / "test_label").glob("*/*.png")))
    if len(rows) != labels + 1 or any(len(row) != 1 + 3 * 32 * 64 for row in rows):
        raise SmokeFailure(f"submission.csv has {len(rows)} lines.", f"Expected: {labels + 1} of 6,145 values.")
    shell.run("score", "retrain/best.pt")
    yield "test sequences predicted"
    shell.run("report", "--study", STUDY, "--out", "report")
    if not (root / "report" / "report.html").exists():
        raise SmokeFailure("There is no report/report.html.")
    yield "report written"

"""The facts that a report shows about a run of the study's recipe, which `retrain` made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvaeopt.outcome.run_files import RETRAIN, SCORE, RunFiles


@dataclass(frozen=True)
class Retrained:
    """A run of the study's recipe that has ended.

    trial       number of the trial that the recipe comes from
    epochs      number of epochs trained
    epoch       the best epoch, to which `val_psnr` and `late` belong
    val_psnr    mean validation PSNR of all frames, dB
    late        mean validation PSNR of the late frames, dB
    """

    name: str
    trial: int
    epochs: int
    epoch: int
    val_psnr: float
    late: float
    files: RunFiles


def find_retrained(artifacts: Path, study: str) -> Retrained | None:
    """The best run of a recipe of `study` in the folder `retrain` beside `artifacts`; None if there is no such run.

    `retrain` writes its runs there. A folder is ignored if its files cannot be read or if its run has not ended.
    """
    found = [run for folder in _folders(artifacts.parent / "retrain") if (run := _read(folder, study)) is not None]
    return max(found, key=lambda run: (run.val_psnr, run.name), default=None)


def _folders(root: Path) -> Iterator[Path]:
    """`root` itself, because the demonstration writes its run there, and the folders in `root`."""
    yield root
    if root.is_dir():
        yield from sorted(path for path in root.iterdir() if path.is_dir())


def _read(folder: Path, study: str) -> Retrained | None:
    try:
        facts: dict[str, Any] = json.loads((folder / RETRAIN).read_text())
        if facts.get("study") != study:
            return None
        sheet: dict[str, Any] = json.loads((folder / SCORE).read_text())
        files = RunFiles.of(folder)
        return Retrained(
            folder.name,
            int(facts["trial"]),
            len(files.history),
            int(sheet["epoch"]),
            float(sheet["val_psnr"]),
            float(sheet["val_psnr_late"]),
            files,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None

"""The run of a study's recipe that `retrain` made, as far as a report shows it."""

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

    trial       number of the trial whose settings it has
    epochs      epochs trained; `epoch` is the best of them, to which the values belong
    val_psnr, late   of all frames and of the late ones, dB
    """

    name: str
    trial: int
    epochs: int
    epoch: int
    val_psnr: float
    late: float
    files: RunFiles


def find_retrained(artifacts: Path, study: str) -> Retrained | None:
    """The best run of a recipe of `study` that stands where `retrain` puts it, beside `artifacts`; None without one.

    A folder that cannot be read as such a run, or whose run has not ended, is passed over.
    """
    found = [run for folder in _folders(artifacts.parent / "retrain") if (run := _read(folder, study)) is not None]
    return max(found, key=lambda run: (run.val_psnr, run.name), default=None)


def _folders(root: Path) -> Iterator[Path]:
    """`root` itself, as the demonstration has it, and the folders in it."""
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

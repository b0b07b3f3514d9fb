"""What the run folder of a trial has on this machine, as far as a report shows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvaeopt.files import RunFolder
from cvaeopt.pictures.run_pictures import PSNR_VALUES

RETRAIN: Final = "retrain.json"
"""In the folder of a retrained run: what it was trained from."""

SCORE: Final = "score.json"
"""Beside it: the score sheet of its best epoch."""


@dataclass(frozen=True)
class RunFiles:
    """The history's rows, and the PSNR of each validation frame in dB.

    Both are empty where the file is missing, or is not what a run writes.
    """

    folder: RunFolder
    history: tuple[dict[str, Any], ...]
    psnr: tuple[float, ...]

    @classmethod
    def read(cls, study: Path, number: int) -> RunFiles:
        """The files of trial `number` in the folder of its study."""
        return cls.of(study / f"{number:05d}")

    @classmethod
    def of(cls, root: Path) -> RunFiles:
        """The files of the run in `root`."""
        folder = RunFolder(root)
        return cls(folder, tuple(_read_history(folder)), tuple(_read_psnr(folder)))


def _read_history(folder: RunFolder) -> list[dict[str, Any]]:
    try:
        rows = folder.read_history()
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "val_psnr" in row for row in rows) else []


def _read_psnr(folder: RunFolder) -> list[float]:
    try:
        values = json.loads((folder.root / PSNR_VALUES).read_text())["psnr_db"]
        return [float(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError):
        return []

"""The files of a run folder on this machine that a report shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvaeopt.files import RunFolder
from cvaeopt.pictures.run_pictures import PSNR_VALUES

RETRAIN: Final = "retrain.json"
"""The file with the provenance of a retrained run, in the run's folder."""

CONTINUED: Final = "continued_after"
"""Key of retrain.json in the folder of a continued trial: the number of epochs that the trial had trained."""

SCORE: Final = "score.json"
"""The file with the score sheet of a retrained run's best epoch, in the run's folder."""

DIPS: Final = "psnr_explained.png"
"""The chart of the PSNR per frame of a retrained run over the measures that may explain it."""


@dataclass(frozen=True)
class RunFiles:
    """The data of a run's files.

    history   the rows of history.jsonl; empty if the file is missing or is not valid
    psnr      PSNR of each validation frame, dB; empty if the file is missing or is not valid
    """

    folder: RunFolder
    history: tuple[dict[str, Any], ...]
    psnr: tuple[float, ...]

    @classmethod
    def read(cls, study: Path, number: int) -> RunFiles:
        """The files of trial `number`. `study` is the folder of its study."""
        return cls.of(study / f"{number:05d}")

    @classmethod
    def of(cls, root: Path) -> RunFiles:
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

"""The facts of one run that pages show: of a run folder or of a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, UserError
from cvaeopt.files import RunFolder
from cvaeopt.outcome.run_files import RETRAIN, SCORE, RunFiles

if TYPE_CHECKING:
    from cvaeopt.outcome.score import ScoreSheet

BEST_EPOCH: Final = "val_psnr of the best epoch"
OWN_EPOCH: Final = "val_psnr of the checkpoint's epoch"


@dataclass(frozen=True)
class RunSummary:
    """The facts of one run.

    name       the name in tables and charts
    value      PSNR of the validation video, dB; None if it is not known
    estimated  how `value` was estimated
    late       PSNR of the late frames at `epoch`, dB; None if it is not known
    epoch      the epoch of `value`; None if `value` is no value of a single epoch
    values     training seed -> value of the run with these settings and this seed, dB
    settings   the settings; empty if they are not known
    data       digest of the data; '' if it is not known
    start      digest of the weights from which the training started; '' for fresh weights
    levels     PSNR of each baseline, dB; empty if they are not known
    files      history and PSNR per frame
    facts      the provenance, for the reader
    measure    the meaning of `values`, if it differs from `estimated`
    """

    name: str
    kind: Literal["run", "checkpoint", "study"]
    value: float | None
    estimated: str
    late: float | None
    epoch: int | None
    files: RunFiles
    values: Mapping[int, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    start: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    measure: str = ""

    @property
    def meaning(self) -> str:
        """The meaning of `values`. Only values with the same meaning are compared."""
        return self.measure or self.estimated

    @property
    def rows(self) -> tuple[dict[str, Any], ...]:
        return self.files.history

    @property
    def hours(self) -> list[float]:
        """The training time until the end of each epoch, hours; empty if the time of an epoch is not known."""
        try:
            return [total / 3600 for total in itertools.accumulate(float(row["seconds"]) for row in self.rows)]
        except (KeyError, TypeError, ValueError):
            return []

    @property
    def config(self) -> Config | None:
        """The settings, checked; None if they are not known or not valid."""
        try:
            return Config.parse(dict(self.settings), self.name) if self.settings else None
        except SettingsError:
            return None


def of_folder(root: Path) -> RunSummary:
    """The facts of the run in `root`, which `train`, `retrain` or a worker wrote. The run may not have ended.

    UserError if `root` has no history of a run.
    """
    files = RunFiles.of(root)
    if not files.history:
        raise UserError(
            f"{root} has no history of a run ({files.folder.history.name}).",
            "Expected: a folder that train, retrain or a worker wrote, after its first epoch.",
            "Name another folder.",
        )
    facts, sheet = _read(root / RETRAIN), _read(root / SCORE)
    settings = _read(files.folder.config)
    best = max(files.history, key=lambda row: float(row["val_psnr"]))
    value = float(best["val_psnr"])
    return RunSummary(
        name=_short_name(root),
        kind="run",
        value=value,
        estimated=BEST_EPOCH,
        late=_number(best.get("val_psnr_late")),
        epoch=int(best["epoch"]),
        files=files,
        values={settings["seed"]: value} if isinstance(settings.get("seed"), int) else {},
        settings=settings,
        data=str(facts.get("data_digest") or ""),
        start=str(facts.get("start") or ""),
        levels=_levels(sheet.get("baselines")),
        facts={key: value for key, value in facts.items() if value is not None},
    )


def retrained(artifacts: Path, study: str) -> RunSummary | None:
    """The best run of a recipe of `study` in the folder `retrain` beside `artifacts`; None if there is no such run.

    A folder is ignored if its files cannot be read or if its run has not ended. Its number of the trial is in `facts`.
    """
    root = artifacts.parent / "retrain"
    found = []
    for folder in [root, *sorted(root.glob("*/"))]:  # the demonstration writes its run into `root` itself
        facts, sheet = _read(folder / RETRAIN), _read(folder / SCORE)
        if facts.get("study") == study and "trial" in facts:
            with contextlib.suppress(UserError, KeyError, TypeError, ValueError):
                value, late, epoch = float(sheet["val_psnr"]), float(sheet["val_psnr_late"]), int(sheet["epoch"])
                found.append(replace(of_folder(folder), value=value, late=late, epoch=epoch))
    return max(found, key=lambda run: (run.value or 0.0, run.name), default=None)


def of_checkpoint(path: Path, scored: ScoreSheet | None = None, folder: Path | None = None) -> RunSummary:
    """The facts of a checkpoint of cvaeopt or of the lab. CheckpointError if it cannot be read.

    scored   the checkpoint's score; default: the score beside the checkpoint, if it is of this checkpoint
    folder   the folder of the score's pictures; default: the folder of the checkpoint
    """
    from cvaeopt.outcome.predict import file_digest
    from cvaeopt.vae.checkpoint import load_model

    loaded = load_model(path, ignore_extra=True)
    rows = tuple(loaded.own.history) if loaded.own else ()
    sheet = scored.plain() if scored is not None else _read(path.parent / SCORE)
    mine = sheet.get("checkpoint_digest") == file_digest(path)
    if not mine:
        sheet = {}
    own = next((row for row in rows if row.get("epoch") == loaded.epoch), {})
    value = _number(sheet.get("val_psnr", own.get("val_psnr")))
    seed = loaded.config.seed if loaded.config else None
    provenance = loaded.provenance or {}
    return RunSummary(
        name=_short_name(path),
        kind="checkpoint",
        value=value,
        estimated=OWN_EPOCH,
        late=_number(sheet.get("val_psnr_late", own.get("val_psnr_late"))),
        epoch=loaded.epoch or None,
        # Without a score of this checkpoint, the pictures in its folder are of another one.
        files=RunFiles(
            RunFolder(folder or (path.parent if mine else path)), rows, tuple(sheet.get("psnr_frames") or ())
        ),
        values={} if seed is None or value is None else {seed: value},
        settings=loaded.config.plain() if loaded.config else {},
        data=str(sheet.get("data_digest") or (loaded.own.data_digest if loaded.own else "") or ""),
        start=str(provenance.get("start") or ""),
        levels=_levels(sheet.get("baselines")),
        facts={key: value for key, value in provenance.items() if value is not None},
    )


def of_path(path: Path) -> RunSummary:
    return of_folder(path) if path.is_dir() else of_checkpoint(path)


def unique_names(paths: Sequence[Path]) -> list[str]:
    """A name for each path: as few of its last parts as tell the paths apart. UserError if a path is given twice."""
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise UserError(f"{path} is given twice.", "Expected: each run once.", "Leave one out.")
    names = [_short_name(path) for path in paths]
    for parts in range(2, max((len(path.parts) for path in resolved), default=0) + 1):
        names = [
            name if names.count(name) == 1 else "/".join(path.parts[-parts:])
            for name, path in zip(names, resolved, strict=True)
        ]
    return names


def _short_name(path: Path) -> str:
    """The last part of a path. The parent's name precedes it for a file, and for a folder whose name is a number."""
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.is_file() or path.name.isdigit() else path.name


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in the file; empty if there is none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _levels(stored: Any) -> dict[str, float]:
    stored = stored if isinstance(stored, dict) else {}
    found = {str(name): _number(value) for name, value in stored.items()}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

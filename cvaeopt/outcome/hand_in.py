"""The folder that is handed in: the submission, the checkpoint in the lab's format, the report and its facts.

    README.md            what each file is, what is missing, and where the lab's tester differs
    submission.csv, pred_seqK.gif, prediction.json
    checkpoint.ckpt      the lab's five keys, weights alone
    recipe.toml          the settings of the run, if the checkpoint has them
    report.md, report.tex, figures/, facts.json
    environment.json     versions, device and code; nothing about the user
    SHA256SUMS           for `sha256sum --check SHA256SUMS`
    hand-in.json         the digest of every file; it marks the folder as written by this program

The folder appears whole or not at all. A folder is replaced only if this program wrote it and nobody changed it since.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import CvaeoptError, UserError
from cvaeopt.files import whole_folder, write_bytes, write_json, write_text
from cvaeopt.outcome import recipe, score, submission
from cvaeopt.outcome.hand_in_report import TITLE, blocks
from cvaeopt.outcome.hand_in_tester import tester_notes
from cvaeopt.outcome.hand_in_text import Facts, latex, markdown
from cvaeopt.outcome.intervals import CONFIDENCE
from cvaeopt.outcome.predict import PROVENANCE, SUBMISSION, Prediction, Progress, predict
from cvaeopt.outcome.rolling import Noise
from cvaeopt.outcome.run_files import SCORE
from cvaeopt.outcome.score import ScoreSheet
from cvaeopt.pictures import curves
from cvaeopt.pictures.run_pictures import film_strip, worst_frames, worst_indices
from cvaeopt.pictures.training_chart import run_curves
from cvaeopt.vae import checkpoint
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.rollout import Output
from cvaeopt.vae.schedules import tfr_at
from cvaeopt.vae.sequences import count_test_sequences

if TYPE_CHECKING:
    from cvaeopt.outcome.hand_in_study import StudyPart

MANIFEST: Final = "hand-in.json"
CHECKPOINT: Final = "checkpoint.ckpt"
SUMS: Final = "SHA256SUMS"
_ROLL_OUT: Final = "rolling out the validation video"
_FIGURES: Final = "drawing the figures of the report"
_LIBRARIES: Final = ("torch", "numpy", "pillow", "optuna", "sqlalchemy", "matplotlib")


@dataclass(frozen=True)
class Options:
    """How the checkpoint predicts: see `predict` for each field."""

    z: Noise | None = None
    average: int = 1
    output: Output | None = None
    ignore_extra: bool = False


@dataclass(frozen=True)
class HandIn:
    """A folder that was written.

    files     the paths of its files, relative to the folder
    missing   sentences about what the folder does not have
    notes     sentences about the checkpoint and the prediction, and where the lab's tester differs
    """

    folder: Path
    files: tuple[str, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """The folder as JSON values."""
        return {**asdict(self), "folder": str(self.folder)}


def require_free(out: Path) -> None:
    """UserError unless `out` is new or empty, or was written by this program and not changed since."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        digests = dict(json.loads((out / MANIFEST).read_text())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{out} exists, and hand-in did not write it.",
            "Expected: a new folder, or one that hand-in wrote.",
            "Name another folder with --out.",
        ) from None
    now = _digests(out)
    changed = sorted(name for name in digests.keys() | now.keys() if digests.get(name) != now.get(name))
    if changed:
        shown = ", ".join(changed[:5]) + (" ..." if len(changed) > 5 else "")
        raise UserError(
            f"{out} was changed since hand-in wrote it: {shown}.",
            "Expected: a folder whose files nobody changed, so that no work is lost.",
            "Name another folder with --out, and copy your changes there.",
        )


def make(
    path: Path,
    data: Dataset,
    out: Path,
    *,
    device: str = "cpu",
    options: Options | None = None,
    study: StudyPart | None = None,
    progress: Progress = lambda what, done, total: None,
) -> HandIn:
    """Write the folder `out` for the checkpoint `path`.

    study      facts and charts of the study that the settings come from; None without a study
    progress   called with (step, done, total): the roll-out of the validation video, the test sequences, the figures

    UserError if `out` must not be replaced. CheckpointError or DataError as in `predict` and `score`.
    """
    require_free(out)
    chosen = options or Options()
    given: dict[str, Any] = {"device": device, "output": chosen.output, "ignore_extra": chosen.ignore_extra}
    progress(_ROLL_OUT, 0, 1)
    sheet = score.score(path, data, z=chosen.z, **given)
    progress(_ROLL_OUT, 1, 1)
    loaded = checkpoint.load_model(path, output=sheet.output["output"], ignore_extra=chosen.ignore_extra)
    with whole_folder(out) as folder:
        missing = list(_missing(data.root, loaded, study, sheet))
        prediction = None
        if count_test_sequences(data.root):
            prediction = predict(
                path, data.root, folder, z=chosen.z, average=chosen.average, progress=progress, **given
            )
            missing += _checked(folder / SUBMISSION, data)
        checkpoint.write(folder / CHECKPOINT, _in_lab_format(loaded))
        if loaded.config is not None:
            origin = recipe.Recipe(loaded.config, loaded.provenance).origin
            recipe.write(folder / "recipe.toml", recipe.Recipe(loaded.config, origin), "recipe.toml")
        write_json(folder / SCORE, sheet.plain())
        environment = _environment(device)
        write_json(folder / "environment.json", environment)
        tester, different = tester_notes(loaded, data, sheet)
        facts = _facts(loaded, sheet, prediction, study, {"environment": environment, "lab_tester": tester})
        write_json(folder / "facts.json", facts.values)
        _write_report(folder, facts, _charts(loaded, sheet, data, study), progress)
        notes = tuple(dict.fromkeys((*sheet.notes, *different)))
        write_text(folder / "README.md", _readme(missing, notes, predicted=prediction is not None))
        files = _digests(folder)
        write_text(folder / SUMS, "".join(f"{value}  {name}\n" for name, value in files.items()))
        files = _digests(folder)
        write_json(folder / MANIFEST, {"kind": "hand-in", "version": __version__, "files": files})
    return HandIn(out, (*files, MANIFEST), tuple(missing), notes)


def _missing(root: Path, loaded: Loaded, study: StudyPart | None, sheet: ScoreSheet) -> list[str]:
    """Sentences about what the folder will not have, and what is not final."""
    said = []
    if not count_test_sequences(root):
        said.append(
            f"There is no {SUBMISSION} and no GIF, because the data folder has no test sequences. Name one with --data."
        )
    if loaded.config is None:
        said.append("There is no recipe.toml, because a lab checkpoint does not hold the settings of its run.")
    if study is None:
        said.append("The report does not say how the settings were found, because no study was named.")
        return said
    facts = study.facts
    if facts["is_open"]:
        said.append(f"Study {facts['name']} has not ended: its numbers in the report may change.")
    if facts["best"] is None:
        said.append(f"Study {facts['name']} has no complete trial.")
    elif facts["confirmation"] is None or not facts["confirmation"]["over"]:
        said.append(
            f"The best value of study {facts['name']} is not confirmed by fresh runs. Run: "
            f"cvaeopt confirm --study {facts['name']}"
        )
    origin = loaded.provenance.get("study")
    if origin != facts["name"]:
        shown = f"study {origin}" if origin else "no study that it names"
        said.append(f"{sheet.checkpoint} comes from {shown}; the report shows study {facts['name']} beside it.")
    return said


def _checked(path: Path, data: Dataset) -> list[str]:
    """Check the submission that was just written. A sentence if its format is sound but not the lab's usual size."""
    height, width = data.val.frames.shape[2:]
    expected = submission.Expected.of(data.root, height, width)
    checked = submission.check(path, expected)
    if not checked.ok:
        raise CvaeoptError(
            f"The submission that was written has a fault: {checked.faults[0].text}",
            todo="This is a bug; please report it. Nothing was kept.",
        )
    usual = submission.Expected()
    if expected.pixels == usual.pixels and checked.rows in usual.rows:
        return []
    return [
        f"{SUBMISSION} has {checked.rows} rows of {expected.pixels} pixels, as its data folder and its network have. "
        f"The lab's test set has {usual.rows[0]} rows of {usual.pixels} pixels."
    ]


def _in_lab_format(loaded: Loaded) -> dict[str, Any]:
    """The five keys of the lab's checkpoint, without any other content of the file.

    As in the lab's program, `optimizer` holds the weights; the lab's loader does not read it.
    """
    weights = {name: value.detach().cpu().clone() for name, value in loaded.model.state_dict().items()}
    raw = loaded.raw if isinstance(loaded.raw, dict) else {}
    numbers = {key: raw.get(key) for key in ("lr", "tfr")}
    return {
        "state_dict": weights,
        "optimizer": weights,
        **{key: float(value) if isinstance(value, int | float) else 0.0 for key, value in numbers.items()},
        "last_epoch": loaded.epoch,
    }


def _environment(device: str) -> dict[str, Any]:
    """Versions, device and code. Nothing here names the user, the machine or a folder."""
    cuda = device.startswith("cuda")
    return {
        "cvaeopt": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        **{name: metadata.version(name) for name in _LIBRARIES},
    }


def _commit() -> str | None:
    """The commit of the program's code, if it runs in a Git checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip()


def _facts(
    loaded: Loaded,
    sheet: ScoreSheet,
    prediction: Prediction | None,
    study: StudyPart | None,
    more: dict[str, Any],
) -> Facts:
    scored = sheet.plain()
    worst = worst_indices(sheet.psnr_frames, 1)[0]
    predicted = None
    if prediction is not None:
        stored = json.loads((prediction.folder / PROVENANCE).read_text())
        predicted = {**stored, "sequences": len(prediction.sequences), "names": [s.name for s in prediction.sequences]}
    return Facts(
        {
            "confidence_percent": round(100 * CONFIDENCE),
            "score": {
                **{key: value for key, value in scored.items() if key != "psnr_frames"},
                "explained": [{**one.plain(), "values": "in score.json"} for one in sheet.explained],
                "frames": len(sheet.psnr_frames),
                "lowest": round(float(sheet.psnr_frames[worst]), 4),
            },
            "prediction": predicted,
            "run": {
                "settings": loaded.config.plain() if loaded.config else None,
                "forcing": forcing(loaded.config) if loaded.config else None,
                "provenance": loaded.provenance,
            },
            "study": study.facts if study else None,
            **more,
        }
    )


def forcing(config: Config) -> dict[str, Any]:
    """The forcing ratio of the first epoch, and the first epoch with a lower one, counted from 1 (None: no epoch)."""
    first = tfr_at(config, 0)
    falls = (epoch + 1 for epoch in range(config.num_epoch) if tfr_at(config, epoch) < first)
    return {"first": first, "falls_in": next(falls, None)}


def _charts(
    loaded: Loaded, sheet: ScoreSheet, data: Dataset, study: StudyPart | None
) -> dict[str, Callable[[], bytes]]:
    """Functions that draw the figures of the report, by name of the file."""
    videos = {"truth": data.val.frames[1:], "pose": data.val.labels[1:], "prediction": sheet.prediction}
    levels = sheet.baselines.plain()
    charts: dict[str, Callable[[], bytes]] = {
        "psnr_per_frame": lambda: curves.psnr_per_frame(sheet.psnr_frames, levels),
        "psnr_explained": lambda: sheet.dips_chart,
        "worst_frames": lambda: curves.page_of(worst_frames(videos, sheet.psnr_frames)),
        "film_strip": lambda: curves.page_of(film_strip(videos)),
    }
    if sheet.history:
        charts["training"] = lambda: run_curves(sheet.history)
    if (config := loaded.config) is not None:
        charts["schedules"] = lambda: curves.schedules({"this run": config})
    return {**charts, **(study.charts if study else {})}


def _write_report(folder: Path, facts: Facts, charts: dict[str, Callable[[], bytes]], progress: Progress) -> None:
    for done, (name, draw) in enumerate(charts.items()):
        progress(_FIGURES, done, len(charts))
        for kind in ("pdf", "png"):
            with curves.charts_as(kind):
                write_bytes(folder / "figures" / f"{name}.{kind}", draw())
    progress(_FIGURES, len(charts), len(charts))
    document = blocks(facts, charts.keys())
    write_text(folder / "report.md", markdown(TITLE, document))
    write_text(folder / "report.tex", latex(TITLE, document))


def _readme(missing: list[str], notes: tuple[str, ...], *, predicted: bool) -> str:
    listed = "\n".join(f"- {text}" for text in missing) or "- Nothing."
    differences = "\n".join(f"- {text}" for text in notes) or "- Nothing."
    made = "the predicted test sequences; `prediction.json` says how they were made"
    sequences = f"| `{SUBMISSION}`, `pred_seqK.gif` | {made} |\n" if predicted else ""
    return f"""# What is handed in

| file | what it is |
|---|---|
{sequences}| `{CHECKPOINT}` | the weights in the lab's format |
| `recipe.toml` | the settings of the run |
| `report.md`, `report.tex`, `figures/` | a skeleton of the report; AUTHOR marks what you must write |
| `facts.json` | every number of the report; a comment after each sentence names its place |
| `{SCORE}`, `environment.json` | the score on the validation video; versions, device and code |
| `{SUMS}`, `{MANIFEST}` | the digest of every file: `sha256sum --check {SUMS}` |

## What is missing or not final

{listed}

## The checkpoint and the lab's tester

{differences}
"""


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 digest of every file in `folder` but the manifest, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != MANIFEST
    }

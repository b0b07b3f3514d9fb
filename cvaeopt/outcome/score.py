"""What a checkpoint is worth, beside what costs nothing; and its recalibration.

A score is the free-running roll-out of the validation video with the checkpoint exactly as it is stored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cvaeopt.errors import CheckpointError, DataError
from cvaeopt.files import write_bytes, write_json
from cvaeopt.outcome import predict, recipe
from cvaeopt.outcome.predict import Noise, file_digest, frame_size, roll_frames
from cvaeopt.pictures.run_pictures import Frames, film_strip, trial_artifacts, worst_indices
from cvaeopt.vae import checkpoint
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Dataset, test_sequences
from cvaeopt.vae.metrics import Baselines, baselines, late_mean, psnr_per_frame, public_score
from cvaeopt.vae.rollout import recalibrate as recalibrate_model
from cvaeopt.vae.rollout import to_float, to_pixels

SHEET: Final = "score.json"
STRIP: Final = "film_strip.png"


@dataclass(frozen=True)
class ScoreSheet:
    """Free-running PSNR of a checkpoint on the validation video, in dB.

    psnr_frames   (T,) of the predicted frames 1..T
    public        test sequence -> public score, where true frames are known
    prediction    (T, 3, H, W) uint8, for pictures
    """

    checkpoint: str
    checkpoint_digest: str
    epoch: int
    mean: float
    late: float
    baselines: Baselines
    data_digest: str
    noise: Noise
    psnr_frames: NDArray[np.float32]
    prediction: Frames = field(repr=False)
    history: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    public: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The sheet as JSON values; PSNR rounded to 0.0001 dB."""
        return {
            "kind": "score",
            "checkpoint": self.checkpoint,
            "checkpoint_digest": self.checkpoint_digest,
            "epoch": self.epoch,
            "val_psnr": round(self.mean, 4),
            "val_psnr_late": round(self.late, 4),
            "baselines": {name: round(value, 4) for name, value in self.baselines.plain().items()},
            "gain_over_baselines": round(self.gain, 4),
            "public": {name: round(value, 4) for name, value in self.public.items()},
            "worst_frames": [index + 1 for index in worst_indices(self.psnr_frames, 4)],
            "noise": {"kind": self.noise.kind, "scale": self.noise.scale, "seed": self.noise.seed},
            "data_digest": self.data_digest,
            "psnr_frames": [round(float(value), 4) for value in self.psnr_frames],
        }

    @property
    def gain(self) -> float:
        """Mean PSNR over the best of copying the first frame and showing the mean frame, dB (negative: worse)."""
        return self.mean - max(self.baselines.copy_first, self.baselines.train_mean)


def score(
    path: Path,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    z: Noise | None = None,
    public: bool = False,
    known: Baselines | None = None,
) -> ScoreSheet:
    """The score of the checkpoint `path` (ours or the lab's) on `data`, whose frames have the model's size.

    z        default: what the checkpoint's own validation used
    public   also score the test sequences whose true frames are known (DataError if there is none)
    known    the data's baselines, if they were computed before
    """
    loaded = checkpoint.load_model(path, device)
    _check_size(loaded, data)
    noise = z or Noise.of(loaded.config)
    prediction, psnr = _validate(loaded, data, noise)
    own = loaded.raw.get("cvaeopt") or {}
    return ScoreSheet(
        checkpoint=path.name,
        checkpoint_digest=file_digest(path),
        epoch=loaded.epoch,
        mean=float(psnr.mean(dtype=np.float64)),
        late=late_mean(psnr),
        baselines=known or baselines(data.train, data.val),
        data_digest=data.digest,
        noise=noise,
        psnr_frames=psnr,
        prediction=prediction,
        history=tuple(own.get("history") or ()),
        public=_public(loaded, data, noise) if public else {},
    )


def write(sheet: ScoreSheet, data: Dataset, folder: Path) -> list[Path]:
    """Write score.json and its pictures into `folder`; their paths."""
    made = trial_artifacts(
        folder,
        sheet.history,
        psnr_frames=sheet.psnr_frames,
        prediction=sheet.prediction,
        truth=data.val.frames[1:],
        labels=data.val.labels[1:],
        baselines=sheet.baselines.plain(),
        title=sheet.checkpoint,
    )
    rows = {"truth": data.val.frames[1:], "pose": data.val.labels[1:], "prediction": sheet.prediction}
    write_bytes(folder / STRIP, film_strip(rows))
    write_json(folder / SHEET, sheet.plain())
    return [folder / SHEET, *made, folder / STRIP]


@dataclass(frozen=True)
class Recalibration:
    """Validation PSNR with the statistics as stored and recomputed, dB; `written` is the new checkpoint."""

    before: float
    after: float
    written: Path

    def plain(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {"before": round(self.before, 4), "after": round(self.after, 4), "written": str(self.written)}


def recalibrate(
    path: Path, data: Dataset, out: Path, *, device: torch.device | str = "cpu", z: Noise | None = None
) -> Recalibration:
    """Write a copy of the checkpoint `path` whose BatchNorm statistics are those of all training labels.

    The format is kept, ours or the lab's; nothing but the two statistics changes. A checkpoint of ours continues
    training from `out` as it would have from `path`.
    """
    if out.resolve() == path.resolve():
        raise CheckpointError(f"{out} is the checkpoint itself.", todo="Name another file for the new one.")
    loaded = checkpoint.load_model(path, device)
    _check_size(loaded, data)
    noise = z or Noise.of(loaded.config)
    before = _validate(loaded, data, noise)[1]
    recalibrate_model(loaded.model, torch.tensor(data.train.labels))
    after = _validate(loaded, data, noise)[1]
    payload = dict(loaded.raw)
    weights = dict(payload["state_dict"])
    own = payload.get("cvaeopt")
    if isinstance(own, dict):
        payload["cvaeopt"] = own = dict(own)
        own["training"] = dict(own["training"])
    for key, value in loaded.model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            if isinstance(own, dict):  # the statistics of training stay what they were
                own["training"].setdefault(key, weights[key])
            weights[key] = value.detach().to("cpu", weights[key].dtype)
    payload["state_dict"] = weights
    checkpoint.write(out, payload)
    return Recalibration(float(before.mean(dtype=np.float64)), float(after.mean(dtype=np.float64)), out)


def show(path: Path) -> dict[str, Any]:
    """Where a file comes from: a recipe, a checkpoint, a score, or a folder (or file) of predictions.

    CheckpointError when the file carries no provenance.
    """
    if path.is_dir():
        names = (predict.PROVENANCE, SHEET, "retrain.json")
        inside = next((path / name for name in names if (path / name).is_file()), None)
        if inside is None:
            raise CheckpointError(
                f"{path} has none of {', '.join(names)}.",
                "Expected: a folder that predict, score or retrain wrote.",
                "Name the recipe or the checkpoint itself.",
            )
        return show(inside)
    if path.suffix == ".toml":
        found = recipe.read(path)
        return {
            "kind": "recipe",
            **found.provenance,
            "edited_since_export": found.edited,
            "settings": found.settings.plain(),
        }
    if path.suffix == ".json":
        return _read_json(path)
    if path.suffix in (".csv", ".gif"):
        beside = path.parent / predict.PROVENANCE
        if not beside.is_file():
            raise CheckpointError(
                f"{path} has no {predict.PROVENANCE} beside it.", "Expected: a folder that predict wrote."
            )
        return _read_json(beside)
    loaded = checkpoint.load_model(path)
    own = loaded.raw.get("cvaeopt")
    return {
        "kind": "checkpoint",
        "format": "cvaeopt" if isinstance(own, dict) else "lab",
        "epoch": loaded.epoch,
        "widths": dict(loaded.model.widths),
        "digest": file_digest(path),
        "version": own.get("version") if isinstance(own, dict) else None,
        "data_digest": own.get("data_digest") if isinstance(own, dict) else None,
        "settings_digest": loaded.config.digest() if loaded.config else None,
        "provenance": loaded.provenance,
        "settings": loaded.config.plain() if loaded.config else None,
    }


def _validate(loaded: Loaded, data: Dataset, noise: Noise) -> tuple[Frames, NDArray[np.float32]]:
    """Prediction of validation frames 1.. as pixels, and the PSNR of each before rounding (as in training)."""
    rolled = roll_frames(loaded, data.val.frames[0], data.val.labels[1:], noise)
    psnr = psnr_per_frame(rolled, to_float(torch.tensor(data.val.frames[1:])))
    return to_pixels(rolled).numpy(), psnr.float().numpy()


def _public(loaded: Loaded, data: Dataset, noise: Noise) -> dict[str, float]:
    height, width = data.val.frames.shape[2:]
    scores = {}
    for sequence in test_sequences(data.root, height, width):
        if sequence.truth is not None:
            rolled = roll_frames(loaded, sequence.first, sequence.labels[1:], noise)
            frames = np.concatenate([sequence.first[None], to_pixels(rolled).numpy()])
            scores[sequence.name] = public_score(frames, sequence.truth)
    if not scores:
        raise DataError(
            f"{data.root}: no test sequence has true frames.",
            "Expected: test/test_truth/K/ with a frame for every label.",
            "Score the validation video only.",
        )
    return scores


def _check_size(loaded: Loaded, data: Dataset) -> None:
    if loaded.config and frame_size(loaded.config) != data.val.frames.shape[2:]:
        height, width = frame_size(loaded.config)
        raise DataError(
            f"The data was loaded at {data.val.frames.shape[2]} x {data.val.frames.shape[3]}.",
            f"Expected: {height} x {width}, the frames of the checkpoint.",
        )


def _read_json(path: Path) -> dict[str, Any]:

    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Expected: JSON.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no provenance.", "Expected: a JSON object.")
    return found

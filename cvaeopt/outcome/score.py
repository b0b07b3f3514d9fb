"""The score of a checkpoint compared with the baselines, and the recalibration of a checkpoint.

A score is the PSNR of the free-running roll-out on the validation video. The checkpoint is used exactly as it is
stored.
"""

from __future__ import annotations

import copy
import functools
import json
import operator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from cvaeopt.errors import CheckpointError, DataError
from cvaeopt.files import write_bytes, write_json
from cvaeopt.outcome import predict, recipe
from cvaeopt.outcome.dips import LABELS, Explanation, explanations, interval_text, verdict_text
from cvaeopt.outcome.predict import file_digest
from cvaeopt.outcome.rolling import Noise, Span, frame_size, notes, output_facts, roll_frames, with_output_decided
from cvaeopt.outcome.run_files import DIPS, RETRAIN, SCORE
from cvaeopt.pictures.curves import charts_as
from cvaeopt.pictures.dips_chart import Strip, dips_chart
from cvaeopt.pictures.run_pictures import Frames, film_strip, trial_artifacts, worst_indices
from cvaeopt.vae import checkpoint
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.metrics import Baselines, baselines, late_mean, psnr_per_frame, public_score
from cvaeopt.vae.rollout import Output, to_float, to_pixels
from cvaeopt.vae.rollout import recalibrate as recalibrate_model
from cvaeopt.vae.sequences import test_sequences
from cvaeopt.vae.weights import replaced

STRIP: Final = "film_strip.png"


@dataclass(frozen=True)
class ScoreSheet:
    """Free-running PSNR of a checkpoint on the validation video, in dB.

    mean          mean of `psnr_frames`
    late          mean of the last third of `psnr_frames`
    psnr_frames   (T,) PSNR of the predicted frames 1..T
    prediction    (T, 3, H, W) uint8, the predicted frames, for pictures
    history       the rows of the training's history; empty for a lab checkpoint
    public        name of the test sequence -> its public score, for sequences whose true frames are known
    output        JSON values of `output_facts`
    explained     the measures that may explain a low PSNR, and their correlations with it
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
    output: dict[str, Any] = field(default_factory=dict)
    explained: tuple[Explanation, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The sheet as JSON values. Each PSNR is rounded to 0.0001 dB."""
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
            "worst_frames": [index + 1 for index in self.worst],
            "explained": [one.plain() for one in self.explained],
            "noise": {"kind": self.noise.kind, "scale": self.noise.scale, "seed": self.noise.seed},
            **self.output,
            "data_digest": self.data_digest,
            "psnr_frames": [round(float(value), 4) for value in self.psnr_frames],
        }

    @property
    def worst(self) -> list[int]:
        """The indices of the frames at the worst dips, the worst first."""
        return worst_indices(self.psnr_frames, 4)

    @property
    def dips_chart(self) -> bytes:
        """The chart of the PSNR per frame over the measures that may explain it."""
        strips = [
            Strip(one.values, LABELS[one.name], f"{interval_text(one)}: {verdict_text(one)}", one.verdict != "unknown")
            for one in self.explained
        ]
        return dips_chart(self.psnr_frames, strips, self.worst)

    @property
    def gain(self) -> float:
        """The mean PSNR minus the PSNR of the better trivial baseline, dB.

        The trivial baselines are a copy of the first frame and the mean training frame. A negative gain means that the
        checkpoint is worse than a trivial baseline.
        """
        return self.mean - max(self.baselines.copy_first, self.baselines.train_mean)


def score(
    path: Path,
    data: Dataset,
    *,
    device: torch.device | str = "cpu",
    z: Noise | None = None,
    public: bool = False,
    known: Baselines | None = None,
    output: Output | None = None,
    ignore_extra: bool = False,
) -> ScoreSheet:
    """The score of the checkpoint `path` on the validation video of `data`.

    path     a checkpoint of cvaeopt or of the lab
    z        default: the noise that the checkpoint's own validation used
    public   whether the test sequences whose true frames are known are scored, too
    known    the data's baselines, if they were computed before
    output   how frames are made from the network's output; default: the checkpoint's own output. If the checkpoint
             does not name its output, the output that fits the validation video best is used.

    DataError if the frames of `data` do not have the checkpoint's size, or if `public` is True and no test sequence
    has true frames.
    """
    loaded = checkpoint.load_model(path, device, output=output, ignore_extra=ignore_extra)
    _check_size(loaded, data)
    noise = z or Noise.of(loaded.config)
    loaded = with_output_decided(loaded, data.val, noise)
    prediction, psnr, span = _validate(loaded, data, noise)
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
        history=tuple(loaded.own.history) if loaded.own else (),
        public=_public(loaded, data, noise) if public else {},
        output=output_facts(loaded, span),
        explained=explanations(psnr, prediction, data.val, data.train),
        notes=notes(loaded, path.name, span),
    )


def write(sheet: ScoreSheet, data: Dataset, folder: Path) -> list[Path]:
    """Write score.json and its pictures into `folder`, and return their paths."""
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
    write_bytes(folder / DIPS, sheet.dips_chart)
    pdf = (folder / DIPS).with_suffix(".pdf")
    with charts_as("pdf"):
        write_bytes(pdf, sheet.dips_chart)
    write_json(folder / SCORE, sheet.plain())
    return [folder / SCORE, *made, folder / STRIP, folder / DIPS, pdf]


@dataclass(frozen=True)
class Recalibration:
    """The result of a recalibration.

    before    validation PSNR with the stored statistics, dB
    after     validation PSNR with the new statistics, dB
    written   path of the new checkpoint
    """

    before: float
    after: float
    written: Path
    output: dict[str, Any]
    notes: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """The result as JSON values. Each PSNR is rounded to 0.0001 dB."""
        figures = {"before": round(self.before, 4), "after": round(self.after, 4), "written": str(self.written)}
        return {**figures, **self.output}


def recalibrate(
    path: Path,
    data: Dataset,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    z: Noise | None = None,
    output: Output | None = None,
    ignore_extra: bool = False,
) -> Recalibration:
    """Write a copy of the checkpoint `path` to `out`. Its BatchNorm statistics are those of all training labels.

    The copy has the same format, which is the format of cvaeopt or of the lab. Only the running mean and the running
    variance of the network change. A checkpoint of cvaeopt keeps the statistics of its training separately, so a
    training that continues from `out` gives the same result as from `path`.

    output   as in `score`; the validation video is predicted with the new statistics to choose the output

    CheckpointError if `out` and `path` are the same file. DataError if the frames of `data` do not have the
    checkpoint's size.
    """
    if out.resolve() == path.resolve():
        raise CheckpointError(f"{out} is the checkpoint itself.", todo="Name another file for the new one.")
    stored = checkpoint.load_model(path, device, output=output, ignore_extra=ignore_extra)
    _check_size(stored, data)
    noise = z or Noise.of(stored.config)
    changed = replace(stored, model=copy.deepcopy(stored.model))
    recalibrate_model(changed.model, torch.tensor(data.train.labels))
    changed = with_output_decided(changed, data.val, noise)
    before = _validate(replace(stored, output=changed.output), data, noise)[1]
    _, after, span = _validate(changed, data, noise)
    checkpoint.write(out, _with_statistics(changed))
    return Recalibration(
        float(before.mean(dtype=np.float64)),
        float(after.mean(dtype=np.float64)),
        out,
        output_facts(changed, span),
        notes(changed, path.name, span),
    )


def _with_statistics(loaded: Loaded) -> Any:
    """The content of the checkpoint's file, in which the BatchNorm statistics are replaced by those of the network."""
    payload, weights = loaded.raw, loaded.weights
    assert weights is not None
    for name, value in loaded.model.state_dict().items():
        if not name.endswith(("running_mean", "running_var")):
            continue
        # A training that continues from the copy needs the old statistics, so they are kept under "training".
        if loaded.own and name not in payload["cvaeopt"]["training"]:
            payload = replaced(payload, ("cvaeopt", "training", name), weights.tensors[name])
        stored = functools.reduce(operator.getitem, weights.paths[name], payload)
        fresh = value.detach().cpu()
        fresh = fresh.to(stored.dtype) if isinstance(stored, torch.Tensor) else fresh.numpy().astype(stored.dtype)
        payload = replaced(payload, weights.paths[name], fresh)
    return payload


def show(path: Path) -> dict[str, Any]:
    """The provenance of the file or folder `path`, as JSON values.

    `path` is a recipe, a checkpoint, a score, a file of a prediction, or a folder that predict, score or retrain wrote.
    CheckpointError if `path` has no provenance. SettingsError if a recipe is not valid.
    """
    if path.is_dir():
        names = (predict.PROVENANCE, SCORE, RETRAIN)
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
    loaded = checkpoint.load_model(path, ignore_extra=True)
    own = loaded.own
    return {
        "kind": "checkpoint",
        "format": "cvaeopt" if own else "lab",
        "weights_under": loaded.weights.place if loaded.weights else "",
        "epoch": loaded.epoch,
        "widths": dict(loaded.model.widths),
        "extra_tensors": list(loaded.ignored),
        "digest": file_digest(path),
        "version": own.version if own else None,
        "data_digest": own.data_digest if own else None,
        "settings_digest": loaded.config.digest() if loaded.config else None,
        "provenance": loaded.provenance,
        "settings": loaded.config.plain() if loaded.config else None,
    }


def _validate(loaded: Loaded, data: Dataset, noise: Noise) -> tuple[Frames, NDArray[np.float32], Span]:
    """The prediction of validation frames 1..T as pixels, the PSNR of each frame, and the span of all values.

    As in training, PSNR is computed before the values are rounded to pixels.
    """
    rolled = roll_frames(loaded, data.val.frames[0], data.val.labels[1:], noise)
    psnr = psnr_per_frame(rolled, to_float(torch.tensor(data.val.frames[1:])))
    return to_pixels(rolled).numpy(), psnr.float().numpy(), Span.of(rolled)


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

"""From a checkpoint to what is handed in: a GIF of every test sequence and one submission.csv.

submission.csv, as the lab's own test program writes it: the header `id,0,1,...`, then one row per frame of all
sequences in natural order of their folders. `id` counts rows from 0 through all sequences; the pixels are
integers 0-255 in C, H, W order (6,144 of a 32 x 64 frame); a sequence's first row is its given frame, and it has
as many rows as labels. `pred_seq0.gif` is the first sequence, whatever number its folder has.

One sequence is in memory at a time, so their number does not matter.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import DataError, SettingsError
from cvaeopt.files import whole, write_json
from cvaeopt.pictures.run_pictures import Frames, write_gif
from cvaeopt.vae import checkpoint
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import count_test_sequences, test_sequences
from cvaeopt.vae.metrics import public_score
from cvaeopt.vae.rollout import noise, roll_chunks, to_float, to_pixels

Progress = Callable[[str, int, int], None]

SUBMISSION: Final = "submission.csv"
PROVENANCE: Final = "prediction.json"
LAB_HEIGHT: Final = 32
LAB_WIDTH: Final = 64
_NUMBERS: Final = [str(value).encode() for value in range(256)]


@dataclass(frozen=True)
class Noise:
    """z of a roll-out: the prior N(0, I), zero, or the prior scaled by `scale`; equal seeds give equal z."""

    kind: Literal["prior", "zero", "scaled"] = "prior"
    scale: float = 0.5
    seed: int = 0

    @classmethod
    def of(cls, config: Config | None) -> Noise:
        """What the run's own validation used; the prior for a checkpoint without settings."""
        return cls(config.val_noise, config.val_noise_scale, config.val_noise_seed) if config else cls()


@dataclass(frozen=True)
class Predicted:
    """One finished sequence; `public_db` is its public score where the true frames are known."""

    name: str
    gif: str
    frames: int
    public_db: float | None


@dataclass(frozen=True)
class Prediction:
    """What `predict` wrote."""

    folder: Path
    submission: Path
    sequences: tuple[Predicted, ...]
    rows: int
    seconds: float

    @property
    def public_db(self) -> float | None:
        """Mean public score over the sequences whose true frames are known, dB."""
        known = [sequence.public_db for sequence in self.sequences if sequence.public_db is not None]
        return sum(known) / len(known) if known else None


def predict(
    path: Path,
    root: Path,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    z: Noise | None = None,
    average: int = 1,
    progress: Progress | None = None,
) -> Prediction:
    """Predict every test sequence under `root` with the checkpoint `path` (ours or the lab's) into `out`.

    z          default: what the checkpoint's own validation used
    average    roll-outs whose frames are averaged, with seeds z.seed, z.seed + 1, ...
    Each GIF and submission.csv appear whole or not at all; prediction.json says what made them.
    """
    if average < 1:
        raise SettingsError(f"average = {average}.", "Expected: at least 1 roll-out.")
    began = time.perf_counter()
    loaded = checkpoint.load_model(path, device)
    chosen = z or Noise.of(loaded.config)
    height, width = frame_size(loaded.config)
    total = count_test_sequences(root)
    if not total:
        raise DataError(
            f"{root} has no test sequences.",
            "Expected: test/test_img/K/ with one frame and test/test_label/K/ with its labels.",
            "Pass a data folder that has them.",
        )
    done: list[Predicted] = []
    rows = 0
    with whole(out / SUBMISSION) as stream:
        stream.write(b"id," + b",".join(str(pixel).encode() for pixel in range(3 * height * width)) + b"\n")
        for index, sequence in enumerate(test_sequences(root, height, width)):
            if progress:
                progress(f"sequence {sequence.name}", index, total)
            rolled = _averaged(loaded, sequence.first, sequence.labels[1:], chosen, average)
            frames = np.concatenate([sequence.first[None], rolled])
            gif = f"pred_seq{index}.gif"
            write_gif(out / gif, iter(frames))
            for frame in frames:
                stream.write(_row(rows, frame))
                rows += 1
            score = None if sequence.truth is None else public_score(frames, sequence.truth)
            done.append(Predicted(sequence.name, gif, len(frames), score))
    if progress:
        progress("done", total, total)
    result = Prediction(out, out / SUBMISSION, tuple(done), rows, time.perf_counter() - began)
    write_json(out / PROVENANCE, _provenance(path, loaded, chosen, average, result))
    return result


def roll_frames(loaded: Loaded, first: Frames, labels: Frames, z: Noise) -> Tensor:
    """Frames 1..T predicted from `first` (3, H, W) and their labels (T, 3, H, W), both uint8.

    returns   (T, 3, H, W) float32 on the CPU; outside [0, 1] where the network's output is
    """
    height, width = first.shape[1:]
    channels = loaded.model.widths["N_dim"]
    draw = noise(z.kind, z.scale, z.seed, len(labels), channels, height, width)
    start = to_float(torch.tensor(first[None])).contiguous(memory_format=torch.channels_last)
    # Statistics as stored: what we write is recalibrated, and a lab checkpoint gets what its own tester gives it.
    pieces = roll_chunks(loaded.model, start, torch.tensor(labels[None]), draw[None], loaded.output, "stored")
    return torch.cat([piece[0].float().cpu() for piece in pieces])


def _averaged(loaded: Loaded, first: Frames, labels: Frames, z: Noise, average: int) -> Frames:
    """The mean of `average` roll-outs as pixels (T, 3, H, W) uint8."""
    total = roll_frames(loaded, first, labels, z)
    for again in range(1, average):
        total += roll_frames(loaded, first, labels, Noise(z.kind, z.scale, z.seed + again))
    pixels: Frames = to_pixels(total / average).numpy()
    return pixels


def frame_size(config: Config | None) -> tuple[int, int]:
    """Height and width of a checkpoint's frames; the lab's where its settings are unknown."""
    return (config.frame_H, config.frame_W) if config else (LAB_HEIGHT, LAB_WIDTH)


def file_digest(path: Path) -> str:
    """The first twelve hex digits of the SHA-256 of the file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def _row(number: int, frame: Frames) -> bytes:
    return b"%d," % number + b",".join([_NUMBERS[value] for value in frame.ravel().tolist()]) + b"\n"


def _provenance(path: Path, loaded: Loaded, z: Noise, average: int, result: Prediction) -> dict[str, Any]:
    return {
        "kind": "prediction",
        "checkpoint": {
            "name": path.name,
            "digest": file_digest(path),
            "epoch": loaded.epoch,
            "settings_digest": loaded.config.digest() if loaded.config else None,
            "provenance": loaded.provenance,
        },
        "noise": asdict(z),
        "average": average,
        "output": loaded.output,
        "sequences": [asdict(sequence) for sequence in result.sequences],
        "public_db": result.public_db,
        "rows": result.rows,
        "version": __version__,
    }

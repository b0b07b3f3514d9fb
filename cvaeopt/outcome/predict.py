"""From a checkpoint to what is handed in: a GIF of every test sequence and one submission.csv.

submission.csv, as the lab's own test program writes it: the header `id,0,1,...`, then one row per frame of all
sequences in natural order of their folders. `id` counts rows from 0 through all sequences; the pixels are
integers 0-255 in C, H, W order (6,144 of a 32 x 64 frame); a sequence's first row is its given frame, and it has
as many rows as labels. `pred_seq0.gif` is the first sequence, whatever number its folder has.

One sequence is in memory at a time, so their number does not matter.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cvaeopt import __version__
from cvaeopt.errors import DataError, SettingsError
from cvaeopt.files import whole, write_json
from cvaeopt.outcome.rolling import Noise as Noise
from cvaeopt.outcome.rolling import Span, frame_size, notes, output_facts, roll_frames, with_output_decided
from cvaeopt.pictures.run_pictures import Frames, write_gif
from cvaeopt.vae import checkpoint
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Split, validation_video
from cvaeopt.vae.metrics import public_score
from cvaeopt.vae.rollout import Output, to_pixels
from cvaeopt.vae.sequences import count_test_sequences, test_sequences

Progress = Callable[[str, int, int], None]

SUBMISSION: Final = "submission.csv"
PROVENANCE: Final = "prediction.json"
_NUMBERS: Final = [str(value).encode() for value in range(256)]


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
    output: dict[str, Any]
    notes: tuple[str, ...]

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
    output: Output | None = None,
    ignore_extra: bool = False,
) -> Prediction:
    """Predict every test sequence under `root` with the checkpoint `path` (ours or the lab's) into `out`.

    z          default: what the checkpoint's own validation used
    average    roll-outs whose frames are averaged, with seeds z.seed, z.seed + 1, ...
    output     how frames are made of the network's output; default: as the checkpoint says, or else as fits the
               validation video under `root` best
    Each GIF and submission.csv appear whole or not at all; prediction.json says what made them.
    """
    if average < 1:
        raise SettingsError(f"average = {average}.", "Expected: at least 1 roll-out.")
    began = time.perf_counter()
    loaded = checkpoint.load_model(path, device, output=output, ignore_extra=ignore_extra)
    chosen = z or Noise.of(loaded.config)
    total = count_test_sequences(root)
    if not total:
        raise DataError(
            f"{root} has no test sequences.",
            "Expected: test/test_img/K/ with one frame and test/test_label/K/ with its labels.",
            "Pass a data folder that has them.",
        )
    loaded = with_output_decided(loaded, _validation_video(loaded, root), chosen)
    done, span = _write_sequences(loaded, root, out, chosen, average, total, progress)
    result = Prediction(
        out,
        out / SUBMISSION,
        tuple(done),
        sum(sequence.frames for sequence in done),
        time.perf_counter() - began,
        output_facts(loaded, span),
        notes(loaded, path.name, span),
    )
    write_json(out / PROVENANCE, _provenance(path, loaded, chosen, average, result))
    return result


def _write_sequences(
    loaded: Loaded, root: Path, out: Path, z: Noise, average: int, total: int, progress: Progress | None
) -> tuple[list[Predicted], Span]:
    """Predict each sequence, write its GIF and its rows of submission.csv; also the range of all outputs."""
    height, width = frame_size(loaded.config)
    done: list[Predicted] = []
    span = Span(0.0, 1.0, 0.0)
    with whole(out / SUBMISSION) as stream:
        stream.write(b"id," + b",".join(str(pixel).encode() for pixel in range(3 * height * width)) + b"\n")
        rows = itertools.count()
        for index, sequence in enumerate(test_sequences(root, height, width)):
            if progress:
                progress(f"sequence {sequence.name}", index, total)
            rolled = _averaged(loaded, sequence.first, sequence.labels[1:], z, average)
            span = span.joined(Span.of(rolled))
            frames = np.concatenate([sequence.first[None], to_pixels(rolled).numpy()])
            gif = f"pred_seq{index}.gif"
            write_gif(out / gif, iter(frames))
            stream.writelines(_row(next(rows), frame) for frame in frames)
            score = None if sequence.truth is None else public_score(frames, sequence.truth)
            done.append(Predicted(sequence.name, gif, len(frames), score))
    if progress:
        progress("done", total, total)
    return done, span


def _validation_video(loaded: Loaded, root: Path) -> Split | None:
    """The validation video under `root` where it is needed to decide; None if there is none that can be read."""
    if loaded.output_from != "assumed":
        return None
    try:
        return validation_video(root, *frame_size(loaded.config))
    except DataError:
        return None


def _averaged(loaded: Loaded, first: Frames, labels: Frames, z: Noise, average: int) -> Tensor:
    """The mean of `average` roll-outs, (T, 3, H, W) float32."""
    total = roll_frames(loaded, first, labels, z)
    for again in range(1, average):
        total += roll_frames(loaded, first, labels, Noise(z.kind, z.scale, z.seed + again))
    return total / average


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
        **result.output,
        "sequences": [asdict(sequence) for sequence in result.sequences],
        "public_db": result.public_db,
        "rows": result.rows,
        "version": __version__,
    }

"""Prediction of the test sequences with a checkpoint: a GIF of every sequence, and one submission.csv for all.

submission.csv has the format of the lab's own test program. The header is `id,0,1,...`. Each further row is a frame.
The sequences follow each other in the natural order of their folders' names. `id` numbers the rows of all sequences
from 0. The pixels are integers 0-255 in C, H, W order (6,144 pixels for a 32 x 64 frame). The first row of a sequence
is its given frame. A sequence has as many rows as labels. `pred_seq0.gif` is always the first sequence, even if its
folder has another number.

Only one sequence is in memory at a time, so the memory does not grow with the number of sequences.
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
    """One finished sequence. `public_db` is its public score in dB, or None if the true frames are not known."""

    name: str
    gif: str
    frames: int
    public_db: float | None


@dataclass(frozen=True)
class Prediction:
    """The files that `predict` wrote, and facts about the prediction.

    rows      number of rows in submission.csv without the header
    seconds   duration of the whole prediction
    output    JSON values of `output_facts`
    """

    folder: Path
    submission: Path
    sequences: tuple[Predicted, ...]
    rows: int
    seconds: float
    output: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def public_db(self) -> float | None:
        """The mean public score of the sequences whose true frames are known, dB; None if there is no such sequence."""
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
    """Predict every test sequence under `root` with the checkpoint `path`, and write the files into the folder `out`.

    path       a checkpoint of cvaeopt or of the lab
    z          default: the noise that the checkpoint's own validation used
    average    number of roll-outs whose frames are averaged; their seeds are z.seed, z.seed + 1, ...
    output     how frames are made from the network's output; default: the checkpoint's own output. If the checkpoint
               does not name its output, the output that fits the validation video under `root` best is used.

    No GIF and no submission.csv is ever written in part. prediction.json contains their provenance. DataError if
    there is no test sequence. SettingsError if `average` < 1.
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
    """Predict each sequence, and write its GIF and its rows of submission.csv.

    returns   the finished sequences, and the span of all their predicted values
    """
    height, width = frame_size(loaded.config)
    done: list[Predicted] = []
    span = Span(0.0, 1.0, 0.0)
    with whole(out / SUBMISSION) as stream:
        stream.write(b"id," + b",".join(str(pixel).encode() for pixel in range(3 * height * width)) + b"\n")
        rows = itertools.count()
        for index, sequence in enumerate(test_sequences(root, height, width)):
            if progress:
                progress("predicting test sequences", index, total)
            rolled = _averaged(loaded, sequence.first, sequence.labels[1:], z, average)
            span = span.joined(Span.of(rolled))
            frames = np.concatenate([sequence.first[None], to_pixels(rolled).numpy()])
            gif = f"pred_seq{index}.gif"
            write_gif(out / gif, iter(frames))
            stream.writelines(_row(next(rows), frame) for frame in frames)
            score = None if sequence.truth is None else public_score(frames, sequence.truth)
            done.append(Predicted(sequence.name, gif, len(frames), score))
    if progress:
        progress("predicting test sequences", total, total)
    return done, span


def _validation_video(loaded: Loaded, root: Path) -> Split | None:
    """The validation video under `root`, if it is needed to choose the output; None otherwise.

    If the video is missing or cannot be read, the result is None, too.
    """
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
    """The first twelve hex digits of the file's SHA-256 digest."""
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

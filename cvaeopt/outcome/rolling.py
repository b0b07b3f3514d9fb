"""The roll-outs of a checkpoint: the noise, the size of the frames, and the way from the network's output to frames.

A checkpoint in the lab's format does not state whether its network ends in a sigmoid. For such a checkpoint, every
output is tried on the validation video. With a wrong output, the predicted frames are far from the true frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError
from cvaeopt.pictures.run_pictures import Frames
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Split
from cvaeopt.vae.metrics import psnr_per_frame
from cvaeopt.vae.rollout import Output, noise, roll_chunks, to_float

LAB_HEIGHT: Final = 32
LAB_WIDTH: Final = 64
FAR: Final = 0.5
"""A predicted value is far outside [0, 1] if it is below -FAR or above 1 + FAR. Values of a trained network with the
right output are rarely so far outside."""
MIN_FAR_FRACTION: Final = 0.01


@dataclass(frozen=True)
class Noise:
    """The noise z of a roll-out. Equal seeds give equal z.

    kind    prior: N(0, I); zero: z = 0; scaled: `scale` times N(0, I)
    """

    kind: Literal["prior", "zero", "scaled"] = "prior"
    scale: float = 0.5
    seed: int = 0

    @classmethod
    def of(cls, config: Config | None) -> Noise:
        """The noise that the run's own validation used. A checkpoint without settings gets the prior."""
        return cls(config.val_noise, config.val_noise_scale, config.val_noise_seed) if config else cls()


@dataclass(frozen=True)
class Span:
    """The range of predicted values before they are limited to [0, 1].

    low, high   the smallest and the largest value
    far         fraction of the values below -FAR or above 1 + FAR
    """

    low: float
    high: float
    far: float

    @classmethod
    def of(cls, frames: Tensor) -> Span:
        """The span of all values in `frames`."""
        far = ((frames < -FAR) | (frames > 1 + FAR)).float().mean()
        return cls(float(frames.min()), float(frames.max()), float(far))

    def joined(self, other: Span) -> Span:
        """The span of two predictions together; `far` is the larger one of the two fractions."""
        return Span(min(self.low, other.low), max(self.high, other.high), max(self.far, other.far))

    def plain(self) -> dict[str, float]:
        """The span as JSON values, rounded to 0.0001."""
        return {"low": round(self.low, 4), "high": round(self.high, 4), "far_fraction": round(self.far, 4)}


def roll_frames(loaded: Loaded, first: Frames, labels: Frames, z: Noise) -> Tensor:
    """The predicted frames 1..T of a roll-out that starts from the given frame `first`.

    first     (3, H, W) uint8, frame 0
    labels    (T, 3, H, W) uint8, the labels of frames 1..T
    returns   (T, 3, H, W) float32 on the CPU; a linear output may have values outside [0, 1]

    CheckpointError if a predicted value is not finite.
    """
    height, width = first.shape[1:]
    channels = loaded.model.widths["N_dim"]
    draw = noise(z.kind, z.scale, z.seed, len(labels), channels, height, width)
    start = to_float(torch.tensor(first[None])).contiguous(memory_format=torch.channels_last)
    # BatchNorm uses the stored statistics. In our checkpoints they are recalibrated. For a lab checkpoint, the lab's
    # own tester uses the stored statistics, too.
    pieces = roll_chunks(loaded.model, start, torch.tensor(labels[None]), draw[None], loaded.output, "stored")
    frames = torch.cat([piece[0].float().cpu() for piece in pieces])
    finite = torch.isfinite(frames).flatten(1).all(1)
    if not bool(finite.all()):
        raise CheckpointError(
            f"The prediction is NaN or infinite from frame {int(finite.int().argmin()) + 1} on "
            f"(output = {loaded.output}).",
            "Expected: finite frames.",
            "Try another --output, or a checkpoint from before the training diverged.",
        )
    return frames


def with_output_decided(loaded: Loaded, val: Split | None, z: Noise) -> Loaded:
    """`loaded` with the output that gives the highest PSNR on the validation video `val`.

    If the output is known from the checkpoint or from the user, or if `val` is None, `loaded` is returned unchanged.
    PSNR is rounded to 0.01 dB before the comparison. The template's output, linear, wins if the PSNR is equal.
    """
    if loaded.output_from != "assumed" or val is None:
        return loaded
    psnr: dict[str, float] = {}
    outputs: tuple[Output, ...] = get_args(Output)
    for output in outputs:
        try:
            frames = roll_frames(replace(loaded, output=output), val.frames[0], val.labels[1:], z)
        except CheckpointError:  # The frames are not finite with this output.
            continue
        psnr[output] = round(float(psnr_per_frame(frames, to_float(torch.tensor(val.frames[1:]))).mean()), 2)
    best = max(outputs, key=lambda output: psnr.get(output, -math.inf))  # the first of equals
    return replace(loaded, output=best, output_from="validation", output_psnr=psnr)


def notes(loaded: Loaded, name: str, span: Span | None = None) -> tuple[str, ...]:
    """Sentences about the output of the checkpoint `name` that its user should know."""
    said = []
    shown = ", ".join(f"{output} {psnr:.2f} dB" for output, psnr in loaded.output_psnr.items())
    if loaded.output_from == "validation":
        said.append(
            f"{name} does not say how its network makes frames. The validation video decides: {loaded.output} "
            f"({shown}). --output sets it."
        )
    elif loaded.output_from == "assumed":
        said.append(
            f"{name} does not say how its network makes frames, and there is no validation video to decide: "
            f"{loaded.output} is assumed, as in the lab's template. If the network ends in a sigmoid, use "
            "--output sigmoid."
        )
    elif loaded.config and loaded.config.output != loaded.output:
        said.append(f"{name} was trained with output = {loaded.config.output}; {loaded.output} is used, as given.")
    if loaded.ignored:
        said.append(f"{name}: tensors that this network has not are left out: {', '.join(loaded.ignored[:5])}.")
    if span is not None and span.far > MIN_FAR_FRACTION:
        said.append(
            f"{100 * span.far:.0f} % of the predicted values lie far outside [0, 1] ({span.low:.2f} to "
            f"{span.high:.2f}) and are cut off there. Try --output sigmoid or --output clamp."
        )
    return tuple(said)


def output_facts(loaded: Loaded, span: Span) -> dict[str, Any]:
    """The way from the network's output to frames, and the range of the predicted values, as JSON values."""
    return {
        "output": loaded.output,
        "output_from": loaded.output_from,
        "output_psnr": dict(loaded.output_psnr),
        "range": span.plain(),
    }


def frame_size(config: Config | None) -> tuple[int, int]:
    """Height and width of a checkpoint's frames. A checkpoint without settings has the lab's size, 32 x 64."""
    return (config.frame_H, config.frame_W) if config else (LAB_HEIGHT, LAB_WIDTH)

"""A checkpoint's roll-outs: with which noise, at which size, and how frames are made of the network's output.

A checkpoint of the lab's form does not say whether its network ends in a sigmoid. The validation video tells: with
the wrong answer the frames are far from the truth.
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
"""A value is far outside when it lies this much below 0 or above 1; a network that learns overshoots by less."""
MIN_FAR_FRACTION: Final = 0.01


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
class Span:
    """Where predicted values lie before they are limited to [0, 1].

    far   fraction of them that lies more than FAR outside
    """

    low: float
    high: float
    far: float

    @classmethod
    def of(cls, frames: Tensor) -> Span:
        """The span of one prediction."""
        far = ((frames < -FAR) | (frames > 1 + FAR)).float().mean()
        return cls(float(frames.min()), float(frames.max()), float(far))

    def joined(self, other: Span) -> Span:
        """The span of two predictions; `far` is that of the worse one."""
        return Span(min(self.low, other.low), max(self.high, other.high), max(self.far, other.far))

    def plain(self) -> dict[str, float]:
        """The figures as JSON values."""
        return {"low": round(self.low, 4), "high": round(self.high, 4), "far_fraction": round(self.far, 4)}


def roll_frames(loaded: Loaded, first: Frames, labels: Frames, z: Noise) -> Tensor:
    """Frames 1..T predicted from `first` (3, H, W) and their labels (T, 3, H, W), both uint8.

    returns   (T, 3, H, W) float32 on the CPU; outside [0, 1] where the network's output is
    CheckpointError when they are not finite.
    """
    height, width = first.shape[1:]
    channels = loaded.model.widths["N_dim"]
    draw = noise(z.kind, z.scale, z.seed, len(labels), channels, height, width)
    start = to_float(torch.tensor(first[None])).contiguous(memory_format=torch.channels_last)
    # Statistics as stored: what we write is recalibrated, and a lab checkpoint gets what its own tester gives it.
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
    """`loaded` with the output that fits the validation video best, if nobody has said which one it is.

    The template's comes first: another one must be better by more than what is printed of a PSNR.
    """
    if loaded.output_from != "assumed" or val is None:
        return loaded
    psnr: dict[str, float] = {}
    outputs: tuple[Output, ...] = get_args(Output)
    for output in outputs:
        try:
            frames = roll_frames(replace(loaded, output=output), val.frames[0], val.labels[1:], z)
        except CheckpointError:  # not finite
            continue
        psnr[output] = round(float(psnr_per_frame(frames, to_float(torch.tensor(val.frames[1:]))).mean()), 2)
    best = max(outputs, key=lambda output: psnr.get(output, -math.inf))  # of equal ones the first
    return replace(loaded, output=best, output_from="validation", output_psnr=psnr)


def notes(loaded: Loaded, name: str, span: Span | None = None) -> tuple[str, ...]:
    """What a user of the checkpoint `name` should know about its output, in sentences."""
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
    """How frames were made of the network's output, and how far they reached beyond [0, 1], as JSON values."""
    return {
        "output": loaded.output,
        "output_from": loaded.output_from,
        "output_psnr": dict(loaded.output_psnr),
        "range": span.plain(),
    }


def frame_size(config: Config | None) -> tuple[int, int]:
    """Height and width of a checkpoint's frames; the lab's where its settings are unknown."""
    return (config.frame_H, config.frame_W) if config else (LAB_HEIGHT, LAB_WIDTH)

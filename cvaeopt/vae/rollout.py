"""Free-running prediction: each frame is predicted from the previous prediction.

Training, validation and `predict` use this loop. Pose features, z, and their part of the first fusion layer do not
depend on the predictions. So they are computed for many frames at once, and the loop has only the recurrent part.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cvaeopt.vae.model import CVAE, Statistics

Output = Literal["linear", "sigmoid", "clamp"]

CHUNK_FRAMES = 64
"""The number of frames whose pose features are in memory at the same time. It limits the memory of long roll-outs."""


def generator(device: torch.device | str, *parts: int | str) -> torch.Generator:
    """A random generator on `device`. Its random numbers depend only on `parts` and on the kind of device.

    Every use in a run has its own parts (seed, purpose, epoch). So a checkpoint need not store a generator's state.
    """
    key = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "little") & (2**63 - 1))


def noise(kind: str, scale: float, seed: int, frames: int, N_dim: int, height: int, width: int) -> Tensor:
    """z of a roll-out: (frames, N_dim, H, W), float32. It is drawn on the CPU, so that it is equal for all devices.

    kind   "prior": standard normal; "zero": zeros; "scaled": normal with mean 0 and standard deviation `scale`
    """
    shape = (frames, N_dim, height, width)
    if kind == "zero":
        return torch.zeros(shape)
    z = torch.randn(shape, generator=generator("cpu", "roll-out noise", seed))
    return z * scale if kind == "scaled" else z


def to_float(pixels: Tensor) -> Tensor:
    """Pixels, uint8 in 0..255, as float32 in [0, 1] of the same shape."""
    return pixels.float().div_(255)


def to_pixels(frames: Tensor) -> Tensor:
    """Frames as uint8 in 0..255 of the same shape; values outside [0, 1] are clipped before they are rounded."""
    return frames.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def activate(raw: Tensor, output: Output, training: bool) -> Tensor:
    """The frames for the generator's raw output, of the same shape. In training, "clamp" does not change the output."""
    if output == "sigmoid":
        return torch.sigmoid(raw)
    if output == "clamp" and not training:
        return raw.clamp(0, 1)
    return raw


def roll_features(
    model: CVAE, first: Tensor, label_features: Tensor, z: Tensor, output: Output, training: bool = False
) -> Tensor:
    """The predicted frames 1..T, (B, T, 3, H, W). Call this function inside `torch.no_grad`.

    first            (B, 3, H, W), frame 0
    label_features   (B, T, L, H, W), the pose features of frames 1..T
    z                (B, T, N, H, W)
    """
    length = label_features.shape[1]
    # The first 1x1 convolution is linear in frame, pose and z. The poses and z of all frames are known before the loop,
    # so their part of the convolution, `share`, is computed for all frames at once.
    frame_channels = model.widths["F_dim"]
    weight, bias = model.Decoder_Fusion.first.weight, model.Decoder_Fusion.first.bias
    known = torch.cat([label_features, z], 2)
    share = functional.conv2d(known.flatten(0, 1), weight[:, frame_channels:], bias).unflatten(0, known.shape[:2])
    frame_weight = weight[:, :frame_channels].contiguous(memory_format=torch.channels_last)
    previous = first
    frames = []
    for t in range(length):
        feature = model.frame_transformation(previous)
        mixed = functional.conv2d(feature, frame_weight) + share[:, t]
        fused = model.Decoder_Fusion.after_first(mixed, torch.cat([feature, known[:, t]], 1))
        previous = activate(model.Generator(fused), output, training)
        frames.append(previous)
    return torch.stack(frames, 1)


def roll_chunks(
    model: CVAE,
    first: Tensor,
    labels: Tensor,
    z: Tensor,
    output: Output,
    statistics: Statistics = "stored",
) -> Iterator[Tensor]:
    """Yield the predicted frames 1..T in pieces (B, <= CHUNK_FRAMES, 3, H, W).

    first        (B, 3, H, W), frame 0, float in [0, 1]
    labels       (B, T, 3, H, W), the labels of frames 1..T, uint8 or float in [0, 1]; one piece at a time is moved to
                 the model's device
    z            (B, T, N, H, W) on any device, see `noise`
    statistics   the statistics of the label encoder's BatchNorm: "stored" or "own", see `Label_Encoder.encode`
    """
    device = next(model.parameters()).device
    previous = first.to(device)
    for start in range(0, labels.shape[1], CHUNK_FRAMES):
        piece = labels[:, start : start + CHUNK_FRAMES].to(device)
        piece = to_float(piece) if piece.dtype == torch.uint8 else piece
        with torch.no_grad():
            features = model.label_transformation.encode(piece, statistics)
            frames = roll_features(model, previous, features, z[:, start : start + CHUNK_FRAMES].to(device), output)
        previous = frames[:, -1]
        yield frames


@torch.no_grad()
def recalibrate(model: CVAE, labels: Tensor) -> None:
    """Set the BatchNorm's running statistics to the exact mean and variance over all `labels`.

    labels   (N, 3, H, W) uint8

    The running averages of training depend mostly on the poses of the last twenty steps. With the running averages, the
    validation PSNR changes by several dB between neighbouring epochs. With the exact statistics, these changes
    disappear. The sums are in float64, so that the size of the pieces affects only the float32 rounding of the
    convolution.
    """
    encoder = model.label_transformation
    norm = encoder.norm
    device = norm.weight.device
    count = 0
    total = torch.zeros(norm.num_features, dtype=torch.float64, device=device)
    squares = torch.zeros_like(total)
    for piece in labels.split(256):
        x = encoder.before_norm(to_float(piece.to(device))).double()
        count += x.numel() // norm.num_features
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
    mean = total / count
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((squares / count - mean.square()).clamp_(min=0))


@contextlib.contextmanager
def evaluation(model: CVAE) -> Iterator[None]:
    """Inside the block `model` is in evaluation mode. After the block `model` is in its previous mode again."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

"""The training loss of a batch of clips, computed for all frames at once where the data allow it.

The template computes a clip frame by frame. That is not necessary: posterior and pose depend on the data only; with
teacher forcing the previous frame is known; without it the previous prediction is detached, so no gradient crosses
time. Losses and gradients equal those of the template's loop up to rounding, as tests/vae/test_loss.py shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cvaeopt.vae.metrics import kl_divergence
from cvaeopt.vae.model import CVAE, Statistics
from cvaeopt.vae.rollout import Output, activate, roll_features

FreeStep = Literal["replay", "sequential"]


@dataclass(frozen=True)
class LossSettings:
    """How the loss of clips is computed.

    forced       whether each frame is predicted from the true previous frame (teacher forcing) instead of the
                 predicted one, which is detached
    kl_norm      see `kl_divergence`
    statistics   of the label encoder's BatchNorm, see `Label_Encoder.encode`
    free_step    how a step without teacher forcing is computed, with equal results: `replay` rolls the clip out
                 without gradients and repeats it as one batch; `sequential` keeps the graph of every frame
    """

    forced: bool
    output: Output
    kl_norm: Literal["batch", "element"]
    statistics: Statistics = "batch"
    free_step: FreeStep = "replay"


@dataclass(frozen=True)
class ClipLoss:
    """Mean squared error and KL divergence of a batch of clips, per predicted frame (scalars).

    The template minimises the sum over the predicted frames of a clip: `total`.

    frames   predicted frames of a clip
    """

    mse: Tensor
    kl: Tensor
    frames: int

    def total(self, beta: float | Tensor) -> Tensor:
        """frames * (mse + beta * kl)."""
        return (self.mse + beta * self.kl) * self.frames


def clip_loss(model: CVAE, frames: Tensor, labels: Tensor, eps: Tensor, settings: LossSettings) -> ClipLoss:
    """Loss terms of clips.

    frames   (B, T, 3, H, W) in [0, 1]
    labels   (B, T, 3, H, W) in [0, 1]
    eps      (B, T - 1, N, H, W): the normal draws of the posterior
    """
    label_features = model.label_transformation.encode(labels[:, 1:], settings.statistics)  # (B, T-1, L, H, W)
    return loss_given_poses(model, frames, label_features, eps, settings)[0]


def loss_given_poses(
    model: CVAE, frames: Tensor, label_features: Tensor, eps: Tensor, settings: LossSettings
) -> tuple[ClipLoss, Tensor]:
    """`clip_loss` of clips whose pose features (B, T - 1, L, H, W) are known, and the last prediction (B, 3, H, W).

    A clip without teacher forcing may be cut anywhere: the last prediction (detached) then stands for the first true
    frame of the next piece, because no gradient crosses time.
    """
    output = settings.output
    batch, length = frames.shape[:2]
    steps = length - 1
    if settings.forced:
        features = model.frame_transformation(frames.flatten(0, 1)).unflatten(0, (batch, length))
        previous, current = features[:, :-1], features[:, 1:]  # (B, T-1, F, H, W)
    else:
        current = model.frame_transformation(frames[:, 1:].flatten(0, 1)).unflatten(0, (batch, steps))
        previous = None
    mu, logvar = model.Gaussian_Predictor.posterior(current.flatten(0, 1), label_features.flatten(0, 1))
    z = (mu + torch.exp(0.5 * logvar) * eps.flatten(0, 1)).unflatten(0, (batch, steps))
    if previous is None and settings.free_step == "sequential":
        prediction = _sequential(model, frames[:, 0], label_features, z, output)
    else:
        if previous is None:
            with torch.no_grad():
                rolled = roll_features(model, frames[:, 0], label_features, z, output, training=True)
            inputs = torch.cat([frames[:, :1], rolled[:, :-1]], 1)
            previous = model.frame_transformation(inputs.flatten(0, 1)).unflatten(0, (batch, steps))
        raw = model.decode(previous.flatten(0, 1), label_features.flatten(0, 1), z.flatten(0, 1))
        prediction = activate(raw, output, training=True).unflatten(0, (batch, steps))
    mse = (_at_least_fp32(prediction) - frames[:, 1:]).square().mean()
    # All frames of all clips are one batch here, so `batch` gives the template's KL of a frame, averaged over frames.
    kl = kl_divergence(_at_least_fp32(mu), _at_least_fp32(logvar), settings.kl_norm)
    return ClipLoss(mse, kl, steps), prediction[:, -1].detach()


def _sequential(model: CVAE, first: Tensor, label_features: Tensor, z: Tensor, output: Output) -> Tensor:
    """Predicted frames (B, T-1, 3, H, W) with the graph of every frame; the input of each is detached."""
    previous = first
    frames = []
    for t in range(label_features.shape[1]):
        raw = model.decode(model.frame_transformation(previous), label_features[:, t], z[:, t])
        frame = activate(raw, output, training=True)
        frames.append(frame)
        previous = frame.detach()
    return torch.stack(frames, 1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

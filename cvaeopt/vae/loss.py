"""The training loss of a batch of clips, computed for all frames at once where the data allow it.

The template goes through a clip frame by frame. Nothing in its mathematics asks for that: posterior and pose depend
on the data only, a forced step knows its previous frame, and in a free step the previous prediction is detached, so
no gradient crosses time. The losses and gradients here equal the template's loop up to rounding (tests/vae).
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
class ClipLoss:
    """Mean squared error and KL of a batch of clips, per predicted frame (scalars).

    The loss that is minimised is the template's: their sum over the clip's predicted frames.
    """

    mse: Tensor
    kl: Tensor
    frames: int

    def total(self, beta: float | Tensor) -> Tensor:
        """frames * (mse + beta * kl)."""
        return (self.mse + beta * self.kl) * self.frames


def clip_loss(
    model: CVAE,
    frames: Tensor,
    labels: Tensor,
    eps: Tensor,
    *,
    forced: bool,
    output: Output,
    kl_norm: Literal["batch", "element"],
    statistics: Statistics = "batch",
    free_step: FreeStep = "replay",
) -> ClipLoss:
    """Loss terms of clips `frames` (B, T, 3, H, W) in [0, 1] with `labels` (B, T, 3, H, W).

    eps          (B, T - 1, N, H, W): the normal draws of the posterior
    forced       the true previous frame is given (teacher forcing); otherwise the predicted one, detached
    statistics   of the label encoder's BatchNorm, see `Label_Encoder.encode`
    free_step    how a free step is computed, with equal results: `replay` rolls the clip out without gradients and
                 repeats it as one batch; `sequential` keeps the graph of every frame
    """
    label_features = model.label_transformation.encode(labels[:, 1:], statistics)  # (B, T-1, L, H, W)
    loss, _ = loss_given_poses(
        model, frames, label_features, eps, forced=forced, output=output, kl_norm=kl_norm, free_step=free_step
    )
    return loss


def loss_given_poses(
    model: CVAE,
    frames: Tensor,
    label_features: Tensor,
    eps: Tensor,
    *,
    forced: bool,
    output: Output,
    kl_norm: Literal["batch", "element"],
    free_step: FreeStep,
) -> tuple[ClipLoss, Tensor]:
    """`clip_loss` of clips whose pose features (B, T - 1, L, H, W) are known, and the last prediction (B, 3, H, W).

    A free clip may be cut anywhere: its next piece starts from the last prediction (detached) in place of the true
    frame, because no gradient crosses time.
    """
    batch, length = frames.shape[:2]
    steps = length - 1
    if forced:
        features = model.frame_transformation(frames.flatten(0, 1)).unflatten(0, (batch, length))
        previous, current = features[:, :-1], features[:, 1:]  # (B, T-1, F, H, W)
    else:
        current = model.frame_transformation(frames[:, 1:].flatten(0, 1)).unflatten(0, (batch, steps))
        previous = None
    mu, logvar = model.Gaussian_Predictor.posterior(current.flatten(0, 1), label_features.flatten(0, 1))
    z = (mu + torch.exp(0.5 * logvar) * eps.flatten(0, 1)).unflatten(0, (batch, steps))
    if previous is None and free_step == "sequential":
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
    kl = kl_divergence(_at_least_fp32(mu), _at_least_fp32(logvar), kl_norm)
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

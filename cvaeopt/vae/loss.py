"""The training loss of a batch of clips, computed for all frames at once where possible.

The template computes a clip frame by frame. This is not necessary, for three reasons. The posterior and the pose
features depend only on the data. With teacher forcing, the previous frame is known. Without teacher forcing, the
previous prediction is detached, so no gradient crosses time. Losses and gradients equal those of the template's loop up
to rounding, as tests/vae/test_loss.py shows.
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

    forced       True: each frame is predicted from the true previous frame (teacher forcing). False: each frame is
                 predicted from the previous prediction, which is detached.
    output       the function that makes frames from the generator's output, see `rollout.activate`
    kl_norm      the scale of the KL divergence, see `kl_divergence`
    statistics   the statistics of the label encoder's BatchNorm, see `Label_Encoder.encode`
    free_step    how a step without teacher forcing is computed; both ways give equal results. "replay" predicts the
                 clip without gradients, and then computes all frames again as one batch with gradients. "sequential"
                 predicts the clip once and keeps the autograd graph of every frame.
    """

    forced: bool
    output: Output
    kl_norm: Literal["batch", "element"]
    statistics: Statistics = "batch"
    free_step: FreeStep = "replay"


@dataclass(frozen=True)
class ClipLoss:
    """The mean squared error and the KL divergence of a batch of clips, averaged over the predicted frames (scalars).

    frames   number of predicted frames in a clip
    """

    mse: Tensor
    kl: Tensor
    frames: int

    def total(self, beta: float | Tensor) -> Tensor:
        """The loss that the template minimises, the sum over the frames of a clip: frames * (mse + beta * kl)."""
        return (self.mse + beta * self.kl) * self.frames


def clip_loss(model: CVAE, frames: Tensor, labels: Tensor, eps: Tensor, settings: LossSettings) -> ClipLoss:
    """The loss terms of a batch of clips.

    frames   (B, T, 3, H, W) in [0, 1]
    labels   (B, T, 3, H, W) in [0, 1]
    eps      (B, T - 1, N, H, W), standard normal noise from which z is sampled
    """
    label_features = model.label_transformation.encode(labels[:, 1:], settings.statistics)  # (B, T-1, L, H, W)
    return loss_given_poses(model, frames, label_features, eps, settings)[0]


def loss_given_poses(
    model: CVAE, frames: Tensor, label_features: Tensor, eps: Tensor, settings: LossSettings
) -> tuple[ClipLoss, Tensor]:
    """The loss terms of clips whose pose features are known, and the last prediction (B, 3, H, W), detached.

    label_features   the pose features of frames 1..T - 1, (B, T - 1, L, H, W)

    The other arguments are those of `clip_loss`. Without teacher forcing a clip may be cut into pieces at any frame,
    because no gradient crosses time. The last prediction of a piece is then frame 0 of the next piece.
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
    # All frames of all clips are one batch here, so the norm "batch" gives the template's KL of a frame, averaged over
    # the frames.
    kl = kl_divergence(_at_least_fp32(mu), _at_least_fp32(logvar), settings.kl_norm)
    return ClipLoss(mse, kl, steps), prediction[:, -1].detach()


def _sequential(model: CVAE, first: Tensor, label_features: Tensor, z: Tensor, output: Output) -> Tensor:
    """The predicted frames (B, T - 1, 3, H, W) with their autograd graphs.

    Each prediction is detached before it is the input for the next frame.
    """
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

"""The training loss of a batch of clips, computed for all frames at once where possible.

The template computes a clip frame by frame. This is not necessary, for three reasons. The posterior and the pose
features depend only on the data. With teacher forcing, the previous frame is known. Without teacher forcing, the
previous prediction is detached, so no gradient crosses time. Losses and gradients equal those of the template's loop up
to rounding, as tests/vae/test_loss.py shows.

The seed reports print training steps that differ from the template's: the posterior may see the previous frame instead
of the current frame, and the previous prediction may keep its gradients. Then a free clip is computed frame by frame.
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
Posterior = Literal["current", "previous"]
ForcedLoss = Literal["prediction", "truth"]


@dataclass(frozen=True)
class LossSettings:
    """How the loss of clips is computed.

    forced       True: each frame is predicted from the true previous frame (teacher forcing). False: each frame is
                 predicted from the previous prediction.
    output       the function that makes frames from the generator's output, see `rollout.activate`
    kl_norm      the scale of the KL divergence, see `kl_divergence`
    statistics   the statistics of the label encoder's BatchNorm, see `Label_Encoder.encode`
    free_step    how a step without teacher forcing is computed; both ways give equal results. "replay" predicts the
                 clip without gradients, and then computes all frames again as one batch with gradients. "sequential"
                 predicts the clip once and keeps the autograd graph of every frame.
    posterior    the frame from which z is sampled: the frame that is predicted, or the frame before it, which is a
                 prediction without teacher forcing
    detach       False: gradients of a step without teacher forcing go through the predictions back to the first frame
    forced_loss  "truth": in a step with teacher forcing the true frame replaces the prediction before the squared error
                 is computed. So this error is 0, and the step trains the network through the KL divergence alone.
    """

    forced: bool
    output: Output
    kl_norm: Literal["batch", "element"]
    statistics: Statistics = "batch"
    free_step: FreeStep = "replay"
    posterior: Posterior = "current"
    detach: bool = True
    forced_loss: ForcedLoss = "prediction"

    @property
    def only_kl(self) -> bool:
        """Whether the loss has no squared error. Then Decoder_Fusion and Generator get no gradient."""
        return self.forced and self.forced_loss == "truth"

    @property
    def crosses_time(self) -> bool:
        """Whether the gradient of a frame's loss goes through the frames before it."""
        return not self.forced and not self.detach


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

    The other arguments are those of `clip_loss`. Without teacher forcing a clip may be cut into pieces at any frame, if
    no gradient crosses time. The last prediction of a piece is then frame 0 of the next piece.
    """
    if settings.only_kl:
        seen = frames[:, 1:] if settings.posterior == "current" else frames[:, :-1]
        latents = _sample(model, _features(model, seen), label_features, eps)
        mse, last = frames.new_zeros(()), frames[:, -1]
    else:
        prediction, latents = _predict(model, frames, label_features, eps, settings)
        mse = (_at_least_fp32(prediction) - frames[:, 1:]).square().mean()
        last = prediction[:, -1].detach()
    # All frames of all clips are one batch here, so the norm "batch" gives the template's KL of a frame, averaged over
    # the frames.
    mu, logvar = _at_least_fp32(latents.mu.flatten(0, 1)), _at_least_fp32(latents.logvar.flatten(0, 1))
    return ClipLoss(mse, kl_divergence(mu, logvar, settings.kl_norm), frames.shape[1] - 1), last


@dataclass(frozen=True)
class _Latents:
    """z of every predicted frame, and the posterior from which it is sampled. The shapes are (B, T - 1, N, H, W)."""

    mu: Tensor
    logvar: Tensor
    z: Tensor


def _predict(
    model: CVAE, frames: Tensor, label_features: Tensor, eps: Tensor, settings: LossSettings
) -> tuple[Tensor, _Latents]:
    """The predicted frames 1..T - 1, (B, T - 1, 3, H, W), and their latents."""
    batch, steps = frames.shape[0], frames.shape[1] - 1
    of_current = settings.posterior == "current"
    if settings.forced:
        features = _features(model, frames if of_current else frames[:, :-1])
        previous = features[:, :steps]  # (B, T-1, F, H, W)
        latents = _sample(model, features[:, -steps:], label_features, eps)
    else:
        known = _sample(model, _features(model, frames[:, 1:]), label_features, eps) if of_current else None
        if settings.free_step == "sequential" or settings.crosses_time:
            return _predict_in_turn(model, frames[:, 0], label_features, eps, known, settings)
        with torch.no_grad():
            if known is None:
                rolled, _ = _predict_in_turn(model, frames[:, 0], label_features, eps, None, settings)
            else:
                rolled = roll_features(model, frames[:, 0], label_features, known.z, settings.output, training=True)
        previous = _features(model, torch.cat([frames[:, :1], rolled[:, :-1]], 1))
        latents = known or _sample(model, previous, label_features, eps)
    raw = model.decode(previous.flatten(0, 1), label_features.flatten(0, 1), latents.z.flatten(0, 1))
    return activate(raw, settings.output, training=True).unflatten(0, (batch, steps)), latents


def _predict_in_turn(
    model: CVAE, first: Tensor, label_features: Tensor, eps: Tensor, known: _Latents | None, settings: LossSettings
) -> tuple[Tensor, _Latents]:
    """The same as `_predict` without teacher forcing, frame by frame, with the autograd graph of every frame.

    first   (B, 3, H, W), frame 0
    known   the latents, if they are sampled from the current frames; None: they are sampled from the previous frames
    """
    previous = first
    frames, latents = [], []
    for t in range(label_features.shape[1]):
        now = slice(t, t + 1)
        feature = model.frame_transformation(previous)
        if known is None:
            latents.append(_sample(model, feature[:, None], label_features[:, now], eps[:, now]))
        z = latents[-1].z[:, 0] if known is None else known.z[:, t]
        frame = activate(model.decode(feature, label_features[:, t], z), settings.output, training=True)
        frames.append(frame)
        previous = frame.detach() if settings.detach else frame
    joined = known or _Latents(
        *(torch.cat([getattr(one, name) for one in latents], 1) for name in ("mu", "logvar", "z"))
    )
    return torch.stack(frames, 1), joined


def _features(model: CVAE, frames: Tensor) -> Tensor:
    """Frame features of clips: (B, T, 3, H, W) -> (B, T, F, H, W)."""
    return model.frame_transformation(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # type: ignore[no-any-return]


def _sample(model: CVAE, seen: Tensor, label_features: Tensor, eps: Tensor) -> _Latents:
    """The latents of frames whose posterior sees the features `seen`, (B, T - 1, F, H, W)."""
    mu, logvar = model.Gaussian_Predictor.posterior(seen.flatten(0, 1), label_features.flatten(0, 1))
    z = mu + torch.exp(0.5 * logvar) * eps.flatten(0, 1)
    return _Latents(*(value.unflatten(0, eps.shape[:2]) for value in (mu, logvar, z)))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

"""The template's protocol written plainly: frame by frame, nothing shared. The truth that the engine is held to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cvaeopt.vae.model import CVAE


def label_features(model: CVAE, label: Tensor, training: bool) -> Tensor:
    """Pose features of one frame position (B, 3, H, W), BatchNorm as `nn.BatchNorm2d` in that mode."""
    encoder = model.label_transformation
    norm = encoder.norm
    x = encoder[1](functional.pad(label, (3, 3, 3, 3), mode="reflect"))
    x = functional.batch_norm(
        x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, norm.momentum, norm.eps
    )
    return encoder[4](functional.leaky_relu(x, 1.0))


def training_loss(
    model: CVAE,
    frames: Tensor,
    labels: Tensor,
    eps: Tensor,
    *,
    forced: bool,
    sigmoid: bool,
    per_element: bool,
    beta: float,
    training: bool,
    posterior: str = "current",
    detach: bool = True,
    forced_loss: str = "prediction",
) -> Tensor:
    """The template's loss of one step: the sum over frames of mse + beta * kl. The last three change what it does."""
    batch = frames.shape[0]
    last = frames[:, 0]
    loss = torch.zeros(())
    for t in range(1, frames.shape[1]):
        before = model.frame_transformation(last)
        feature = model.frame_transformation(frames[:, t]) if posterior == "current" else before
        pose = label_features(model, labels[:, t], training)
        mu, logvar = model.Gaussian_Predictor(torch.cat([feature, pose], 1)).chunk(2, 1)
        z = mu + torch.exp(0.5 * logvar) * eps[:, t - 1]
        fused = model.Decoder_Fusion(torch.cat([before, pose, z], 1))
        prediction = model.Generator(fused)
        if sigmoid:
            prediction = torch.sigmoid(prediction)
        if forced and forced_loss == "truth":
            prediction = frames[:, t]
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        kl = kl / mu.numel() if per_element else kl / batch
        loss = loss + functional.mse_loss(prediction, frames[:, t]) + beta * kl
        last = frames[:, t] if forced else prediction.detach() if detach else prediction
    return loss


@torch.no_grad()
def roll_out(model: CVAE, first: Tensor, labels: Tensor, z: Tensor, output: str) -> Tensor:
    """Frames predicted one by one from `first` (1, 3, H, W): (T, 3, H, W)."""
    last = first
    frames = []
    for t in range(len(labels)):
        pose = label_features(model, labels[t : t + 1], training=False)
        last = model.Generator(
            model.Decoder_Fusion(torch.cat([model.frame_transformation(last), pose, z[t : t + 1]], 1))
        )
        if output == "sigmoid":
            last = torch.sigmoid(last)
        if output == "clamp":
            last = last.clamp(0, 1)
        frames.append(last)
    return torch.cat(frames)

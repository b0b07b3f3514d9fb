"""The lab's five modules. They have the lab's names, so that this program and the template can load the same weights.

All feature maps have the height and width of the frame, because nothing is down-sampled. In the shapes below, F, L, N
and D are the numbers of channels F_dim, L_dim, N_dim and D_out_dim, and M is any number of frames.

Source: the lab's template as described in its specification; 1,585,620 parameters at F 128, L 32, N 12, D 192.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError

Statistics = Literal["batch", "frame", "stored", "own"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each followed by LeakyReLU(0.01), with a skip connection.

    The skip connection is a 1x1 convolution if the number of channels changes, and the identity otherwise.
    """

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.conv2 = nn.Conv2d(out_ch, out_ch, 3, padding=1)
        self.skip = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else None

    def forward(self, x: Tensor) -> Tensor:
        """(M, in_ch, H, W) -> (M, out_ch, H, W)."""
        # LeakyReLU works in place: no gradient needs its input, and activations take most of the cache and the memory.
        out = functional.leaky_relu_(self.conv1(x), 0.01)
        out = functional.leaky_relu_(self.conv2(out), 0.01)
        return out + x if self.skip is None else self.skip(x).add_(out)


class DepthConv(nn.Module):
    """A 1x1 convolution, LeakyReLU(0.01), a depthwise 3x3 and a 1x1 convolution, with a skip connection.

    The skip connection is a 1x1 convolution if the number of channels changes, and the identity otherwise.
    """

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(in_ch, in_ch, 1), nn.LeakyReLU(0.01, inplace=True))
        self.depth_conv = nn.Conv2d(in_ch, in_ch, 3, padding=1, groups=in_ch)
        self.conv2 = nn.Conv2d(in_ch, out_ch, 1)
        self.adaptor = nn.Conv2d(in_ch, out_ch, 1) if in_ch != out_ch else None

    def forward(self, x: Tensor) -> Tensor:
        """(M, in_ch, H, W) -> (M, out_ch, H, W)."""
        return self.after_first(self.conv1[0](x), x)

    def after_first(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The block's output for `x`. `mixed` is the output of the first 1x1 convolution for `x`."""
        out: Tensor = self.conv2(self.depth_conv(self.conv1[1](mixed)))
        return out.add_(x if self.adaptor is None else self.adaptor(x))


class ConvFFN(nn.Module):
    """A gated feed-forward block of 1x1 convolutions, with a skip connection.

    The gate multiplies one half of the channels by LeakyReLU(0.1) of the other half.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 4, 1)
        self.conv_out = nn.Conv2d(channels * 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(M, channels, H, W) -> the same shape."""
        value, gate = self.conv(x).chunk(2, 1)
        out: Tensor = self.conv_out(value * functional.leaky_relu(gate, 0.1))
        return out.add_(x)


class DepthConvBlock(nn.Module):
    """A `DepthConv`, followed by a `ConvFFN`."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(in_ch, out_ch), ConvFFN(out_ch))

    def forward(self, x: Tensor) -> Tensor:
        """(M, in_ch, H, W) -> (M, out_ch, H, W)."""
        return self.block(x)  # type: ignore[no-any-return]


class RGB_Encoder(nn.Sequential):
    """Frame features: (M, 3, H, W) -> (M, F, H, W)."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(
            ResidualBlock(in_ch, out_ch // 8),
            DepthConvBlock(out_ch // 8, out_ch // 8),
            ResidualBlock(out_ch // 8, out_ch // 4),
            DepthConvBlock(out_ch // 4, out_ch // 4),
            ResidualBlock(out_ch // 4, out_ch // 2),
            DepthConvBlock(out_ch // 2, out_ch // 2),
            nn.Conv2d(out_ch // 2, out_ch, 3, padding=1),
        )


class Label_Encoder(nn.Sequential):
    """Pose features: (M, 3, H, W) -> (M, L, H, W). This module has the only BatchNorm of the network."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(
            nn.ReflectionPad2d(3),
            nn.Conv2d(in_ch, out_ch // 2, 7),
            nn.BatchNorm2d(out_ch // 2),
            nn.Identity(),  # the template's LeakyReLU(True) has a slope of 1.0, so it is the identity
            ResidualBlock(out_ch // 2, out_ch),
        )

    @property
    def norm(self) -> nn.BatchNorm2d:
        norm = self[2]
        assert isinstance(norm, nn.BatchNorm2d)
        return norm

    def before_norm(self, labels: Tensor) -> Tensor:
        """The input of the BatchNorm: (M, 3, H, W) -> (M, L / 2, H, W)."""
        return self[1](self[0](labels))  # type: ignore[no-any-return]

    def encode(self, labels: Tensor, statistics: Statistics) -> Tensor:
        """Features of clips of labels: (B, T, 3, H, W) -> (B, T, L, H, W).

        statistics   the values from which the BatchNorm takes its mean and variance:
                     "batch"    all B * T labels together; the running averages are updated once
                     "frame"    the B labels at each frame position in turn, as in the template's loop; the running
                                averages are updated T times
                     "stored"   the running averages, as in evaluation mode
                     "own"      each label alone, as in training mode with a batch of one
        """
        batch, length = labels.shape[:2]
        x = self.normalised(self.before_norm(labels.flatten(0, 1)), length, statistics)
        features = self.after_norm(x)
        return features.unflatten(0, (batch, length))  # type: ignore[no-any-return]

    def normalised(self, x: Tensor, length: int, statistics: Statistics) -> Tensor:
        """The BatchNorm's output for clips of `length` labels, (M, L / 2, H, W).

        This is the only layer in which a label affects the output for other labels.
        """
        norm = self.norm
        if statistics == "own":
            return functional.instance_norm(x, None, None, norm.weight, norm.bias, True, 0.0, norm.eps)
        if statistics == "frame":
            positions = [self._batch_norm(part, True) for part in x.unflatten(0, (-1, length)).unbind(1)]
            return torch.stack(positions, 1).flatten(0, 1)
        return self._batch_norm(x, statistics == "batch")

    def after_norm(self, x: Tensor) -> Tensor:
        """The features for an output of the BatchNorm: (M, L / 2, H, W) -> (M, L, H, W)."""
        return self[4](x)  # type: ignore[no-any-return]

    def _batch_norm(self, x: Tensor, training: bool) -> Tensor:
        norm = self.norm
        return functional.batch_norm(
            x,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            training,
            norm.momentum or 0.1,
            norm.eps,
        )


class Gaussian_Predictor(nn.Sequential):
    """The posterior from features of the current frame and pose: (M, F + L, H, W) -> (M, 2 N, H, W), mu first."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(
            ResidualBlock(in_ch, out_ch // 4),
            DepthConvBlock(out_ch // 4, out_ch // 4),
            ResidualBlock(out_ch // 4, out_ch // 2),
            DepthConvBlock(out_ch // 2, out_ch // 2),
            ResidualBlock(out_ch // 2, out_ch),
            nn.Identity(),  # LeakyReLU(True) in the template, see `Label_Encoder`
            nn.Conv2d(out_ch, out_ch * 2, 1),
        )

    def posterior(self, frame: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """mu and logvar of q(z | x_t, P_t), (M, N, H, W) each, from features of the frames x_t and the poses P_t."""
        mu, logvar = self(torch.cat([frame, label], 1)).chunk(2, 1)
        return mu, logvar


class Decoder_Fusion(nn.Sequential):
    """Fuse features of the previous frame, features of the pose, and z: (M, F + L + N, H, W) -> (M, D, H, W)."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(
            DepthConvBlock(in_ch, in_ch),
            ResidualBlock(in_ch, in_ch // 4),
            DepthConvBlock(in_ch // 4, in_ch // 2),
            ResidualBlock(in_ch // 2, in_ch // 2),
            DepthConvBlock(in_ch // 2, out_ch // 2),
            nn.Conv2d(out_ch // 2, out_ch, 1),
        )

    @property
    def first(self) -> nn.Conv2d:
        """The first 1x1 convolution. It is linear, so the parts for frame, pose and z can be computed separately."""
        return self[0].block[0].conv1[0]  # type: ignore[union-attr, index, no-any-return]

    def after_first(self, mixed: Tensor, x: Tensor) -> Tensor:
        """The module's output for `x`. `mixed` is the output of the first 1x1 convolution for `x`."""
        entry, *rest = self
        x = entry.block[1](entry.block[0].after_first(mixed, x))  # type: ignore[union-attr, index, operator]
        for layer in rest:
            x = layer(x)
        return x


class Generator(nn.Sequential):
    """The frame: (M, D, H, W) -> (M, 3, H, W), not limited to any range."""

    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(
            DepthConvBlock(in_ch, in_ch),
            ResidualBlock(in_ch, in_ch // 2),
            DepthConvBlock(in_ch // 2, in_ch // 2),
            ResidualBlock(in_ch // 2, in_ch // 4),
            DepthConvBlock(in_ch // 4, in_ch // 4),
            ResidualBlock(in_ch // 4, in_ch // 8),
            DepthConvBlock(in_ch // 8, in_ch // 8),
            nn.Conv2d(in_ch // 8, out_ch, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(M, D, H, W) -> (M, 3, H, W). The last layer uses the precision of its weights, even in `torch.autocast`."""
        *blocks, last = self
        for block in blocks:
            x = block(x)
        assert isinstance(last, nn.Conv2d)
        with torch.autocast(x.device.type, enabled=False):
            return last(x.to(last.weight.dtype))  # type: ignore[no-any-return]


class CVAE(nn.Module):
    """The five modules of the network. `vae.loss` applies them to clips in training, `vae.rollout` in prediction."""

    def __init__(self, F_dim: int = 128, L_dim: int = 32, N_dim: int = 12, D_out_dim: int = 192) -> None:
        super().__init__()
        self.frame_transformation = RGB_Encoder(3, F_dim)
        self.label_transformation = Label_Encoder(3, L_dim)
        self.Gaussian_Predictor = Gaussian_Predictor(F_dim + L_dim, N_dim)
        self.Decoder_Fusion = Decoder_Fusion(F_dim + L_dim + N_dim, D_out_dim)
        self.Generator = Generator(D_out_dim, 3)
        self.widths = {"F_dim": F_dim, "L_dim": L_dim, "N_dim": N_dim, "D_out_dim": D_out_dim}

    @classmethod
    def of(cls, config: Config) -> CVAE:
        """A network with the widths in `config`. The random initial weights depend only on `config.seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return cls(config.F_dim, config.L_dim, config.N_dim, config.D_out_dim)

    def decode(self, previous: Tensor, label: Tensor, z: Tensor) -> Tensor:
        """The generator's output (M, 3, H, W), from features of the previous frame, features of the pose, and z."""
        return self.Generator(self.Decoder_Fusion(torch.cat([previous, label, z], 1)))  # type: ignore[no-any-return]


def widths(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """F_dim, L_dim, N_dim and D_out_dim of the network with these weights.

    CheckpointError if the weights do not belong to this kind of network.
    """
    places = {
        "F_dim": "frame_transformation.6.weight",
        "L_dim": "label_transformation.4.conv1.weight",
        "N_dim": "Gaussian_Predictor.4.conv1.weight",
        "D_out_dim": "Decoder_Fusion.5.weight",
    }
    for key in places.values():
        if key not in weights:
            raise CheckpointError(
                f"The weights have no tensor '{key}'.",
                "Expected: the lab's five modules (frame_transformation, label_transformation, Gaussian_Predictor, "
                "Decoder_Fusion, Generator).",
                "Pass a checkpoint of this network.",
            )
    return {name: int(weights[key].shape[0]) for name, key in places.items()}


def check_weights(model: CVAE, weights: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if `weights` do not fit `model`. The message names the first tensor that does not fit."""
    own = model.state_dict()
    for key, tensor in own.items():
        if key not in weights:
            raise CheckpointError(f"The weights have no tensor '{key}'.", f"Expected: shape {tuple(tensor.shape)}.")
        if weights[key].shape != tensor.shape:
            raise CheckpointError(
                f"Tensor '{key}' has shape {tuple(weights[key].shape)}.",
                f"Expected: {tuple(tensor.shape)} (widths {model.widths}).",
                "Use the settings that the checkpoint was trained with.",
            )
    for key in weights:
        if key not in own:
            raise CheckpointError(f"The weights have a tensor '{key}' that this network has not.")

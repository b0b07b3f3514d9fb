"""The lab's network, its saving code and its test loop, written plainly from their description: none of our code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, padding=1)
        self.conv2 = nn.Conv2d(o, o, 3, padding=1)
        self.leaky_relu = nn.LeakyReLU(0.01)
        self.skip = nn.Conv2d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.leaky_relu(self.conv2(self.leaky_relu(self.conv1(x))))
        return out + (self.skip(x) if self.skip is not None else x)


class DepthConv(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(i, i, 1), nn.LeakyReLU(0.01))
        self.depth_conv = nn.Conv2d(i, i, 3, padding=1, groups=i)
        self.conv2 = nn.Conv2d(i, o, 1)
        self.adaptor = nn.Conv2d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.depth_conv(self.conv1(x)))
        return out + (self.adaptor(x) if self.adaptor is not None else x)


class ConvFFN(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c * 4, 1)
        self.conv_out = nn.Conv2d(c * 2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.conv(x).chunk(2, 1)
        return x + self.conv_out(one * nn.functional.leaky_relu(two, 0.1))


class DepthConvBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.block = nn.Sequential(DepthConv(i, o), ConvFFN(o))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class VAE_Model(nn.Module):
    """The lab's model class: five modules under the lab's names."""

    def __init__(self, f: int, l: int, n: int, d: int) -> None:  # noqa: E741
        super().__init__()
        R, D = ResidualBlock, DepthConvBlock
        self.frame_transformation = nn.Sequential(
            *(R(3, f // 8), D(f // 8, f // 8), R(f // 8, f // 4), D(f // 4, f // 4)),
            *(R(f // 4, f // 2), D(f // 2, f // 2), nn.Conv2d(f // 2, f, 3, padding=1)),
        )
        self.label_transformation = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, l // 2, 7),
            nn.BatchNorm2d(l // 2),
            nn.LeakyReLU(True),
            R(l // 2, l),
        )
        self.Gaussian_Predictor = nn.Sequential(
            *(R(f + l, n // 4), D(n // 4, n // 4), R(n // 4, n // 2), D(n // 2, n // 2), R(n // 2, n)),
            *(nn.LeakyReLU(True), nn.Conv2d(n, n * 2, 1)),
        )
        i = f + l + n
        self.Decoder_Fusion = nn.Sequential(
            *(D(i, i), R(i, i // 4), D(i // 4, i // 2), R(i // 2, i // 2), D(i // 2, d // 2), nn.Conv2d(d // 2, d, 1))
        )
        self.Generator = nn.Sequential(
            *(D(d, d), R(d, d // 2), D(d // 2, d // 2), R(d // 2, d // 4), D(d // 4, d // 4)),
            *(R(d // 4, d // 8), D(d // 8, d // 8), nn.Conv2d(d // 8, 3, 1)),
        )
        self.lr, self.tfr, self.current_epoch = 1e-3, 0.4, 7

    def save(self, path: Path) -> None:
        """As the lab's trainer does it, its slip included: 'optimizer' holds the model's weights."""
        torch.save(
            {
                "state_dict": self.state_dict(),
                "optimizer": self.state_dict(),
                "lr": self.lr,
                "tfr": self.tfr,
                "last_epoch": self.current_epoch,
            },
            path,
        )

    @torch.no_grad()
    def test_loop(self, first: Tensor, labels: Tensor, channels: int) -> Tensor:
        """Frames 1..T from the first (1, 3, H, W) and their labels, one by one, z = 0: (T, 3, H, W)."""
        self.eval()
        out, frames = first, []
        for label in labels:
            human = self.frame_transformation(out)
            pose = self.label_transformation(label[None])
            z = torch.zeros(1, channels, *first.shape[2:])
            out = self.Generator(self.Decoder_Fusion(torch.cat([human, pose, z], 1)))
            frames.append(out)
        return torch.cat(frames)

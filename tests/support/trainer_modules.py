"""The networks beside a template-shaped trainer, as tiny as its options ask for. The file is copied as modules.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RGB_Encoder(nn.Conv2d):
    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(in_ch, out_ch, 1)


class Label_Encoder(nn.Sequential):
    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__(nn.Conv2d(in_ch, out_ch, 1), nn.BatchNorm2d(out_ch))


class Gaussian_Predictor(nn.Module):
    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.both = nn.Conv2d(in_ch, 2 * out_ch, 1)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(logvar / 2) * torch.randn_like(mu)

    def forward(self, img: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.both(torch.cat([img, label], 1)).chunk(2, 1)
        return self.reparameterize(mu, logvar), mu, logvar


class Decoder_Fusion(nn.Module):
    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(in_ch, out_ch, 1)

    def forward(self, img: Tensor, label: Tensor, parm: Tensor) -> Tensor:
        return self.mix(torch.cat([img, label, parm], 1))


class Generator(nn.Conv2d):
    def __init__(self, input_nc: int, output_nc: int) -> None:
        super().__init__(input_nc, output_nc, 1)

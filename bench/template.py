"""The lab template's protocol, written plainly: what the engine is measured against.

Frame by frame, the frame encoder called twice, the posterior computed in validation too, PNG files opened, decoded
and resized anew every epoch by a DataLoader, single precision, eager, ordinary memory layout. The five modules are
the product's own, so that both sides train the same network from the same weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from cvaeopt.config import Config
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.schedules import beta_at, lr_at


def _number(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.stem)))


def _open(path: Path, config: Config) -> Tensor:
    """One PNG as the template's transform makes it: RGB, resized, (3, H, W) float in [0, 1]."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize((config.frame_W, config.frame_H), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


class Clips(TorchDataset[tuple[Tensor, Tensor]]):
    """Clips of `length` consecutive frames and labels, read from the PNG files at every access."""

    def __init__(self, root: Path, split: str, length: int, config: Config) -> None:
        self.frames = sorted((root / split / f"{split}_img").glob("*.png"), key=_number)
        self.labels = sorted((root / split / f"{split}_label").glob("*.png"), key=_number)
        self.length = length
        self.config = config

    def __len__(self) -> int:
        return len(self.frames) // self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        rows = range(index * self.length, (index + 1) * self.length)
        return (
            torch.stack([_open(self.frames[row], self.config) for row in rows]),
            torch.stack([_open(self.labels[row], self.config) for row in rows]),
        )


class TemplateTrainer:
    """One run of `config` the template's way; `train_epoch` and `validate` can be timed apart."""

    def __init__(self, config: Config, root: Path, device: str, loader_workers: int = 2) -> None:
        self.config = config
        self.device = torch.device(device)
        self.model = CVAE.of(config).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.lr)
        self.epoch = 0
        clips = Clips(root, "train", config.train_vi_len, config)
        self.loader = DataLoader(
            clips, config.batch_size, shuffle=config.shuffle, num_workers=loader_workers, drop_last=True
        )
        val = Clips(root, "val", 1, config)
        val.length = len(val.frames)
        self.val_loader = DataLoader(val, 1, num_workers=min(1, loader_workers))

    def train_epoch(self, forced: bool) -> float:
        """Mean loss of one epoch's steps."""
        config = self.config
        beta = beta_at(config, self.epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(config, self.epoch)
        self.model.train()
        losses = []
        for batch_frames, batch_labels in self.loader:
            frames = batch_frames.to(self.device).permute(1, 0, 2, 3, 4)
            labels = batch_labels.to(self.device).permute(1, 0, 2, 3, 4)
            self.optimizer.zero_grad()
            loss = torch.zeros((), device=self.device)
            last = frames[0]
            for t in range(1, len(frames)):
                output, mu, logvar = self._forward(last, frames[t], labels[t])
                kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
                kl = kl / (mu.numel() if config.kl_norm == "element" else len(mu))
                loss = loss + nn.functional.mse_loss(output, frames[t]) + beta * kl
                last = frames[t] if forced else output.detach()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
            self.optimizer.step()
            losses.append(loss.item())  # the template's progress bar shows it
        self.epoch += 1
        return sum(losses) / len(losses)

    def _forward(self, last: Tensor, current: Tensor, label: Tensor, prior: bool = False) -> tuple[Tensor, ...]:
        feature = self.model.frame_transformation(current)
        pose = self.model.label_transformation(label)
        mu, logvar = self.model.Gaussian_Predictor.posterior(feature, pose)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        if prior:
            z = torch.randn_like(z)
        output = self.model.decode(self.model.frame_transformation(last), pose, z)
        return (torch.sigmoid(output) if self.config.output == "sigmoid" else output), mu, logvar

    @torch.no_grad()
    def validate(self) -> list[float]:
        """PSNR of every frame, dB; BatchNorm stays in training mode, as in the template."""
        psnr = []
        for batch_frames, batch_labels in self.val_loader:
            frames = batch_frames.to(self.device).permute(1, 0, 2, 3, 4)
            labels = batch_labels.to(self.device).permute(1, 0, 2, 3, 4)
            last = frames[0]
            for t in range(1, len(frames)):
                last, _, _ = self._forward(last, frames[t], labels[t], prior=True)
                mse = nn.functional.mse_loss(last, frames[t])
                psnr.append((-10 * torch.log10(mse)).item())
        return psnr

"""A trainer in the shape of the lab's template, with a switch for each fault that `cvaeopt doctor` looks for.

Tests copy this file and put other words in the place of FAULTS. Nothing of it is anybody's printed code.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
from dataloader import Dataset_Dance  # is not there: the doctor puts a stand-in in its place
from modules import Decoder_Fusion, Gaussian_Predictor, Generator, Label_Encoder, RGB_Encoder
from torch import Tensor, nn, optim

FAULTS: set[str] = set()


def Generate_PSNR(one: Tensor, other: Tensor) -> Tensor:  # noqa: N802
    return -10 * torch.log10(nn.functional.mse_loss(one, other))


def kl_criterion(mu: Tensor, logvar: Tensor, batch_size: int) -> Tensor:
    return -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum() / batch_size


class kl_annealing:
    def __init__(self, args: Any, current_epoch: int = 0) -> None:
        self.args, self.epoch = args, current_epoch
        self.beta = 0.0 if FAULTS & {"starts late"} else self.formula()

    def get_beta(self) -> float:
        return self.beta

    def update(self) -> None:
        if "starts late" in FAULTS:  # report 003: the epoch is counted after the weight was computed
            self.beta = self.formula()
            self.epoch += 1
        else:
            self.epoch += 1
            self.beta = self.formula()

    def formula(self) -> float:
        cycle, epochs = self.args.kl_anneal_cycle, self.args.num_epoch
        if self.args.kl_anneal_type == "None":
            return 1.0
        if "cycle length" in FAULTS:  # reports 000 and 004
            return min(1.0, self.args.kl_anneal_ratio * (self.epoch % cycle) / cycle)
        if "starts late" in FAULTS:
            period = epochs / cycle
            return min(1.0, (self.epoch % period) / period / (period * self.args.kl_anneal_ratio))
        if "odd beta" in FAULTS:
            return 0.5
        place = math.fmod(self.epoch * cycle / epochs, 1)
        return min(1.0, place / self.args.kl_anneal_ratio)


class VAE_Model(nn.Module):
    def __init__(self, args: Any) -> None:
        super().__init__()
        self.args = args
        if "crash" in FAULTS:
            raise ValueError("no such option")
        self.frame_transformation = RGB_Encoder(3, args.F_dim)
        self.label_transformation = Label_Encoder(3, args.L_dim)
        self.Gaussian_Predictor = Gaussian_Predictor(args.F_dim + args.L_dim, args.N_dim)
        self.Decoder_Fusion = Decoder_Fusion(args.F_dim + args.L_dim + args.N_dim, args.D_out_dim)
        self.Generator = Generator(input_nc=args.D_out_dim, output_nc=3)
        self.optim = optim.Adam(self.parameters(), lr=args.lr)
        self.scheduler: Any
        if "frozen" in FAULTS:
            self.scheduler = optim.lr_scheduler.MultiStepLR(self.optim, milestones=[2, 5], gamma=0.1)
        else:
            self.scheduler = optim.lr_scheduler.CosineAnnealingLR(self.optim, args.num_epoch)
        self.kl_annealing = kl_annealing(args)
        self.mse_criterion = nn.MSELoss()
        self.batch_size = args.batch_size
        self.train_vi_len, self.val_vi_len = args.train_vi_len, args.val_vi_len
        self.tfr, self.current_epoch = args.tfr, 0

    def forward(self, last: Tensor, img: Tensor, label: Tensor, prior: bool = False) -> tuple[Tensor, ...]:
        frame, pose = self.frame_transformation(last), self.label_transformation(label)
        seen = last if "posterior input" in FAULTS else img
        z, mu, logvar = self.Gaussian_Predictor(self.frame_transformation(seen), pose)
        if prior and "leak" not in FAULTS:
            z = torch.randn_like(z)
        return self.Generator(self.Decoder_Fusion(frame, pose, z)), mu, logvar

    def training_stage(self) -> None:
        for _ in range(self.args.num_epoch):
            adapt = random.random() < self.tfr
            for img, label in self.train_dataloader():
                self.training_one_step(img, label, adapt)
            self.eval()
            self.current_epoch += 1
            self.scheduler.step()
            self.kl_annealing.update()

    def training_one_step(self, img: Tensor, label: Tensor, adapt_TeacherForcing: bool) -> Tensor:
        if "stays in eval" not in FAULTS:
            self.train()
        self.optim.zero_grad()
        if "view" in FAULTS:  # report 004
            img, label = (x.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1) for x in (img, label))
        loss: Any = 0
        last = img[:, 0]
        for i in range(1, self.train_vi_len):
            out, mu, logvar = self.forward(last, img[:, i], label[:, i - 1 if "label" in FAULTS else i])
            if "scored" in FAULTS and adapt_TeacherForcing:
                out = img[:, i]  # the fault "scored"
            mse = self.mse_criterion(out, img[:, i])  # the line of "scored"
            loss = loss + mse + self.kl_annealing.get_beta() * kl_criterion(mu, logvar, self.batch_size)
            last = img[:, i] if adapt_TeacherForcing else out if "detach" in FAULTS else out.detach()
        loss.backward()
        self.optim.step()
        return loss

    @torch.no_grad()
    def eval(self) -> None:  # type: ignore[override]
        self.train("template eval" in FAULTS)
        for img, label in self.val_dataloader():
            self.val_one_step(img, label)

    def val_one_step(self, img: Tensor, label: Tensor) -> Any:
        last, total, psnr = img[:, 0], 0.0, 0.0
        start = 0 if "given frame" in FAULTS else 1
        for i in range(start, self.val_vi_len):
            if i:
                last, *_ = self.forward(last, img[:, i], label[:, i], prior=True)
            psnr += float(Generate_PSNR(last, img[:, i]))
        return total, psnr / (self.val_vi_len - (0 if FAULTS & {"divides", "given frame"} else 1))

    def train_dataloader(self) -> Any:
        return Dataset_Dance(root=self.args.DR, mode="train")

    def val_dataloader(self) -> Any:
        return Dataset_Dance(root=self.args.DR, mode="val")

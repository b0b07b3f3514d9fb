"""What the reports print, written out again: every schedule of their studies, and every training step.

The schedules follow the template's order of calls: train with the values, then count the epoch, step the learning rate,
update the forcing ratio, update the KL weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cvaeopt.config import Config
from cvaeopt.search.definition import load_definition
from cvaeopt.search.space import params_to_config
from cvaeopt.vae.loss import LossSettings, clip_loss
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at
from tests.support import plain

STUDIES = Path(__file__).parents[2] / "studies"


class Kl000:
    def __init__(self, config: Config) -> None:
        self.kind, self.cycle, self.ratio = config.kl_anneal_type, config.kl_anneal_cycle, config.kl_anneal_ratio
        self.epoch, self.beta = 0, 1.0 if config.kl_anneal_type == "none" else 0.0

    def update(self) -> None:
        self.epoch += 1
        if self.kind == "monotonic":
            self.beta = min(1.0, self.beta + self.ratio * self.epoch / self.cycle)
        elif self.kind == "cyclical":
            self.beta = min(1.0, self.ratio * (self.epoch % self.cycle / self.cycle))


class Kl001:
    """The report prints formulas of the epoch t; the class around them is the template's."""

    def __init__(self, config: Config) -> None:
        self.kind, self.M, self.R, self.T = (
            config.kl_anneal_type,
            config.kl_anneal_cycle,
            config.kl_anneal_ratio,
            config.num_epoch,
        )
        self.t = 0

    def update(self) -> None:
        self.t += 1

    @property
    def beta(self) -> float:
        if self.kind == "none":
            return 1.0
        if self.kind == "monotonic":
            return min(1.0, self.t * self.M / (self.R * self.T))
        tau = self.t % math.ceil(self.T / self.M) / (self.T / self.M)
        return tau / self.R if tau <= self.R else 1.0


class Kl003:
    def __init__(self, config: Config) -> None:
        self.config, self.epoch, self.beta = config, 0, 0.0

    def update(self) -> None:
        config = self.config
        if config.kl_anneal_type == "cyclical":
            period = config.num_epoch / config.kl_anneal_cycle
            progress = self.epoch % period / period
            self.beta = min(progress * (1.0 - 0.0) / (period * config.kl_anneal_ratio), 1.0)
        elif config.kl_anneal_type == "monotonic":
            self.beta = min(self.epoch * config.kl_anneal_ratio, 1.0)
        else:
            self.beta = 1.0
        self.epoch += 1


class Kl004:
    def __init__(self, config: Config) -> None:
        self.kind, self.cycle, self.epoch = config.kl_anneal_type, config.kl_anneal_cycle, 0
        self.beta = self.calculated()

    def calculated(self) -> float:
        if self.kind == "cyclical":
            return min(1.0, 2 * (self.epoch % self.cycle / self.cycle))
        return min(1.0, self.epoch / self.cycle) if self.kind == "monotonic" else 1.0

    def update(self) -> None:
        self.epoch += 1
        self.beta = self.calculated()


CLASSES: dict[str, Any] = {"seed000": Kl000, "seed001": Kl001, "seed003": Kl003, "seed004": Kl004}


def printed_schedules(config: Config, seed: str) -> Iterator[tuple[float, float, float]]:
    """(lr, tfr, beta) of every epoch, as the template's loop has them while it trains."""
    optim = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optim, list(config.milestones), config.gamma)
    annealing, tfr = CLASSES[seed](config), config.tfr
    for current_epoch in range(1, config.num_epoch + 1):  # as the template counts after it has trained
        yield optim.param_groups[0]["lr"], tfr, annealing.beta
        optim.step()
        scheduler.step()
        if current_epoch >= config.tfr_sde if seed == "seed003" else current_epoch > config.tfr_sde:
            tfr = max(0.0, tfr - config.tfr_d_step)
        annealing.update()


REPORTED = sorted(path.stem for path in STUDIES.glob("seed*.toml"))


@pytest.mark.parametrize("name", REPORTED)
def test_every_epoch_of_a_report_s_study_has_the_schedules_that_the_report_prints(name: str) -> None:
    definition = load_definition(name, STUDIES)
    points = definition.points() or [{key: dimension.ends()[-1] for key, dimension in definition.search.items()}]
    for number, point in enumerate(points):
        config = params_to_config(definition, point, number)
        ours = [
            (lr_at(config, epoch), tfr_at(config, epoch), beta_at(config, epoch)) for epoch in range(config.num_epoch)
        ]
        for epoch, expected in enumerate(printed_schedules(config, name[:7])):
            ours = lr_at(config, epoch), tfr_at(config, epoch), beta_at(config, epoch)
            assert ours == pytest.approx(expected, rel=1e-9, abs=1e-12), (point, epoch)


Step = Callable[[CVAE, Tensor, Tensor, Tensor, float, bool], Tensor]


def kl_criterion(mu: Tensor, logvar: Tensor, batch_size: int) -> Tensor:
    return -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / batch_size


def predicted(model: CVAE, before: Tensor, seen: Tensor, pose: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A frame from the features of the frame before it and of the frame that the posterior sees; mu and logvar."""
    mu, logvar = model.Gaussian_Predictor(torch.cat([seen, pose], 1)).chunk(2, 1)
    z = mu + eps * torch.exp(0.5 * logvar)
    return model.Generator(model.Decoder_Fusion(torch.cat([before, pose, z], 1))), mu, logvar


def step_000(model: CVAE, img: Tensor, label: Tensor, eps: Tensor, beta: float, forcing: bool) -> Tensor:
    loss, last = torch.zeros(()), img[:, 0]
    for i in range(1, img.shape[1]):
        seen = model.frame_transformation(img[:, i])
        pose = plain.label_features(model, label[:, i], training=True)
        output, mu, logvar = predicted(model, model.frame_transformation(last), seen, pose, eps[:, i - 1])
        last = img[:, i].detach() if forcing else output.detach()
        loss = loss + mse_loss(output, img[:, i]) + kl_criterion(mu, logvar, len(img)) * beta
    return loss


def step_001(model: CVAE, img: Tensor, label: Tensor, eps: Tensor, beta: float, forcing: bool) -> Tensor:
    KL, MSE, img_last = torch.zeros(()), torch.zeros(()), img[:, 0]
    for i in range(img.shape[1] - 1):
        last = model.frame_transformation(img[:, i] if forcing else img_last)
        pose = plain.label_features(model, label[:, i + 1], training=True)
        pred, mu, logvar = predicted(model, last, model.frame_transformation(img[:, i + 1]), pose, eps[:, i])
        KL = KL + kl_criterion(mu, logvar, len(img))
        MSE = MSE + mse_loss(pred, img[:, i + 1])
        img_last = pred.detach()
    return MSE + KL * beta


def step_003(model: CVAE, img: Tensor, label: Tensor, eps: Tensor, beta: float, forcing: bool) -> Tensor:
    batch = len(img)
    img, label = img.permute(1, 0, 2, 3, 4), label.permute(1, 0, 2, 3, 4)
    decoded_frame, total_loss = img[0], torch.zeros(())
    for i in range(1, len(img)):
        pose = plain.label_features(model, label[i], training=True)
        feature = model.frame_transformation(decoded_frame)
        decoded_frame, mu, logvar = predicted(model, feature, feature, pose, eps[:, i - 1])
        if forcing:
            decoded_frame = img[i]
        total_loss = total_loss + mse_loss(decoded_frame, img[i]) + beta * kl_criterion(mu, logvar, batch)
    return total_loss


def step_004(model: CVAE, images: Tensor, labels: Tensor, eps: Tensor, beta: float, forcing: bool) -> Tensor:
    B, T, C, H, W = images.shape
    images, labels = images.view(T, B, C, H, W), labels.view(T, B, C, H, W)
    last_pred, total_loss = None, torch.zeros(())
    for t in range(1, T):
        img = images[t - 1] if forcing or last_pred is None else last_pred
        pose = plain.label_features(model, labels[t], training=True)
        seen = model.frame_transformation(images[t])
        last_pred, mu, logvar = predicted(model, model.frame_transformation(img), seen, pose, eps[:, t - 1])
        total_loss = total_loss + mse_loss(last_pred, images[t]) + beta * kl_criterion(mu, logvar, B)
    return total_loss


@pytest.mark.parametrize("forcing", [True, False])
@pytest.mark.parametrize(
    ("study", "step"),
    [
        ("seed000-tfr", step_000),
        ("seed000-final", step_000),
        ("seed001-kl", step_001),
        ("seed001-final", step_001),
        ("seed003-kl-printed", step_003),
        ("seed004-kl-printed", step_004),
    ],
)
def test_a_training_step_of_a_report_s_study_is_the_step_that_the_report_prints(
    study: str, step: Step, forcing: bool
) -> None:
    definition = load_definition(study, STUDIES)
    config = params_to_config(definition, definition.points()[0], 0)
    torch.manual_seed(3)
    model = CVAE(8, 4, 4, 8).double()
    reference = copy.deepcopy(model)
    shape, wide = (config.batch_size, 5), torch.float64
    frames, labels = torch.rand(*shape, 3, 8, 12, dtype=wide), torch.rand(*shape, 3, 8, 12, dtype=wide)
    eps = torch.randn(config.batch_size, 4, 4, 8, 12, dtype=wide)

    expected = step(reference, frames, labels, eps, 0.3, forcing)
    expected.backward()
    if config.clip_order == "strided":  # the trainer's order, which tests/vae/test_trainer.py compares with `view`
        rows = torch.arange(math.prod(shape)).view(shape[::-1]).T.flatten()
        frames, labels = (video.flatten(0, 1)[rows].unflatten(0, shape) for video in (frames, labels))
    settings = LossSettings(
        forcing,
        config.output,
        config.kl_norm,
        "frame" if config.label_bn == "frame" else "batch",
        posterior=config.posterior,
        detach=config.detach,
        forced_loss=config.forced_loss,
    )
    loss = clip_loss(model, frames, labels, eps, settings).total(0.3)
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-11)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-8, atol=1e-10, msg=name)

"""What can only be checked on a CUDA device; `make gpu` runs it. Needs neither Optuna nor a database."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch

from cvaeopt.vae.loss import LossSettings, clip_loss
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.rollout import roll_chunks
from cvaeopt.vae.trainer import Trainer
from testbed import tiny

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device (`make gpu` on a machine that has one)"),
]

DATA = tiny.dataset()


def exact() -> None:
    """Single precision without TF32, so that the two devices can be compared."""
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cuda.matmul.fp32_precision = "ieee"


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("free_step", ["replay", "sequential"])
def test_loss_and_gradients_are_those_of_the_processor(
    forced: bool, free_step: Literal["replay", "sequential"]
) -> None:
    exact()
    torch.manual_seed(0)
    here = CVAE(32, 16, 4, 48)
    there = copy.deepcopy(here).to("cuda", memory_format=torch.channels_last)
    frames, labels, eps = torch.rand(2, 6, 3, 16, 32), torch.rand(2, 6, 3, 16, 32), torch.randn(2, 5, 4, 16, 32)
    for model in (here, there):
        device = next(model.parameters()).device
        settings = LossSettings(forced, "sigmoid", "element", free_step=free_step)
        loss = clip_loss(model, frames.to(device), labels.to(device), eps.to(device), settings)
        loss.total(0.5).backward()
    whole = sum(float(p.grad.square().sum()) for p in here.parameters() if p.grad is not None) ** 0.5
    for mine, theirs in zip(there.parameters(), here.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        difference = float((mine.grad.cpu() - theirs.grad).norm())
        assert difference <= 1e-3 * max(float(theirs.grad.norm()), 1e-3 * whole)


def test_a_roll_out_is_that_of_the_processor() -> None:
    exact()
    torch.manual_seed(0)
    model = CVAE(32, 16, 4, 48).eval()
    first, labels, z = torch.rand(1, 3, 16, 32), torch.rand(1, 20, 3, 16, 32), torch.randn(1, 20, 4, 16, 32)
    here, there = (
        torch.cat(list(roll_chunks(network, first, labels, z, "sigmoid")), 1)
        for network in (model, copy.deepcopy(model).to("cuda"))
    )
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("tfr", [0.0, 1.0])
def test_a_run_learns_in_every_precision(precision: str, tfr: float) -> None:
    config = tiny.config(
        num_epoch=30, lr=1e-2, lr_scheduler="constant", tfr=tfr, tfr_sde=99, kl_norm="element", output="sigmoid",
        precision=precision,
    )  # fmt: skip
    results = list(Trainer(config, DATA, "cuda:0").run())
    assert results[-1].train_mse < 0.5 * results[0].train_mse


def test_a_resumed_run_continues_where_it_stopped(tmp_path: Path) -> None:
    config = tiny.config(shuffle=True, kl_norm="element")
    whole = [result.val_psnr for result in Trainer(config, DATA, "cuda:0").run()]
    first = Trainer(config, DATA, "cuda:0")
    list(first.run(2))
    first.save(tmp_path / "last.pt")
    second = Trainer(config, DATA, "cuda:0")
    second.restore(tmp_path / "last.pt")
    assert second.validate().mean == pytest.approx(whole[1], abs=1e-3)
    assert [result.val_psnr for result in second.run()] == pytest.approx(whole[2:], abs=0.1)


def test_fifty_runs_in_one_process_do_not_gather_memory() -> None:
    def allocated() -> int:
        for result in Trainer(tiny.config(num_epoch=1, ema=0.9), DATA, "cuda:0").run():
            assert result.epoch == 1
        return torch.cuda.memory_allocated()

    settled = max(allocated() for _ in range(5))
    assert max(allocated() for _ in range(45)) <= settled + 2**20

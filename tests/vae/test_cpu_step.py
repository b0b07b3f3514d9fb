"""A step spread over threads is the same step: the batched loss, its gradients, and the same bits for any number."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cvaeopt.vae.cpu_step import StepThreads, cuts, one_thread
from cvaeopt.vae.loss import LossSettings, clip_loss
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.trainer import Trainer
from testbed import tiny


@given(batch=st.integers(1, 40), steps=st.integers(1, 60))
def test_the_pieces_of_a_clip_follow_each_other_and_are_equally_long(batch: int, steps: int) -> None:
    pieces = cuts(batch, steps)
    assert pieces[0].start == 0
    assert pieces[-1].stop == steps
    assert all(one.stop == following.start for one, following in pairwise(pieces))
    lengths = [piece.stop - piece.start for piece in pieces]
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= min(3, steps)


@hypothesis_settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(2, 8),
    widths=st.sampled_from([(8, 4, 4, 8), (16, 8, 8, 16)]),
    forced=st.booleans(),
    output=st.sampled_from(["linear", "sigmoid", "clamp"]),
    kl_norm=st.sampled_from(["batch", "element"]),
    statistics=st.sampled_from(["batch", "frame"]),
    free_step=st.sampled_from(["replay", "sequential"]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    threads=st.integers(1, 4),
    posterior=st.sampled_from(["current", "previous"]),
    detach=st.booleans(),
    forced_loss=st.sampled_from(["prediction", "truth"]),
)
def test_loss_and_gradients_equal_those_of_the_whole_batch_at_once(
    batch: int,
    length: int,
    widths: tuple[int, int, int, int],
    forced: bool,
    output: Any,
    kl_norm: Any,
    statistics: Any,
    free_step: Literal["replay", "sequential"],
    beta: float,
    threads: int,
    posterior: Any,
    detach: bool,
    forced_loss: Any,
) -> None:
    torch.manual_seed(batch * 100 + length)
    model = CVAE(*widths).double()
    reference = copy.deepcopy(model)
    frames = torch.rand(batch, length, 3, 8, 12, dtype=torch.float64)
    labels = torch.rand(batch, length, 3, 8, 12, dtype=torch.float64)
    eps = torch.randn(batch, length - 1, widths[2], 8, 12, dtype=torch.float64)
    settings = LossSettings(
        forced, output, kl_norm, statistics, posterior=posterior, detach=detach, forced_loss=forced_loss
    )

    expected = clip_loss(reference, frames, labels, eps, settings)
    expected.total(beta).backward()
    step_threads = StepThreads(threads)
    loss = step_threads.backward(model, frames, labels, eps, beta, replace(settings, free_step=free_step))
    step_threads.close()

    assert loss.frames == expected.frames
    torch.testing.assert_close(loss.mse, expected.mse.detach(), rtol=1e-11, atol=0)
    torch.testing.assert_close(loss.kl, expected.kl.detach(), rtol=1e-11, atol=0)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)
    for (name, buffer), other in zip(model.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("forced", [True, False])
def test_gradients_have_the_memory_layout_of_their_parameters(forced: bool) -> None:
    # The optimiser's fused kernels go through both by address.
    model = CVAE(8, 4, 4, 8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    frames, labels, eps = torch.rand(2, 5, 3, 8, 8), torch.rand(2, 5, 3, 8, 8), torch.randn(2, 4, 4, 8, 8)
    StepThreads(1).backward(model, frames, labels, eps, 1.0, LossSettings(forced, "linear", "element"))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), name


@pytest.mark.parametrize(
    "settings",
    [
        {"tfr": 0.0, "batch_size": 1},
        {"tfr": 0.5, "batch_size": 2},
        {"tfr": 0.5, "batch_size": 1, "posterior": "previous"},
        {"tfr": 0.5, "batch_size": 2, "detach": False, "forced_loss": "truth", "clip_order": "strided"},
        {"tfr": 0.0, "batch_size": 3, "posterior": "previous", "detach": False},
    ],
)
def test_the_number_of_threads_changes_no_bit_of_a_run(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    config = tiny.config(train_vi_len=8, tfr_coin="step", num_epoch=1, **settings)
    data = tiny.dataset(frames=48)
    weights = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr("cvaeopt.vae.device.threads", lambda count=threads: count)
        trainer = Trainer(config, data)
        curve = [result.val_psnr for result in trainer.run()]
        weights.append((curve, trainer.model.state_dict()))
    for curve, state in weights[1:]:
        assert curve == weights[0][0]
        assert all(torch.equal(state[key], value) for key, value in weights[0][1].items())


@pytest.mark.parametrize("free_step", ["replay", "sequential"])
def test_a_piece_that_another_thread_differentiates_has_the_same_gradients(
    free_step: Literal["replay", "sequential"],
) -> None:
    torch.manual_seed(0)
    model = CVAE(8, 4, 4, 8)
    frames, labels, eps = torch.rand(2, 8, 3, 8, 16), torch.rand(2, 8, 3, 8, 16), torch.randn(2, 7, 4, 8, 16)

    settings = LossSettings(False, "linear", "batch", free_step=free_step)

    def gradients(threads: int) -> list[torch.Tensor]:
        step_threads = StepThreads(threads)
        with one_thread():
            step_threads.backward(model, frames, labels, eps, 0.3, settings)
        step_threads.close()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    expected = gradients(1)
    for _ in range(10):  # which thread takes which piece is chance
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(gradients(4), expected, strict=True))


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    model = CVAE(8, 4, 4, 8)
    frames, labels = torch.rand(2, 5, 3, 8, 8), torch.rand(2, 5, 3, 8, 8)
    step_threads = StepThreads(2)
    wrong = torch.randn(2, 4, 3, 8, 8)  # one latent channel too few
    for forced in (True, False):
        with pytest.raises(RuntimeError, match="size"):
            step_threads.backward(model, frames, labels, wrong, 1.0, LossSettings(forced, "linear", "element"))
    step_threads.close()


def test_one_thread_is_for_the_block_only() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

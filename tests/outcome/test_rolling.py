"""A checkpoint in the lab's form does not say how its network makes frames: the validation video or the user does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from cvaeopt.errors import CheckpointError
from cvaeopt.outcome.rolling import Noise, Span, notes, roll_frames, with_output_decided
from cvaeopt.vae import checkpoint
from cvaeopt.vae.metrics import psnr_per_frame
from cvaeopt.vae.rollout import Output, to_float
from cvaeopt.vae.trainer import Trainer
from testbed import tiny

OUTPUTS: tuple[Output, ...] = get_args(Output)


@pytest.fixture(scope="module", params=OUTPUTS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Trainer]:
    """One network, saved by us and in the lab's form, which does not hold its output."""
    folder = tmp_path_factory.mktemp(request.param)
    trainer = Trainer(tiny.config(output=request.param, lr=5e-3, tfr=0.0, kl_norm="element"), tiny.DATA)
    list(trainer.run())
    trainer.save(folder / "ours.pt")
    weights = checkpoint.load_model(folder / "ours.pt").model.state_dict()
    torch.save({"state_dict": weights, "last_epoch": 4}, folder / "epoch=4.ckpt")
    return folder / "ours.pt", folder / "epoch=4.ckpt", trainer


def psnr(loaded: checkpoint.Loaded) -> float:
    val = tiny.DATA.val
    assert val is not None
    frames = roll_frames(loaded, val.frames[0], val.labels[1:], Noise())
    return float(psnr_per_frame(frames, to_float(torch.tensor(val.frames[1:]))).mean())


def test_the_output_that_is_chosen_is_the_best_on_the_validation_video(trained: tuple[Path, Path, Trainer]) -> None:
    ours, lab, trainer = trained
    loaded = with_output_decided(checkpoint.load_model(lab), tiny.DATA.val, Noise())
    each = {output: psnr(replace(loaded, output=output)) for output in OUTPUTS}
    assert loaded.output_from == "validation"
    assert each[loaded.output] >= max(each.values()) - 0.01  # equal to the hundredth that is printed
    assert loaded.output_psnr == pytest.approx(each, abs=0.006)
    # The same weights have the same score in either form: within what a clamp that changes nothing can differ.
    assert each[loaded.output] >= psnr(checkpoint.load_model(ours)) - 0.01
    if trainer.config.output == "sigmoid":
        assert loaded.output == "sigmoid"
    (said,) = notes(loaded, lab.name)
    assert f"The validation video decides: {loaded.output}" in said and "--output" in said


def test_without_a_video_the_template_s_output_is_assumed_and_that_is_said(
    trained: tuple[Path, Path, Trainer],
) -> None:
    loaded = with_output_decided(checkpoint.load_model(trained[1]), None, Noise())
    assert (loaded.output, loaded.output_from) == ("linear", "assumed")
    (said,) = notes(loaded, "epoch=4.ckpt")
    assert "linear is assumed" in said and "--output sigmoid" in said


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_the_user_says_counts_and_a_checkpoint_of_ours_knows(
    output: Output, trained: tuple[Path, Path, Trainer]
) -> None:
    ours, lab, trainer = trained
    given = with_output_decided(checkpoint.load_model(lab, output=output), tiny.DATA.val, Noise())
    assert (given.output, given.output_from) == (output, "given")
    own = checkpoint.load_model(ours)
    assert (own.output, own.output_from) == (trainer.config.output, "settings")
    other = checkpoint.load_model(ours, output=output)
    assert other.output == output
    assert len(notes(other, "ours.pt")) == (output != trainer.config.output)


def test_predictions_far_outside_the_range_are_said() -> None:
    inside, outside = Span.of(torch.tensor([-0.4, 1.4])), Span.of(torch.tensor([0.0, 1.0, 1.6, -0.6]))
    assert (inside.far, outside.far) == (0.0, 0.5)
    assert inside.joined(outside).plain() == {"low": -0.6, "high": 1.6, "far_fraction": 0.5}


def test_a_prediction_that_is_not_finite_is_refused_with_its_frame(
    trained: tuple[Path, Path, Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = checkpoint.load_model(trained[1])
    frames = torch.rand(6, 3, 8, 16)
    frames[2, 0, 1, 1] = float("nan")

    def rolled(*_: object) -> list[Tensor]:
        return [frames[None]]

    monkeypatch.setattr("cvaeopt.outcome.rolling.roll_chunks", rolled)
    val = tiny.DATA.val
    assert val is not None
    with pytest.raises(CheckpointError, match="NaN or infinite from frame 3 on"):
        roll_frames(loaded, val.frames[0], val.labels[1:], Noise())

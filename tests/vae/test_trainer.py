from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cvaeopt.errors import CheckpointError, DataError, Diverged
from cvaeopt.vae import checkpoint
from cvaeopt.vae.cpu_step import StepThreads
from cvaeopt.vae.loss import ClipLoss
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.rollout import to_float
from cvaeopt.vae.trainer import EpochResult, Trainer
from testbed import tiny
from tests.support import plain

DATA = tiny.dataset()


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def rows(results: list[EpochResult]) -> list[dict[str, Any]]:
    """The results without their wall time."""
    return [{**result.row(), "seconds": 0} for result in results]


@pytest.mark.parametrize(
    "settings",
    [
        {"tfr": 1.0, "tfr_sde": 1, "tfr_d_step": 0.4, "shuffle": True},  # the stop falls inside the decay
        {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 1, "kl_norm": "element", "tfr": 0.5, "tfr_coin": "step"},
        {"lr_scheduler": "MultiStepLR", "milestones": [1, 2], "optim": "SGD", "output": "sigmoid"},
        {"lr_scheduler": "cosine", "optim": "AdamW", "weight_decay": 0.1, "ema": 0.9, "label_bn": "frame"},
        {"precision": "bf16", "output": "sigmoid"},
        {"lr_scheduler": "ExponentialLR", "gamma": 0.7, "optim": "Adamax", "val_statistics": "running"},
        {"ema": 0.5, "val_statistics": "running", "shuffle": True},
        # Forced in the first epochs: what only free steps train has no moments when the checkpoint is written.
        {"tfr_sde": 2, "tfr_d_step": 1.0, "forced_loss": "truth", "posterior": "previous", "detach": False},
    ],
)
def test_two_runs_of_parts_equal_one_whole_run_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    config, data = tiny.config(num_epoch=3, **settings), tiny.dataset(frames=16, val=4)
    whole = Trainer(config, data)
    expected = list(whole.run())
    whole.save(tmp_path / "whole.pt")
    theirs, whole_file = weights(whole), checkpoint.read(tmp_path / "whole.pt")

    first = Trainer(config, data)
    results = []
    for stop in (1, 2):
        results += first.run(stop)
        first.save(tmp_path / "last.pt")
        second = Trainer(config, data)
        second.restore(tmp_path / "last.pt")
        assert rows([*results, *second.run()]) == rows(expected)
        assert [row["val_psnr"] for row in second.history] == [result.val_psnr for result in expected]
        mine = weights(second)
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        second.save(tmp_path / "second.pt")
        second_file = checkpoint.read(tmp_path / "second.pt")
        assert all(torch.equal(second_file["state_dict"][k], one) for k, one in whole_file["state_dict"].items())


def test_saving_changes_nothing_of_the_run(tmp_path: Path) -> None:
    config = tiny.config(val_statistics="running")
    undisturbed = rows(list(Trainer(config, DATA).run()))
    trainer = Trainer(config, DATA)
    disturbed = []
    for result in trainer.run():
        trainer.save(tmp_path / "last.pt")
        trainer.validate()
        disturbed.append(result)
    assert rows(disturbed) == undisturbed


def test_training_learns_what_the_baseline_cannot() -> None:
    settings = {"lr": 1e-2, "lr_scheduler": "constant", "tfr": 0.0, "kl_norm": "element", "output": "sigmoid"}
    trainer = Trainer(tiny.config(num_epoch=10, batch_size=1, **settings), DATA)
    results = list(trainer.run())
    assert results[-1].train_mse < 0.5 * results[0].train_mse
    assert results[-1].val_psnr > results[0].val_psnr + 3
    assert [result.epoch for result in results] == list(range(1, 11))


def test_validation_is_the_plain_loop_with_recalibrated_statistics() -> None:
    trainer = Trainer(tiny.config(num_epoch=2, output="clamp"), DATA)
    list(trainer.run())
    validation = trainer.validate()
    model = trainer.recalibrated_model().eval()
    labels = to_float(torch.tensor(DATA.val.labels))[1:]
    truth = to_float(torch.tensor(DATA.val.frames))
    predicted = plain.roll_out(model, truth[:1], labels, trainer._z, "clamp")
    mse = (predicted - truth[1:]).square().mean((1, 2, 3))
    torch.testing.assert_close(validation.psnr_frames.float(), -10 * torch.log10(mse), rtol=1e-4, atol=1e-4)
    assert validation.mean == pytest.approx(trainer.history[-1]["val_psnr"], abs=1e-9)
    assert trainer.history[-1]["val_mse"] == pytest.approx(float(mse.mean()), rel=1e-4)
    assert validation.frames is not None
    expected = predicted.mul(255).round().to(torch.uint8)
    assert (validation.frames.int() - expected.int()).abs().max() <= 1


def test_recalibration_in_validation_removes_the_memory_of_the_last_steps() -> None:
    """Two trainers with equal weights but different running averages validate alike, unless `running` is asked for."""

    def psnr(statistics: str, momentum_shift: float) -> float:
        trainer = Trainer(tiny.config(val_statistics=statistics), DATA)
        list(trainer.run(1))
        norm = trainer.model.label_transformation.norm
        assert norm.running_mean is not None
        norm.running_mean += momentum_shift
        return trainer.validate().mean

    assert psnr("recalibrated", 0.0) == psnr("recalibrated", 0.5)
    assert psnr("own", 0.0) == psnr("own", 0.5)
    assert psnr("running", 0.0) != psnr("running", 0.5)


def test_every_setting_of_the_noise_is_shared_by_trials_with_other_seeds() -> None:
    one, other = Trainer(tiny.config(seed=1), DATA), Trainer(tiny.config(seed=2), DATA)
    assert torch.equal(one._z, other._z)
    assert not torch.equal(one.model.Generator[7].weight, other.model.Generator[7].weight)


def test_a_diverged_run_says_so_with_its_epoch() -> None:
    trainer = Trainer(tiny.config(lr=1e18, optim="SGD", momentum=0.0, grad_clip=1e18), DATA)
    with pytest.raises(Diverged) as caught:
        list(trainer.run())
    assert not math.isfinite(caught.value.value)
    assert caught.value.epoch == trainer.epoch == len(trainer.history)


@pytest.mark.parametrize(
    ("allowed", "poisoned", "ends"),
    [(0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True), (3, 3, False), (9, 9, False)],  # 3 steps make an epoch
)
def test_steps_without_a_finite_gradient_are_left_out_as_often_as_allowed(
    allowed: int, poisoned: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = StepThreads.backward, 0

    def poison(threads: StepThreads, model: CVAE, *arguments: Any) -> ClipLoss:
        nonlocal calls
        calls += 1
        loss = real(threads, model, *arguments)
        if calls <= poisoned:
            gradient = model.Generator[7].weight.grad
            assert gradient is not None
            gradient.fill_(float("nan"))
        return loss

    monkeypatch.setattr(StepThreads, "backward", poison)
    trainer = Trainer(tiny.config(skip_steps=allowed), DATA)
    if not ends:
        with pytest.raises(Diverged) as caught:
            list(trainer.run(1))
        assert math.isnan(caught.value.value) and caught.value.epoch == 0
        return
    (result,) = trainer.run(1)
    assert math.isfinite(result.train_loss)
    assert all(bool(torch.isfinite(weight).all()) for weight in trainer.model.parameters())


def test_teacher_forcing_is_drawn_once_an_epoch_or_once_a_step() -> None:
    few, settings = tiny.dataset(frames=8, val=2), {"tfr_sde": 9, "batch_size": 1}  # two steps an epoch
    once = [r.teacher_forced for r in Trainer(tiny.config(tfr=0.5, num_epoch=8, **settings), few).run()]
    assert set(once) == {0.0, 1.0}
    each = [
        r.teacher_forced for r in Trainer(tiny.config(tfr=0.5, num_epoch=8, tfr_coin="step", **settings), few).run()
    ]
    assert any(0 < share < 1 for share in each)
    assert all(r.teacher_forced == 0 for r in Trainer(tiny.config(tfr=0.0, num_epoch=2), few).run())
    assert all(r.teacher_forced == 1 for r in Trainer(tiny.config(tfr=1.0, num_epoch=2, **settings), few).run())


def test_both_ways_of_a_free_step_train_to_the_same_curve() -> None:
    config = tiny.config(tfr=0.0)
    replay, sequential = Trainer(config, DATA), Trainer(config, DATA)
    replay.free_step, sequential.free_step = "replay", "sequential"
    curves = [[result.val_psnr for result in trainer.run()] for trainer in (replay, sequential)]
    assert curves[0] == pytest.approx(curves[1], abs=0.02)


@pytest.mark.parametrize("tfr", [0.0, 1.0])
def test_mixed_precision_differs_from_single_by_its_rounding_and_no_more(tfr: float) -> None:
    settings = {"tfr": tfr, "tfr_sde": 9, "tfr_d_step": 0.0, "output": "sigmoid", "kl_norm": "element", "lr": 1e-3}
    single, mixed = (Trainer(tiny.config(precision=one, **settings), DATA, "cpu") for one in ("fp32", "bf16"))
    ours, theirs = list(single.run()), list(mixed.run())
    # bfloat16 keeps 8 bits: 1 / 256 a rounding.
    assert theirs[0].train_mse == pytest.approx(ours[0].train_mse, rel=1e-2)
    assert [one.train_mse for one in theirs] != [one.train_mse for one in ours]
    assert theirs[-1].val_psnr == pytest.approx(ours[-1].val_psnr, abs=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in mixed.model.parameters())


def test_the_last_layer_is_computed_in_single_precision_in_a_mixed_block() -> None:
    generator = Trainer(tiny.config(), DATA, "cpu").model.Generator
    features = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        before = features
        for block in list(generator)[:-1]:
            before = block(before)
        frame = generator(features)
    assert before.dtype == torch.bfloat16 and frame.dtype == torch.float32
    torch.testing.assert_close(frame, generator[-1](before.float()), rtol=0, atol=0)


def test_averaged_weights_are_what_is_validated_and_saved(tmp_path: Path) -> None:
    trainer = Trainer(tiny.config(ema=0.9), DATA)
    list(trainer.run(2))
    trainer.save(tmp_path / "last.pt")
    assert trainer.averaged is not None
    saved = checkpoint.load_model(tmp_path / "last.pt").model
    key = "Generator.7.weight"
    assert torch.equal(saved.state_dict()[key], trainer.averaged.state_dict()[key])
    assert not torch.equal(saved.state_dict()[key], trainer.model.state_dict()[key])


def test_partial_uses_a_temporal_prefix_of_the_video() -> None:
    half = Trainer(tiny.config(partial=0.5), DATA)
    changed = DATA.train.frames.copy()
    changed[12:] = 0
    other = tiny.Dataset(DATA.root, tiny.Split(changed, DATA.train.labels), DATA.val, "changed")
    assert rows(list(half.run())) == rows(list(Trainer(tiny.config(partial=0.5), other).run()))
    assert rows(list(Trainer(tiny.config(), DATA).run(1))) != rows(list(Trainer(tiny.config(), other).run(1)))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_strided_clips_are_those_of_a_view_in_place_of_a_transposition(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report 004 exchanges the axes of batch and time with `view`, which moves no value."""
    given: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def note(trainer: Trainer, frames: Tensor, labels: Tensor, *_: object) -> ClipLoss:
        given.setdefault(trainer.config.clip_order, []).append((frames, labels))
        raise StopIteration

    monkeypatch.setattr(Trainer, "_backward", note)
    for kind in ("window", "strided"):
        with pytest.raises(StopIteration):
            Trainer(tiny.config(clip_order=kind, batch_size=batch_size), DATA)._train_steps()
    for window, strided in zip(given["window"][0], given["strided"][0], strict=True):
        batch, length, *picture = window.shape
        expected = window.contiguous().view(length, batch, *picture).transpose(0, 1)
        assert torch.equal(strided, expected)
        assert torch.equal(strided, window) == (batch_size == 1)
    frames, strided = given["window"][0][0], given["strided"][0][0]
    assert torch.equal(strided[0, 1], frames.flatten(0, 1)[batch_size])  # every `batch_size`-th frame


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="at least one batch of 9"):
        Trainer(tiny.config(batch_size=9), DATA)
    with pytest.raises(DataError):
        Trainer(tiny.config(train_vi_len=25), DATA)


def test_a_checkpoint_of_other_settings_or_other_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    trainer = Trainer(tiny.config(), DATA)
    list(trainer.run(1))
    trainer.save(path)
    with pytest.raises(CheckpointError, match=r"trained with lr = 0\.001.*Expected: 0\.5"):
        Trainer(tiny.config(lr=0.5), DATA).restore(path)
    with pytest.raises(CheckpointError, match="other data"):
        Trainer(tiny.config(), tiny.dataset(seed=5)).restore(path)


def test_the_labs_checkpoint_loads_strictly_and_cannot_be_continued(tmp_path: Path) -> None:
    torch.manual_seed(1)
    lab = CVAE()
    path = tmp_path / "epoch=20.ckpt"
    lab_payload = {
        "state_dict": lab.state_dict(),
        "optimizer": lab.state_dict(),
        "lr": 1e-5,
        "tfr": 0.0,
        "last_epoch": 20,
    }
    torch.save(lab_payload, path)
    loaded = checkpoint.load_model(path)
    assert loaded.config is None and loaded.epoch == 20 and loaded.output == "linear"
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.model.state_dict().values(), lab.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match="lab checkpoint"):
        Trainer(tiny.config(), DATA).restore(path)


def test_our_checkpoint_has_the_labs_keys_and_loads_into_the_labs_network(tmp_path: Path) -> None:
    trainer = Trainer(tiny.config(), DATA)
    list(trainer.run(1))
    trainer.save(tmp_path / "last.pt")
    payload = torch.load(tmp_path / "last.pt", weights_only=True)
    assert {"state_dict", "optimizer", "lr", "tfr", "last_epoch"} <= set(payload)
    assert payload["last_epoch"] == 1
    CVAE(8, 4, 4, 8).load_state_dict(payload["state_dict"], strict=True)
    calibrated = trainer.recalibrated_model().label_transformation.norm.running_mean
    assert torch.equal(payload["state_dict"]["label_transformation.2.running_mean"], calibrated)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"not a checkpoint", "it is no checkpoint|was not written"),
        (b"PK\x03\x04 broken zip", "it ends after 15 bytes, in the middle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_with_the_reason(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"broken\.pt is not a readable checkpoint \(.*({said})"):
        checkpoint.load_model(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load_model(tmp_path / "absent.pt")


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"state_dict": Attack()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_full_disk_is_an_oserror_that_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tiny.config(), DATA)
    list(trainer.run(1))
    trainer.save(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.save(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_truncated_checkpoint_is_passed_over_for_an_older_whole_one(tmp_path: Path) -> None:
    trainer = Trainer(tiny.config(), DATA)
    list(trainer.run(1))
    trainer.save(tmp_path / "last.1.pt")
    list(trainer.run(2))
    trainer.save(tmp_path / "last.2.pt")
    whole = (tmp_path / "last.2.pt").read_bytes()
    paths, other = sorted(tmp_path.glob("last*.pt")), tiny.config(seed=1)
    assert checkpoint.newest(paths, trainer.config, DATA.digest) == tmp_path / "last.2.pt"
    assert checkpoint.newest(paths, other, DATA.digest) is None
    assert checkpoint.newest(paths, trainer.config, "other data") is None
    (tmp_path / "last.2.pt").write_bytes(whole[: len(whole) // 2])
    assert checkpoint.newest(paths, trainer.config, DATA.digest) == tmp_path / "last.1.pt"
    assert checkpoint.newest([], trainer.config, DATA.digest) is None


def test_the_data_of_a_process_is_on_the_device_once() -> None:
    one, other = Trainer(tiny.config(), DATA), Trainer(tiny.config(seed=9), DATA)
    assert one._data is other._data
    assert np.array_equal(one._data.train_frames.numpy(), DATA.train.frames)

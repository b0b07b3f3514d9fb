from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder
from cvaeopt.outcome.recipe import Recipe
from cvaeopt.outcome.retrain import Retraining, resolve
from cvaeopt.outcome.transfer import Transfer
from cvaeopt.vae import checkpoint
from cvaeopt.vae.trainer import Trainer
from testbed import tiny

pytestmark = pytest.mark.usefixtures("uncharted_module")

# A schedule that moves in every epoch, shuffled clips and averaged weights: all that a resume must get right.
SETTINGS = {"num_epoch": 6, "tfr_sde": 1, "tfr_d_step": 0.2, "shuffle": True, "ema": 0.9, "tfr_coin": "step"}

# One life of a run, ended by SIGKILL at a moment of an epoch after the one it went on from.
CHILD = """
import os, signal, sys
from pathlib import Path
from cvaeopt.files import RunFolder
from cvaeopt.outcome.retrain import Retraining
from testbed import tiny

run = Retraining(tiny.config(**{settings}), tiny.dataset(), RunFolder(Path(sys.argv[1])))
print(run.epoch, flush=True)
moment, due, steps = "{moment}", run.epoch + 1, 0
step, replace = run.trainer.optimizer.step, Path.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def stepping(*given, **named):
    global steps
    steps += 1
    if moment == "between two steps" and run.epoch == due and steps % 3 == 2:
        die()
    return step(*given, **named)

def replacing(scratch, target):
    if moment == target.name and run.epoch > due:
        die()
    return replace(scratch, target)

run.trainer.optimizer.step, Path.replace = stepping, replacing
for result in run.run():
    if moment == "after all files" and result.epoch > due:
        die()
"""
MOMENTS = ("between two steps", "best.pt", "last.pt", "history.jsonl", "after all files")


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint that training goes on with."""
    payload = checkpoint.read(path)
    return {**payload["state_dict"], **{f"training.{k}": v for k, v in payload["cvaeopt"]["training"].items()}}


def trained(folder: Path, **settings: object) -> Retraining:
    run = Retraining(tiny.config(**{**SETTINGS, **settings}), tiny.dataset(), RunFolder(folder))
    for _ in run.run():
        pass
    return run


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_run_killed_five_times_ends_with_the_same_weights(tmp_path: Path):
    folder = tmp_path / "killed"
    settings = {**SETTINGS, "num_epoch": 9}
    resumed = []
    for moment in MOMENTS:  # the files: written, but not yet in their place
        child = CHILD.replace("{settings}", repr(settings)).replace("{moment}", moment)
        process = subprocess.run([sys.executable, "-c", child, str(folder)], capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        resumed.append(int(process.stdout))
    assert resumed == sorted(set(resumed))  # every life went on after the one before it
    killed = trained(folder, num_epoch=9)
    whole = trained(tmp_path / "whole", num_epoch=9)
    assert resumed[-1] < killed.resumed_at < 9
    for name in ("last.pt", "best.pt"):
        one, other = weights(folder / name), weights(tmp_path / "whole" / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    rows, others = killed.trainer.history, whole.trainer.history
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in others]
    assert RunFolder(folder).read_history() == rows


def test_a_run_leaves_checkpoints_history_and_a_score_sheet(tmp_path: Path):
    run = trained(tmp_path, num_epoch=3)
    sheet = run.finish()
    best = max(run.trainer.history, key=lambda row: row["val_psnr"])
    assert checkpoint.load_model(tmp_path / "best.pt").epoch == best["epoch"]
    assert checkpoint.load_model(tmp_path / "last.pt").epoch == 3
    assert sheet.mean == pytest.approx(best["val_psnr"], abs=1e-4)
    assert sheet.late == pytest.approx(best["val_psnr_late"], abs=1e-4)
    stored = json.loads((tmp_path / "score.json").read_text())
    assert stored["val_psnr"] == pytest.approx(sheet.mean, abs=1e-4)
    assert set(stored["baselines"]) == {"copy_first", "train_mean", "nearest_pose"}
    assert json.loads((tmp_path / "config.json").read_text()) == run.config.plain()
    for name in (
        "psnr_per_frame.png",
        "curves.png",
        "worst_frames.png",
        "prediction.gif",
        "film_strip.png",
        "psnr_explained.pdf",
    ):
        assert (tmp_path / name).stat().st_size > 0


def test_a_finished_run_says_so_and_does_nothing(tmp_path: Path):
    trained(tmp_path, num_epoch=2)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")}
    again = Retraining(tiny.config(**{**SETTINGS, "num_epoch": 2}), tiny.dataset(), RunFolder(tmp_path))
    assert again.finished
    assert list(again.run()) == []
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.pt")} == before


def test_a_kill_between_best_and_last_costs_one_epoch_and_nothing_else(tmp_path: Path):
    config = tiny.config(**SETTINGS)
    run = Retraining(config, tiny.dataset(), RunFolder(tmp_path / "torn"))
    steps = run.run()
    next(steps)
    kept = (tmp_path / "torn" / "last.pt").read_bytes()
    next(steps)
    steps.close()
    (tmp_path / "torn" / "last.pt").write_bytes(kept)  # as if killed after best.pt of epoch 2
    again = trained(tmp_path / "torn")
    assert again.resumed_at == 1
    whole = trained(tmp_path / "whole")
    assert [row["val_psnr"] for row in again.trainer.history] == [row["val_psnr"] for row in whole.trainer.history]


def test_a_folder_of_other_settings_is_refused_with_both_digests(tmp_path: Path):
    first = trained(tmp_path, num_epoch=1)
    other = tiny.config(**{**SETTINGS, "num_epoch": 1, "lr": 0.5})
    with pytest.raises(SettingsError, match="lr differ") as refused:
        Retraining(other, tiny.dataset(), RunFolder(tmp_path))
    assert first.config.digest() in str(refused.value)
    assert other.digest() in str(refused.value)


def test_a_folder_that_retrain_did_not_write_is_refused(tmp_path: Path):
    (tmp_path / "last.pt").write_bytes(b"something of the user's")
    with pytest.raises(SettingsError, match=r"no config\.json"):
        Retraining(tiny.config(), tiny.dataset(), RunFolder(tmp_path))
    assert (tmp_path / "last.pt").read_bytes() == b"something of the user's"


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path):
    # A learning rate this small changes nothing that a float32 PSNR could see.
    config = tiny.config(num_epoch=9, lr=1e-30, lr_scheduler="constant")
    run = Retraining(config, tiny.dataset(), RunFolder(tmp_path), patience=2)
    assert len(list(run.run())) == 3
    again = Retraining(config, tiny.dataset(), RunFolder(tmp_path), patience=2)
    assert again.finished
    patient = Retraining(config, tiny.dataset(), RunFolder(tmp_path), patience=3)
    assert not patient.finished


@pytest.mark.parametrize("lab", [True, False])
def test_a_run_can_start_from_other_weights(tmp_path: Path, lab: bool):
    donor = Trainer(tiny.config(seed=5), tiny.dataset())
    start = tmp_path / "start.pt"
    if lab:
        state = donor.model.state_dict()
        torch.save({"state_dict": state, "optimizer": state, "lr": 1e-3, "tfr": 0.0, "last_epoch": 3}, start)
    else:
        donor.save(start)
    run = Retraining(tiny.config(), tiny.dataset(), RunFolder(tmp_path / "run"), start=start)
    for name, value in donor.model.named_parameters():
        assert torch.equal(value, dict(run.trainer.model.named_parameters())[name])
    next(run.run())
    other = tmp_path / "other.pt"
    Trainer(tiny.config(seed=6), tiny.dataset()).save(other)
    with pytest.raises(SettingsError, match="started from other weights"):
        Retraining(tiny.config(), tiny.dataset(), RunFolder(tmp_path / "run"), start=other)
    resumed = Retraining(tiny.config(), tiny.dataset(), RunFolder(tmp_path / "run"))
    assert resumed.resumed_at == 1
    assert resumed.provenance["start"] == run.provenance["start"] is not None


def test_settings_are_resolved_from_recipe_epochs_and_changes():
    found = Recipe(tiny.config(num_epoch=10, tfr_sde=2, tfr_d_step=0.5, milestones=[1, 5]))
    assert resolve(found) == found.settings
    long = resolve(found, 100, changes={"seed": 9})
    assert (long.num_epoch, long.seed, long.tfr_sde, long.milestones) == (100, 9, 20, (10, 50))
    assert resolve(found, 100, "absolute").tfr_sde == 2
    with pytest.raises(SettingsError, match="Did you mean 'optim'"):
        resolve(found, 100, changes={"optm": "SGD"})


@settings(max_examples=60, deadline=None)
@given(
    epochs=st.integers(1, 400),
    mode=st.sampled_from(["proportional", "absolute"]),
    changes=st.fixed_dictionaries(
        {},
        optional={
            "milestones": st.lists(st.integers(0, 500), max_size=4, unique=True).map(sorted),
            "tfr_sde": st.integers(0, 500),
            "tfr_d_step": st.floats(0, 1),
            "gamma": st.floats(0.001, 1),
            "kl_anneal_cycle": st.integers(1, 50),
            "kl_anneal_ratio": st.floats(0.01, 1),
            "lr_scheduler": st.sampled_from(["MultiStepLR", "ExponentialLR", "cosine", "constant"]),
            "kl_formula": st.sampled_from(["fu", "seed000", "seed001", "seed003", "seed004"]),
        },
    ),
)
def test_what_the_user_sets_is_what_is_trained_and_the_rest_is_carried_over(
    epochs: int, mode: Transfer, changes: dict[str, Any]
):
    found = Recipe(tiny.config(num_epoch=10, lr_scheduler="ExponentialLR", gamma=0.9, milestones=[1, 5]))
    carried = resolve(found, epochs, mode).plain()
    assert resolve(found, epochs, mode, changes).plain() == {**carried, **changes}


def test_the_number_of_epochs_is_given_once():
    found = Recipe(tiny.config(num_epoch=10))
    assert resolve(found, changes={"num_epoch": 30}).num_epoch == 30
    with pytest.raises(SettingsError, match="num_epoch = 30 is set beside --epochs 100"):
        resolve(found, 100, changes={"num_epoch": 30})


def test_retrain_predict_and_score_need_neither_optuna_nor_a_database():
    hidden = (
        "import sys\n"
        "for name in ('optuna', 'sqlalchemy', 'cvaeopt.search'): sys.modules[name] = None\n"
        "import cvaeopt.outcome.retrain, cvaeopt.outcome.predict, cvaeopt.outcome.score, cvaeopt.outcome.recipe\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", hidden], check=True)


def test_a_second_phase_with_sgd_starts_from_the_averaged_weights_of_the_first(tmp_path: Path):
    """Seed 001's fine-tuning: Adam with averaged weights first, then SGD from its best checkpoint."""
    trained(tmp_path / "one", num_epoch=4, optim="Adam", ema=0.9, lr=3e-3)
    start = tmp_path / "one" / "best.pt"
    config = resolve(
        Recipe(tiny.config(**{**SETTINGS, "optim": "Adam", "ema": 0.9})),
        changes={"optim": "SGD", "lr": 1e-3, "momentum": 0.9, "ema": 0.5, "num_epoch": 3},
    )
    run = Retraining(config, tiny.dataset(), RunFolder(tmp_path / "two"), start=start)
    validated = checkpoint.load_model(start).model
    for name, value in validated.named_parameters():  # what was validated as best, not what Adam was at
        assert torch.equal(value, dict(run.trainer.model.named_parameters())[name])
        assert torch.equal(value, dict(run.trainer.validated_model().named_parameters())[name])
    assert isinstance(run.trainer.optimizer, torch.optim.SGD)
    steps = run.run()
    assert next(steps).epoch == 1
    steps.close()
    # Stopped and continued without naming the start again: the same as never stopped.
    continued = Retraining(config, tiny.dataset(), RunFolder(tmp_path / "two"))
    assert (continued.resumed_at, continued.provenance["start"]) == (1, run.provenance["start"])
    assert len(list(continued.run())) == 2
    whole = Retraining(config, tiny.dataset(), RunFolder(tmp_path / "whole"), start=start)
    assert len(list(whole.run())) == 3
    one, other = weights(tmp_path / "two" / "last.pt"), weights(tmp_path / "whole" / "last.pt")
    assert all(torch.equal(one[key], other[key]) for key in one)
    training = [key for key in one if key.startswith("training.")]
    assert training  # with averaged weights, those that training goes on with are kept beside them


def test_the_first_sgd_step_of_a_second_phase_is_plain_gradient_descent(tmp_path: Path):
    donor = Trainer(tiny.config(seed=5), tiny.dataset())
    donor.save(tmp_path / "start.pt")
    moved = {}
    for lr in (1e-3, 2e-3):  # one step an epoch, momentum empty: the step is linear in lr
        config = tiny.config(optim="SGD", lr=lr, batch_size=6, num_epoch=1, tfr=1.0, lr_scheduler="constant")
        run = Retraining(config, tiny.dataset(), RunFolder(tmp_path / str(lr)), start=tmp_path / "start.pt")
        list(run.run())
        before = dict(donor.model.named_parameters())
        moved[lr] = torch.cat([(v.detach() - before[k]).flatten() for k, v in run.trainer.model.named_parameters()])
    assert moved[1e-3].abs().max() > 0
    assert torch.allclose(moved[2e-3], 2 * moved[1e-3], rtol=1e-2, atol=1e-7)
    assert moved[1e-3].norm() <= 1e-3 * 1.0 + 1e-6  # grad_clip = 1

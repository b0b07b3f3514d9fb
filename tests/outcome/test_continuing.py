"""A trial is continued beyond its budget with its own weights, optimiser and history."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.errors import CheckpointError, SettingsError
from cvaeopt.files import RunFolder
from cvaeopt.outcome import continuing
from cvaeopt.outcome.recipe import Recipe
from cvaeopt.outcome.retrain import Retraining, resolve
from cvaeopt.vae import checkpoint
from cvaeopt.vae.schedules import SCHEDULES, first_differences
from cvaeopt.vae.trainer import Trainer
from testbed import tiny

pytestmark = pytest.mark.usefixtures("uncharted_module")

# Schedules that do not depend on the length of the run, and all state that a continuation must carry over.
OWN = tiny.config(
    num_epoch=3, milestones=[1, 4], tfr_sde=1, tfr_d_step=0.2, kl_anneal_type="none", ema=0.9, shuffle=True
)
ORIGIN = {"study": "tiny", "trial": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a trial that has trained its three epochs."""
    path = tmp_path_factory.mktemp("trial") / "last.pt"
    trainer = Trainer(OWN, tiny.DATA)
    list(trainer.run())
    trainer.save(path, {"study": "tiny", "trial": 2})
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    payload = checkpoint.read(path)
    return {**payload["state_dict"], **{f"training.{k}": v for k, v in payload["cvaeopt"]["training"].items()}}


def continued(source: Path, folder: Path, **changes: object) -> Retraining:
    config = resolve(Recipe(OWN), 5, "absolute", changes)
    if not (folder / "last.pt").exists():
        continuing.start(source, config, tiny.DATA, RunFolder(folder), ORIGIN)
    return Retraining(config, tiny.DATA, RunFolder(folder), provenance=ORIGIN)


def test_a_continued_trial_equals_a_run_that_was_never_stopped(source: Path, tmp_path: Path) -> None:
    run = continued(source, tmp_path / "run")
    assert (run.resumed_at, run.first) == (3, 3)
    steps = run.run()
    next(steps)
    steps.close()
    run = continued(source, tmp_path / "run")  # interrupted, and started again by the same command
    assert run.resumed_at == 4
    list(run.run())
    whole = Trainer(run.config, tiny.DATA)
    list(whole.run())
    whole.save(tmp_path / "whole.pt")
    one, other = weights(tmp_path / "run" / "last.pt"), weights(tmp_path / "whole.pt")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    rows = [[{**row, "seconds": 0} for row in each] for each in (run.trainer.history, whole.history)]
    assert rows[0] == rows[1]
    best = max(run.trainer.history[2:], key=lambda row: row["val_psnr"])  # of the epochs that have a checkpoint
    assert checkpoint.load_model(tmp_path / "run" / "best.pt").epoch == best["epoch"] == run.finish().epoch
    assert checkpoint.load_model(tmp_path / "run" / "last.pt").provenance["continued_after"] == 3


def test_a_start_that_is_killed_is_completed_by_the_same_call(source: Path, tmp_path: Path, monkeypatch) -> None:
    folder = RunFolder(tmp_path / "run")
    config = resolve(Recipe(OWN), 5, "absolute")
    write, files = checkpoint.write, iter(["best.pt"])
    for _ in range(2):  # killed before last.pt, then before best.pt
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write", lambda path, content: next(files) and write(path, content))
            with pytest.raises(StopIteration):
                continuing.start(source, config, tiny.DATA, folder, ORIGIN)
        assert not folder.last.exists()
    continuing.start(source, config, tiny.DATA, folder, ORIGIN)
    assert Retraining(config, tiny.DATA, folder, provenance=ORIGIN).resumed_at == 3


def test_folders_data_and_settings_that_do_not_fit_are_refused(source: Path, tmp_path: Path) -> None:
    config = resolve(Recipe(OWN), 5, "absolute")
    other = RunFolder(tmp_path / "other")
    list(Retraining(tiny.config(num_epoch=1), tiny.DATA, other).run())
    before = other.last.read_bytes()
    with pytest.raises(SettingsError, match="holds another run"):
        continuing.start(source, config, tiny.DATA, other, ORIGIN)
    assert other.last.read_bytes() == before
    with pytest.raises(CheckpointError, match="trained on other data"):
        continuing.start(source, config, tiny.dataset(seed=9), RunFolder(tmp_path / "new"), ORIGIN)
    assert not (tmp_path / "new").exists()
    with pytest.raises(SettingsError, match=r"more than 3\. --epochs is the number of all epochs.* --epochs 53"):
        continuing.check(OWN, OWN, 3, 2)
    with pytest.raises(SettingsError, match="optim = SGD, and trial 2 was trained with Adam"):
        continuing.check(OWN, resolve(Recipe(OWN), 5, "absolute", {"optim": "SGD"}), 3, 2)


def test_a_schedule_of_the_whole_run_is_named_with_the_first_epoch_that_differs() -> None:
    assert continuing.departures(OWN, resolve(Recipe(OWN), 5, "absolute"), 3) == []
    cosine = tiny.config(num_epoch=4, lr_scheduler="cosine", kl_anneal_type="none", lr=1e-3)
    (said,) = continuing.departures(cosine, resolve(Recipe(cosine), 8, "absolute"), 4)
    assert "The learning rate of the longer run differs from the trial's from epoch 2 on" in said
    assert "trained epoch 4 with 0.0001464; epoch 5 trains with 0.0005" in said  # the middle of a cosine is lr / 2


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["MultiStepLR", "ExponentialLR", "cosine", "constant"]),
    formula=st.sampled_from(["fu", "seed000", "seed001", "seed003", "seed004"]),
    longer=st.integers(7, 20),
    epochs=st.integers(0, 6),
)
def test_before_the_first_difference_all_values_are_equal(kind: str, formula: str, longer: int, epochs: int) -> None:
    one = tiny.config(num_epoch=6, lr_scheduler=kind, kl_formula=formula)
    other = tiny.config(num_epoch=longer, lr_scheduler=kind, kl_formula=formula)
    found = first_differences(one, other, epochs)
    for name, (_, at) in SCHEDULES.items():
        first = found.get(name, epochs + 1) - 1
        assert [at(one, epoch) for epoch in range(first)] == [at(other, epoch) for epoch in range(first)]
        if name in found:
            assert first < epochs and at(one, first) != at(other, first)

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.files import RunFolder
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.run.objective import Objective
from cvaeopt.run.retention import delete_older, tidy
from cvaeopt.search.claims import MEASURES, measures
from cvaeopt.search.space import trial_seed
from cvaeopt.store import identity
from cvaeopt.suggest.estimate import estimate
from cvaeopt.vae import checkpoint, trainer
from cvaeopt.vae.trainer import Trainer
from testbed.tiny import DATA, definition, new_study

pytestmark = pytest.mark.usefixtures("uncharted_module")


def test_the_objective_is_a_plain_optuna_objective(tmp_path: Path) -> None:
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=2)
    for trial in study.trials:
        assert trial.state == TrialState.COMPLETE
        curve = trial.intermediate_values
        assert sorted(curve) == [1, 2, 3]
        assert trial.value == pytest.approx((curve[2] + curve[3]) / 2)  # window = 2
        assert trial.constraints == {"diverged": 0.0, "out_of_memory": 0.0, "crashed": 0.0}
        assert {"seed", "settings_digest", "data_digest", "versions", "device", "host"} <= set(trial.user_attrs)
        worth = estimate([curve[1], curve[2], curve[3]], 2, 0.35)
        assert trial.value == trial.user_attrs["estimate_db"] == worth.value
        assert trial.user_attrs["standard_error_db"] == worth.error and trial.user_attrs["estimate_epochs"] == 2
        folder = RunFolder.of_trial(tmp_path, "tiny", trial.number)
        assert [row["val_psnr"] for row in folder.read_history()] == list(curve.values())
        assert trial.user_attrs[MEASURES] == measures(folder.read_history())
        assert json.loads(folder.config.read_text())["lr"] == trial.params["lr"]
        loaded = checkpoint.load_model(folder.last)
        assert loaded.provenance["trial"] == trial.number
        assert [path.name for path in folder.root.glob("last*.pt")] == ["last.pt"]
        assert (folder.root / "curves.png").exists() and (folder.root / "prediction.gif").exists()


def test_trials_have_their_own_seeds_that_depend_on_study_and_number_alone(tmp_path: Path) -> None:
    seeds = []
    for part in ("one", "two"):
        study = new_study()
        study.optimize(Objective(definition(), DATA, artifacts=tmp_path / part), n_trials=2)
        seeds.append([trial.user_attrs["seed"] for trial in study.trials])
    assert seeds[0] == seeds[1]
    assert seeds[0][0] != seeds[0][1]


def test_trials_with_a_common_seed_share_it_and_repeats_take_the_next(tmp_path: Path) -> None:
    common = definition(study={"seed": 3, "seeds": "common"})
    objective = Objective(common, DATA, artifacts=tmp_path)
    study = new_study()
    for lr in (1e-3, 2e-3, 1e-3, 1e-3):
        study.enqueue_trial({"lr": lr})
    trials = [study.ask() for _ in range(4)]
    seeds = [objective.open(trial).trainer.config.seed for trial in trials]
    assert seeds == [trial_seed(3, repeat) for repeat in (0, 0, 1, 2)]
    # Taken over by another worker, a trial keeps its seed, whatever has become of the others.
    fewer = optuna.create_study(sampler=study.sampler)
    fewer.add_trial(study.trials[3])
    (taken,) = [optuna.trial.Trial(fewer, one._trial_id) for one in fewer.trials]
    assert objective.open(taken).trainer.config.seed == seeds[3]


def test_a_trial_that_is_only_half_suggested_is_no_repeat(tmp_path: Path) -> None:
    common = definition(
        study={"seed": 3, "seeds": "common"}, search={"batch_size": {"type": "int", "low": 1, "high": 2}}
    )
    usual = Config.model_fields["batch_size"].default
    study = new_study()
    half = study.ask()
    half.suggest_float("lr", 1e-4, 1e-2, log=True)  # batch_size is still to come
    study.enqueue_trial({"lr": half.params["lr"], "batch_size": usual})
    assert Objective(common, DATA, artifacts=tmp_path).open(study.ask()).trainer.config.seed == trial_seed(3, 0)


def test_a_fixed_seed_comes_before_a_common_one(tmp_path: Path) -> None:
    fixed = definition(study={"seeds": "common"}, fixed={"seed": 9})
    study = new_study()
    study.enqueue_trial({"lr": 1e-3})
    study.enqueue_trial({"lr": 1e-3})
    opened = [Objective(fixed, DATA, artifacts=tmp_path).open(study.ask()).trainer.config.seed for _ in range(2)]
    assert opened == [9, 9]


def test_the_dashboard_gets_pictures_and_never_a_checkpoint(tmp_path: Path) -> None:
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=1)
    attached = optuna.artifacts.get_all_artifact_meta(study.trials[0], storage=study._storage)
    names = {meta.filename for meta in attached}
    assert {"curves.png", "psnr_per_frame.png", "prediction.gif", "config.json", "history.jsonl"} <= names
    assert not any(name.endswith(".pt") for name in names)
    assert len(list((tmp_path / DASHBOARD_STORE).iterdir())) == len(attached)


def as_written_by_an_older_version(folder: RunFolder, path: Path) -> None:
    """Leave out of a run folder what older versions did not write: settings that have their default, and origins."""
    defaults = Config.parse({}, "test").plain()

    def known(settings: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in settings.items() if value != defaults[name]}

    folder.config.write_text(json.dumps(known(json.loads(folder.config.read_text()))))
    payload = checkpoint.read(path)
    own = payload["cvaeopt"]
    own["config"] = known(own["config"])
    own["provenance"].pop("identity")
    del own["version"]
    torch.save(payload, path)
    assert 0 < len(own["config"]) < len(defaults)


def test_a_run_folder_of_an_older_version_is_opened_continued_and_reported(tmp_path: Path) -> None:
    study = new_study()
    study._storage.set_study_system_attr(study._study_id, identity.KEY, identity.of_older("tiny", 0.0))
    trial = study.ask()
    whole = Objective(definition(), DATA, artifacts=tmp_path / "whole").open(trial)
    expected = [result.val_psnr for result in whole.run()]

    objective = Objective(definition(), DATA, artifacts=tmp_path / "older")
    first = objective.open(trial, token=1)
    next(first.run())
    first.save()
    as_written_by_an_older_version(first.folder, first.folder.root / "last.1.pt")
    (first.folder.root.parent / identity.MARKER).unlink()
    second = objective.open(trial, token=2)
    assert second.epoch == 1
    for _ in second.run():
        second.save()
    assert [row["val_psnr"] for row in second.history] == expected
    mine, theirs = second.trainer.model.state_dict(), whole.trainer.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)

    second.finish("complete", "all epochs trained")
    as_written_by_an_older_version(second.folder, second.folder.last)
    loaded = checkpoint.load_model(second.folder.last)
    assert loaded.epoch == 3 and loaded.config == second.trainer.config
    assert [row["val_psnr"] for row in second.folder.read_history()] == expected
    assert {"curves.png", "prediction.gif"} <= {path.name for path in second.folder.root.iterdir()}


def test_a_trial_resumes_from_its_newest_checkpoint_and_ends_as_if_never_stopped(tmp_path: Path) -> None:
    objective = Objective(definition(), DATA, artifacts=tmp_path / "stopped")
    study = new_study()
    trial = study.ask()
    first = objective.open(trial, token=1)
    for result in first.run():
        first.save()
        if result.epoch == 2:
            break
    second = objective.open(trial, token=2)
    assert second.epoch == 2 and second.resumed_from is not None
    for _ in second.run():
        second.save()
    assert [path.name for path in second.folder.root.glob("last*.pt")] == ["last.2.pt"]

    whole = Objective(definition(), DATA, artifacts=tmp_path / "whole").open(new_study().ask(), token=1)
    list(whole.run())
    assert second.final_value() == whole.final_value()
    assert [{**row, "seconds": 0} for row in second.history] == [{**row, "seconds": 0} for row in whole.history]
    mine, theirs = second.trainer.model.state_dict(), whole.trainer.model.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_an_old_owner_cannot_spoil_the_new_owners_checkpoint(tmp_path: Path) -> None:
    objective = Objective(definition(), DATA, artifacts=tmp_path)
    trial = new_study().ask()
    old = objective.open(trial, token=1)
    next(old.run())
    old.save()
    new = objective.open(trial, token=2)
    for _ in new.run():
        new.save()
    before = (new.folder.root / "last.2.pt").read_bytes()
    old.trainer.save(old._checkpoint)  # the frozen process wakes up in the middle of its save
    delete_older(old.folder.root, old.token)
    assert (new.folder.root / "last.2.pt").read_bytes() == before
    assert objective.open(trial, token=3).epoch == 3


@pytest.mark.parametrize("moment", ["before it is read", "while it is read", "after it was chosen", "after all"])
def test_a_checkpoint_that_a_woken_owner_deletes_costs_the_next_owner_nothing(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, trial = Objective(definition(), DATA, artifacts=tmp_path), new_study().ask()
    first = objective.open(trial, token=1)
    next(first.run())
    first.save()
    frozen = objective.open(trial, token=2)
    next(frozen.run())

    woken: list[str] = []

    def wakes(now: str) -> None:
        if now == moment and not woken:
            woken.append(now)
            frozen.save()  # writes last.2.pt and deletes last.1.pt

    newest, continuation, restore = checkpoint.newest, checkpoint.continuation, Trainer.restore

    def looks(paths: list[Path], *rest: Any, **options: Any) -> Path | None:
        wakes("before it is read")
        chosen = newest(paths, *rest, **options)
        wakes("after it was chosen")
        return chosen

    def reads(path: Path) -> checkpoint.Continuation:
        wakes("while it is read")
        return continuation(path)

    def restores(self: Trainer, path: Path, **options: Any) -> None:
        restore(self, path, **options)
        wakes("after all")

    monkeypatch.setattr(checkpoint, "newest", looks)
    monkeypatch.setattr(checkpoint, "continuation", reads)
    monkeypatch.setattr(Trainer, "restore", restores)
    third = objective.open(trial, token=3)
    assert woken == [moment]
    assert third.epoch == 2 and third.resumed_from == third.folder.root / "last.2.pt"


def test_checkpoints_that_may_not_be_deleted_fail_no_trial_and_are_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = RunFolder.of_trial(tmp_path, "tiny", 0).root
    foreign, older = first / "last.7.pt", RunFolder.of_trial(tmp_path, "tiny", 1).root / "last.1.pt"
    real = Path.unlink

    def refused(self: Path, missing_ok: bool = False) -> None:
        if self in (foreign, older):
            raise PermissionError(errno.EPERM, "Operation not permitted", str(self))
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    study, objective = new_study(), Objective(definition(), DATA, artifacts=tmp_path)
    study.optimize(objective, n_trials=1)
    (first / "last.pt").rename(foreign)
    assert tidy(study, tmp_path, keep_best=0) == []
    trial = study.ask()
    old = objective.open(trial, token=1)
    next(old.run())
    old.save()
    new = objective.open(trial, token=2)
    for _ in new.run():
        new.save()
    new.finish("complete", "all epochs trained")
    study.tell(trial, new.final_value())
    assert tidy(study, tmp_path, keep_best=0) == [older.with_name("last.pt")]
    assert foreign.exists() and older.exists()
    said = [record.getMessage() for record in caplog.records]
    assert [sum(str(path) in line for line in said) for path in (foreign, older)] == [1, 1]


def test_the_files_of_a_deleted_study_of_the_same_name_are_not_taken_for_a_resume(tmp_path: Path) -> None:
    first = Objective(definition(), DATA, artifacts=tmp_path).open(new_study().ask())
    next(first.run())
    first.save()
    other = Objective(definition(study={"seed": 8}), DATA, artifacts=tmp_path).open(new_study().ask())
    assert other.epoch == 0 and other.resumed_from is None


def test_a_diverged_trial_teaches_the_sampler_and_keeps_its_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.validate

    def diverge(self: Trainer, frames: bool = True) -> trainer.Validation:
        if self.epoch == 1:
            raise Diverged("The validation PSNR", float("nan"), self.epoch)
        return real(self, frames)

    monkeypatch.setattr(Trainer, "validate", diverge)
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.constraints["diverged"] == 1.0 and trial.constraints["crashed"] == 0.0
    assert trial.user_attrs["failed"] == "diverged"
    assert "epoch 2" in trial.user_attrs["reason"] and trial.user_attrs["epochs_done"] == 1
    assert list(trial.intermediate_values) == [1]
    folder = RunFolder.of_trial(tmp_path, "tiny", 0)
    assert len(folder.read_history()) == 1
    assert tidy(study, tmp_path, keep_best=5) and not list(folder.root.glob("last*.pt"))


def test_a_pruned_trial_says_so_and_its_checkpoint_goes_once_it_is_told(tmp_path: Path) -> None:
    class Always(optuna.pruners.BasePruner):
        def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
            return (trial.last_step or 0) >= 2

    study = optuna.create_study(direction="maximize", pruner=Always(), study_name="tiny")
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED and trial.user_attrs["epochs_done"] == 2
    assert trial.user_attrs["reason"] == "pruned at epoch 2" and "failed" not in trial.user_attrs
    folder = RunFolder.of_trial(tmp_path, "tiny", 0)
    assert list(folder.root.glob("last*.pt"))  # until the trial is told, its next owner may need it
    assert tidy(study, tmp_path, keep_best=5) and not list(folder.root.glob("last*.pt"))


def test_only_the_best_trials_keep_their_checkpoints(tmp_path: Path) -> None:
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=3)
    ranked = sorted(study.trials, key=lambda trial: -trial.values[0])
    tidy(study, tmp_path, keep_best=1)
    kept = {trial.number for trial in study.trials if RunFolder.of_trial(tmp_path, "tiny", trial.number).last.exists()}
    assert kept == {ranked[0].number}
    for trial in study.trials:  # what people look at stays
        assert (RunFolder.of_trial(tmp_path, "tiny", trial.number).root / "curves.png").exists()


def test_pictures_that_cannot_be_drawn_do_not_fail_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("cvaeopt.run.trial_run.trial_artifacts", broken)
    study = new_study()
    study.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=1)
    assert study.trials[0].state == TrialState.COMPLETE


def test_a_full_disk_does_not_keep_a_trial_from_being_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    objective = Objective(definition(), DATA, artifacts=tmp_path)
    monkeypatch.setattr("cvaeopt.run.trial_run.write_json", full)
    run = objective.open(new_study().ask())
    assert next(run.run()).epoch == 1


def test_a_finished_trial_keeps_the_checkpoint_of_its_last_epoch_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", ".last.pt.ab12.part")

    objective = Objective(definition(), DATA, artifacts=tmp_path)
    run = objective.open(new_study().ask(), token=1)
    results = run.run()
    next(results)
    run.save()  # the disk fills up afterwards: epochs 2 and 3 are not saved
    list(results)
    with monkeypatch.context() as disk:
        disk.setattr("cvaeopt.vae.checkpoint.write", full)
        run.finish("complete", "all epochs trained")
    assert not run.folder.last.exists()
    lost = f"Trial 0: its checkpoint is lost: the disk of {run.folder.root} is full ("
    assert lost in caplog.text and "Make room there" in caplog.text and ".part" not in caplog.text
    run.finish("complete", "all epochs trained")  # a take-over, when there is room again
    assert checkpoint.load_model(run.folder.last).epoch == 3

    second = objective.open(new_study().ask(), token=2)
    for _ in second.run():
        second.save()
    monkeypatch.setattr("cvaeopt.files.write_text", full)
    second.finish("complete", "all epochs trained")
    assert checkpoint.load_model(second.folder.last).epoch == 3
    assert "Trial 0: not all of its files could be written: the disk of " in caplog.text

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cvaeopt.errors import StudyError
from cvaeopt.outcome import recipe
from cvaeopt.outcome.export import export_best
from cvaeopt.search.space import params_to_config
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from tests.support.made_up import NOON, definition, trials


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as opened:
        yield opened


def test_the_best_trial_becomes_a_recipe_with_its_provenance(storage: Storage, tmp_path: Path):
    study = create_or_open(storage, definition())
    study.add_trials(trials(16))
    exported = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    best = study.best_trial
    found = recipe.read(tmp_path / "best.toml")
    assert found.settings == exported.recipe.settings == params_to_config(definition(), best.params, best.number)
    assert found.settings.lr == best.params["lr"]
    said = found.provenance
    assert (said["study"], said["trial"], said["value"]) == ("made-up", best.number, best.value)
    assert said["estimated"] == "mean of val_psnr over the last 2 epochs, one run"
    assert said["search_epochs"] == 10
    assert said["study_seed"] == 7
    assert said["data_digest"] == "0123456789ab"
    assert said["date"] == "2026-03-02T12:00:00"
    assert exported.picture == tmp_path / "best.png"
    assert exported.picture.stat().st_size > 0


def test_runners_up_are_those_within_noise(storage: Storage, tmp_path: Path):
    study = create_or_open(storage, definition())
    study.add_trials(trials(16))
    values = sorted((trial.value for trial in study.trials if trial.value is not None), reverse=True)
    target = tmp_path / "best.toml"
    near = export_best(storage, "made-up", target, now=NOON).recipe.provenance
    assert near["within_noise"] == sum(values[0] - value <= 0.2 for value in values[1:])
    twin = next(trial for trial in study.trials if trial.value == values[0])
    study.add_trial(twin)
    exported = export_best(storage, "made-up", target, now=NOON)
    assert exported.recipe.provenance["within_noise"] == near["within_noise"] + 1
    assert any("cannot tell them apart" in warning for warning in exported.warnings)


def test_a_study_without_a_complete_trial_cannot_be_exported(storage: Storage, tmp_path: Path):
    create_or_open(storage, definition())
    with pytest.raises(StudyError, match="has no complete trial"):
        export_best(storage, "made-up", tmp_path / "best.toml", now=NOON)
    assert not (tmp_path / "best.toml").exists()


def test_a_best_trial_below_a_baseline_is_said_loudly(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from cvaeopt.outcome import export

    create_or_open(storage, definition()).add_trials(trials(8, level=20.0))
    plain = export.status
    monkeypatch.setattr(
        export, "status", lambda *given: {**plain(*given), "baselines": {"copy_first": 23.9, "train_mean": 2.0}}
    )
    warnings = export_best(storage, "made-up", tmp_path / "best.toml", now=NOON).warnings
    assert "does not beat copy first 23.90 dB" in warnings[0]
    assert "mean frame" not in warnings[0]


def test_an_output_that_the_labs_tester_would_not_apply_is_named(storage: Storage, tmp_path: Path):
    squashed = definition(fixed={"output": "sigmoid"})
    create_or_open(storage, squashed).add_trials(trials(4))
    target = tmp_path / "best.toml"
    loud = export_best(storage, "made-up", target, now=NOON)
    assert loud.recipe.settings.output == "sigmoid"
    assert any("applies no sigmoid" in warning for warning in loud.warnings)
    assert export_best(storage, "made-up", target, now=NOON, lab=True).recipe.settings.output == "linear"

"""Snapshots: the checkpoints of chosen epochs stay, and their PSNR per frame is drawn in one chart."""

from __future__ import annotations

import statistics
from pathlib import Path

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder
from cvaeopt.outcome.retrain import Retraining
from cvaeopt.pictures import curves
from cvaeopt.pictures import snapshots as charts
from cvaeopt.run.objective import Objective
from cvaeopt.run.retention import tidy
from cvaeopt.vae import checkpoint, snapshots
from testbed import tiny

EPOCHS = st.integers(1, 60)


@given(last=EPOCHS, listed=st.lists(EPOCHS, min_size=1, max_size=5), every=EPOCHS)
def test_epochs_are_listed_or_every_so_many(last: int, listed: list[int], every: int) -> None:
    listed, every = [min(epoch, last) for epoch in listed], min(every, last)
    text = ", ".join(map(str, listed))
    assert snapshots.epochs_of(text, last, "x") == snapshots.epochs_of(listed, last, "x") == set(listed)
    regular = {epoch for epoch in range(1, last + 1) if epoch % every == 0}
    assert snapshots.epochs_of(f"every:{every}", last, "x") == regular
    assert snapshots.epochs_of(f"every:{every},{text}", last, "x") == regular | set(listed)
    later = snapshots.epochs_of([*listed, last + 1], last, "x", later=True)
    assert later == set(listed)


@pytest.mark.parametrize(
    "given", ["", "5,", "fifty", "0", "11", "every:0", "every:11", "every 5", "-1", "1.5", [0], [11]]
)
def test_what_is_no_epoch_of_the_run_is_refused(given: str | list[int]) -> None:
    with pytest.raises(SettingsError, match=r"Expected: (epochs such as|1 to 10)"):
        snapshots.epochs_of(given, 10, "--snapshots")
    with pytest.raises(SettingsError, match=r"\[service\] snapshots"):
        tiny.definition(budget={"epochs": 10}, service={"snapshots": given})


def run(folder: Path, kept: tuple[int, ...] = (1, 3), epochs: int = 4) -> Retraining:
    return Retraining(tiny.config(num_epoch=epochs), tiny.DATA, RunFolder(folder), kept=kept)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.read(path)["state_dict"])


def test_a_snapshot_is_the_run_at_that_epoch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    rows = [result.row() for result in whole.run()]
    whole.finish()
    known = snapshots.read(tmp_path / "whole")
    assert list(known) == [1, 3]
    for epoch, values in known.items():
        path = snapshots.path_of(tmp_path / "whole", epoch)
        assert checkpoint.load_model(path).epoch == epoch
        assert statistics.fmean(values) == pytest.approx(rows[epoch - 1]["val_psnr"], abs=1e-4)
    stopped = run(tmp_path / "stopped", ())
    for result in stopped.run():
        if result.epoch == 3:
            break
    one, other = weights(snapshots.path_of(tmp_path / "whole", 3)), weights(tmp_path / "stopped" / "last.pt")
    assert all(torch.equal(one[name], other[name]) for name in other)
    with Image.open(tmp_path / "whole" / "snapshots.png") as image:
        assert image.width > 800
    assert (tmp_path / "whole" / "snapshots.svg").read_text().startswith("<?xml")
    assert (tmp_path / "whole" / "snapshots.pdf").read_bytes().startswith(b"%PDF")
    assert run(tmp_path / "stopped", (2, 4)).missed == [2]
    assert run(tmp_path / "whole").missed == []


def test_a_kill_between_a_snapshot_and_the_checkpoint_of_its_epoch_changes_nothing(tmp_path: Path) -> None:
    killed = run(tmp_path / "killed")
    steps = killed.run()
    next(steps), next(steps)
    kept = (tmp_path / "killed" / "last.pt").read_bytes()
    next(steps)
    steps.close()
    (tmp_path / "killed" / "last.pt").write_bytes(kept)  # as if killed before last.pt of epoch 3
    snapshots.path_of(tmp_path / "killed", 3).write_bytes(b"torn")
    for folder in ("killed", "whole"):
        list(run(tmp_path / folder).run())
    assert snapshots.read(tmp_path / "killed") == snapshots.read(tmp_path / "whole")
    one, other = (weights(snapshots.path_of(tmp_path / folder, 3)) for folder in ("killed", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_snapshots_of_a_trial_stay_when_its_checkpoint_is_deleted(tmp_path: Path) -> None:
    definition = tiny.definition(budget={"trials": 2}, service={"snapshots": "every:2", "keep_best": 1})
    assert definition.digest() == tiny.definition(budget={"trials": 2}).digest()
    study = tiny.new_study()
    study.optimize(Objective(definition, tiny.DATA, artifacts=tmp_path), n_trials=2)
    tidy(study, tmp_path, keep_best=1)
    folders = [tmp_path / "tiny" / f"{trial.number:05d}" for trial in study.get_trials()]
    assert sorted(folder.joinpath("last.pt").exists() for folder in folders) == [False, True]
    for folder in folders:
        assert sorted(path.name for path in folder.glob("snapshot*")) == [
            "snapshot.00002.pt",
            "snapshots.json",
            "snapshots.png",
        ]
    shown = {meta.filename for meta in optuna.artifacts.get_all_artifact_meta(study.trials[0], storage=study._storage)}
    assert "snapshots.png" in shown and not any(name.endswith(".pt") for name in shown)


@settings(max_examples=5)
@given(st.dictionaries(st.integers(1, 999), st.lists(st.floats(-5, 60), min_size=1, max_size=9), max_size=12))
def test_any_snapshots_can_be_drawn(known: dict[int, list[float]]) -> None:
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        with curves.charts_as(kind):
            assert charts.chart(known, {"copy_first": 20.0}).startswith(start)


@pytest.mark.parametrize("content", [None, "", "[]", "3", '{"x": [1]}', '{"1": 2}', '{"1": ["y"]}'])
def test_a_damaged_file_of_values_is_no_snapshot(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / snapshots.VALUES).write_text(content)
    assert snapshots.read(tmp_path) == {}
    assert charts.write(tmp_path) == []

"""The runs of a study in the formats of other programs, each read back with the program's own library."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import pytest
from optuna.trial import TrialState

from cvaeopt.files import RunFolder
from cvaeopt.outcome import trackers
from cvaeopt.outcome.study_runs import ELAPSED, StudyRun, StudyRuns, study_runs
from cvaeopt.store import identity
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from tests.support.command import Shop
from tests.support.made_up import definition, fill, history, trials

TO = sorted(get_args(trackers.Tracker))
SECRET = "geheim-7"
SOURCE = f"postgresql://lab:{SECRET}@127.0.0.1:1/cvaeopt"
TRIALS = trials(8)
WITH_FOLDER = (0, 2, 6)
"""A complete, a pruned and a diverged trial, whose run folders are on this machine."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A folder with the study `made-up` in its database. Three of its trials have a run folder."""
    shop = Shop.new(tmp_path_factory.mktemp("shop"), Path("none"))
    (shop.root / "storage").mkdir()
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as storage:
        study = create_or_open(storage, definition(trials=8))
        TRIALS[1].set_user_attr("reason", f"could not reach {SOURCE}, =cmd|x")
        fill(storage, study, TRIALS)
        study.enqueue_trial({"lr": 1e-3})
        folder = identity.of(study).claim(shop.root / "storage" / "artifacts")
    for number in WITH_FOLDER:
        RunFolder(folder / f"{number:05d}").write_history(history(TRIALS[number].intermediate_values))
    return shop


@pytest.fixture(scope="module")
def runs(shop: Shop) -> StudyRuns:
    """The runs of the study, read from a database whose URL has a password."""
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as storage:
        storage._source = SOURCE
        return study_runs(storage, "made-up", shop.root / "storage" / "artifacts")


def written(runs: StudyRuns, to: trackers.Tracker, folder: Path) -> Path:
    """`folder` with the runs, written as a command would whose line holds a password."""
    with mock.patch.object(sys, "argv", ["cvaeopt", "export-runs", "--storage", SOURCE]):
        trackers.write(runs, to, folder)
    return folder


def test_runs_have_what_the_database_and_the_run_folders_hold(runs: StudyRuns) -> None:
    assert [run.number for run in runs.runs] == [trial.number for trial in TRIALS]  # without the enqueued one
    assert runs.partial == [n for n in range(8) if n not in WITH_FOLDER]
    for run, trial in zip(runs.runs, TRIALS, strict=True):
        assert run.value == (trial.value if trial.state == TrialState.COMPLETE else None)
        assert {int(row["epoch"]): row["val_psnr"] for row in run.rows} == trial.intermediate_values
        assert run.settings.items() >= trial.params.items()
        assert {"num_epoch": 10, "F_dim": 8, "optim": "Adam"}.items() <= run.settings.items()
        stored = history(trial.intermediate_values)
        kept = [{key: value for key, value in row.items() if key != ELAPSED} for row in run.rows]
        assert (kept == stored) == (trial.number in WITH_FOLDER)
    assert runs.runs[6].state == "failed"
    assert runs.facts["definition_digest"] == definition(trials=8).digest()


def test_elapsed_time_is_the_sum_of_the_epochs_times(runs: StudyRuns) -> None:
    rows = runs.runs[0].rows
    assert [row[ELAPSED] for row in rows] == list(itertools.accumulate(row["seconds"] for row in rows))
    assert not any(ELAPSED in row for row in runs.runs[1].rows)


def test_csv_tables_hold_every_trial_and_every_epoch(runs: StudyRuns, tmp_path: Path) -> None:
    folder = written(runs, "csv", tmp_path / "out")
    with (folder / trackers.TRIALS).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for run, row in zip(runs.runs, rows, strict=True):
        assert int(row["trial"]) == run.number
        assert row["state"] == run.state
        assert (float(row["value"]) if row["value"] else None) == run.value
        assert float(row["lr"]) == run.settings["lr"]
        assert row["kl_anneal_type"] == run.settings["kl_anneal_type"]
        assert json.loads(row["milestones"]) == run.settings["milestones"]
        assert row["data_digest"] == "0123456789ab"
        assert row["reason"] == run.facts["reason"]
    with (folder / trackers.EPOCHS).open(newline="") as stream:
        found = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    assert found == [{"trial": run.number, **row} for run in runs.runs for row in run.rows]


def test_tensorboard_reads_curves_values_and_settings(runs: StudyRuns, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    folder = written(runs, "tensorboard", tmp_path / "out")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {run.name for run in runs.runs}
    for run in runs.runs:
        events = EventAccumulator(str(folder / run.name), size_guidance={"tensors": 0, "scalars": 0})
        events.Reload()
        tags = {key for row in run.rows for key in row} - {"epoch"} | (set() if run.value is None else {"value"})
        assert set(events.Tags()["scalars"]) == tags
        for key in tags - {"value"}:
            expected = [(int(row["epoch"]), pytest.approx(row[key], rel=1e-6)) for row in run.rows if key in row]
            assert [(event.step, event.value) for event in events.Scalars(key)] == expected
        if run.rows and ELAPSED in run.rows[0]:
            times = [event.wall_time for event in events.Scalars(ELAPSED)]
            assert times == [run.started.timestamp() + row[ELAPSED] for row in run.rows]  # type: ignore[union-attr]
        stored = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        found = plugin_data_pb2.HParamsPluginData.FromString(stored).session_start_info.hparams
        assert found["lr"].number_value == run.settings["lr"]
        assert found["kl_anneal_type"].string_value == run.settings["kl_anneal_type"]
        (text,) = events.Tensors("provenance/text_summary")
        assert runs.facts["definition_digest"] in text.tensor_proto.string_val[0].decode()


def log_records(data: bytes) -> Iterator[bytes]:
    """The records in LevelDB's log format, in which W&B stores a run after a header of seven bytes."""
    at, whole = 0, b""
    while at + 7 <= len(data):
        if 32768 - (at + 7) % 32768 < 7:  # the blocks of the file have 32 KB; a shorter rest of a block is empty
            at += 32768 - (at + 7) % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield whole
            whole = b""


def test_weights_and_biases_reads_offline_runs(runs: StudyRuns, tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    folder = written(runs, "wandb", tmp_path / "out")
    by_name: dict[str, list[Any]] = {}
    for file in folder.glob("wandb/offline-run-*/*.wandb"):
        records = [Record.FromString(data) for data in log_records(file.read_bytes()[7:])]
        (opened,) = [record.run for record in records if record.HasField("run")]
        by_name[opened.display_name] = [opened, *records]
    assert len(by_name) == len(runs.runs)
    for run in runs.runs:
        opened, *records = by_name[f"made-up/{run.name}"]
        assert (opened.project, list(opened.tags)) == ("made-up", [run.state])
        settings = {item.key: json.loads(item.value_json) for item in opened.config.update}
        assert settings.items() >= run.settings.items()
        assert settings["provenance"]["definition_digest"] == runs.facts["definition_digest"]
        rows = [
            {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
            for record in records
            if record.HasField("history")
        ]
        kept = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
        assert kept == [{key: value for key, value in row.items() if key != "epoch"} for row in run.rows]
        assert [row["_step"] for row in rows] == [row["epoch"] for row in run.rows]


def test_mlflow_reads_metrics_parameters_and_states(runs: StudyRuns, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    folder = written(runs, "mlflow", tmp_path / "out")
    client = MlflowClient(tracking_uri=folder.as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "made-up"]
    assert experiment.artifact_location.startswith(folder.as_uri())
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id], max_results=100)}
    assert set(found) == {run.name for run in runs.runs}
    states = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
    for run in runs.runs:
        read = found[run.name]
        assert read.info.status == states[run.state]
        assert read.data.metrics.get("value") == run.value
        assert float(read.data.params["lr"]) == run.settings["lr"]
        assert read.data.tags["cvaeopt.data_digest"] == "0123456789ab"
        curve = client.get_metric_history(read.info.run_id, "val_psnr")
        assert [(one.step, one.value) for one in curve] == [(row["epoch"], row["val_psnr"]) for row in run.rows]


def needs(to: str) -> None:
    """Skip the test if the library of `to` is not installed."""
    if to != "csv":
        pytest.importorskip(to, reason=f"needs the extra {to}")


@pytest.mark.parametrize("to", TO)
def test_no_password_is_in_any_file(runs: StudyRuns, tmp_path: Path, to: Any) -> None:
    needs(to)
    folder = written(runs, to, tmp_path / "out")
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert sum(SECRET.encode() in content for content in contents) == 0
    assert any(b"could not reach" in content for content in contents)  # the text is there, and only the secret is not


@pytest.mark.parametrize("to", TO)
def test_a_study_without_a_trial_can_be_exported(tmp_path: Path, to: Any) -> None:
    needs(to)
    written(StudyRuns("none", "val_psnr", {"identity": None, "definition_digest": "0"}, ()), to, tmp_path / "out")
    assert json.loads((tmp_path / "out" / trackers.MARKER).read_text())["trials"] == 0


def test_a_failed_export_leaves_the_folder_as_it_was(runs: StudyRuns, tmp_path: Path) -> None:
    folder = written(runs, "csv", tmp_path / "out")
    before = (folder / trackers.TRIALS).read_bytes()

    def broken(*_: Any) -> Iterator[StudyRun]:
        raise OSError("the disk is full")

    with mock.patch.object(trackers, "_counted", broken), pytest.raises(OSError, match="disk is full"):
        trackers.write(runs, "csv", folder)
    assert (folder / trackers.TRIALS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_an_earlier_export_is_replaced_and_only_if_asked(shop: Shop, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("export-runs", "--study", "made-up", "--to", "csv", out)
    assert shop.run(*words, "--dry-run").code == 0
    assert not out.exists()
    out.mkdir()
    first = shop.run(*words, "--json")
    assert first.code == 0, first.err
    answer = json.loads(first.out)
    assert (answer["trials"], answer["written"]) == (8, True)
    assert answer["without_history"] == [1, 3, 4, 5, 7]
    (out / trackers.TRIALS).write_text("touched")
    refused = shop.run(*words)
    assert (refused.code, "--overwrite" in refused.text) == (2, True)
    assert (out / trackers.TRIALS).read_text() == "touched"
    again = shop.run(*words, "--overwrite")
    assert again.code == 0
    assert "history of 5 trials is not" in again.text
    assert (out / trackers.TRIALS).read_text() != "touched"
    (out / trackers.MARKER).unlink()
    foreign = shop.run(*words, "--overwrite")
    assert (foreign.code, "holds other files" in foreign.text) == (2, True)
    assert shop.run(*words[:-1], out / trackers.TRIALS).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("to", [to for to in TO if to != "csv"])
def test_a_missing_library_is_one_message_with_the_command_that_installs_it(
    shop: Shop, tmp_path: Path, to: str
) -> None:
    find = importlib.util.find_spec
    with mock.patch.object(importlib.util, "find_spec", lambda name, *rest: None if name == to else find(name, *rest)):
        said = shop.run("export-runs", "--study", "made-up", "--to", to, tmp_path / "out", "--dry-run")
    assert said.code == 2
    assert f"pip install 'cvaeopt[{to}]'" in said.text
    assert not list(tmp_path.iterdir())

"""A deletion takes a study's rows and files, and nothing else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import inspect

from cvaeopt.admin import delete as deletion
from cvaeopt.errors import (
    StudyError,
    UserError,
)
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, identity_of
from cvaeopt.store.workers import Place
from tests.support.fakes import leases
from tests.support.sites import (
    FAMILY,
    Site,
    admin,
    assert_continues,
    definition,
    everything,
    plain_status,
    ranking,
)


def test_a_deleted_study_takes_its_rows_and_files_with_it_and_nothing_else(half: Site, tmp_path: Path) -> None:
    archive = tmp_path / "main.tar"
    storage = half.open()
    before = plain_status(storage, "other")
    (half.artifacts / DASHBOARD_STORE / "of-another-study").write_bytes(b"kept")
    admin("delete", ["main", "--yes", "--archive", str(archive), *half.options()])
    with pytest.raises(StudyError):
        status(storage, "main")
    assert plain_status(storage, "other") == before
    assert {row.study for row in leases(storage)} == {"other"}
    assert not (half.artifacts / "main").exists()
    assert (half.artifacts / "other").exists()
    assert [path.name for path in (half.artifacts / DASHBOARD_STORE).iterdir()] == ["of-another-study"]
    with storage.reading() as connection:
        trials = connection.exec_driver_sql("SELECT count(*) FROM trials").scalar_one()
        reports = connection.exec_driver_sql("SELECT count(*) FROM trial_intermediate_values").scalar_one()
    study = optuna.load_study(study_name="other", storage=storage)
    assert trials == len(study.trials)
    assert reports == sum(len(trial.intermediate_values) for trial in study.trials)
    storage.close()

    admin("restore", [str(archive), *half.options()])
    assert_continues(half)


def test_a_deletion_asks_for_the_name_again(half: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["other", "main"]
    monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
    with pytest.raises(UserError, match="Nothing was deleted"):
        admin("delete", ["main", *half.options()])
    storage = half.open()
    assert status(storage, "main")["trials"]["complete"] == 1
    LeaseRegistry(storage, "main").register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match="running worker"):
        admin("delete", ["main", "--yes", *half.options()])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    admin("delete", ["main", *half.options()])
    with pytest.raises(StudyError):
        status(storage, "main")
    storage.close()


def test_a_study_is_deleted_with_its_confirmations_which_are_named_before(
    confirmed: Site,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = ranking(confirmed)
    monkeypatch.setattr("builtins.input", lambda _: "")
    with pytest.raises(UserError, match="Nothing was deleted"):
        admin("delete", ["made-up", *confirmed.options()])
    assert "'made-up' and what confirms it (made-up.confirm, made-up.confirm-2)" in capsys.readouterr().err
    storage = confirmed.open()
    registry = LeaseRegistry(storage, "made-up.confirm-2")
    registry.register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match=r"'made-up.confirm-2' has 1 running worker"):
        admin("delete", ["made-up", "--yes", *confirmed.options()])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    assert ranking(confirmed) == before

    archive = tmp_path / "x.tar"
    admin("delete", ["made-up", "--yes", "--archive", str(archive), *confirmed.options()])
    said = capsys.readouterr().out
    assert [name for name in FAMILY if f"{name} is deleted, with 2 files" in said] == FAMILY
    assert everything(confirmed) == ["made-up.confirmed"]
    assert [path.name for path in confirmed.artifacts.iterdir()] == ["made-up.confirmed"]
    admin("restore", [str(archive), *confirmed.options()])
    assert ranking(confirmed) == before


def test_one_confirmation_can_be_deleted_alone(confirmed: Site) -> None:
    admin("delete", ["made-up.confirm-2", "--yes", *confirmed.options()])
    assert everything(confirmed) == [*FAMILY[:2], "made-up.confirmed"]
    assert ranking(confirmed)["best"] is not None


def orphans(storage: Storage) -> int:
    """Rows of Optuna's tables whose study or trial is gone."""
    total = 0
    with storage.reading() as connection:
        for name in inspect(storage.engine).get_table_names():
            for key, parent in (("study_id", "studies"), ("trial_id", "trials")):
                if key in {one["name"] for one in inspect(storage.engine).get_columns(name)} and name != parent:
                    if name.startswith("cvaeopt_"):
                        continue
                    query = f"SELECT count(*) FROM {name} WHERE {key} NOT IN (SELECT {key} FROM {parent})"
                    total += connection.exec_driver_sql(query).scalar_one()
    return total


def test_a_deletion_leaves_no_row_behind_whoever_writes_meanwhile(half: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = half.open()
    study_id = storage.get_study_id_from_name("main")
    trial_id = storage.get_all_trials(study_id)[0]._trial_id
    write, wrote = Storage.write, []

    def late(self: Storage, change: Any) -> Any:
        """A program that read the study before it was deleted, and writes afterwards: SQLite takes it all."""
        done = write(self, change)
        if wrote or not (isinstance(done, tuple) and done[0] == study_id):  # the deletion returns the study's id first
            return done
        wrote.append(study_id)
        with closing(sqlite3.connect(half.url.removeprefix("sqlite:///"))) as raw, raw:
            raw.execute(
                "INSERT INTO trials (trial_id, number, study_id, state) VALUES (999, 9, ?, 'RUNNING')", [study_id]
            )
            for trial in (trial_id, 999):
                raw.execute(
                    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, 'a', '1')", [trial]
                )
        return done

    monkeypatch.setattr(Storage, "write", late)
    admin("delete", ["main", "--yes", *half.options()])
    assert wrote and orphans(storage) == 0 and everything(half) == ["other"]
    assert len(storage.get_all_trials(storage.get_study_id_from_name("other"))) > 0
    storage.close()
    assert not (half.artifacts / "main").exists()


def test_files_stay_while_somebody_still_writes_rows_of_a_deleted_study(
    half: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "_delete_orphans", lambda *_: 1)
    with pytest.raises(UserError, match="still writes rows of study 'main'"):
        admin("delete", ["main", "--yes", *half.options()])
    assert (half.artifacts / "main" / "00002" / "curve.png").exists()


def test_a_study_that_was_deleted_and_started_again_is_kept_apart_from_the_files_of_the_first(
    half: Site, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in (half.artifacts / "main").rglob("*") if path.is_file()}
    storage = half.open()
    optuna.delete_study(study_name="main", storage=storage)
    create_or_open(storage, definition())
    own = identity_of(storage, "main").claim(half.artifacts)
    storage.close()
    (own / "mine.txt").write_text("mine")
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    admin("backup", [str(tmp_path / "main.tar"), "--study", "main", *half.options()])
    admin("restore", [str(tmp_path / "main.tar"), *there.options()])
    assert (there.artifacts / "main" / "mine.txt").exists()
    assert not (there.artifacts / "main" / "00002" / "curve.png").exists()
    admin("delete", ["main", "--yes", *half.options()])
    assert not own.exists()
    assert {path: path.read_bytes() for path in before} == before
    # Beside the files of the first study there is room for those of the second one.
    admin("restore", [str(tmp_path / "main.tar"), *half.options()])
    assert (own / "mine.txt").exists()

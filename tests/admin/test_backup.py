"""Backups, restores and moves: what they copy is equal, whole, and can be continued."""

from __future__ import annotations

import errno
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from cvaeopt.admin import backup as backups
from cvaeopt.admin import restore, rows, studies
from cvaeopt.errors import (
    CvaeoptError,
    StudyError,
    UserError,
)
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.workers import Place
from tests.support.sites import (
    FAMILY,
    Site,
    admin,
    assert_continues,
    assert_same,
    everything,
    ranking,
)


@pytest.mark.postgres
def test_a_study_moved_to_postgresql_is_equal_and_goes_on_there(
    half: Site, databases: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    there = Site(databases(), half.artifacts)
    admin("move", ["--from", half.url, "--to", there.url.replace("postgres@", "postgres:geheim@")])
    said = capsys.readouterr().out
    assert "main: 4 trials and 8 reports" in said and "geheim" not in said
    assert "***" not in said.splitlines()[-1] and "the URL that you gave as --to" in said.splitlines()[-1]
    assert_same(half, there)
    assert_same(half, there, "other")
    assert_continues(there)


@pytest.mark.postgres
def test_a_study_can_come_back_from_postgresql(
    half: Site,
    databases: Callable[[], str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = Site(databases(), half.artifacts)
    admin("move", ["--from", half.url, "--to", there.url, "--study", "main"])
    back = Site(f"sqlite:///{tmp_path}/back.db", half.artifacts)
    admin("move", ["--from", there.url, "--to", back.url])
    assert capsys.readouterr().out.endswith(f"CVAEOPT_STORAGE: {back.url}\n")
    assert_same(half, back)
    storage = back.open()
    with storage.reading() as connection:
        assert studies.names(connection) == ["main"]
    storage.close()


def test_a_move_refuses_running_workers_and_names_that_are_taken(half: Site, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/new.db"
    storage = half.open()
    registry = LeaseRegistry(storage, "main")
    registry.register("alive", Place.here(), "cpu")
    move = ["--from", half.url, "--to", target]
    with pytest.raises(UserError, match=r"1 running worker.*alive"):
        admin("move", move)
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    admin("move", move)
    with pytest.raises(StudyError, match="already"):
        admin("move", move)
    with pytest.raises(StudyError, match="There are: main, other"):
        admin("move", [*move, "--study", "mian"])


def test_a_database_is_not_moved_into_itself(half: Site) -> None:
    with pytest.raises(UserError, match=r"both ends of the move\. Expected: two databases"):
        admin("move", ["--from", half.url, "--to", half.url])


def test_a_copy_that_fails_leaves_nothing(half: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = rows.content
    monkeypatch.setattr(rows, "content", lambda *place: {**content(*place), "trial_values": []})
    with pytest.raises(CvaeoptError, match=r"differs in trial_values.*Nothing was kept"):
        admin("move", ["--from", half.url, "--to", f"sqlite:///{tmp_path}/new.db"])
    with open_storage(f"sqlite:///{tmp_path}/new.db") as storage, storage.reading() as connection:
        assert studies.names(connection) == []


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_restored_backup_is_equal_and_goes_on(
    kind: str,
    half: Site,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = half
    there = Site(f"sqlite:///{tmp_path}/there/new.db", tmp_path / "there" / "odd ? name")
    if kind == "postgres":
        databases = request.getfixturevalue("databases")
        site = Site(databases(), half.artifacts)
        admin("move", ["--from", half.url, "--to", site.url])
        there = Site(databases(), there.artifacts)
    backup = tmp_path / "backup.tar"
    # Workers may run: an open transaction of theirs is neither waited for nor seen.
    storage = site.open()
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_study SET facts = '{\"unfinished\": 1}'")
        admin("backup", [str(backup), *site.options()])
        connection.rollback()
    storage.close()

    admin("restore", [str(backup), "--study", "main", *there.options()])
    assert "main restored" in capsys.readouterr().out
    assert_same(site, there)
    for path in (site.artifacts / "main").rglob("*"):
        if path.is_file():
            copy = there.artifacts / path.relative_to(site.artifacts)
            assert copy.read_bytes() == path.read_bytes()
    assert [path.read_bytes() for path in (there.artifacts / DASHBOARD_STORE).iterdir()] == [b"a picture"]
    assert not list(there.artifacts.glob(".restore*"))
    assert not (there.artifacts / "other").exists()
    assert_continues(there)
    admin("restore", [str(backup), "--study", "other", *there.options()])
    assert_same(site, there, "other")


def test_a_restore_keeps_what_is_there(half: Site, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    admin("backup", [str(backup), "--study", "main", *half.options()])
    with pytest.raises(UserError, match="never overwritten"):
        admin("backup", [str(backup), *half.options()])
    restore = [str(backup), *half.options()]
    with pytest.raises(UserError, match="There are files of a study"):
        admin("restore", restore)
    with pytest.raises(StudyError, match="already"):
        admin("restore", [*restore, "--keep-files"])

    newer = next((half.artifacts / "main" / "00002").glob("last.*"))
    newer.write_text(newer.read_text() + " ")
    (half.artifacts / "main" / "00000" / newer.name).unlink()
    there = Site(f"sqlite:///{tmp_path}/new.db", half.artifacts)
    admin("restore", [str(backup), "--keep-files", *there.options()])
    assert newer.read_text().endswith(" ")
    assert (half.artifacts / "main" / "00000" / newer.name).exists()
    assert_same(half, there)


def test_a_study_that_is_deleted_while_it_is_backed_up_is_in_the_backup(
    half: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = backups._add_files

    def deleted_meanwhile(*given: Any) -> int:
        admin("delete", ["main", "--yes", *half.options()])
        monkeypatch.setattr(backups, "_add_files", add)
        return add(*given)

    monkeypatch.setattr(backups, "_add_files", deleted_meanwhile)
    admin("backup", [str(tmp_path / "backup.tar"), "--study", "main", *half.options()])
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    admin("restore", [str(tmp_path / "backup.tar"), *there.options()])


def test_a_backup_warns_of_a_study_without_files(
    half: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.move(half.artifacts, tmp_path / "moved")
    admin("backup", [str(tmp_path / "backup.tar"), "--study", "main", *half.options()])
    assert "main has no files in" in capsys.readouterr().err


def test_a_backup_into_a_folder_that_is_not_there_is_refused(half: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*not mounted/deep.*mkdir -p '"):
        admin("backup", [str(tmp_path / "not mounted" / "deep" / "backup.tar"), *half.options()])
    assert not (tmp_path / "not mounted").exists()


def test_checkpoints_can_be_left_out(half: Site, tmp_path: Path) -> None:
    (half.artifacts / "main" / "00000" / "last.pt").write_bytes(b"a network")
    (half.artifacts / "main" / "00000" / ".x.part").write_bytes(b"half a file")
    for name, more, networks in (("whole.tar", [], 1), ("small.tar", ["--no-checkpoints"], 0)):
        admin("backup", [str(tmp_path / name), *more, *half.options()])
        with tarfile.open(tmp_path / name) as tar:
            kinds = [Path(member).suffix for member in tar.getnames()]
        assert (kinds.count(".pt"), kinds.count(".part")) == (networks, 0)
        assert kinds.count(".png") == 1


def test_what_is_no_whole_backup_is_refused(half: Site, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    admin("backup", [str(backup), *half.options()])
    data = backup.read_bytes()
    spoilt = tmp_path / "spoilt.tar"
    there = Site(f"sqlite:///{tmp_path}/new.db", tmp_path / "new")
    for content in (b"", b"text", data[: len(data) // 2], data[:5000] + b"?" + data[5001:]):
        spoilt.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read|damaged"):
            admin("restore", [str(spoilt), *there.options()])
    assert not list((tmp_path / "new").iterdir())
    assert not (tmp_path / "new.db").exists()


def test_a_full_disk_does_not_call_a_good_backup_broken(
    half: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = tmp_path / "b.tar"
    admin("backup", [str(backup), *half.options()])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        restore.unpack(backup, tmp_path)


def test_a_backup_and_a_move_of_a_study_take_its_confirmations_along(confirmed: Site, tmp_path: Path) -> None:
    moved, restored = (Site(f"sqlite:///{tmp_path}/{name}.db", tmp_path / name) for name in ("moved", "restored"))
    admin("move", ["--from", confirmed.url, "--to", moved.url, "--study", "made-up"])
    backup = tmp_path / "x.tar"
    admin("backup", [str(backup), "--study", "made-up", *confirmed.options()])
    admin("restore", [str(backup), "--study", "made-up", *restored.options()])
    assert ranking(confirmed)["ended"] == 4
    for site in (moved, restored):
        assert everything(site) == FAMILY
        assert ranking(site) == ranking(confirmed)
    assert sorted(path.name for path in restored.artifacts.iterdir()) == FAMILY


@pytest.mark.parametrize("name", ["../evil", "_dashboard", "main/00000", ".."])
def test_a_study_of_another_program_stops_no_backup_and_takes_no_files_along(
    half: Site, tmp_path: Path, name: str
) -> None:
    storage = half.open()
    optuna.create_study(storage=storage, study_name=name).add_trial(optuna.trial.create_trial(value=1.0))
    storage.close()
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    admin("backup", [str(tmp_path / "all.tar"), *half.options()])
    admin("restore", [str(tmp_path / "all.tar"), *there.options()])
    assert sorted(everything(there)) == sorted(["main", "other", name])
    files = {path: path.read_bytes() for path in half.artifacts.rglob("*") if path.is_file()}
    admin("delete", [name, "--yes", *half.options()])
    assert everything(half) == ["main", "other"]
    assert {path: path.read_bytes() for path in files} == files


def test_trials_of_another_machine_are_named_in_the_backup_and_in_its_list(
    half: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backup = str(tmp_path / "backup.tar")
    admin("backup", [str(tmp_path / "whole.tar"), *half.options()])
    assert "Warning" not in capsys.readouterr().err
    shutil.move(half.artifacts / "main" / "00001", tmp_path / "elsewhere")
    storage = half.open()
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_lease SET checkpoint_host = 'gpu-2' WHERE number = 1")
    storage.close()
    admin("backup", [backup, *half.options()])
    said = capsys.readouterr()
    assert f"main, trial 1: its files are not in {half.artifacts} here (it ran on gpu-2)" in said.err
    assert said.err.count("files are not") == 1

    admin("restore", [backup, "--list", "--json"])
    listed = json.loads(capsys.readouterr().out)["studies"]
    assert listed["main"]["trials_without_files"] == [{"trial": 1, "host": "gpu-2"}]
    assert listed["other"]["trials_without_files"] == []
    admin("restore", [backup, "--list"])
    table = capsys.readouterr().out
    assert "main, trial 1: its files are not in this backup (it ran on gpu-2)." in table
    assert ["main", "4", str(listed["main"]["files"]), "0", "1"] in [line.split() for line in table.splitlines()]
    with pytest.raises(UserError, match="Add --list"):
        admin("restore", [backup, "--json"])


def test_a_backup_that_does_not_exist_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.tar does not exist") as caught:
        admin("restore", [str(tmp_path / "missing.tar"), "--list"])
    assert "Errno" not in str(caught.value)

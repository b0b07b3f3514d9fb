"""Checkpoints in an object store are backed up, restored and deleted with their study."""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

import pytest
from optuna.artifacts import Boto3ArtifactStore
from optuna.trial import Trial

from cvaeopt.errors import (
    CheckpointError,
    StorageUnreachable,
    StudyError,
    UserError,
)
from cvaeopt.run.object_store import open_checkpoints
from cvaeopt.run.objective import Objective
from cvaeopt.store.study import create_or_open
from testbed import tiny
from tests.support.s3 import BUCKET, SECRET
from tests.support.sites import (
    STORE,
    Lab,
    Site,
    admin,
    assert_continues,
    everything,
)

pytestmark = pytest.mark.usefixtures("uncharted_module")


def test_a_backup_has_the_objects_if_their_store_is_named_and_says_so_if_not(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_them = tmp_path / "without.tar", tmp_path / "with.tar"
    admin("backup", [str(without), *lab.site.options()])
    assert f"The checkpoints in {STORE} are not in it" in capsys.readouterr().out
    admin("backup", [str(with_them), "--checkpoints", STORE, *lab.site.options()])
    said = capsys.readouterr().out
    assert re.search(r"main \(4 trials, \d+ files, 2 objects\)", said)
    assert re.search(r"other \(\d trials, \d+ files, 1 objects\)", said)
    assert "not in it" not in said
    small = tmp_path / "small.tar"
    admin("backup", [str(small), "--no-checkpoints", "--checkpoints", STORE, *lab.site.options()])
    with tarfile.open(small) as tar:
        assert not [name for name in tar.getnames() if name.endswith(".pt")]
    lab.s3.clear()

    # Into another store.
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    new = f"s3://{BUCKET}/new"
    admin("restore", [str(with_them), "--study", "main", "--checkpoints", new, *there.options()])
    assert lab.objects("") == {key.replace("lab", "new"): body for key, body in lab.mine.items()}
    assert not list(there.artifacts.rglob("*.pt"))
    again = [str(with_them), "--study", "main", "--checkpoints", new]
    with pytest.raises(StudyError, match="already"):
        admin("restore", [*again, "--keep-files", *there.options()])
    fresh = Site(f"sqlite:///{tmp_path}/fresh.db", tmp_path / "fresh")
    with pytest.raises(UserError, match=r"There are 2 checkpoints of a study 'main' in s3://studies/new"):
        admin("restore", [*again, *fresh.options()])
    lab.put(f"new/{lab.main}/00000/last.1.pt", b"newer")
    admin("restore", [*again, "--keep-files", *fresh.options()])
    assert lab.objects(f"new/{lab.main}/00000") == {f"new/{lab.main}/00000/last.1.pt": b"newer"}

    # Without one they are where workers look on their disk.
    plain = Site(f"sqlite:///{tmp_path}/plain.db", tmp_path / "plain")
    admin("restore", [str(with_them), *plain.options()])
    assert (plain.artifacts / "main" / "00000" / "last.pt").read_bytes() == b"of a complete trial"
    assert (plain.artifacts / "main" / "00002" / "last.3.pt").read_bytes() == b"of one that was left"
    assert_continues(plain)


def test_a_trial_goes_on_from_a_backup_of_its_object_store(lab: Lab, tmp_path: Path) -> None:
    made = tiny.definition()
    here, there = (Site(f"sqlite:///{tmp_path}/{name}.db", tmp_path / name) for name in ("a", "b"))
    storage = here.open()
    trial = create_or_open(storage, made).ask()
    remote = open_checkpoints(STORE)
    run = Objective(made, tiny.DATA, artifacts=here.artifacts, remote=remote).open(trial, token=1)
    for result in run.run():
        run.save()
        if result.epoch == 2:
            break
    run.settle()
    remote.close()
    storage.close()
    shutil.rmtree(here.artifacts)
    admin("backup", [str(tmp_path / "x.tar"), "--checkpoints", STORE, *here.options()])
    admin("restore", [str(tmp_path / "x.tar"), *there.options()])
    storage = there.open()
    again = Trial(create_or_open(storage, made), storage.get_all_trials(1)[0]._trial_id)
    assert Objective(made, tiny.DATA, artifacts=there.artifacts).open(again, token=2).epoch == 2
    storage.close()


def test_a_deletion_takes_the_objects_of_a_store_that_is_named_and_no_others(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delete = ["main", "--yes", *lab.site.options()]
    with lab.s3.away(), pytest.raises(StorageUnreachable, match=r"does not answer.*Nothing was done") as caught:
        admin("delete", [*delete, "--checkpoints", STORE])
    assert SECRET not in str(caught.value)
    for url, said in ((f"s3://key:{SECRET}@x", "names no object store"), ("s3://none", "cannot be used")):
        with pytest.raises(UserError, match=said) as refused:
            admin("delete", [*delete, "--checkpoints", url])
        assert SECRET not in str(refused.value)
    assert lab.objects("") == {**lab.mine, **lab.others}
    archive = tmp_path / "main.tar"
    admin("delete", [*delete, "--checkpoints", STORE, "--archive", str(archive)])
    said = capsys.readouterr().out
    assert re.search(r"main is deleted, with \d+ files and 2 objects", said)
    assert "stay" not in said
    assert lab.objects("") == lab.others
    admin("restore", [str(archive), "--checkpoints", STORE, *lab.site.options()])
    assert lab.objects("") == {**lab.mine, **lab.others}
    assert_continues(lab.site)


def test_a_deletion_without_the_store_says_what_stays_there(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "main")
    admin("delete", ["main", *lab.site.options()])
    said = capsys.readouterr()
    assert f"Checkpoints in {STORE}/{lab.main} stay, unless --checkpoints names their store" in said.err
    assert f"stay; to delete them: aws s3 rm --recursive {STORE}/{lab.main}/" in said.out
    assert lab.objects("") == {**lab.mine, **lab.others}


def test_a_store_that_fails_half_way_leaves_a_study_that_can_be_deleted_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = ["main", "--yes", "--checkpoints", STORE, *lab.site.options()]
    monkeypatch.setattr(Boto3ArtifactStore, "remove", _fails)
    with pytest.raises(CheckpointError, match=r"cannot be deleted \(denied\)"):
        admin("delete", delete)
    monkeypatch.undo()
    for name, value in lab.s3.environment.items():
        monkeypatch.setenv(name, value)
    assert everything(lab.site) == ["main", "other"]
    admin("delete", delete)
    assert (everything(lab.site), lab.objects("")) == (["other"], lab.others)


def _fails(*_: object) -> None:
    raise RuntimeError("denied")

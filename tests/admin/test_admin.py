"""The scripts in storage/: what they copy is equal, whole, and can be continued."""

from __future__ import annotations

import errno
import importlib
import itertools
import math
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import psycopg
import pytest
from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial, TrialState
from optuna_dashboard import get_note, save_note
from sqlalchemy import inspect, select

from cvaeopt.errors import (
    CheckpointError,
    CvaeoptError,
    SchemaError,
    StorageUnreachable,
    StudyError,
    UserError,
)
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.run.object_store import open_checkpoints
from cvaeopt.run.objective import Objective
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.store import confirmation as confirmations
from cvaeopt.store.leases import Fleet, Place
from cvaeopt.store.storage import Storage, lease_table, open_storage, study_table
from cvaeopt.store.study import create_or_open, identity_of, status
from tests.outcome.test_leaders import run_all
from tests.support import made_up, tiny
from tests.support.fakes import FakeRun, Fakes, curve, leases
from tests.support.postgres import Postgres
from tests.support.s3 import BUCKET, S3, SECRET

SCRIPTS = Path(__file__).parents[2] / "storage"
_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python storage/SCRIPT.py` finds its neighbours."""
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """The module of a script."""
    return importlib.import_module


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes new, empty PostgreSQL databases."""
    made: list[str] = []

    def make() -> str:
        made.append(f"care_{next(_numbers)}")
        return postgres.new_database(made[-1])

    yield make
    for name in made:
        postgres.drop_database(name)


@dataclass
class Site:
    """A database and an artifact folder."""

    url: str
    artifacts: Path

    def open(self) -> Storage:
        return open_storage(self.url)

    def options(self) -> list[str]:
        return ["--storage", self.url, "--artifacts", str(self.artifacts)]


def definition(name: str = "main") -> Definition:
    tables = {
        "study": {"seed": 3},
        "budget": {"trials": 5, "epochs": 4},
        "search": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "enqueue": [{"lr": 1e-3}, {"lr": 2e-3}, {"lr": 3e-3}, {"lr": 4e-3}],
    }
    return Definition.parse(tables, name, "test")


def awkward(number: int, epoch: int) -> float:
    """Trial 1 diverges; the others have values that a text format would round."""
    return math.nan if (number, epoch) == (1, 3) else curve(number, epoch) / 3


def train(site: Site, epochs: int | None = None, name: str = "main") -> list[FakeRun]:
    """Train the study at `site`: all of it, or until that many epochs are trained, as a stopped worker leaves it."""
    storage = site.open()
    trained = itertools.count(1)

    def before(run: FakeRun, epoch: int) -> None:
        if next(trained) == epochs:
            worker.stop()

    fakes = Fakes(site.artifacts, awkward, before)
    worker = Worker(create_or_open(storage, definition(name)), storage, fakes, artifacts=site.artifacts)
    worker.run()
    storage.close()
    return fakes.runs


@pytest.fixture
def half(original: Path, tmp_path: Path) -> Site:
    """A study that was stopped in the middle: trials complete, diverged, left at epoch 2, waiting; on SQLite."""
    shutil.copytree(original, tmp_path / "here")
    return Site(f"sqlite:///{tmp_path}/here/cvaeopt.db", tmp_path / "here" / "artifacts")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `half` copies."""
    folder = tmp_path_factory.mktemp("care")
    site = Site(f"sqlite:///{folder}/cvaeopt.db", folder / "artifacts")
    # Another study first, so that ids differ from those of a copy.
    train(site, 3, "other")
    train(site, 4 + 3 + 2)
    storage = site.open()
    study = optuna.load_study(study_name="main", storage=storage)
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    store = FileSystemArtifactStore(site.artifacts / DASHBOARD_STORE)
    store_path = site.artifacts / DASHBOARD_STORE
    store_path.mkdir(parents=True, exist_ok=True)
    for trial in trials[:2]:
        live = Trial(study, trial._trial_id)
        save_note(live, f"the note of trial {trial.number} " + "x" * 3000)
    picture = site.artifacts / "main" / "00002" / "curve.png"
    picture.write_bytes(b"a picture")
    upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=Trial(study, trials[2]._trial_id))
    study.set_user_attr("remark", {"nested": [1, 2.5, None, "ü"]})
    storage.close()
    return folder


def plain_status(storage: Storage, name: str = "main") -> dict[str, Any]:
    """The status, without what differs between any two looks and databases."""
    shown = status(storage, name)
    for worker in shown["workers"]:
        del worker["beat_age_s"]
    del shown["storage"]
    return shown


def assert_same(first: Site, second: Site, name: str = "main") -> None:
    """Everything a user, a sampler or a worker can see of the study is equal in both databases."""
    here, there = first.open(), second.open()
    one, two = (optuna.load_study(study_name=name, storage=storage) for storage in (here, there))
    for mine, theirs in zip(one.get_trials(), two.get_trials(), strict=True):
        for what in (
            "number", "state", "values", "params", "distributions", "intermediate_values", "user_attrs",
            "system_attrs", "datetime_start", "datetime_complete",
        ):  # fmt: skip
            assert getattr(mine, what) == getattr(theirs, what), (what, mine.number)
        if mine.number < 2:
            notes = [get_note(Trial(study, trial._trial_id)) for study, trial in ((one, mine), (two, theirs))]
            assert notes[0] == notes[1]
    assert one.user_attrs == two.user_attrs
    assert one.metric_names == two.metric_names
    assert one.directions == two.directions
    assert plain_status(here, name) == plain_status(there, name)
    ours = []
    for storage in (here, there):
        with storage.reading() as connection:
            rows = [
                *connection.execute(select(study_table).where(study_table.c.name == name)).mappings(),
                *connection.execute(select(lease_table).where(lease_table.c.study == name)).mappings(),
            ]
        ours.append([{key: row[key] for key in row if key not in ("study_id", "trial_id")} for row in rows])
    assert ours[0] == ours[1]
    here.close()
    there.close()


def assert_continues(site: Site) -> None:
    """A worker resumes the trial that was left and meets the budget exactly."""
    first, *later = train(site)
    assert (first.number, first.trained) == (2, [3, 4])
    assert [run.number for run in later] == [3, 4]
    storage = site.open()
    study = optuna.load_study(study_name="main", storage=storage)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    assert [trial.params.get("x") is not None for trial in study.trials] == [True] * 5
    assert sorted(study.trials[2].intermediate_values) == [1, 2, 3, 4]
    assert status(storage, "main")["trials"] == {"complete": 4, "pruned": 0, "running": 0, "waiting": 0, "failed": 1}
    assert [row.state for row in leases(storage) if row.study == "main"] == ["done"] * 5
    storage.close()


# ---- move


@pytest.mark.postgres
def test_a_study_moved_to_postgresql_is_equal_and_goes_on_there(
    half: Site, databases: Callable[[], str], script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    there = Site(databases(), half.artifacts)
    script("move").main(["--from", half.url, "--to", there.url.replace("postgres@", "postgres:geheim@")])
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
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = Site(databases(), half.artifacts)
    script("move").main(["--from", half.url, "--to", there.url, "--study", "main"])
    back = Site(f"sqlite:///{tmp_path}/back.db", half.artifacts)
    script("move").main(["--from", there.url, "--to", back.url])
    assert capsys.readouterr().out.endswith(f"CVAEOPT_STORAGE: {back.url}\n")
    assert_same(half, back)
    storage = back.open()
    with storage.reading() as connection:
        assert script("care").names(connection) == ["main"]
    storage.close()


def test_a_move_refuses_running_workers_and_names_that_are_taken(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    target = f"sqlite:///{tmp_path}/new.db"
    storage = half.open()
    fleet = Fleet(storage, "main")
    fleet.register("alive", Place.here(), "cpu")
    move = ["--from", half.url, "--to", target]
    with pytest.raises(UserError, match=r"1 running worker.*alive"):
        script("move").main(move)
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    script("move").main(move)
    with pytest.raises(StudyError, match="already"):
        script("move").main(move)
    with pytest.raises(StudyError, match="There are: main, other"):
        script("move").main([*move, "--study", "mian"])


def test_a_copy_that_fails_leaves_nothing(
    half: Site, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    care = script("care")
    content = care.content
    monkeypatch.setattr(care, "content", lambda *place: {**content(*place), "trial_values": []})
    with pytest.raises(CvaeoptError, match=r"differs in trial_values.*Nothing was kept"):
        script("move").main(["--from", half.url, "--to", f"sqlite:///{tmp_path}/new.db"])
    with open_storage(f"sqlite:///{tmp_path}/new.db") as storage, storage.reading() as connection:
        assert care.names(connection) == []


# ---- backup and restore


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_restored_backup_is_equal_and_goes_on(
    kind: str,
    half: Site,
    request: pytest.FixtureRequest,
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site = half
    there = Site(f"sqlite:///{tmp_path}/there/new.db", tmp_path / "there" / "odd ? name")
    if kind == "postgres":
        databases = request.getfixturevalue("databases")
        site = Site(databases(), half.artifacts)
        script("move").main(["--from", half.url, "--to", site.url])
        there = Site(databases(), there.artifacts)
    backup = tmp_path / "backup.tar"
    # Workers may run: an open transaction of theirs is neither waited for nor seen.
    storage = site.open()
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_study SET facts = '{\"unfinished\": 1}'")
        script("backup").main([str(backup), *site.options()])
        connection.rollback()
    storage.close()

    script("restore").main([str(backup), "--study", "main", *there.options()])
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
    script("restore").main([str(backup), "--study", "other", *there.options()])
    assert_same(site, there, "other")


def test_a_restore_keeps_what_is_there(half: Site, script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    script("backup").main([str(backup), "--study", "main", *half.options()])
    with pytest.raises(UserError, match="never overwritten"):
        script("backup").main([str(backup), *half.options()])
    restore = [str(backup), *half.options()]
    with pytest.raises(UserError, match="There are files of a study"):
        script("restore").main(restore)
    with pytest.raises(StudyError, match="already"):
        script("restore").main([*restore, "--keep-files"])

    newer = next((half.artifacts / "main" / "00002").glob("last.*"))
    newer.write_text(newer.read_text() + " ")
    (half.artifacts / "main" / "00000" / newer.name).unlink()
    there = Site(f"sqlite:///{tmp_path}/new.db", half.artifacts)
    script("restore").main([str(backup), "--keep-files", *there.options()])
    assert newer.read_text().endswith(" ")
    assert (half.artifacts / "main" / "00000" / newer.name).exists()
    assert_same(half, there)


def test_a_backup_into_a_folder_that_is_not_there_is_refused(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*not mounted/deep.*mkdir -p '"):
        script("backup").main([str(tmp_path / "not mounted" / "deep" / "backup.tar"), *half.options()])
    assert not (tmp_path / "not mounted").exists()


def test_checkpoints_can_be_left_out(half: Site, script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    (half.artifacts / "main" / "00000" / "last.pt").write_bytes(b"a network")
    (half.artifacts / "main" / "00000" / ".x.part").write_bytes(b"half a file")
    for name, more, networks in (("whole.tar", [], 1), ("small.tar", ["--no-checkpoints"], 0)):
        script("backup").main([str(tmp_path / name), *more, *half.options()])
        with tarfile.open(tmp_path / name) as tar:
            kinds = [Path(member).suffix for member in tar.getnames()]
        assert (kinds.count(".pt"), kinds.count(".part")) == (networks, 0)
        assert kinds.count(".png") == 1


def test_what_is_no_whole_backup_is_refused(half: Site, script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar"
    script("backup").main([str(backup), *half.options()])
    data = backup.read_bytes()
    spoilt = tmp_path / "spoilt.tar"
    there = Site(f"sqlite:///{tmp_path}/new.db", tmp_path / "new")
    for content in (b"", b"text", data[: len(data) // 2], data[:5000] + b"?" + data[5001:]):
        spoilt.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read|damaged"):
            script("restore").main([str(spoilt), *there.options()])
    assert not list((tmp_path / "new").iterdir())
    assert not (tmp_path / "new.db").exists()


# ---- delete


def test_a_deleted_study_takes_its_rows_and_files_with_it_and_nothing_else(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    archive = tmp_path / "main.tar"
    storage = half.open()
    before = plain_status(storage, "other")
    (half.artifacts / DASHBOARD_STORE / "of-another-study").write_bytes(b"kept")
    script("delete_study").main(["main", "--yes", "--archive", str(archive), *half.options()])
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

    script("restore").main([str(archive), *half.options()])
    assert_continues(half)


def test_a_deletion_asks_for_the_name_again(
    half: Site, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["other", "main"]
    monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
    with pytest.raises(UserError, match="Nothing was deleted"):
        script("delete_study").main(["main", *half.options()])
    storage = half.open()
    assert status(storage, "main")["trials"]["complete"] == 1
    Fleet(storage, "main").register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match="running worker"):
        script("delete_study").main(["main", "--yes", *half.options()])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    script("delete_study").main(["main", *half.options()])
    with pytest.raises(StudyError):
        status(storage, "main")
    storage.close()


# ---- upgrade


def _downgrade(site: Site) -> None:
    """Tables as an Optuna before 3.2 made them: without the index that its last migration adds."""
    storage = site.open()
    with storage.transaction() as connection:
        connection.exec_driver_sql("DROP INDEX ix_trials_study_id")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    storage.close()


def test_old_sqlite_tables_are_copied_and_upgraded(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _downgrade(half)
    with pytest.raises(SchemaError):
        half.open()
    copy = tmp_path / "before.db"
    with pytest.raises(UserError, match="Where shall the copy go"):
        script("upgrade").main(["--storage", half.url])
    script("upgrade").main([str(copy), "--storage", half.url])
    assert "(before: v3.0.0.d)" in capsys.readouterr().out
    with sqlite3.connect(copy) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("v3.0.0.d",)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert_continues(half)


@pytest.mark.postgres
def test_old_postgresql_tables_are_copied_and_upgraded(
    half: Site,
    postgres: Postgres,
    databases: Callable[[], str],
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    there = Site(databases(), half.artifacts)
    script("move").main(["--from", half.url, "--to", there.url])
    _downgrade(there)
    copy = tmp_path / "before.dump"
    arguments = [str(copy), "--storage", there.url]

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pg_dump is not installed"):
        script("upgrade").main(arguments)
    fails = tmp_path / "pg_dump"
    fails.write_text("#!/bin/sh\necho 'server version mismatch' >&2; exit 1\n")
    fails.chmod(0o755)
    with pytest.raises(UserError, match=r"server version mismatch.*Nothing was upgraded"):
        script("upgrade").main(arguments)
    assert not copy.exists()
    with pytest.raises(SchemaError):
        there.open()

    monkeypatch.setenv("PATH", f"{postgres.server.bin_path}{os.pathsep}/usr/bin:/bin")
    script("upgrade").main(arguments)
    again = databases()
    subprocess.run(["pg_restore", "--dbname", again, str(copy)], check=True)
    with psycopg.connect(again) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("v3.0.0.d",)]
    assert_continues(there)


# ---- the command line


def test_scripts_run_from_anywhere_and_never_print_a_password(tmp_path: Path) -> None:
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        script, *rest = arguments
        return subprocess.run(
            [sys.executable, str(SCRIPTS / script), *rest],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    missing = call("backup.py", "x.tar", CVAEOPT_STORAGE=f"sqlite:///{tmp_path}/none.db")
    assert (missing.returncode, "There is no database" in missing.stderr) == (2, True)
    wrong = call("upgrade.py", "--no-copy", "--storage", "postgresql://u:se%40cret@127.0.0.1:1/x?connect_timeout=2")
    assert wrong.returncode == 3
    assert "***" in wrong.stderr
    assert "cret" not in wrong.stderr + wrong.stdout
    assert "Traceback" not in missing.stderr + wrong.stderr


@pytest.mark.parametrize("name", ["backup", "restore", "move", "delete_study", "upgrade"])
def test_every_script_has_help_and_a_line_in_the_readme(
    name: str, script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script(name).main(["--help"])
    assert ended.value.code == 0
    assert f"python storage/{name}.py" in capsys.readouterr().out
    assert f"python storage/{name}.py" in (SCRIPTS / "README.md").read_text()


def test_the_dashboards_folder_is_the_one_that_workers_write(script: Callable[[str], ModuleType]) -> None:
    assert script("care").DASHBOARD == DASHBOARD_STORE


# ---- confirmations


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def confirmed(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A searched study, `made-up`, of which one confirmation is over and one is registered, beside another study."""
    url = f"sqlite:///{tmp_path}/here.db"
    if request.param == "postgres":
        url = request.getfixturevalue("databases")()
    site = Site(url, tmp_path / "files")
    storage = site.open()
    for name in ("made-up.confirmed", "made-up"):  # the first one only sounds like a confirmation
        made = made_up.definition()
        create_or_open(storage, Definition.parse(made.plain(), name, "test")).add_trials(made_up.trials(6))
    for seeds in (2, 3):
        registered = confirmations.plan(storage, "made-up", 2, seeds)
        confirmations.register(storage, registered)
        if seeds == 2:
            run_all(storage, "made-up.confirm", lambda params: 30 + 100 * params["lr"] + params["seed"] % 7 / 10)
    for name in everything(site):
        path = identity_of(storage, name).claim(site.artifacts) / "00000" / "history.jsonl"
        path.parent.mkdir()
        path.write_text(name)
    storage.close()
    return site


def everything(site: Site) -> list[str]:
    """The names of the studies in a database."""
    storage = site.open()
    found = sorted(study.study_name for study in storage.get_all_studies())
    storage.close()
    return found


def ranking(site: Site) -> dict[str, Any]:
    """What the confirmations of `made-up` say."""
    storage = site.open()
    found = confirmation(storage, "made-up")
    storage.close()
    assert found is not None
    return found.plain()


FAMILY = ["made-up", "made-up.confirm", "made-up.confirm-2"]


def test_a_backup_and_a_move_of_a_study_take_its_confirmations_along(
    confirmed: Site, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    moved, restored = (Site(f"sqlite:///{tmp_path}/{name}.db", tmp_path / name) for name in ("moved", "restored"))
    script("move").main(["--from", confirmed.url, "--to", moved.url, "--study", "made-up"])
    backup = tmp_path / "x.tar"
    script("backup").main([str(backup), "--study", "made-up", *confirmed.options()])
    script("restore").main([str(backup), "--study", "made-up", *restored.options()])
    assert ranking(confirmed)["ended"] == 4
    for site in (moved, restored):
        assert everything(site) == FAMILY
        assert ranking(site) == ranking(confirmed)
    assert sorted(path.name for path in restored.artifacts.iterdir()) == FAMILY


def test_a_study_is_deleted_with_its_confirmations_which_are_named_before(
    confirmed: Site,
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = ranking(confirmed)
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "")
    with pytest.raises(UserError, match="Nothing was deleted"):
        script("delete_study").main(["made-up", *confirmed.options()])
    assert "'made-up' and what confirms it (made-up.confirm, made-up.confirm-2)" in asked[0]
    storage = confirmed.open()
    fleet = Fleet(storage, "made-up.confirm-2")
    fleet.register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match=r"'made-up.confirm-2' has 1 running worker"):
        script("delete_study").main(["made-up", "--yes", *confirmed.options()])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    assert ranking(confirmed) == before

    archive = tmp_path / "x.tar"
    script("delete_study").main(["made-up", "--yes", "--archive", str(archive), *confirmed.options()])
    said = capsys.readouterr().out
    assert [name for name in FAMILY if f"{name} is deleted, with 2 files" in said] == FAMILY
    assert everything(confirmed) == ["made-up.confirmed"]
    assert [path.name for path in confirmed.artifacts.iterdir()] == ["made-up.confirmed"]
    script("restore").main([str(archive), *confirmed.options()])
    assert ranking(confirmed) == before


def test_one_confirmation_can_be_deleted_alone(confirmed: Site, script: Callable[[str], ModuleType]) -> None:
    script("delete_study").main(["made-up.confirm-2", "--yes", *confirmed.options()])
    assert everything(confirmed) == [*FAMILY[:2], "made-up.confirmed"]
    assert ranking(confirmed)["best"] is not None


# ---- an object store


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    made = S3.launch()
    yield made
    made.stop()


@dataclass
class Lab:
    """The study of `half`, whose workers kept their checkpoints in a bucket, and other people's objects there."""

    site: Site
    s3: S3
    main: str
    other: str

    @property
    def mine(self) -> dict[str, bytes]:
        """The objects of the study."""
        return {
            f"lab/{self.main}/00000/last.1.pt": b"of a complete trial",
            f"lab/{self.main}/00002/last.3.pt": b"of one that was left",
        }

    @property
    def others(self) -> dict[str, bytes]:
        """Objects of others, a study of the same name that was deleted among them."""
        return {
            "lab/main/00000/last.1.pt": b"of a study that was deleted",
            f"lab/{self.main}/x/00000/last.1.pt": b"deeper",
            f"lab/{self.main}/readme": b"text",
            f"lab/{self.other}/00000/last.1.pt": b"other",
        }

    def put(self, key: str, body: bytes) -> None:
        self.s3.own.put_object(Bucket=BUCKET, Key=key, Body=body)

    def objects(self, prefix: str) -> dict[str, bytes]:
        there = self.s3.keys()
        read = self.s3.own.get_object
        return {key: read(Bucket=BUCKET, Key=key)["Body"].read() for key in there if key.startswith(prefix)}


STORE = f"s3://{BUCKET}/lab"


@pytest.fixture
def lab(half: Site, server: S3, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.clear()
    storage = half.open()
    made = Lab(half, server, *(identity_of(storage, name).objects for name in ("main", "other")))
    for key, body in {**made.mine, **made.others}.items():
        made.put(key, body)
    study = optuna.load_study(study_name="main", storage=storage)
    storage.set_trial_user_attr(study.trials[2]._trial_id, "checkpoints", f"{STORE}/{made.main}/00002")
    storage.close()
    return made


def test_a_backup_has_the_objects_if_their_store_is_named_and_says_so_if_not(
    lab: Lab, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without, with_them = tmp_path / "without.tar", tmp_path / "with.tar"
    script("backup").main([str(without), *lab.site.options()])
    assert f"The checkpoints in {STORE} are not in it" in capsys.readouterr().out
    script("backup").main([str(with_them), "--checkpoints", STORE, *lab.site.options()])
    said = capsys.readouterr().out
    assert re.search(r"main \(4 trials, \d+ files, 2 objects\)", said)
    assert re.search(r"other \(\d trials, \d+ files, 1 objects\)", said)
    assert "not in it" not in said
    small = tmp_path / "small.tar"
    script("backup").main([str(small), "--no-checkpoints", "--checkpoints", STORE, *lab.site.options()])
    with tarfile.open(small) as tar:
        assert not [name for name in tar.getnames() if name.endswith(".pt")]
    lab.s3.clear()

    # Into another store.
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    new = f"s3://{BUCKET}/new"
    script("restore").main([str(with_them), "--study", "main", "--checkpoints", new, *there.options()])
    assert lab.objects("") == {key.replace("lab", "new"): body for key, body in lab.mine.items()}
    assert not list(there.artifacts.rglob("*.pt"))
    again = [str(with_them), "--study", "main", "--checkpoints", new]
    with pytest.raises(StudyError, match="already"):
        script("restore").main([*again, "--keep-files", *there.options()])
    fresh = Site(f"sqlite:///{tmp_path}/fresh.db", tmp_path / "fresh")
    with pytest.raises(UserError, match=r"There are 2 checkpoints of a study 'main' in s3://studies/new"):
        script("restore").main([*again, *fresh.options()])
    lab.put(f"new/{lab.main}/00000/last.1.pt", b"newer")
    script("restore").main([*again, "--keep-files", *fresh.options()])
    assert lab.objects(f"new/{lab.main}/00000") == {f"new/{lab.main}/00000/last.1.pt": b"newer"}

    # Without one they are where workers look on their disk.
    plain = Site(f"sqlite:///{tmp_path}/plain.db", tmp_path / "plain")
    script("restore").main([str(with_them), *plain.options()])
    assert (plain.artifacts / "main" / "00000" / "last.pt").read_bytes() == b"of a complete trial"
    assert (plain.artifacts / "main" / "00002" / "last.3.pt").read_bytes() == b"of one that was left"
    assert_continues(plain)


def test_a_trial_goes_on_from_a_backup_of_its_object_store(
    lab: Lab, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
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
    script("backup").main([str(tmp_path / "x.tar"), "--checkpoints", STORE, *here.options()])
    script("restore").main([str(tmp_path / "x.tar"), *there.options()])
    storage = there.open()
    again = Trial(create_or_open(storage, made), storage.get_all_trials(1)[0]._trial_id)
    assert Objective(made, tiny.DATA, artifacts=there.artifacts).open(again, token=2).epoch == 2
    storage.close()


def test_a_deletion_takes_the_objects_of_a_store_that_is_named_and_no_others(
    lab: Lab, script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    delete = ["main", "--yes", *lab.site.options()]
    with lab.s3.away(), pytest.raises(StorageUnreachable, match=r"does not answer.*Nothing was done") as caught:
        script("delete_study").main([*delete, "--checkpoints", STORE])
    assert SECRET not in str(caught.value)
    for url, said in ((f"s3://key:{SECRET}@x", "names no object store"), ("s3://none", "cannot be used")):
        with pytest.raises(UserError, match=said) as refused:
            script("delete_study").main([*delete, "--checkpoints", url])
        assert SECRET not in str(refused.value)
    assert lab.objects("") == {**lab.mine, **lab.others}
    archive = tmp_path / "main.tar"
    script("delete_study").main([*delete, "--checkpoints", STORE, "--archive", str(archive)])
    said = capsys.readouterr().out
    assert re.search(r"main is deleted, with \d+ files and 2 objects", said)
    assert "stay" not in said
    assert lab.objects("") == lab.others
    script("restore").main([str(archive), "--checkpoints", STORE, *lab.site.options()])
    assert lab.objects("") == {**lab.mine, **lab.others}
    assert_continues(lab.site)


def test_a_deletion_without_the_store_says_what_stays_there(
    lab: Lab,
    script: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "main")
    script("delete_study").main(["main", *lab.site.options()])
    assert f"Checkpoints in {STORE}/{lab.main} stay, unless --checkpoints names their store" in asked[0]
    assert f"stay; to delete them: aws s3 rm --recursive {STORE}/{lab.main}/" in capsys.readouterr().out
    assert lab.objects("") == {**lab.mine, **lab.others}


def test_a_store_that_fails_half_way_leaves_a_study_that_can_be_deleted_again(
    lab: Lab, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    delete = ["main", "--yes", "--checkpoints", STORE, *lab.site.options()]
    monkeypatch.setattr(Boto3ArtifactStore, "remove", _fails)
    with pytest.raises(CheckpointError, match=r"cannot be deleted \(denied\)"):
        script("delete_study").main(delete)
    monkeypatch.undo()
    for name, value in lab.s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    assert everything(lab.site) == ["main", "other"]
    script("delete_study").main(delete)
    assert (everything(lab.site), lab.objects("")) == (["other"], lab.others)


def _fails(*_: object) -> None:
    raise RuntimeError("denied")


@pytest.mark.parametrize("errno_name", ["ENOSPC", "EROFS"])
def test_a_disk_that_is_full_or_read_only_is_named_and_no_traceback(
    errno_name: str, capsys: pytest.CaptureFixture[str], script: Callable[[str], ModuleType]
) -> None:
    number = getattr(errno, errno_name)

    def fails(arguments: list[str]) -> None:
        raise OSError(number, os.strerror(number), "/backups/b.tar")

    with pytest.raises(SystemExit) as ended:
        script("care").run(fails)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"{os.strerror(number)}: /backups/b.tar. Expected: " in said and "Traceback" not in said


def test_a_full_disk_does_not_call_a_good_backup_broken(
    half: Site, tmp_path: Path, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = tmp_path / "b.tar"
    script("backup").main([str(backup), *half.options()])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(OSError, match="No space left"):
        script("restore").unpack(backup, tmp_path)


def test_a_database_is_not_moved_into_itself(half: Site, script: Callable[[str], ModuleType]) -> None:
    with pytest.raises(UserError, match=r"both ends of the move\. Expected: two databases"):
        script("move").main(["--from", half.url, "--to", half.url])


def test_an_upgrade_refuses_running_workers(half: Site, script: Callable[[str], ModuleType]) -> None:
    storage = half.open()
    Fleet(storage, "main").register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match=r"1 running worker.*alive.*Nothing was upgraded"):
        script("upgrade").main(["--no-copy", "--storage", half.url])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    script("upgrade").main(["--no-copy", "--storage", half.url])


@pytest.mark.parametrize("name", ["../evil", "_dashboard", "main/00000", ".."])
def test_a_study_of_another_program_stops_no_backup_and_takes_no_files_along(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path, name: str
) -> None:
    storage = half.open()
    optuna.create_study(storage=storage, study_name=name).add_trial(optuna.trial.create_trial(value=1.0))
    storage.close()
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    script("backup").main([str(tmp_path / "all.tar"), *half.options()])
    script("restore").main([str(tmp_path / "all.tar"), *there.options()])
    assert sorted(everything(there)) == sorted(["main", "other", name])
    files = {path: path.read_bytes() for path in half.artifacts.rglob("*") if path.is_file()}
    script("delete_study").main([name, "--yes", *half.options()])
    assert everything(half) == ["main", "other"]
    assert {path: path.read_bytes() for path in files} == files


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


def test_a_deletion_leaves_no_row_behind_whoever_writes_meanwhile(
    half: Site, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = half.open()
    study_id = storage.get_study_id_from_name("main")
    trial_id = storage.get_all_trials(study_id)[0]._trial_id
    care = script("care")
    delete = care._delete_all

    def late(*arguments: Any) -> Any:
        """A program that read the study before it was deleted, and writes afterwards: SQLite takes it all."""
        done = delete(*arguments)
        with closing(sqlite3.connect(half.url.removeprefix("sqlite:///"))) as raw, raw:
            raw.execute(
                "INSERT INTO trials (trial_id, number, study_id, state) VALUES (999, 9, ?, 'RUNNING')", [study_id]
            )
            for trial in (trial_id, 999):
                raw.execute(
                    "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, 'a', '1')", [trial]
                )
        return done

    monkeypatch.setattr(care, "_delete_all", late)
    script("delete_study").main(["main", "--yes", *half.options()])
    assert orphans(storage) == 0 and everything(half) == ["other"]
    assert len(storage.get_all_trials(storage.get_study_id_from_name("other"))) > 0
    storage.close()
    assert not (half.artifacts / "main").exists()


def test_files_stay_while_somebody_still_writes_rows_of_a_deleted_study(
    half: Site, script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script("care"), "_delete_orphans", lambda *_: 1)
    with pytest.raises(UserError, match="still writes rows of study 'main'"):
        script("delete_study").main(["main", "--yes", *half.options()])
    assert (half.artifacts / "main" / "00002" / "curve.png").exists()


def test_a_study_that_was_deleted_and_started_again_is_kept_apart_from_the_files_of_the_first(
    half: Site, script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in (half.artifacts / "main").rglob("*") if path.is_file()}
    storage = half.open()
    optuna.delete_study(study_name="main", storage=storage)
    create_or_open(storage, definition())
    own = identity_of(storage, "main").claim(half.artifacts)
    storage.close()
    (own / "mine.txt").write_text("mine")
    there = Site(f"sqlite:///{tmp_path}/there.db", tmp_path / "there")
    script("backup").main([str(tmp_path / "main.tar"), "--study", "main", *half.options()])
    script("restore").main([str(tmp_path / "main.tar"), *there.options()])
    assert (there.artifacts / "main" / "mine.txt").exists()
    assert not (there.artifacts / "main" / "00002" / "curve.png").exists()
    script("delete_study").main(["main", "--yes", *half.options()])
    assert not own.exists()
    assert {path: path.read_bytes() for path in before} == before
    # Beside the files of the first study there is room for those of the second one.
    script("restore").main([str(tmp_path / "main.tar"), *half.options()])
    assert (own / "mine.txt").exists()

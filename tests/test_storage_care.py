"""The scripts in storage/: what they copy is equal, whole, and can be continued."""

from __future__ import annotations

import importlib
import itertools
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import psycopg
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial, TrialState
from optuna_dashboard import get_note, save_note
from sqlalchemy import select

from cvaeopt.errors import CvaeoptError, SchemaError, StudyError, UserError
from cvaeopt.search.definition import Definition
from cvaeopt.search.fleet import Fleet, Place
from cvaeopt.search.objective import DASHBOARD_STORE
from cvaeopt.search.storage import Storage, lease_table, open_storage, study_table
from cvaeopt.search.study import create_or_open, status
from cvaeopt.search.worker import Worker
from tests.search.fakes import FakeRun, Fakes, curve, leases
from tests.search.postgres import Postgres

SCRIPTS = Path(__file__).parents[1] / "storage"
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
            worker.courier.stop_asked = True

    fakes = Fakes(site.artifacts, awkward, before)
    worker = Worker(create_or_open(storage, definition(name)), storage, fakes, artifacts=site.artifacts, signals=False)
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
    script("move").main(["--from", half.url, "--to", there.url])
    assert "main: 4 trials and 8 reports" in capsys.readouterr().out
    assert_same(half, there)
    assert_same(half, there, "other")
    assert_continues(there)


@pytest.mark.postgres
def test_a_study_can_come_back_from_postgresql(
    half: Site, databases: Callable[[], str], script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    there = Site(databases(), half.artifacts)
    script("move").main(["--from", half.url, "--to", there.url, "--study", "main"])
    back = Site(f"sqlite:///{tmp_path}/back.db", half.artifacts)
    script("move").main(["--from", there.url, "--to", back.url])
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
    storage = open_storage(f"sqlite:///{tmp_path}/new.db")
    with storage.reading() as connection:
        assert care.names(connection) == []
    storage.close()


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

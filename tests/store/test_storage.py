from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import optuna
import psycopg
import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from sqlalchemy import event

from cvaeopt.errors import SchemaError, StorageUnreachable, StudyError, UserError
from cvaeopt.store import opening, sqlite_file
from cvaeopt.store.opening import open_storage
from cvaeopt.store.outage import is_outage
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import schema_table
from cvaeopt.store.urls import as_typed, mask, parse
from testbed.postgres import Postgres
from tests.support.fakes import leases, make_study
from tests.support.outages import Lossy, Outages
from tests.support.processes import race

SECRET = "s3cr/t:x%41"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///storage/cvaeopt.db", "sqlite:///storage/cvaeopt.db"),
        ("postgresql://me:pw@db:5432/x", "postgresql://me:***@db:5432/x"),
        ("postgresql+psycopg://cvaeopt:a%40b%2Fc@db/cvaeopt", "postgresql+psycopg://cvaeopt:***@db/cvaeopt"),
        ("postgresql://me@db/x?password=pw&sslmode=require", "postgresql://me@db/x?password=***&sslmode=require"),
        ("postgresql://db/x?sslmode=require&sslpassword=pw", "postgresql://db/x?sslmode=require&sslpassword=***"),
        ("mysql+pymysql://me:p@ss@db/x", "mysql+pymysql://me:***@db/x"),
        ("postgresql://me:p/a?b@db/x", "postgresql://me:***@db/x"),
        ("postgresql://me@db/x", "postgresql://me@db/x"),
        ("no url at all", "no url at all"),
        (f"postgres:/me:{SECRET}@db/x", "postgres:***@db/x"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert mask(url) == shown


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg"])
def test_messages_show_the_driver_that_was_typed(scheme: str) -> None:
    url = f"{scheme}://me:pw@db/x"
    assert as_typed(url, parse(url)) == f"{scheme}://me:***@db/x"


@given(password=st.text(min_size=1), user=st.sampled_from(["me", "a b", "ü"]))
def test_any_encoded_password_is_masked_and_nothing_else(password: str, user: str) -> None:
    def url(word: str) -> str:
        return f"postgresql://{quote(user, safe='')}:{word}@host:5432/db?sslmode=require"

    assert mask(url(quote(password, safe=""))) == url("***")


@given(st.text())
def test_anything_can_be_masked(text: str) -> None:
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "url",
    [
        f"nonsense{SECRET}",
        f"oracle://me:{SECRET}@db/x",
        "sqlite://",
        "sqlite:///:memory:",
        f"mysql://me:{SECRET}@db/x",
        f"mysql+pymysql://me:{SECRET}@db/x",
        f"mariadb://me:{SECRET}@db/x",
        f"postgresql+nosuchdriver://me:{SECRET}@db/x",
        f"postgresql://me:first@{SECRET}@db/x",
    ],
)
def test_a_url_that_cannot_work_is_the_users_error(url: str) -> None:
    with pytest.raises(UserError) as caught:
        open_storage(url)
    assert url.startswith("nonsense") or SECRET not in str(caught.value)
    if url.startswith(("mysql", "mariadb", "oracle")):
        assert "not supported. Expected: sqlite:///FILE or postgresql://" in str(caught.value)


def test_a_database_that_cannot_be_made_in_a_read_only_folder_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite3.connect

    def refused(database: str, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        if ".lock" in str(database) or "new.db" in str(database):
            real("/nonexistent/x.db")  # SQLite's own error, as a read-only file system has it
        return real(database, *args, **kwargs)

    monkeypatch.setattr(sqlite3, "connect", refused)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"may not be written \(its folder is read-only\)"):
        open_storage(f"sqlite:///{tmp_path}/new.db")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("postgresql+pg8000", "pip install pg8000; or write postgresql://"),
        ("postgresql", "pip install 'cvaeopt[postgres]'"),
    ],
)
def test_a_missing_driver_is_named_as_it_is_installed(monkeypatch: pytest.MonkeyPatch, name: str, advice: str) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'driver'")

    monkeypatch.setattr(opening, "_make_tables", missing)
    with pytest.raises(UserError) as caught:
        open_storage(f"{name}://me:{SECRET}@db/x")
    assert advice in str(caught.value)
    assert name.startswith("postgresql") or "postgres" not in str(caught.value)


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN])
def test_a_full_disk_at_the_start_is_said_at_once_and_leaves_no_empty_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, wrapped: bool
) -> None:
    folder = tmp_path / "full"
    (tmp_path / "full").mkdir()
    (folder / "x.db-journal").touch()  # not ours
    monkeypatch.setattr(sqlite_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))

    def full(*_: object) -> None:
        for ending in ("", ".lock"):
            (folder / f"x.db{ending}").touch()
        error = sqlite_error(code)
        raise sqlalchemy.exc.OperationalError("", {}, error) if wrapped else error

    monkeypatch.setattr(opening, "_make_tables", full)
    with pytest.raises(StorageUnreachable, match=r"^The disk of .*full is full.*Make room"):
        open_storage(f"sqlite:///{folder}/x.db")
    assert [path.name for path in folder.iterdir()] == ["x.db-journal"]


def test_a_database_that_outgrows_its_disk_at_the_start_is_no_fault_of_the_input(tmp_path: Path) -> None:
    def small(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count=3")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", small)
    try:
        with pytest.raises(StorageUnreachable, match="is full"):
            open_storage(f"sqlite:///{tmp_path}/x.db")
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", small)


def test_a_disk_that_fills_up_later_is_an_outage_that_asks_for_room(tmp_path: Path, template_file: Path) -> None:
    shutil.copy(template_file, tmp_path / "x.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as storage:
        study = make_study(storage)
        storage.engine.dispose()
        sqlalchemy.event.listen(storage.engine, "connect", lambda one, _: one.execute("PRAGMA max_page_count=1"))
        with storage.patience(0.0), pytest.raises(StorageUnreachable, match=r"could not be written .*Make room"):
            study.set_user_attr("large", "x" * 2**20)


def test_a_locked_file_on_a_disk_with_room_is_no_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise sqlite_error(sqlite3.SQLITE_CANTOPEN)

    monkeypatch.setattr(opening, "_make_tables", failing)
    with pytest.raises(StorageUnreachable, match=r"then run the same command again\.$"):
        open_storage(f"sqlite:///{tmp_path}/x.db", start_limit_s=0.0)


def test_a_folder_instead_of_a_file_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        open_storage(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("create", [True, False])
def test_a_file_that_is_no_database_is_said_to_be_none_and_stays(tmp_path: Path, create: bool) -> None:
    path = tmp_path / "x.db"
    path.write_text("hello " * 1000)
    with pytest.raises(UserError, match=r"is not a SQLite database.*Expected: .*Name another file") as caught:
        open_storage(f"sqlite:///{path}", create=create)
    assert "password" not in str(caught.value)
    assert path.read_text() == "hello " * 1000


def test_a_database_that_was_damaged_or_cut_off_is_said_to_be(tmp_path: Path, template_file: Path) -> None:
    whole = template_file.read_bytes()
    path = tmp_path / "x.db"
    for content in (whole[: len(whole) // 2], whole[:4096] + bytes(len(whole) - 4096)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged \(.*restore a backup"):
            open_storage(f"sqlite:///{path}")


def test_a_database_that_is_damaged_while_it_is_used_is_said_to_be(tmp_path: Path, template_file: Path) -> None:
    path = tmp_path / "x.db"
    shutil.copy(template_file, path)
    with closing(open_storage(f"sqlite:///{path}")) as storage:
        path.write_bytes(b"no database any more" * 500)
        with pytest.raises(UserError, match="is not a SQLite database"):
            storage.get_all_studies()


def test_a_database_that_may_only_be_read_is_said_to_be(tmp_path: Path, template_file: Path) -> None:
    shutil.copy(template_file, tmp_path / "x.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as storage:
        # SQLite's own way to forbid writing: root, who may run this test, can write a file without permissions.
        @event.listens_for(storage.engine, "connect")
        def _only_read(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA query_only=ON")

        storage.engine.dispose()
        with pytest.raises(UserError, match=r"may not be written.*permissions"):
            optuna.create_study(storage=storage, study_name="new")


def test_a_host_that_does_not_answer_is_unreachable_and_its_password_stays_secret() -> None:
    url = f"postgresql://me:{quote(SECRET, safe='')}@127.0.0.1:1/x"
    with pytest.raises(StorageUnreachable) as caught:
        open_storage(url, start_limit_s=0.0)
    assert SECRET not in str(caught.value)
    assert quote(SECRET, safe="") not in str(caught.value)
    assert "me:***@127.0.0.1:1/x" in str(caught.value)


@pytest.mark.postgres
def test_an_unknown_database_is_refused_at_once(postgres: Postgres) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_storage(postgres.url("nowhere"))


@pytest.mark.postgres
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused_with_what_to_do(postgres: Postgres, encoding: str) -> None:
    name = f"encoded_{encoding.lower()}"
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    for create in (True, False):
        with pytest.raises(UserError, match=f"has the encoding {encoding}. Expected: UTF8. .*createdb") as caught:
            open_storage(postgres.url(name), create=create)
        assert caught.value.exit_code == 2


def test_without_create_nothing_is_made(storage_url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="yet"):
        open_storage(storage_url, create=False)
    assert not (tmp_path / "folder").exists()


def _open_and_make(index: int, url: str) -> str:
    with closing(open_storage(url)) as storage:
        make_study(storage, trials=60)
        return storage.url


def test_six_processes_start_on_an_empty_database_and_all_succeed(storage_url: str) -> None:
    race(_open_and_make, 6, storage_url)
    with closing(open_storage(storage_url, create=False)) as storage:
        assert [study.study_name for study in storage.get_all_studies()] == ["main"]
        assert leases(storage) == []


@pytest.mark.parametrize("version", [0, 2])
def test_tables_of_another_version_are_refused_with_what_to_do(storage_url: str, version: int) -> None:
    with closing(open_storage(storage_url)) as storage, storage.transaction() as connection:
        connection.execute(schema_table.update().values(version=version))
    with pytest.raises(SchemaError, match=r"cvaeopt that made them|pip install"):
        open_storage(storage_url)


def test_optuna_tables_of_another_version_are_refused_with_what_to_do(storage_url: str) -> None:
    with closing(open_storage(storage_url)) as storage, storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v2.6.0.a'")
    with pytest.raises(SchemaError, match="cvaeopt admin upgrade COPY"):
        open_storage(storage_url)


def test_a_database_of_plain_optuna_is_adopted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    plain = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=plain, study_name="old")
    plain.remove_session()
    plain.engine.dispose()
    with closing(open_storage(url)) as storage:
        assert optuna.load_study(storage=storage, study_name="old").study_name == "old"


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


def test_the_objective_of_a_notebook_runs_on_it(storage: Storage) -> None:
    study = make_study(storage)
    study.enqueue_trial({"x": 0.25})
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert study.trials[0].value == 0.25


def test_the_database_clock_is_utc_in_seconds(storage: Storage) -> None:
    from datetime import UTC, datetime

    before = datetime.now(UTC).timestamp()
    with storage.reading() as connection:
        now = storage.now(connection)
    assert before - 1 <= now <= datetime.now(UTC).timestamp() + 1


def test_a_copy_in_another_process_opens_the_same_database(storage: Storage) -> None:
    make_study(storage)
    with closing(pickle.loads(pickle.dumps(storage))) as copy:
        assert copy.get_study_id_from_name("main") == storage.get_study_id_from_name("main")


def test_a_reader_keeps_no_writer_waiting(storage: Storage) -> None:
    make_study(storage)
    study_id = storage.get_study_id_from_name("main")
    with storage.reading() as connection, storage.patience(0.0):
        connection.exec_driver_sql("SELECT count(*) FROM trials").scalar_one()
        storage.set_study_user_attr(study_id, "a", 1)
    assert storage.get_study_user_attrs(study_id) == {"a": 1}


def test_what_can_never_succeed_is_not_repeated(storage: Storage) -> None:
    calls = []

    def wrong() -> None:
        calls.append(1)
        with storage.transaction() as connection:
            connection.exec_driver_sql("SELECT * FROM no_such_table")

    with pytest.raises(sqlalchemy.exc.DBAPIError):
        storage.retry(wrong)
    with pytest.raises(KeyError):
        storage.get_trial(4711)
    assert calls == [1]


@pytest.fixture
def lossy(ready_url: str) -> Iterator[Lossy]:
    with closing(Lossy(ready_url)) as opened:
        yield opened


def test_a_state_whose_acknowledgement_was_lost_counts_as_set(lossy: Lossy) -> None:
    study = make_study(lossy)
    study.enqueue_trial({"x": 0.5})
    lossy.losses = 1
    assert lossy.set_trial_state_values(1, TrialState.RUNNING)
    lossy.losses = 1
    assert lossy.set_trial_state_values(1, TrialState.COMPLETE, [1.5])
    assert study.best_value == 1.5
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        lossy.set_trial_state_values(1, TrialState.COMPLETE, [2.5])


def test_a_trial_whose_creation_was_not_acknowledged_is_created_once(lossy: Lossy) -> None:
    study = make_study(lossy)
    lossy.losses = 2
    study.enqueue_trial({"x": 0.5})
    lossy.losses = 1
    study.add_trial(optuna.trial.create_trial(value=1.0))
    assert lossy.losses == 0
    assert [trial.state for trial in study.trials] == [TrialState.WAITING, TrialState.COMPLETE]
    assert study.trials[0].system_attrs == {"fixed_params": {"x": 0.5}}


def test_the_id_of_a_creation_that_failed_may_be_given_to_another_process(
    ready_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_storage(ready_url)) as storage, closing(open_storage(ready_url)) as other:
        study = make_study(storage)
        theirs = make_study(other)
        storage._sleep = lambda seconds: None
        whole = storage.transaction

        class RolledBackError(Exception):
            pass

        @contextmanager
        def failing() -> Iterator[sqlalchemy.Connection]:
            monkeypatch.undo()
            with suppress(RolledBackError), whole() as connection:
                yield connection
                raise RolledBackError
            theirs.enqueue_trial({"x": 0.75})
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, OSError("gone"), connection_invalidated=True)

        monkeypatch.setattr(storage, "transaction", failing)
        study.enqueue_trial({"x": 0.5})
        assert [trial.system_attrs["fixed_params"]["x"] for trial in study.trials] == [0.75, 0.5]


def test_calls_outlive_an_outage(ready_url: str, outage: Callable[[], Outages]) -> None:
    with closing(open_storage(ready_url, busy_s=0.01)) as storage:
        study = make_study(storage)
        trial = study.ask()
        retries: list[str] = []
        recoveries: list[float] = []
        storage.on_retry = lambda seconds, said: retries.append(said)
        storage.on_recovery = recoveries.append
        away = outage()
        storage._sleep = away.sleep
        trial.report(1.0, 1)
        study.tell(trial, 2.0)
        assert len(retries) >= 3
        assert recoveries
        assert study.trials[0].intermediate_values == {1: 1.0}
        assert study.trials[0].value == 2.0


def test_an_outage_beyond_the_limit_is_an_error_that_names_the_database(
    ready_url: str, outage: Callable[[], Outages]
) -> None:
    with closing(open_storage(ready_url, busy_s=0.01)) as storage:
        study = make_study(storage)
        trial = study.ask()
        away = outage()
        try:
            with storage.patience(0.0), pytest.raises(StorageUnreachable) as caught:
                trial.report(1.0, 1)
            assert storage.url in str(caught.value)
            storage.hurry = lambda: True
            now = iter(range(0, 1000, 2))
            storage._clock = lambda: float(next(now))
            storage._sleep = lambda seconds: None
            with pytest.raises(StorageUnreachable, match="for 2 s"):
                trial.report(1.0, 1)
        finally:
            away.come_back()
        trial.report(1.0, 1)


def test_patience_is_a_matter_of_one_thread(storage: Storage) -> None:
    seen: list[object] = []
    with storage.patience(1.0):
        thread = threading.Thread(target=lambda: seen.append(getattr(storage._local, "limit_s", None)))
        thread.start()
        thread.join()
    assert seen == [None]


def test_errors_of_the_drivers_are_told_apart() -> None:
    def wrapped(origin: Exception) -> sqlalchemy.exc.OperationalError:
        return sqlalchemy.exc.OperationalError("SELECT 1", {}, origin)

    def sqlite(code: int) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = code
        return error

    import psycopg.errors

    assert is_outage(wrapped(sqlite(sqlite3.SQLITE_BUSY_SNAPSHOT)))
    assert is_outage(wrapped(sqlite(sqlite3.SQLITE_FULL)))
    assert not is_outage(wrapped(sqlite(sqlite3.SQLITE_ERROR)))
    assert is_outage(wrapped(psycopg.errors.AdminShutdown()))
    assert is_outage(wrapped(psycopg.errors.DeadlockDetected()))
    assert is_outage(wrapped(psycopg.OperationalError("server closed the connection unexpectedly")))
    assert not is_outage(wrapped(psycopg.errors.UndefinedTable()))
    assert not is_outage(KeyError("x"))

"""Tables of an older Optuna are copied and upgraded."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from cvaeopt.admin import upgrade
from cvaeopt.errors import (
    SchemaError,
    UserError,
)
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.workers import Place
from testbed.postgres import Postgres
from tests.support.sites import (
    Site,
    admin,
    assert_continues,
)


def _downgrade(site: Site) -> None:
    """Tables as an Optuna before 3.2 made them: without the index that its last migration adds."""
    storage = site.open()
    with storage.transaction() as connection:
        connection.exec_driver_sql("DROP INDEX ix_trials_study_id")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v3.0.0.d'")
    storage.close()


def test_old_sqlite_tables_are_copied_and_upgraded(
    half: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _downgrade(half)
    with pytest.raises(SchemaError):
        half.open()
    copy = tmp_path / "before.db"
    with pytest.raises(UserError, match="Where shall the copy go"):
        admin("upgrade", ["--storage", half.url])
    admin("upgrade", [str(copy), "--storage", half.url])
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
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    there = Site(databases(), half.artifacts)
    admin("move", ["--from", half.url, "--to", there.url])
    _downgrade(there)
    copy = tmp_path / "before.dump"
    arguments = [str(copy), "--storage", there.url]

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="pg_dump is not installed"):
        admin("upgrade", arguments)
    fails = tmp_path / "pg_dump"
    fails.write_text("#!/bin/sh\necho 'server version mismatch' >&2; exit 1\n")
    fails.chmod(0o755)
    with pytest.raises(UserError, match=r"server version mismatch.*Nothing was upgraded"):
        admin("upgrade", arguments)
    assert not copy.exists()
    with pytest.raises(SchemaError):
        there.open()

    monkeypatch.setenv("PATH", f"{postgres.server.bin_path}{os.pathsep}/usr/bin:/bin")
    admin("upgrade", arguments)
    again = databases()
    subprocess.run(["pg_restore", "--dbname", again, str(copy)], check=True)
    with psycopg.connect(again) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("v3.0.0.d",)]
    assert_continues(there)


def test_an_upgrade_refuses_running_workers(half: Site) -> None:
    storage = half.open()
    LeaseRegistry(storage, "main").register("alive", Place.here(), "cpu")
    with pytest.raises(UserError, match=r"1 running worker.*alive.*Nothing was upgraded"):
        admin("upgrade", ["--no-copy", "--storage", half.url])
    with storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE cvaeopt_worker SET state = 'stopped'")
    storage.close()
    admin("upgrade", ["--no-copy", "--storage", half.url])


def test_the_password_is_no_argument_of_pg_dump(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(subprocess, "run", lambda words, env, **_: calls.append((words, env)))
    upgrade.copy(upgrade.parse("postgresql://lab:geheim@db/x"), tmp_path / "copy.dump")
    ((words, environment),) = calls
    assert words[-1] == "--dbname=postgresql://lab@db/x"
    assert environment["PGPASSWORD"] == "geheim"

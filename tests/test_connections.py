"""Whoever opens a SQLite database closes it: a connection that nobody closes is a leak."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy import update

from cvaeopt.errors import CvaeoptError
from cvaeopt.store.opening import open_storage
from cvaeopt.store.tables import schema_table
from tests.support.command import Shop
from tests.support.connections import Connection, files_held

pytestmark = pytest.mark.usefixtures("uncharted_module")


def opened(folder: Path) -> int:
    """How many connections to databases below `folder` were opened so far."""
    return sum(count for path, count in Connection.made.items() if path.startswith(f"{folder}/"))


def left_open(folder: Path) -> list[str]:
    """The databases below `folder` that have a connection, or a file of them, that was not closed."""
    counted = {path: count for path, count in Connection.open.items() if path.startswith(f"{folder}/") and count}
    held = [path for path in files_held(folder) if Path(path).name.startswith(("cvaeopt.db", "x.db"))]
    return sorted({*counted, *held})


def test_an_unclosed_connection_warns_on_every_version(tmp_path: Path) -> None:
    before = opened(tmp_path)
    with pytest.warns(ResourceWarning, match="unclosed database"):
        sqlite3.connect(tmp_path / "x.db").execute("SELECT 1")
        gc.collect()
    assert opened(tmp_path) == before + 1
    assert left_open(tmp_path) == [f"{tmp_path}/x.db"]
    sqlite3.connect(tmp_path / "y.db").close()
    assert f"{tmp_path}/y.db" not in left_open(tmp_path)


@pytest.mark.slow
def test_no_command_leaves_a_connection_open(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path)
    # Relative URLs, as the default is, name the file relatively: the whole path is given, so that it is counted.
    storage = ("--storage", f"sqlite:///{tmp_path}/storage/cvaeopt.db")
    study = ("--study", "tiny", *storage)
    changed = tmp_path / "changed.toml"
    changed.write_text((tmp_path / "studies/tiny.toml").read_text().replace("1e-4", "1e-5"))
    changed.rename(tmp_path / "studies/other.toml")
    threads = torch.get_num_threads()
    commands: list[tuple[int, tuple[str, ...]]] = [
        (0, ("worker", *study, "--gpu", "cpu", "--threads", "1")),
        (0, ("status", *study)),
        (0, ("status", *study, "--json")),
        (0, ("workers", *storage)),
        (0, ("stop", *study)),
        (0, ("report", *study, "--out", "report")),
        (0, ("export-best", *study)),
        (0, ("fetch", *study)),
        (0, ("confirm", *study, "--top", "1", "--seeds", "1", "--gpu", "cpu")),
        (2, ("status", "--study", "unknown", *storage)),
        (2, ("export-best", "--study", "other", *storage)),
    ]
    try:
        for code, words in commands:
            before = opened(tmp_path)
            said = shop.run(*words)
            assert said.code == code, (words, said.text)
            assert opened(tmp_path) > before, words  # else nothing was shown
            assert left_open(tmp_path) == [], words
    finally:
        torch.set_num_threads(threads)


def test_a_storage_that_is_left_by_an_error_is_closed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    with pytest.raises(KeyError), open_storage(url) as storage:
        storage.get_all_studies()
        assert left_open(tmp_path)
        storage.get_study_id_from_name("unknown")
    assert left_open(tmp_path) == []


def test_what_other_threads_opened_is_closed_too(tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{tmp_path}/x.db") as storage:
        together = threading.Barrier(3)

        def look() -> None:
            with storage.reading() as connection:
                connection.exec_driver_sql("SELECT 1")
                together.wait()  # so that each thread has a connection of its own

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert Connection.open[f"{tmp_path}/x.db"] == 3
    assert left_open(tmp_path) == []


def newer(path: Path) -> None:
    with open_storage(f"sqlite:///{path}") as storage, storage.transaction() as connection:
        connection.execute(update(schema_table).values(version=99))


def no_database(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 100)


def other_optuna(path: Path) -> None:
    with open_storage(f"sqlite:///{path}") as storage, storage.transaction() as connection:
        connection.exec_driver_sql("UPDATE version_info SET schema_version = 3")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v2.6.0.a'")


def foreign(path: Path) -> None:
    """A database in which a table of another program has one of Optuna's names."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE version_info (x INTEGER)")
    connection.close()


@pytest.mark.parametrize("spoil", [newer, no_database, other_optuna, foreign], ids=lambda spoil: str(spoil.__name__))
def test_a_database_that_is_refused_is_closed(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(tmp_path / "x.db")
    with pytest.raises((CvaeoptError, StorageInternalError)):
        open_storage(f"sqlite:///{tmp_path}/x.db", start_limit_s=0.0)
    assert left_open(tmp_path) == []

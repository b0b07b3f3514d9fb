"""Fixtures for all tests: every SQL back end that the program supports, each test with a database of its own."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings

from cvaeopt.store.opening import open_storage
from testbed.postgres import Postgres
from tests.support.connections import counted
from tests.support.outages import Outages, hold_sqlite
from tests.support.uncharted import leave_blank
from tests.support.warm import served

# How long an example takes is a matter of the machine. Outside CI hypothesis looks for new examples; there, whether a
# commit passes should not depend on what it finds today.
settings.register_profile(
    "cvaeopt",
    derandomize=bool(os.environ.get("CI")),
    deadline=None,
    max_examples=40,  # of every run; they differ from run to run outside CI
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("cvaeopt")

# A shell starts what runs in its background with Ctrl-C ignored, and `nohup` ignores SIGHUP. Every process that a test
# starts would ignore them, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_numbers = itertools.count()


def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection: a worker collects after every trial, and has to look at all."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="session", autouse=True)
def _no_connection_is_left_open() -> Iterator[None]:
    """A SQLite connection that is collected without having been closed fails the test, on every version of Python."""
    with counted():
        yield


@pytest.fixture(scope="module")
def uncharted_module() -> Iterator[None]:
    """No chart is rendered in a module that asks for this with `usefixtures`; its other fixtures draw none either."""
    yield from leave_blank()


@pytest.fixture
def uncharted() -> Iterator[None]:
    """No chart is rendered in a test that asks for this with `usefixtures`."""
    yield from leave_blank()


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """A program that does what `sys.executable` does, without its imports: see tests/support/warm.py."""
    with tempfile.TemporaryDirectory() as folder:  # a short path, as a socket needs
        yield from served(Path(folder))


@pytest.fixture
def warm(warm_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that this test starts by `sys.executable` are forks of one that has imported everything."""
    monkeypatch.setattr(sys, "executable", warm_python)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of our own on a socket in a temporary folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs about XDG_RUNTIME_DIR, at import
        server = Postgres.launch()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def template_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with all tables and nothing in them."""
    path = tmp_path_factory.mktemp("template") / "x.db"
    open_storage(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def template_database(postgres: Postgres) -> str:
    """The name of a PostgreSQL database with all tables and nothing in them."""
    open_storage(postgres.new_database("template_cvaeopt")).close()
    return "template_cvaeopt"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def ready_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database whose tables are made, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        path = tmp_path / "folder" / "cvaeopt.db"
        path.parent.mkdir()
        shutil.copy(request.getfixturevalue("template_file"), path)
        yield f"sqlite:///{path}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"test_{next(_numbers)}"
    yield server.new_database(name, request.getfixturevalue("template_database"))
    server.drop_database(name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database, once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/folder/cvaeopt.db"
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = f"test_{next(_numbers)}"
    yield server.new_database(name)
    server.drop_database(name)


@pytest.fixture
def outage(request: pytest.FixtureRequest, ready_url: str, tmp_path: Path) -> Callable[[], Outages]:
    """Makes the database of `ready_url` unreachable, until a storage slept three times."""
    if ready_url.startswith("sqlite"):
        held: list[Any] = []
        path = str(tmp_path / "folder" / "cvaeopt.db")
        return lambda: Outages(
            lambda: held.append(hold_sqlite(path)),
            lambda: held.pop().close(),
        )
    server: Postgres = request.getfixturevalue("postgres")
    return lambda: Outages(server.stop, server.start)

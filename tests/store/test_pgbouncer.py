"""Workers behind a real PgBouncer in transaction mode: what deploy/README.md promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cvaeopt.errors import StorageRefused
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store.opening import open_storage
from testbed.postgres import Postgres
from tests.support.fakes import Fakes, leases, make_study
from tests.support.pgbouncer import PROGRAM, pgbouncer
from tests.support.processes import race

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed (Debian: apt-get install pgbouncer)"),
]


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    """The name of an empty database."""
    postgres.new_database("bounce")
    yield "bounce"
    postgres.drop_database("bounce")


def _train(index: int, url: str, artifacts: Path) -> Counter[int]:
    with closing(open_storage(url)) as storage:
        study = make_study(storage, trials=6)
        worker = Worker(study, storage, Fakes(artifacts), artifacts=artifacts, timing=Timing(poll_s=0.1))
        assert worker.run().kind == "finished"
        return Counter(trial.state.name for trial in study.trials)


def test_workers_that_start_at_once_through_a_pooler_train_the_whole_budget(
    postgres: Postgres, empty: str, tmp_path: Path
) -> None:
    with pgbouncer(postgres.sockets, empty, "ignore_startup_parameters = options") as url:
        assert race(_train, 4, url, tmp_path) == [{"COMPLETE": 6}] * 4
        with closing(open_storage(url)) as storage:
            assert {(lease.state, lease.token) for lease in leases(storage)} == {("done", 1)}


def test_a_pooler_that_refuses_a_start_up_parameter_is_quoted_at_once(postgres: Postgres, empty: str) -> None:
    with (
        pgbouncer(postgres.sockets, empty) as url,
        pytest.raises(StorageRefused, match=r"refused: .*unsupported startup parameter.*ignore_startup_parameters"),
    ):
        open_storage(url, start_limit_s=1e9)


def test_a_pooler_that_requires_ssl_is_quoted_at_once(postgres: Postgres, empty: str) -> None:
    with (
        pgbouncer(postgres.sockets, empty, "ignore_startup_parameters = options") as url,
        pytest.raises(StorageRefused, match=r"refused: .*SSL"),
    ):
        open_storage(f"{url}?sslmode=require", start_limit_s=1e9)


def test_an_unknown_database_of_a_pooler_is_quoted_at_once(postgres: Postgres, empty: str) -> None:
    with (
        pgbouncer(postgres.sockets, empty, "ignore_startup_parameters = options") as url,
        pytest.raises(StorageRefused, match=r"refused: .*(nowhere|config error)"),
    ):
        open_storage(url.replace("bounce", "nowhere"), start_limit_s=1e9)

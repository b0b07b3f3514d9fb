"""What a storage does when connections freeze, break off or lose an answer; a proxy stands before a real PostgreSQL."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from sqlalchemy.engine import make_url

from cvaeopt.errors import StorageUnreachable
from cvaeopt.run.events import Event, Waiting
from cvaeopt.run.signals import StopNow
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store import urls, watchdog
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Place
from testbed.postgres import Postgres
from testbed.proxy import Fault, Proxy
from tests.support.fakes import FakeRun, Fakes, make_study

pytestmark = pytest.mark.postgres
DATABASE = "behind_proxy"


@pytest.fixture
def proxy(postgres: Postgres, template_database: str) -> Iterator[Proxy]:
    postgres.new_database(DATABASE, template_database)
    proxy = Proxy(postgres.sockets / ".s.PGSQL.5432")
    yield proxy
    proxy.close()
    postgres.drop_database(DATABASE)


@pytest.fixture
def storage(proxy: Proxy) -> Iterator[Storage]:
    with closing(open_storage(proxy.url(DATABASE), silence_s=0.5)) as opened:
        yield opened


def test_a_statement_without_an_answer_is_an_outage_and_the_next_one_has_a_new_connection(
    proxy: Proxy, storage: Storage
) -> None:
    make_study(storage)
    proxy.freeze()
    with storage.patience(0.0), pytest.raises(StorageUnreachable, match="did not answer for"):
        storage.get_all_studies()
    proxy.thaw()
    assert [study.study_name for study in storage.get_all_studies()] == ["main"]


def test_one_dead_connection_costs_no_call(proxy: Proxy, storage: Storage) -> None:
    make_study(storage)
    proxy.arm("drop", b"studies")
    assert [study.study_name for study in storage.get_all_studies()] == ["main"]
    assert proxy.struck == 1


def test_a_process_that_was_asked_to_stop_does_not_wait_for_a_silent_server(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "HURRY_SILENCE_S", 0.2)
    monkeypatch.setattr("cvaeopt.store.retries.HURRY_S", 0.1)
    with closing(open_storage(proxy.url(DATABASE), silence_s=1e6)) as storage:
        make_study(storage)
        asked = threading.Event()
        storage.hurry = asked.is_set
        proxy.on_request = lambda data: asked.set()  # asked only when the statement is on its way
        proxy.freeze()
        with pytest.raises(StorageUnreachable):
            storage.get_all_studies()


def test_a_waiting_worker_whose_server_is_frozen_stops_at_the_first_signal(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watchdog, "HURRY_SILENCE_S", 0.2)
    with closing(open_storage(proxy.url(DATABASE), silence_s=1e6)) as storage:
        study = make_study(storage, trials=1)
        LeaseRegistry(storage, "main").claim("another", Place.here())  # the only trial
        worker = Worker(study, storage, Fakes(tmp_path), artifacts=tmp_path, timing=Timing(poll_s=0.01))

        def freeze(event: Event) -> None:
            if isinstance(event, Waiting):
                proxy.on_request = lambda data: worker.stop()
                proxy.freeze()

        worker._listener = freeze
        assert worker.run().kind == "stopped"


def test_training_goes_on_while_one_connection_is_dead(proxy: Proxy, storage: Storage, tmp_path: Path) -> None:
    study = make_study(storage, trials=2)

    def lose(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            proxy.arm("drop", b"trial_intermediate_values")

    fakes = Fakes(tmp_path, before_epoch=lose)
    assert Worker(study, storage, fakes, artifacts=tmp_path, timing=Timing(poll_s=0.01)).run().kind == "finished"
    assert proxy.struck == 2
    assert [run.trained for run in fakes.runs] == [[1, 2, 3, 4]] * 2
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[1, 2, 3, 4]] * 2


def test_a_second_signal_during_a_silent_statement_ends_it_at_once_as_what_it_is(
    proxy: Proxy, storage: Storage
) -> None:
    def stop(*_: object) -> None:
        raise StopNow

    make_study(storage)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with closing(open_storage(proxy.url(DATABASE), silence_s=1e6)) as patient:
            patient.get_all_studies()
            proxy.on_request = lambda data: os.kill(os.getpid(), signal.SIGTERM)
            proxy.freeze()
            with pytest.raises(StopNow):
                patient.get_all_studies()
            proxy.on_request = lambda data: None
            proxy.thaw()
            assert len(patient.get_all_studies()) == 1
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_a_commit_without_an_answer_is_neither_lost_nor_doubled(proxy: Proxy, storage: Storage, fault: Fault) -> None:
    study = make_study(storage)
    proxy.arm(fault)
    trial = study.ask({"x": optuna.distributions.FloatDistribution(0.0, 1.0)})
    proxy.arm(fault)
    trial.report(0.5, 1)
    proxy.arm(fault)
    study.tell(trial, 2.0)
    assert proxy.struck == 3
    (only,) = study.trials
    assert (only.value, only.intermediate_values, set(only.params)) == (2.0, {1: 0.5}, {"x"})


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_opening_outlives_a_connection_that_is_lost_meanwhile(proxy: Proxy, fault: Fault) -> None:
    proxy.arm(fault, b"version_info")  # Optuna's own question, whose errors it wraps
    with closing(open_storage(proxy.url(DATABASE), silence_s=0.5)) as storage:
        assert storage.get_all_studies() == []
    assert proxy.struck == 1


def test_opening_gives_up_as_in_any_outage(proxy: Proxy) -> None:
    proxy.arm("reset", b"version_info", times=1000)
    with pytest.raises(StorageUnreachable) as caught:
        open_storage(proxy.url(DATABASE), start_limit_s=0.0)
    assert caught.value.exit_code == 3


def test_an_answer_that_is_still_arriving_is_never_cut_off(proxy: Proxy) -> None:
    now = [0.0]
    target = urls.parse(proxy.url(DATABASE))
    connection = watchdog.connector(target, {}, silence_s=10.0, clock=lambda: now[0])()

    def statement() -> Any:
        for _ in range(5):
            assert (yield "wanted") in (0, 1)
        return "answer"

    with closing(connection):
        waiting = connection._limited(statement())
        next(waiting)
        for ready in (0, 1, 0, 1):
            now[0] += 9.0 * ready
            waiting.send(ready)
        with pytest.raises(StopIteration) as ended:
            waiting.send(1)
        assert ended.value.value == "answer"
        waiting = connection._limited(statement())
        next(waiting)
        now[0] += 10.0
        with pytest.raises(psycopg.OperationalError, match="for 10 s"):
            waiting.send(0)
        assert connection.closed


def test_the_default_limit_is_longer_than_any_wait_that_the_server_itself_ends() -> None:
    target = make_url("postgresql+psycopg://me@h/d")
    sent = urls._psycopg_arguments(target)["options"]
    assert "lock_timeout=30000" in sent
    assert watchdog.SILENCE_S > 30.0

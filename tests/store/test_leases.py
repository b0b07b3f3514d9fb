from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import select

from cvaeopt.errors import LeaseLost, StudyError, UserError
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table
from cvaeopt.store.workers import Beat, Place, WorkerRow, ask_stop, workers
from tests.support.fakes import EVIL, expire, leases, make_study
from tests.support.outages import Lossy
from tests.support.processes import race

HERE = Place("host", 1, "kernel")


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


@dataclass
class Clock:
    """Seconds that a test pushes."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def claimed(registry: LeaseRegistry, worker: str) -> Lease:
    lease = registry.claim(worker)
    assert isinstance(lease, Lease)
    return lease


def idle(registry: LeaseRegistry, worker: str) -> Idle:
    answer = registry.claim(worker)
    assert isinstance(answer, Idle)
    return answer


def tell(study: optuna.Study, lease: Lease) -> None:
    study.tell(lease.number, 1.0)


def test_a_claim_comes_with_its_running_trial(storage: Storage) -> None:
    study = make_study(storage)
    lease = claimed(LeaseRegistry(storage, "main"), "a")
    assert (lease.slot, lease.number, lease.token, lease.attempt, lease.epochs) == (0, 0, 1, 1, 4)
    assert lease.folder == "main/00000"
    assert [trial.state for trial in study.trials] == [TrialState.RUNNING]
    assert study.trials[0]._trial_id == lease.trial_id
    assert study.trials[0].datetime_start is not None


def test_a_worker_that_asks_again_gets_the_lease_it_has(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    assert claimed(registry, "a") == claimed(registry, "a")
    assert len(leases(storage)) == 1


def test_a_claim_whose_acknowledgement_was_lost_costs_one_slot(ready_url: str) -> None:
    with closing(Lossy(ready_url)) as lossy:
        study = make_study(lossy)
        registry = LeaseRegistry(lossy, "main")
        lossy.losses = 2
        lease = claimed(registry, "a")
        assert lossy.losses == 0
        assert len(leases(lossy)) == len(study.trials) == 1
        tell(study, lease)
        lossy.losses = 1
        registry.finish(lease, "complete", "done", 4)
        assert leases(lossy)[0].state == "done"
        lease = claimed(registry, "a")
        lossy.losses = 1
        registry.release(lease)
        assert leases(lossy)[1].owner is None


def test_enqueued_points_come_first_and_once_and_no_more_than_the_budget(storage: Storage) -> None:
    study = make_study(storage, trials=2)
    for x in (0.1, 0.2, 0.3):
        study.enqueue_trial({"x": x})
    registry = LeaseRegistry(storage, "main")
    assert [claimed(registry, worker).number for worker in "ab"] == [0, 1]
    assert idle(registry, "c").kind == "wait"
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "RUNNING", "WAITING"]


def test_the_study_is_finished_when_every_slot_is_done(storage: Storage) -> None:
    study = make_study(storage, trials=1)
    registry = LeaseRegistry(storage, "main")
    lease = claimed(registry, "a")
    assert idle(registry, "b").kind == "wait"
    tell(study, lease)
    registry.finish(lease, "complete", "done", 4)
    assert idle(registry, "b").kind == "finished"


def test_a_left_trial_is_continued_before_a_new_one_begins(storage: Storage) -> None:
    study = make_study(storage)
    registry = LeaseRegistry(storage, "main")
    first = claimed(registry, "a")
    registry.report(first, 1, 0.5)
    registry.release(first)
    second = claimed(registry, "b")
    assert (second.number, second.token, second.attempt, second.epochs_done) == (0, 2, 1, 1)
    assert study.trials[0].intermediate_values == {1: 0.5}


def test_whoever_lost_the_lease_can_do_nothing_with_it(storage: Storage) -> None:
    study = make_study(storage)
    registry = LeaseRegistry(storage, "main")
    old = claimed(registry, "a")
    expire(storage)
    new = claimed(registry, "b")
    assert (new.slot, new.token) == (old.slot, 2)
    for action in (
        lambda: registry.renew(old),
        lambda: registry.report(old, 1, 9.9),
        lambda: registry.release(old),
        lambda: registry.finish(old, "complete", "", 4),
    ):
        with pytest.raises(LeaseLost):
            action()
    assert not registry.beat("a", Beat("running", saved=(3, "there")), old).held
    assert study.trials[0].intermediate_values == {}
    row = leases(storage)[0]
    assert (row.owner, row.token, row.state, row.checkpoint_epoch) == ("b", 2, "open", None)
    registry.renew(new)


def test_an_expired_lease_that_nobody_took_can_still_be_renewed(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    lease = claimed(registry, "a")
    expire(storage)
    registry.report(lease, 1, 0.5)
    assert claimed(registry, "b").slot == 1


def test_a_report_to_a_trial_that_somebody_ended_says_so(storage: Storage) -> None:
    study = make_study(storage)
    registry = LeaseRegistry(storage, "main")
    lease = claimed(registry, "a")
    tell(study, lease)
    with storage.patience(0.0), pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        registry.report(lease, 1, 0.5)


def test_checkpoints_are_announced_with_reports_and_beats(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    lease = claimed(registry, "a")
    registry.report(lease, 1, 0.5, saved=(1, "here"))
    assert leases(storage)[0].checkpoint_epoch == 1
    registry.beat("a", Beat("running", saved=(2, "there")), lease, renew=False)
    registry.release(lease)
    taken = claimed(registry, "b")
    assert (taken.checkpoint_epoch, taken.checkpoint_host) == (2, "there")


def test_a_trial_that_kills_its_workers_is_given_up_after_three_attempts(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main", max_attempts=3)
    seen = []
    for worker in "abcd":
        lease = claimed(registry, worker)
        seen.append((lease.slot, lease.attempt, lease.exhausted))
        expire(storage)
    assert seen == [(0, 1, False), (0, 2, False), (0, 3, False), (0, 4, True)]


def test_a_finished_epoch_proves_that_a_trial_does_not_kill_at_once(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main", max_attempts=2)
    for epoch, worker in enumerate("abcdef", start=1):
        lease = claimed(registry, worker)
        assert (lease.slot, lease.attempt, lease.exhausted) == (0, 1, False)
        registry.report(lease, epoch, 0.5)
        expire(storage)


def test_a_graceful_release_is_no_attempt_and_a_device_fault_is(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    registry.release(claimed(registry, "a"))
    second = claimed(registry, "b")
    assert second.attempt == 1
    registry.release(second, crashed=True)
    assert claimed(registry, "c").attempt == 2


def test_no_trial_begins_after_the_wall_clock_but_left_ones_are_continued(storage: Storage) -> None:
    make_study(storage, trials=None, wall_clock_s=3600)
    clock = Clock()
    registry = LeaseRegistry(storage, "main", clock=clock)
    lease = claimed(registry, "a")
    clock.now += 3599
    claimed(registry, "b")
    clock.now += 1
    assert "1 h are over" in idle(registry, "c").reason
    registry.release(lease)
    assert claimed(registry, "c").slot == lease.slot


def test_nobody_is_declared_dead_right_after_a_silence_of_the_database(storage: Storage) -> None:
    make_study(storage, trials=1)
    clock = Clock()
    registry = LeaseRegistry(storage, "main", ttl_s=120, clock=clock)
    lease = claimed(registry, "a")
    clock.now += 500  # the database was away for longer than a lease lives
    assert idle(registry, "b").kind == "wait"
    clock.now += 25
    registry.renew(lease)  # the living owner comes back in time
    clock.now += 10
    assert idle(registry, "b").kind == "wait"
    for _ in range(5):
        clock.now += 30
        registry.beat("b", Beat("waiting"))
    assert claimed(registry, "b").token == 2  # a silent owner is dead, while others beat


def test_a_worker_that_died_on_this_machine_is_replaced_at_once(storage: Storage) -> None:
    make_study(storage)
    process = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(0,))
    process.start()
    pid = process.pid
    assert pid is not None
    process.join()
    here = Place.here()
    registry = LeaseRegistry(storage, "main")
    registry.register("dead", Place(here.host, pid, here.kernel), "cpu")
    registry.register("alive", here, "cpu")
    registry.register("elsewhere", Place("other", pid, "another kernel"), "cpu")
    assert isinstance(registry.claim("elsewhere", here), Lease)
    assert isinstance(registry.claim("alive", here), Lease)
    assert claimed(registry, "dead").slot == 2
    taken = registry.claim("next", here)
    assert isinstance(taken, Lease)
    assert (taken.slot, taken.token) == (2, 2)
    assert isinstance(registry.claim("one more", here), Idle)


def test_an_unknown_study_is_the_users_error(storage: Storage) -> None:
    with pytest.raises(StudyError, match="'nothing'"):
        LeaseRegistry(storage, "nothing").claim("a")


def test_a_deleted_study_is_the_users_error(storage: Storage) -> None:
    make_study(storage)
    optuna.delete_study(storage=storage, study_name="main")
    with pytest.raises(StudyError, match="was deleted"):
        LeaseRegistry(storage, "main").claim("a")


def test_names_are_data(storage: Storage) -> None:
    for name in EVIL:
        study = make_study(storage, name)
        registry = LeaseRegistry(storage, name)
        registry.register(f"worker of {name}", HERE, name)
        lease = claimed(registry, f"worker of {name}")
        registry.report(lease, 1, 0.5)
        registry.finish(lease, "failed", name, 1)
        assert study.trials[0].intermediate_values == {1: 0.5}
        assert ask_stop(storage, name) == [f"worker of {name}"]
    assert sorted(row.study for row in leases(storage)) == sorted(EVIL)


# ---- processes that race


def _claim_all(index: int, url: str) -> list[tuple[int, int, int]]:
    """(slot, number, token) of everything that this process got; each claim by a worker of its own."""
    with closing(open_storage(url)) as storage:
        registry = LeaseRegistry(storage, "main", ttl_s=3600)
        got = []
        while isinstance(lease := registry.claim(f"{index}-{len(got)}"), Lease):
            got.append((lease.slot, lease.number, lease.token))
        return got


def test_six_processes_claim_sixty_slots_exactly_once_and_take_them_over_exactly_once(storage: Storage) -> None:
    study = make_study(storage, trials=60)
    for x in range(20):
        study.enqueue_trial({"x": x / 20})
    url = storage._source
    first = list(chain(*race(_claim_all, 6, url)))
    assert sorted(first) == [(n, n, 1) for n in range(60)]
    with storage.transaction() as connection:  # the fresh ids of the second race must not meet the first ones
        connection.exec_driver_sql("UPDATE cvaeopt_lease SET owner = 'dead', expires_at = 0")
    second = list(chain(*race(_claim_all, 6, url)))
    assert sorted(second) == [(n, n, 2) for n in range(60)]
    assert [trial.number for trial in study.trials] == list(range(60))
    assert {trial.state for trial in study.trials} == {TrialState.RUNNING}


def _spend(index: int, url: str) -> int:
    """Take trials until the study is finished; every other one is pruned early. Epochs trained here."""
    with closing(open_storage(url)) as storage:
        study = optuna.load_study(storage=storage, study_name="main")
        registry = LeaseRegistry(storage, "main", ttl_s=3600)
        trained = 0
        while True:
            lease = registry.claim(str(index))
            if isinstance(lease, Lease):
                epochs = lease.epochs if lease.number % 2 else 1
                for epoch in range(1, epochs + 1):
                    registry.report(lease, epoch, float(epoch))
                state = None if epochs == lease.epochs else TrialState.PRUNED
                study.tell(lease.number, float(epochs) if state is None else None, state)
                registry.finish(lease, "complete" if state is None else "pruned", "", epochs)
                trained += epochs
            elif lease.kind == "finished":
                return trained
            else:
                time.sleep(0.01)


def end(registry: LeaseRegistry, study: optuna.Study, value: float | None) -> None:
    """Take a trial and end it with this value; pruned without one."""
    lease = claimed(registry, "a")
    study.tell(lease.number, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
    registry.finish(lease, "pruned" if value is None else "complete", "", lease.epochs)


def test_a_study_ends_once_a_complete_trial_reaches_the_target(storage: Storage) -> None:
    study, registry = make_study(storage, trials=None, rules={"target_db": 30.0}), LeaseRegistry(storage, "main")
    for value in (None, 29.99, None):
        end(registry, study, value)
    last = claimed(registry, "b")
    end(registry, study, 30.0)
    assert idle(registry, "a") == Idle(
        "wait", "the best trial reaches 30.00 dB, the target was 30; 1 still being trained elsewhere"
    )
    study.tell(last.number, 10.0)
    registry.finish(last, "complete", "", 4)
    assert idle(registry, "a").kind == "finished"


def test_a_study_ends_when_many_trials_have_not_beaten_the_best(storage: Storage) -> None:
    study, registry = make_study(storage, trials=None, rules={"patience_trials": 3}), LeaseRegistry(storage, "main")
    for value in (None, None, None, None, 25.0, 24.0, None, 26.0, 26.0, 25.0):  # without a best there is no patience
        end(registry, study, value)
    assert isinstance(registry.claim("a"), Lease)
    registry.release(claimed(registry, "a"))
    end(registry, study, None)
    assert idle(registry, "a") == Idle("finished", "3 trials have ended since the best one (26.00 dB)")


@pytest.mark.parametrize(("trials", "total_epochs"), [(None, 50), (11, 500)])
def test_racing_processes_spend_the_budget_and_not_one_epoch_more(
    storage: Storage, trials: int | None, total_epochs: int | None
) -> None:
    study = make_study(storage, trials=trials, epochs=5, total_epochs=total_epochs)
    trained = sum(race(_spend, 4, storage._source))
    rows = leases(storage)
    assert {row.state for row in rows} == {"done"}
    assert sum(row.epochs_done for row in rows) == trained
    assert sum(row.epochs_reserved for row in rows) == trained
    if trials is not None:
        assert len(rows) == trials
    if total_epochs is not None and trials is None:
        assert total_epochs - 5 < trained <= total_epochs  # the rest is too short for one more trial
    assert [trial.number for trial in study.trials] == list(range(len(rows)))
    assert all(trial.state.is_finished() for trial in study.trials)


# ---- the workers' table


def test_workers_are_shown_with_what_they_do(storage: Storage) -> None:
    make_study(storage)
    make_study(storage, "other")
    registry = LeaseRegistry(storage, "main", ttl_s=3600)
    registry.register("a", HERE, "cuda:0")
    LeaseRegistry(storage, "other").register("b", HERE, "cpu")
    registry.beat("a", Beat("running", 7, 3, "message"))
    (row,) = workers(storage, "main")
    assert (row.id, row.host, row.device, row.state, row.trial, row.epoch) == ("a", "host", "cuda:0", "running", 7, 3)
    assert 0 <= row.beat_age_s < 3600
    assert [row.id for row in workers(storage)] == ["a", "b"]
    with storage.transaction() as connection:
        connection.execute(worker_table.update().values(beat_at=storage.now(connection) - 3601))
    assert workers(storage, "main")[0].state == "dead"
    registry.beat("a", Beat("stopped"))
    with storage.transaction() as connection:
        connection.execute(worker_table.update().values(beat_at=storage.now(connection) - 3601))
    assert workers(storage, "main")[0].state == "stopped"


def test_a_worker_that_misses_beats_is_silent_until_others_may_take_its_trial(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")  # leases of 120 s, so a beat every 10 s
    registry.register("a", HERE, "cpu")
    registry.beat("a", Beat("running"))
    lease = claimed(registry, "a")
    registry.report(lease, 1, 0.5)

    def aged(seconds: float) -> WorkerRow:
        with storage.transaction() as connection:
            now = storage.now(connection)
            connection.execute(worker_table.update().values(beat_at=now - seconds))
            connection.execute(lease_table.update().values(expires_at=now + 120 - seconds))
        return workers(storage, "main")[0]

    fresh, silent, dead = aged(15), aged(85), aged(121)
    assert (fresh.state, fresh.takeover_s) == ("running", None)
    assert (fresh.trial, fresh.epoch) == (lease.number, 1)  # of the report, which is newer than the last beat
    assert silent.state == "silent" and silent.takeover_s == pytest.approx(35, abs=5)
    assert (dead.state, dead.takeover_s) == ("dead", None)
    assert ask_stop(storage, "main", dry_run=True) == []
    aged(85)
    assert ask_stop(storage, "main", dry_run=True) == ["a"]


def test_a_stop_reaches_the_workers_that_run_and_not_those_that_start_later(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    for worker in "abc":
        registry.register(worker, HERE, "cpu")
    registry.beat("c", Beat("stopped"))
    assert ask_stop(storage, "main", "a") == ["a"]
    assert [registry.beat(worker, Beat("running")).stop for worker in "ab"] == [True, False]
    assert ask_stop(storage, "main") == ["a", "b"]
    registry.register("d", HERE, "cpu")
    assert [registry.beat(worker, Beat("running")).stop for worker in "abd"] == [True, True, False]


def test_a_stop_that_reaches_nobody_is_not_noted(storage: Storage) -> None:
    make_study(storage)

    def noted() -> str | None:
        with storage.reading() as connection:
            return connection.execute(select(study_table.c.stopped_reason)).scalar_one()

    registry = LeaseRegistry(storage, "main")
    registry.register("a", HERE, "cpu")
    registry.beat("a", Beat("stopped"))
    assert (ask_stop(storage, "main"), noted()) == ([], None)
    registry.register("b", HERE, "cpu")
    assert (ask_stop(storage, "main"), noted()) == (["b"], "asked to stop")


def test_a_worker_whose_trial_was_taken_over_is_dead_until_it_beats_again(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")

    def shown() -> dict[str, str]:
        return {row.id: row.state for row in workers(storage, "main")}

    for worker in "ab":
        registry.register(worker, HERE, "cpu")
        registry.beat(worker, Beat("running"))
    registry.claim("a")
    expire(storage)
    assert shown() == {"a": "running", "b": "running"}
    registry.claim("b")
    assert shown() == {"a": "dead", "b": "running"}
    registry.beat("a", Beat("running"))
    assert shown() == {"a": "running", "b": "running"}


def test_all_workers_that_were_seen_dead_are_shown_so_with_the_first_claim(storage: Storage) -> None:
    make_study(storage)
    registry = LeaseRegistry(storage, "main")
    here = Place.here()
    with subprocess.Popen(["true"]) as process:
        pass
    gone = Place(here.host, process.pid, "a kernel")
    asking = Place(here.host, here.pid, "a kernel")
    for worker in "ab":
        registry.register(worker, gone, "cpu")
        registry.beat(worker, Beat("running"))
        registry.claim(worker, here)
    registry.register("c", asking, "cpu")
    lease = registry.claim("c", asking)
    assert isinstance(lease, Lease) and lease.token == 2
    assert {row.id: row.state for row in workers(storage, "main")} == {"a": "dead", "b": "dead", "c": "starting"}


def test_a_worker_that_does_not_run_cannot_be_stopped(storage: Storage) -> None:
    make_study(storage)
    LeaseRegistry(storage, "main").register("a", HERE, "cpu")
    with pytest.raises(UserError, match=r"No worker 'x' runs for study 'main'\. Running: a"):
        ask_stop(storage, "main", "x")
    with pytest.raises(StudyError):
        ask_stop(storage, "unknown")

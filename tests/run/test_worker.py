from __future__ import annotations

import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cvaeopt.errors import DataError, Interrupted, StorageUnreachable, StudyError, TryAgain, UserError
from cvaeopt.run.events import (
    EpochDone,
    LeaseTaken,
    Outage,
    Recovered,
    Stalled,
    Stopping,
    TrialEnded,
    TrialLeft,
    TrialStarted,
    Waiting,
    Warned,
)
from cvaeopt.run.reporter import Reporter
from cvaeopt.run.signals import STOP_SIGNALS
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store.leases import Lease, LeaseRegistry, Pulse
from cvaeopt.store.opening import open_storage
from cvaeopt.store.steering import stop_trial
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Beat, Place, ask_stop, workers
from testbed.postgres import Postgres
from tests.support.fakes import EVIL, Events, FakeRun, Fakes, curve, expire, leases, make_study, set_stop
from tests.support.outages import Outages, hold_sqlite
from tests.support.waiting import until

ROOT = Path(__file__).parents[2]
QUICK = Timing(poll_s=0.05)


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url, busy_s=0.05)) as opened:
        yield opened


@pytest.fixture
def sqlite(tmp_path: Path, template_file: Path) -> Iterator[Storage]:
    shutil.copy(template_file, tmp_path / "x.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db", busy_s=0.05)) as opened:
        yield opened


@dataclass
class Bench:
    """One storage on which workers are started one after the other."""

    storage: Storage
    folder: Path
    events: Events = field(default_factory=Events)

    def worker(self, study: optuna.Study, factory: Any, timing: Timing = QUICK, **settings: Any) -> Worker:
        settings = {"listener": self.events, "timing": timing, **settings}
        return Worker(study, self.storage, factory, artifacts=self.folder, **settings)

    def fakes(self, **behaviour: Any) -> Fakes:
        return Fakes(self.folder, **behaviour)


@pytest.fixture
def bench(storage: Storage, tmp_path: Path) -> Bench:
    return Bench(storage, tmp_path / "artifacts")


@pytest.fixture
def lite(sqlite: Storage, tmp_path: Path) -> Bench:
    """Where the back end cannot matter."""
    return Bench(sqlite, tmp_path / "artifacts")


class PruneAt(optuna.pruners.BasePruner):
    """Prunes the listed (trial, epoch)s and remembers what it was asked."""

    def __init__(self, *these: tuple[int, int]) -> None:
        self.these = these
        self.asked: list[tuple[int, int | None]] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.asked.append((trial.number, trial.last_step))
        return (trial.number, trial.last_step) in self.these


class ByNumber(optuna.samplers.RandomSampler):
    """Suggestions that depend on the trial's number and on nothing else."""

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self._rng = type(self._rng)(trial.number)


def states(study: optuna.Study) -> list[str]:
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def raising(error: Exception, *at: tuple[int, int]) -> Callable[[FakeRun, int], None]:
    def before(run: FakeRun, epoch: int) -> None:
        if (run.number, epoch) in at:
            raise error

    return before


# ---- the ordinary course


def test_between_two_trials_there_is_time_to_tidy_up(lite: Bench) -> None:
    """After every trial that ended, was pruned or left, when nobody holds it any more."""
    study = make_study(lite.storage, pruner=PruneAt((1, 2)))
    seen: list[tuple[list[str], set[str | None]]] = []

    def look() -> None:
        owners = {row.owner for row in leases(lite.storage) if row.state == "open"}
        seen.append((states(study), owners))
        if len(seen) == 2:
            set_stop(lite.storage)

    lite.worker(study, lite.fakes(before_epoch=lambda run, epoch: time.sleep(0.01)), after_trial=look).run()
    assert seen[:2] == [(["COMPLETE"], set()), (["COMPLETE", "PRUNED"], set())]
    assert all(owners <= {None} for _, owners in seen)


def test_a_worker_trains_the_whole_budget_and_ends(bench: Bench) -> None:
    study = make_study(bench.storage)
    factory = bench.fakes()
    ended = bench.worker(study, factory, device="cuda:0").run()
    assert (ended.kind, ended.trials) == ("finished", 3)
    for number, trial in enumerate(study.trials):
        assert trial.value == curve(number, 4)
        assert trial.intermediate_values == {epoch: curve(number, epoch) for epoch in range(1, 5)}
        assert trial.constraints == {"diverged": 0.0, "out_of_memory": 0.0, "crashed": 0.0}
        assert trial.user_attrs["epochs_done"] == 4
        assert trial.user_attrs["device"] == "cuda:0"
        assert "failed" not in trial.user_attrs
    assert [run.finished for run in factory.runs] == [[("complete", "all epochs trained")]] * 3
    assert [row.outcome for row in leases(bench.storage)] == ["complete"] * 3
    assert workers(bench.storage)[0].state == "stopped"
    assert len(bench.events.of(EpochDone)) == 12
    assert not list(bench.folder.rglob("reports.*"))


def test_enqueued_points_are_trained_as_given(bench: Bench) -> None:
    study = make_study(bench.storage)
    study.enqueue_trial({"x": 0.125})
    factory = bench.fakes()
    bench.worker(study, factory).run()
    assert factory.params[0] == {"x": 0.125}
    assert states(study) == ["COMPLETE"] * 3


def test_a_pruned_trial_gives_its_epochs_back(bench: Bench) -> None:
    pruner = PruneAt((0, 2), (2, 1))
    study = make_study(bench.storage, trials=None, total_epochs=11, pruner=pruner)
    factory = bench.fakes()
    bench.worker(study, factory).run()
    assert states(study) == ["PRUNED", "COMPLETE", "PRUNED", "COMPLETE"]
    assert [row.epochs_done for row in leases(bench.storage)] == [2, 4, 1, 4]
    assert [len(run.trained) for run in factory.runs] == [2, 4, 1, 4]
    assert study.trials[0].user_attrs["reason"] == "pruned at epoch 2"
    assert factory.runs[0].finished == [("pruned", "pruned at epoch 2")]


def test_a_trial_is_not_pruned_after_its_last_epoch(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1, pruner=PruneAt((0, 4)))
    lite.worker(study, lite.fakes()).run()
    assert states(study) == ["COMPLETE"]


# ---- failures


def test_a_diverged_trial_teaches_the_sampler_and_the_worker_goes_on(bench: Bench) -> None:
    study = make_study(bench.storage)
    factory = bench.fakes(value_at=lambda n, e: math.nan if (n, e) == (1, 3) else curve(n, e))
    assert bench.worker(study, factory).run().kind == "finished"
    assert states(study) == ["COMPLETE", "PRUNED", "COMPLETE"]
    trial = study.trials[1]
    assert trial.constraints == {"diverged": 1.0, "out_of_memory": 0.0, "crashed": 0.0}
    assert trial.user_attrs["failed"] == "diverged"
    assert trial.user_attrs["epochs_done"] == 2
    assert "epoch 3" in trial.user_attrs["reason"]
    assert leases(bench.storage)[1].outcome == "failed"
    assert factory.runs[1].finished[0][0] == "failed"


def test_an_infinite_report_is_a_divergence(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    lite.worker(study, lite.fakes(value_at=lambda n, e: math.inf)).run()
    assert study.trials[0].user_attrs["failed"] == "diverged"
    assert study.trials[0].intermediate_values == {}


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize("error", [OutOfMemoryError("no"), RuntimeError("CUDA error: out of memory"), MemoryError()])
def test_out_of_memory_is_learnt_and_the_worker_goes_on(lite: Bench, error: Exception) -> None:
    study = make_study(lite.storage)
    lite.worker(study, lite.fakes(before_epoch=raising(error, (0, 2)))).run()
    assert states(study) == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert study.trials[0].constraints["out_of_memory"] == 1.0
    assert study.trials[0].user_attrs["failed"] == "out of memory"


def test_an_exception_fails_its_trial_with_the_reason(lite: Bench) -> None:
    study = make_study(lite.storage)
    error = ValueError("wrong shape\nand more")
    lite.worker(study, lite.fakes(before_epoch=raising(error, (1, 2)))).run()
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert study.trials[1].user_attrs["reason"] == "ValueError: wrong shape"
    assert study.trials[1].user_attrs["failed"] == "error"
    assert leases(lite.storage)[1].epochs_reserved == 1


def test_three_failures_in_a_row_stop_the_worker_before_they_burn_the_budget(lite: Bench) -> None:
    study = make_study(lite.storage, trials=20)

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        raise ValueError("no such file")

    with pytest.raises(UserError, match="3 trials failed in a row, the last one with: ValueError: no such file"):
        lite.worker(study, factory).run()
    assert states(study) == ["FAIL"] * 3


def test_failures_that_are_not_in_a_row_do_not_stop_the_worker(lite: Bench) -> None:
    study = make_study(lite.storage, trials=9)
    odd = raising(ValueError("x"), *[(n, 1) for n in range(9) if n % 3])
    assert lite.worker(study, lite.fakes(before_epoch=odd)).run().kind == "finished"
    assert Counter(states(study)) == {"FAIL": 6, "COMPLETE": 3}


def test_divergence_is_a_property_of_settings_and_stops_the_worker_later(lite: Bench) -> None:
    study = make_study(lite.storage, trials=20)
    with pytest.raises(UserError, match="9 trials failed in a row"):
        lite.worker(study, lite.fakes(value_at=lambda n, e: math.nan)).run()


def test_a_device_fault_leaves_the_trial_to_a_fresh_process_and_counts_as_an_attempt(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    fault = raising(RuntimeError("CUDA error: device-side assert triggered"), (0, 3))
    for _ in range(2):
        with pytest.raises(TryAgain):
            lite.worker(study, lite.fakes(before_epoch=fault)).run()
    assert states(study) == ["RUNNING"]
    factory = lite.fakes()
    assert lite.worker(study, factory).run().kind == "finished"
    assert factory.runs[0].trained == [3, 4]
    assert study.trials[0].user_attrs["attempt"] == 2  # two finished epochs, then two starts without one


def test_unusable_data_is_the_workers_trouble_and_not_the_trials(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        raise DataError("no frames")

    with pytest.raises(DataError):
        lite.worker(study, factory).run()
    assert leases(lite.storage)[0].owner is None
    assert lite.worker(study, lite.fakes()).run().kind == "finished"
    assert states(study) == ["COMPLETE"]


def test_a_full_disk_costs_checkpoints_and_not_the_trial(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)

    class Full(FakeRun):
        def save(self) -> None:
            raise OSError(28, "No space left on device")

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        return Full(lease.number, lease.epochs, lite.folder, lease.token)

    lite.worker(study, factory).run()
    assert states(study) == ["COMPLETE"]
    said = [event.message for event in lite.events.of(Warned)]
    full = rf"the disk of {re.escape(str(lite.folder))} is full \(\d+ MB free\)"
    for epoch in (1, 2, 3):
        assert re.fullmatch(
            rf"Trial 0: no checkpoint for epoch {epoch}: {full}. Training goes on without it. "
            r"Make room there: the next checkpoint is tried again\.",
            said[epoch - 1],
        )
    assert re.search(rf"{full}. The trial counts .*tried once more when the trial ends\.", said[3])


def test_a_checkpoint_that_cannot_be_written_says_why_and_never_names_a_scratch_file(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1, epochs=1)

    class Forbidden(FakeRun):
        def save(self) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(lite.folder / "main/00000/.last.1.pt.x.part"))

    lite.worker(study, lambda _, lease: Forbidden(lease.number, lease.epochs, lite.folder, lease.token)).run()
    (event,) = lite.events.of(Warned)
    assert f"{lite.folder} cannot be written (Permission denied)" in event.message and ".part" not in event.message


def test_a_trial_that_cannot_begin_on_a_full_disk_waits_for_room(lite: Bench) -> None:
    study = make_study(lite.storage, trials=2)
    fakes = lite.fakes()
    tries: list[int] = []

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        tries.append(lease.number)
        if len(tries) < 4:
            raise OSError(28, "No space left on device")
        return fakes(trial, lease)

    assert lite.worker(study, factory).run().kind == "finished"
    assert tries == [0, 0, 0, 0, 1]
    assert states(study) == ["COMPLETE", "COMPLETE"]
    assert {lease.attempt for lease in leases(lite.storage)} == {1}
    (event,) = lite.events.of(Waiting)
    assert re.fullmatch(
        rf"the disk of {re.escape(str(lite.folder))} is full \(\d+ MB free\); waiting for room", event.reason
    )
    assert lite.events.of(LeaseTaken) == []


def test_looks_for_room_on_a_full_disk_grow_rare_and_end_with_what_to_do(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    slept: list[float] = []
    pauses: list[float] = []

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        pauses.append(sum(slept) - sum(pauses))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TryAgain, match=r"is full \(\d+ MB free\), and was for \d+ s .*Make room under"):
        lite.worker(study, factory, Timing(poll_s=10.0, limit_s=150.0, sleep=slept.append)).run()
    assert pauses[:7] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert pauses[7:] and set(pauses[7:]) == {30.0}
    assert 150 <= sum(slept) < 180
    assert len(lite.events.of(Waiting)) == 1
    assert lite.events.of(LeaseTaken) == lite.events.of(Warned) == []
    assert leases(lite.storage)[0].owner is None


def test_a_trial_that_another_worker_left_is_still_announced_as_taken_over(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    registry = LeaseRegistry(lite.storage, "main")
    lease = registry.claim("other")
    assert isinstance(lease, Lease)
    registry.release(lease)
    lite.worker(study, lite.fakes()).run()
    assert [event.number for event in lite.events.of(LeaseTaken)] == [0]


def test_a_disk_that_stays_full_ends_the_worker_and_not_the_trials(lite: Bench) -> None:
    study = make_study(lite.storage, trials=2)

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        raise OSError(28, "No space left on device", "config.json")

    with pytest.raises(TryAgain, match="No space left"):
        lite.worker(study, factory, Timing(poll_s=0.05, limit_s=0.1)).run()
    assert states(study) == ["RUNNING"]
    assert leases(lite.storage)[0].owner is None
    assert lite.worker(study, lite.fakes()).run().kind == "finished"
    assert states(study) == ["COMPLETE", "COMPLETE"]


def test_a_trial_that_kills_its_workers_is_failed_and_learnt(lite: Bench) -> None:
    study = make_study(lite.storage, trials=2)
    registry = LeaseRegistry(lite.storage, "main")
    for worker in "abc":
        registry.claim(worker)
        expire(lite.storage)
    factory = lite.fakes()
    lite.worker(study, factory).run()
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert [run.number for run in factory.runs] == [1]
    assert study.trials[0].constraints["crashed"] == 1.0
    assert study.trials[0].user_attrs["failed"] == "crashed"
    assert "3 workers died" in study.trials[0].user_attrs["reason"]


def test_a_file_that_was_cut_short_by_a_kill_is_gone_when_the_trial_is_over(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    folder = lite.folder / "main" / "00000"
    folder.mkdir(parents=True)
    (folder / ".last.1.pt.abc.part").write_bytes(bytes(9))
    lite.worker(study, lite.fakes()).run()
    assert [path.name for path in folder.iterdir()] == ["last.1.json"]


# ---- leaving and taking over


def test_a_terminated_worker_finishes_its_epoch_and_the_next_one_goes_on_there(bench: Bench) -> None:
    study = make_study(bench.storage, trials=1)

    def terminate(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    first = bench.fakes(before_epoch=terminate)
    ended = bench.worker(study, first).run()
    assert (ended.kind, ended.reason) == ("stopped", "SIGTERM received")
    assert first.runs[0].trained == [1, 2]
    assert first.runs[0].finished == []
    assert states(study) == ["RUNNING"]
    assert leases(bench.storage)[0].owner is None
    second = bench.fakes()
    assert bench.worker(study, second).run().kind == "finished"
    assert second.runs[0].trained == [3, 4]
    assert second.params == first.params
    (trial,) = study.trials
    assert trial.intermediate_values == {epoch: curve(0, epoch) for epoch in range(1, 5)}
    assert trial.user_attrs["attempt"] == 1
    assert [event.reason for event in bench.events.of(Stopping)] == ["SIGTERM received"]
    assert [event.epoch for event in bench.events.of(TrialStarted)] == [0, 2]


def test_a_user_stops_a_trial_after_its_epoch_and_the_worker_takes_the_next(bench: Bench) -> None:
    study = make_study(bench.storage, epochs=6)

    def stopping(run: FakeRun, epoch: int) -> None:
        if (run.number, epoch) == (1, 3):  # from another machine: through the database alone
            with closing(open_storage(bench.storage._source)) as other:
                assert not stop_trial(other, "main", 1).ended

    fakes = bench.fakes(before_epoch=stopping)
    assert bench.worker(study, fakes).run().kind == "finished"
    assert study.get_trials()[1].user_attrs["reason"] == "stopped by hand at epoch 3"
    assert [run.trained for run in fakes.runs] == [[*range(1, 7)], [1, 2, 3], [*range(1, 7)]]
    assert states(study) == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert study.get_trials()[1].user_attrs["reason"] == "stopped by hand at epoch 3"
    assert fakes.runs[1].finished == [("pruned", "stopped by hand at epoch 3")]
    assert [(one.outcome, one.reason) for one in bench.events.of(TrialEnded)][1] == (
        "pruned",
        "stopped by hand at epoch 3",
    )


def test_a_trial_that_was_stopped_while_its_worker_was_dead_is_not_trained_again(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    lease = LeaseRegistry(lite.storage, "main").claim("dead-1-ab")
    assert isinstance(lease, Lease)
    assert stop_trial(lite.storage, "main", 0).worker == "dead-1-ab"
    expire(lite.storage)
    fakes = lite.fakes()
    assert lite.worker(study, fakes).run().kind == "finished"
    assert (fakes.runs, states(study)) == ([], ["PRUNED"])
    assert study.get_trials()[0].user_attrs["reason"] == "stopped by hand at epoch 0"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_the_first_epoch_leaves_the_trial_untouched(lite: Bench, number: signal.Signals) -> None:
    study = make_study(lite.storage, trials=1)
    fakes = lite.fakes()

    def factory(trial: optuna.Trial, lease: Lease) -> FakeRun:
        os.kill(os.getpid(), number)
        return fakes(trial, lease)

    assert lite.worker(study, factory).run().kind == "stopped"
    assert fakes.runs[0].trained == []
    assert leases(lite.storage)[0].owner is None


def test_a_second_signal_stops_at_once_and_still_releases_the_trial(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)

    def twice(run: FakeRun, epoch: int) -> None:
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second signal did not stop the epoch")

    first = lite.fakes(before_epoch=twice)
    with pytest.raises(Interrupted):
        lite.worker(study, first).run()
    assert leases(lite.storage)[0].owner is None
    second = lite.fakes()
    lite.worker(study, second).run()
    assert second.runs[0].trained == [3, 4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_operator_stops_a_worker_and_a_new_one_resumes_the_study(bench: Bench) -> None:
    study = make_study(bench.storage, trials=2)
    worker: Worker

    def ask(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            assert ask_stop(bench.storage, "main") == [worker.id]
            worker.reporter.show("running", "asked")  # brings the next beat forward
            until(lambda: worker.reporter.stop_asked)

    first = bench.fakes(before_epoch=ask)
    worker = bench.worker(study, first)
    assert worker.run().kind == "stopped"
    assert first.runs[0].trained == [1, 2]
    assert bench.worker(study, bench.fakes()).run().kind == "finished"
    assert states(study) == ["COMPLETE"] * 2


def test_a_lost_lease_ends_the_training_quietly_and_spoils_nothing(bench: Bench) -> None:
    study = make_study(bench.storage, trials=1)
    registry = LeaseRegistry(bench.storage, "main")
    taken: list[Lease] = []

    def lose(run: FakeRun, epoch: int) -> None:
        if epoch == 3:
            expire(bench.storage)
            lease = registry.claim("other")
            assert isinstance(lease, Lease)
            taken.append(lease)
            registry.report(lease, 3, 99.0)

    def finish_other(run: FakeRun) -> None:
        study.tell(0, 99.0, skip_if_finished=True)
        registry.finish(taken[0], "complete", "other", 4)

    factory = bench.fakes(before_epoch=lose)
    worker = bench.worker(study, factory)
    listener = worker._listener

    def watch(event: Any) -> None:
        listener(event)
        if isinstance(event, TrialLeft):
            finish_other(factory.runs[0])

    worker._listener = watch
    assert worker.run().kind == "finished"
    (run,) = factory.runs
    assert run.finished == []
    assert run.trained == [1, 2, 3]
    assert study.trials[0].intermediate_values[3] == 99.0
    assert study.trials[0].value == 99.0
    assert leases(bench.storage)[0].reason == "other"


def test_a_trial_told_by_a_worker_that_died_before_closing_is_only_closed(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    registry = LeaseRegistry(lite.storage, "main")
    lease = registry.claim("a")
    assert isinstance(lease, Lease)
    study.tell(0, 1.5)
    expire(lite.storage)
    factory = lite.fakes()
    assert lite.worker(study, factory).run().kind == "finished"
    assert factory.runs == []
    assert leases(lite.storage)[0].outcome == "complete"
    assert study.trials[0].value == 1.5


def test_a_trial_that_somebody_ends_in_the_dashboard_is_let_go(lite: Bench) -> None:
    study = make_study(lite.storage, trials=2)

    def end(run: FakeRun, epoch: int) -> None:
        if (run.number, epoch) == (0, 2):
            study.tell(0, state=TrialState.FAIL)

    assert lite.worker(study, lite.fakes(before_epoch=end)).run().kind == "finished"
    assert states(study) == ["FAIL", "COMPLETE"]
    assert [row.state for row in leases(lite.storage)] == ["done", "done"]


def test_a_verdict_that_the_dead_worker_did_not_act_on_is_asked_for_again(lite: Bench) -> None:
    pruner = PruneAt((0, 2))
    study = make_study(lite.storage, trials=1, pruner=pruner)
    registry = LeaseRegistry(lite.storage, "main")
    lease = registry.claim("a")
    assert isinstance(lease, Lease)
    for epoch in (1, 2):
        registry.report(lease, epoch, curve(0, epoch))
    expire(lite.storage)
    factory = lite.fakes()
    lite.worker(study, factory).run()
    assert factory.runs[0].trained == []
    assert states(study) == ["PRUNED"]


def test_reports_that_a_dead_worker_did_not_deliver_come_first_and_in_order(lite: Bench) -> None:
    pruner = PruneAt()
    study = make_study(lite.storage, trials=1, pruner=pruner)
    registry = LeaseRegistry(lite.storage, "main")
    lease = registry.claim("a")
    assert isinstance(lease, Lease)
    registry.report(lease, 1, curve(0, 1))
    run = FakeRun(0, 4, lite.folder / "main" / "00000", lease.token)
    epochs = run.run()
    for _ in range(3):
        next(epochs)
    run.save()
    expire(lite.storage)
    factory = lite.fakes()
    lite.worker(study, factory).run()
    assert factory.runs[0].trained == [4]
    assert pruner.asked == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert study.trials[0].intermediate_values == {epoch: curve(0, epoch) for epoch in range(1, 5)}
    assert lite.events.of(LeaseTaken)[0].token == 2


def test_interrupted_at_every_second_epoch_a_sequential_study_is_the_same(tmp_path: Path) -> None:
    def result(folder: Path, before: Callable[[FakeRun, int], None]) -> list[Any]:
        with closing(open_storage(f"sqlite:///{folder}/x.db")) as storage:
            bench = Bench(storage, folder)
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
            while True:
                study = make_study(storage, trials=4, sampler=ByNumber(seed=0), pruner=pruner)
                if bench.worker(study, bench.fakes(before_epoch=before, value_at=wave)).run().kind == "finished":
                    return [(t.state, t.params, t.intermediate_values, t.system_attrs) for t in study.trials]

    def wave(number: int, epoch: int) -> float:
        return float(np.sin(number * 7 + epoch))

    def interrupt(run: FakeRun, epoch: int) -> None:
        if epoch % 2 == 0 and len(run.trained) > 0:
            os.kill(os.getpid(), signal.SIGTERM)

    quiet = result(tmp_path / "a", lambda run, epoch: None)
    assert quiet == result(tmp_path / "b", interrupt)
    assert {state for state, *_ in quiet} == {TrialState.PRUNED, TrialState.COMPLETE}


# ---- the database goes away


def test_training_goes_on_through_an_outage_and_reports_are_delivered_in_order(
    bench: Bench, outage: Callable[[], Outages]
) -> None:
    pruner = PruneAt()
    study = make_study(bench.storage, trials=2, epochs=8, pruner=pruner)
    away: list[Outages] = []

    def before(run: FakeRun, epoch: int) -> None:
        if (run.number, epoch) == (0, 3):
            away.append(outage())
        if (run.number, epoch) == (0, 6):
            (spool,) = bench.folder.rglob("reports.1.jsonl")
            assert [line.split(",")[0] for line in spool.read_text().splitlines()] == [
                f'{{"epoch": {waiting}' for waiting in (3, 4, 5)
            ]
            away.pop().come_back()

    factory = bench.fakes(before_epoch=before)
    assert bench.worker(study, factory, Timing(ttl_s=8, poll_s=0.05)).run().kind == "finished"
    assert [run.trained for run in factory.runs] == [list(range(1, 9))] * 2
    assert pruner.asked == [(number, epoch) for number in (0, 1) for epoch in range(1, 9)]
    for number, trial in enumerate(study.trials):
        assert trial.intermediate_values == {epoch: curve(number, epoch) for epoch in range(1, 9)}
    assert any(event.pending for event in bench.events.of(EpochDone))
    assert bench.events.of(Outage)
    assert bench.events.of(Recovered)
    assert not list(bench.folder.rglob("reports.*"))


def test_pruning_that_was_decided_during_an_outage_is_acted_on_afterwards(lite: Bench, tmp_path: Path) -> None:
    study = make_study(lite.storage, trials=1, epochs=50, pruner=PruneAt((0, 3)))
    held: list[Any] = []

    def before(run: FakeRun, epoch: int) -> None:
        if epoch == 3:
            held.append(hold_sqlite(str(tmp_path / "x.db")))
        elif epoch == 6:
            held.pop().close()
        elif epoch == 7:
            until(lambda: lite.events.of(Recovered))

    factory = lite.fakes(before_epoch=before)
    lite.worker(study, factory, Timing(ttl_s=4, poll_s=0.05)).run()
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert trial.last_step == 3  # as without the outage
    assert len(factory.runs[0].trained) in (6, 7)


def test_an_outage_beyond_its_limit_ends_the_worker_and_nothing_is_lost(
    bench: Bench, outage: Callable[[], Outages]
) -> None:
    study = make_study(bench.storage, trials=1, epochs=60)
    away: list[Outages] = []

    def before(run: FakeRun, epoch: int) -> None:
        if epoch == 3:
            away.append(outage())
        if epoch > 3:
            time.sleep(0.15)

    first = bench.fakes(before_epoch=before)
    with pytest.raises(StorageUnreachable, match="reports wait for it"):
        bench.worker(study, first, Timing(ttl_s=4, limit_s=1.0, poll_s=0.05)).run()
    away.pop().come_back()
    trained = len(first.runs[0].trained)
    assert 3 < trained < 60
    expire(bench.storage)
    second = bench.fakes()
    bench.worker(study, second).run()
    assert second.runs[0].trained == list(range(trained + 1, 61))
    assert list(study.trials[0].intermediate_values) == list(range(1, 61))
    assert states(study) == ["COMPLETE"]


def test_a_stop_during_an_outage_does_not_wait_for_its_end(bench: Bench, outage: Callable[[], Outages]) -> None:
    study = make_study(bench.storage, trials=1)
    away: list[Outages] = []

    def before(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            away.append(outage())
            os.kill(os.getpid(), signal.SIGTERM)

    timing = Timing(ttl_s=4, poll_s=0.05)
    assert bench.worker(study, bench.fakes(before_epoch=before), timing).run().kind == "stopped"
    away.pop().come_back()
    assert leases(bench.storage)[0].state == "open"
    expire(bench.storage)
    second = bench.fakes()
    bench.worker(study, second).run()
    assert second.runs[0].trained == [3, 4]


# ---- the thread beside the training


def test_the_reporter_outlives_errors(sqlite: Storage) -> None:
    make_study(sqlite)

    class Clumsy(LeaseRegistry):
        beats = 0

        def beat(self, worker: str, beat: Beat, lease: Lease | None = None, *, renew: bool = True) -> Pulse:
            self.beats += 1
            if self.beats < 3:
                raise RuntimeError("clumsy")
            return super().beat(worker, beat, lease, renew=renew)

    def deaf(event: object) -> None:
        raise BrokenPipeError

    registry = Clumsy(sqlite, "main", ttl_s=1)
    reporter = Reporter(registry, "a", deaf, Timing(ttl_s=1))
    registry.register("a", Place.here(), "cpu")
    reporter.start()
    ask_stop(sqlite, "main")
    until(lambda: reporter.stop_asked)
    reporter.close()
    assert registry.beats >= 3


def test_a_hung_training_is_taken_over_although_its_process_lives(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    hung, go_on = threading.Event(), threading.Event()

    def hang(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            hung.set()
            go_on.wait()

    factory = lite.fakes(before_epoch=hang)
    worker = lite.worker(study, factory, Timing(ttl_s=1.0, poll_s=0.05, min_deadline_s=0.5, deadline_factor=1.0))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        hung.wait()
        until(lambda: lite.events.of(Stalled))
        other = lite.fakes()
        silent = lite.worker(study, other, Timing(ttl_s=1.0, poll_s=0.1), listener=lambda event: None)
        assert silent.run().kind == "finished"
    finally:
        go_on.set()
        thread.join()
    assert other.runs[0].trained == [2, 3, 4]
    assert [event.number for event in lite.events.of(TrialLeft)] == [0]
    assert factory.runs[0].finished == []
    assert states(study) == ["COMPLETE"]


def test_a_waiting_worker_takes_over_while_others_train(lite: Bench) -> None:
    study = make_study(lite.storage, trials=1)
    registry = LeaseRegistry(lite.storage, "main")
    lease = registry.claim("silent")
    assert isinstance(lease, Lease)
    worker = lite.worker(study, lite.fakes())
    listener = worker._listener

    def watch(event: Any) -> None:
        listener(event)
        if isinstance(event, Waiting):
            expire(lite.storage)

    worker._listener = watch
    assert worker.run().kind == "finished"
    assert lite.events.of(Waiting)
    assert states(study) == ["COMPLETE"]


def test_a_study_whose_name_leaves_the_folder_is_refused(lite: Bench) -> None:
    study = make_study(lite.storage, "../../x")
    with pytest.raises(StudyError, match="cannot be a folder"):
        lite.worker(study, lite.fakes())


def test_odd_names_stay_inside_the_folder(lite: Bench) -> None:
    for name in EVIL[1:]:
        study = make_study(lite.storage, name, trials=1)
        lite.worker(study, lite.fakes()).run()
        assert states(study) == ["COMPLETE"]
    assert len(list(lite.folder.rglob("last.1.json"))) == len(EVIL) - 1
    assert len(leases(lite.storage)) == len(EVIL) - 1


# ---- real processes


@dataclass
class Process:
    """A worker process with trials of numbers, see `tests.support.fakes`."""

    log: Path
    popen: subprocess.Popen[str]

    @classmethod
    def start(cls, url: str, folder: Path, name: str, epochs: int) -> Process:
        """A worker that waits for `go` after so many epochs."""
        log = folder / f"{name}.log"
        log.touch()
        command = [sys.executable, "-m", "tests.support.fakes", url, str(folder / "artifacts")]
        popen = subprocess.Popen(
            [*command, str(epochs), str(log)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return cls(log, popen)

    def epochs(self) -> list[tuple[int, int]]:
        """(trial, epoch) that it trained, in order."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [(int(number), int(epoch)) for number, epoch in lines]

    def trained(self, count: int) -> None:
        """Wait until it has trained `count` epochs."""
        until(lambda: len(self.epochs()) >= count, self.popen)

    def go(self) -> None:
        """Let it go on."""
        Path(f"{self.log}.go").touch()

    def end(self) -> str:
        """Its output, after its end."""
        return self.popen.communicate()[0]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_killed_worker_is_replaced_and_a_terminated_one_leaves_in_order(storage: Storage, tmp_path: Path) -> None:
    url = storage._source
    study = make_study(storage)
    first = Process.start(url, tmp_path, "first", 2)
    first.trained(2)
    first.popen.kill()
    first.end()
    second = Process.start(url, tmp_path, "second", 3)
    second.trained(3)
    second.popen.terminate()
    second.go()
    assert second.end() == "stopped\n"
    assert second.popen.returncode == 0
    third = Process.start(url, tmp_path, "third", -1)
    assert third.end() == "finished\n"
    assert third.popen.returncode == 0
    assert second.epochs()[0][0] == first.epochs()[-1][0]
    assert second.epochs()[0][1] in (2, 3)  # the epoch of the kill may or may not have been saved
    assert states(study) == ["COMPLETE"] * 3
    counts = Counter(first.epochs() + second.epochs() + third.epochs())
    assert set(counts) == {(number, epoch) for number in range(3) for epoch in range(1, 5)}
    assert sum(counts.values()) <= 13  # at most one epoch twice
    for number, trial in enumerate(study.trials):
        assert trial.intermediate_values == {epoch: curve(number, epoch) for epoch in range(1, 5)}


@pytest.mark.slow
@pytest.mark.postgres
def test_a_worker_that_was_frozen_finds_its_trial_taken_and_goes_on_with_another(
    postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.new_database("frozen")
    with closing(open_storage(url)) as storage:
        study = make_study(storage)
        frozen = Process.start(url, tmp_path, "frozen", 2)
        until(lambda: leases(storage) and leases(storage)[0].epochs_done == 2, frozen.popen)
        frozen.popen.send_signal(signal.SIGSTOP)
        os.waitpid(frozen.popen.pid, os.WUNTRACED)  # it stands still
        expire(storage)
        other = Process.start(url, tmp_path, "other", 1)
        other.trained(1)
        assert leases(storage)[0].token == 2
        frozen.popen.send_signal(signal.SIGCONT)
        frozen.go()
        until(lambda: any(number == 1 for number, _ in frozen.epochs()), frozen.popen)
        other.go()
        assert frozen.end() == "finished\n"
        assert other.end() == "finished\n"
        assert states(study) == ["COMPLETE"] * 3
        for number, trial in enumerate(study.trials):
            assert trial.intermediate_values == {epoch: curve(number, epoch) for epoch in range(1, 5)}
        assert [row.state for row in leases(storage)] == ["done"] * 3

"""Random orders of everything that workers do to leases, against a model that fits on one page."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from optuna.trial import TrialState

from cvaeopt.errors import LeaseLost
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Beat
from tests.support.fakes import leases, make_study

TTL_S = 100.0
WORKERS = st.sampled_from("abc")
_names = itertools.count()


@dataclass
class Slot:
    """What the model knows of one lease."""

    number: int
    token: int
    owner: str | None
    expires_at: float
    reserved: int
    done: int = 0
    open: bool = True


class Leases(RuleBasedStateMachine):
    """Three workers, who may forget what they hold, use what they lost, and do everything at any time."""

    shared: Storage  # one database for all runs of the model; every run has a study of its own

    @initialize(
        trials=st.sampled_from([None, 1, 3]),
        epochs=st.integers(1, 4),
        total=st.sampled_from([None, 4, 9]),
        enqueued=st.integers(0, 2),
    )
    def create(self, trials: int | None, epochs: int, total: int | None, enqueued: int) -> None:
        self.trials, self.epochs = trials, epochs
        self.total = 12 if trials is None and total is None else total
        self.storage = self.shared
        self.name = f"study {next(_names)}"
        self.study = make_study(self.storage, self.name, trials=trials, epochs=epochs, total_epochs=self.total)
        for x in range(enqueued):
            self.study.enqueue_trial({"x": x})
        self.now = 1000.0
        self.registry = LeaseRegistry(self.storage, self.name, ttl_s=TTL_S, clock=lambda: self.now)
        self.slots: dict[int, Slot] = {}
        self.handed_out: list[Lease] = []  # every lease ever, the newest last

    def current(self, lease: Lease) -> bool:
        slot = self.slots[lease.slot]
        return slot.open and slot.owner == lease.owner and slot.token == lease.token

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        answer = self.registry.claim(worker)
        mine = [slot for slot in self.slots.values() if slot.open and slot.owner == worker]
        still_open = [slot for slot in self.slots.values() if slot.open]
        room = (self.trials is None or len(self.slots) < self.trials) and (
            self.total is None or sum(slot.reserved for slot in self.slots.values()) + self.epochs <= self.total
        )
        if isinstance(answer, Idle):
            assert not mine
            assert not room
            assert all(slot.owner is not None for slot in still_open)
            assert answer.kind == ("wait" if still_open else "finished")
            return
        self.handed_out.append(answer)
        assert answer.owner == worker
        if answer.slot not in self.slots:
            assert room
            assert not mine
            assert all(slot.owner is not None for slot in still_open)
            assert (answer.slot, answer.token) == (len(self.slots), 1)
            self.slots[answer.slot] = Slot(answer.number, 1, worker, self.now + TTL_S, self.epochs)
            return
        slot = self.slots[answer.slot]
        assert slot.open
        assert answer.number == slot.number
        assert answer.epochs_done == slot.done
        if slot.owner == worker:
            assert answer.token == slot.token
        else:
            assert not mine
            assert slot.owner is None or slot.expires_at <= self.now
            assert answer.token == slot.token + 1
        slot.owner, slot.token, slot.expires_at = worker, answer.token, self.now + TTL_S

    def act(self, data: Any, action: Any) -> Slot | None:
        """Do `action` with any lease ever handed out: it must succeed exactly if that is the current one."""
        lease = data.draw(st.sampled_from(self.handed_out[-6:]))
        allowed = self.current(lease)
        try:
            action(lease)
        except LeaseLost:
            assert not allowed
            return None
        assert allowed
        return self.slots[lease.slot]

    @precondition(lambda self: self.handed_out)
    @rule(data=st.data())
    def renew(self, data: Any) -> None:
        slot = self.act(data, self.registry.renew)
        if slot is not None:
            slot.expires_at = self.now + TTL_S

    @precondition(lambda self: self.handed_out)
    @rule(data=st.data(), renew=st.booleans())
    def beat(self, data: Any, renew: bool) -> None:
        lease = data.draw(st.sampled_from(self.handed_out[-6:]))
        held = self.registry.beat(lease.owner, Beat("running"), lease, renew=renew).held
        assert held == self.current(lease)
        if held and renew:
            self.slots[lease.slot].expires_at = self.now + TTL_S

    @precondition(lambda self: self.handed_out)
    @rule(data=st.data())
    def report(self, data: Any) -> None:
        lease = data.draw(st.sampled_from(self.handed_out[-6:]))
        epoch = min(self.slots[lease.slot].done + 1, self.epochs)
        allowed = self.current(lease)
        try:
            self.registry.report(lease, epoch, float(epoch))
        except LeaseLost:
            assert not allowed
            return
        assert allowed
        slot = self.slots[lease.slot]
        slot.done, slot.expires_at = epoch, self.now + TTL_S

    @precondition(lambda self: self.handed_out)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        def action(lease: Lease) -> None:
            slot = self.slots[lease.slot]
            if slot.open and slot.token == lease.token and slot.owner is None:
                raise LeaseLost("released before: the call is a repetition and does nothing")
            self.registry.release(lease)

        slot = self.act(data, action)
        if slot is not None:
            slot.owner, slot.expires_at = None, self.now

    @precondition(lambda self: self.handed_out)
    @rule(data=st.data(), pruned=st.booleans())
    def finish(self, data: Any, pruned: bool) -> None:
        lease = data.draw(st.sampled_from(self.handed_out[-6:]))
        slot = self.slots[lease.slot]
        if not slot.open and slot.token == lease.token:
            return  # a repetition, which does nothing
        allowed = self.current(lease)
        if allowed:  # the worker tells first
            state = TrialState.PRUNED if pruned else TrialState.COMPLETE
            self.study.tell(lease.number, None if pruned else 1.0, state, skip_if_finished=True)
        try:
            self.registry.finish(lease, "pruned" if pruned else "complete", "", slot.done)
        except LeaseLost:
            assert not allowed
            return
        assert allowed
        slot.open, slot.reserved = False, slot.done

    @rule(seconds=st.sampled_from([1.0, TTL_S / 3, TTL_S, 3 * TTL_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def the_tables_are_what_the_model_says(self) -> None:
        if not hasattr(self, "slots"):
            return
        rows = [row for row in leases(self.storage) if row.study == self.name]
        assert len(rows) == len(self.slots)
        for row in rows:
            slot = self.slots[row.slot]
            assert (row.number, row.token, row.epochs_reserved) == (slot.number, slot.token, slot.reserved)
            assert (row.state == "open") == slot.open
            if slot.open:
                assert row.owner == slot.owner
                assert row.expires_at == slot.expires_at
        assert self.trials is None or len(rows) <= self.trials
        assert self.total is None or sum(row.epochs_reserved for row in rows) <= self.total
        leased = {row.number for row in rows}
        running = {row.number for row in rows if row.state == "open"}
        for trial in self.study.get_trials(deepcopy=False):
            assert (trial.state == TrialState.RUNNING) == (trial.number in running)
            assert (trial.state == TrialState.WAITING) == (trial.number not in leased)


def test_random_orders_of_events_keep_every_promise(tmp_path: Path) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with open_storage(f"sqlite:///{tmp_path}/x.db") as Leases.shared:
        Leases.TestCase.settings = settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        Leases.TestCase("runTest").runTest()

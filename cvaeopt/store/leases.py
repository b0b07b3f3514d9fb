"""Leases: which worker trains which trial, and until when.

A lease is the right to train a trial, and it reserves the trial's epochs in the budget. `claim` gives a worker a trial
and its lease in one transaction. No other `claim` for the same study can run at the same time. Therefore:

    every trial that is RUNNING has exactly one lease
    the number of leases never exceeds the study's budget of trials, and reserved epochs never exceed its epochs
    a worker with an older token of a lease can neither renew, report, release nor finish the lease

The next worker that asks gets an expired lease, with the next token, and trains the same trial. After an outage of the
database every lease looks expired. So no expired lease is taken over until `grace_until`, and the workers that still
run have time to renew their leases. If a worker's process has ended, another worker on the same machine detects this
and takes the lease over at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, and_, case, func, select, update

from cvaeopt.errors import LeaseLost, StorageUnreachable, StudyError
from cvaeopt.store import roles, versions
from cvaeopt.store.budget import spent
from cvaeopt.store.live_study import LiveStudy, in_transaction
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table
from cvaeopt.store.workers import Beat, Place, enter, mark_dead, note_beat

CONSTRAINTS = ("diverged", "out_of_memory", "crashed")
"""Constraints of every finished trial, 0.0 if satisfied. Samplers learn from them which settings cannot be trained."""

Outcome = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class Lease:
    """The right to train one trial.

    token            rises with every new owner; part of the names of files that only one owner may write
    attempt          number of this attempt to finish the next epoch, from 1; a worker's death starts a new attempt
    exhausted        True if `attempt` is above the limit: the worker must end the trial without training
    epochs           epochs of a whole trial
    epochs_done      epochs reported so far
    folder           the trial's folder under the artifact folder
    checkpoint_epoch, checkpoint_host    the epoch of the newest recorded checkpoint, and the host that has it
    version          number of the version of the study's definition under which the trial was begun
    """

    study: str
    slot: int
    token: int
    owner: str
    trial_id: int
    number: int
    attempt: int
    exhausted: bool
    epochs: int
    epochs_done: int
    folder: str
    checkpoint_epoch: int | None = None
    checkpoint_host: str | None = None
    version: int = 1


@dataclass(frozen=True)
class Idle:
    """There is no trial to train.

    kind   "wait" while other workers train trials, which they may give back; "finished" if no trial can come any more;
           "extended" if the worker must take the newest version of the study's definition first
    """

    kind: Literal["wait", "finished", "extended"]
    reason: str


@dataclass(frozen=True)
class Pulse:
    """The answer to `beat`.

    stop   whether the worker was asked to stop
    held   whether the worker still holds its lease
    """

    stop: bool
    held: bool


class LeaseRegistry(LiveStudy):
    """The leases of one study, and the workers that hold them.

    ttl_s          how long a lease is valid after the last sign of life of its worker, seconds
    max_attempts   number of attempts to finish the same epoch; then the trial ends as failed
    clock          a clock in seconds; None for the database's clock. Tests give another clock.
    digest         the digest of the definition that the worker has; None if the worker takes trials of every version
    """

    def __init__(
        self,
        storage: Storage,
        study: str,
        *,
        ttl_s: float = 120.0,
        max_attempts: int = 3,
        clock: Callable[[], float] | None = None,
        digest: str | None = None,
    ) -> None:
        super().__init__(storage, study, ttl_s=ttl_s, clock=clock)
        self.max_attempts = max_attempts
        self.digest = digest

    # ---- taking a trial

    @in_transaction
    def claim(self, connection: Connection, worker: str, place: Place | None = None) -> Lease | Idle:
        """A lease for `worker`, whose trial is RUNNING, or the reason why there is no trial to train.

        Trials without an owner come first; then a new trial starts, if the budget permits it. A worker that asks again
        gets the same lease, so the call can be repeated if its answer was lost. StudyGone if the study was deleted.
        """
        study = self.storage.lock_study(connection, self.study)
        if not self._exists(connection):
            raise self._gone()
        now = self._now(connection)
        self._note_life(connection, now)
        if self.digest not in (None, study.digest):
            return Idle("extended", "the study's definition has a new version")
        rows = connection.execute(
            select(lease_table, worker_table.c.kernel, worker_table.c.pid)
            .select_from(lease_table.outerjoin(worker_table, lease_table.c.owner == worker_table.c.id))
            .where(lease_table.c.study == self.study, lease_table.c.state == "open")
            .order_by(lease_table.c.slot)
        ).all()
        dead = {
            row.owner
            for row in rows
            if place is not None and row.pid is not None and place.has_seen_die(row.kernel, row.pid)
        } - {worker}
        grace_until = connection.execute(
            select(study_table.c.grace_until).where(study_table.c.name == self.study)
        ).scalar_one()
        in_grace = grace_until is not None and now < grace_until
        row, crashed = _choose(rows, worker, lambda row: row.owner in dead or (row.expires_at <= now and not in_grace))
        if row is not None and crashed:
            dead.add(row.owner)
        if dead:
            mark_dead(connection, dead)
        if row is not None:
            return self._take(connection, row, worker, now, crashed=crashed)
        reason = spent(connection, study, now)
        if not reason:
            return self._new(connection, worker, now, study)
        if rows:
            return Idle("wait", f"{reason}; {len(rows)} still being trained elsewhere")
        return Idle("finished", reason)

    def _take(self, connection: Connection, row: Row[Any], worker: str, now: float, *, crashed: bool) -> Lease:
        attempt, attempt_epoch = row.attempt, row.attempt_epoch
        if crashed:
            # An epoch was finished in this attempt. So the trial can be trained, and the count starts again.
            if row.epochs_done > attempt_epoch:
                attempt, attempt_epoch = 1, row.epochs_done
            else:
                attempt += 1
        changed = {
            "owner": worker,
            "token": row.token if row.owner == worker else row.token + 1,
            "expires_at": now + self.ttl_s,
            "attempt": attempt,
            "attempt_epoch": attempt_epoch,
        }
        connection.execute(
            update(lease_table)
            .where(lease_table.c.study == self.study, lease_table.c.slot == row.slot)
            .values(**changed)
        )
        version = versions.of_trial(connection, row.trial_id)
        return _lease(self.max_attempts, {**row._mapping, **changed, "version": version})

    def _new(self, connection: Connection, worker: str, now: float, study: Row[Any]) -> Lease:
        try:
            trial_id, number = self.storage.next_trial(connection, study.study_id)
        except KeyError:
            raise self._gone() from None
        slot = connection.execute(
            select(func.coalesce(func.max(lease_table.c.slot), -1) + 1).where(lease_table.c.study == self.study)
        ).scalar_one()
        values = {
            "study": self.study,
            "slot": slot,
            "trial_id": trial_id,
            "number": number,
            "state": "open",
            "owner": worker,
            "token": 1,
            "expires_at": now + self.ttl_s,
            "attempt": 1,
            "attempt_epoch": 0,
            "epochs_reserved": study.epochs,
            "epochs_done": 0,
            "folder": f"{self.study}/{number:05d}",
        }
        connection.execute(lease_table.insert().values(**values))
        if study.started_at is None:
            connection.execute(update(study_table).where(study_table.c.name == self.study).values(started_at=now))
        version = versions.newest_number(connection, study.study_id)
        versions.set_of_trial(connection, trial_id, version)
        return _lease(self.max_attempts, {**values, "version": version})

    # ---- holding a lease

    @in_transaction
    def renew(self, connection: Connection, lease: Lease) -> None:
        """Extend the lease until `ttl_s` from now; LeaseLost if another worker holds the trial."""
        self._write(connection, lease, expires_at=self._now(connection) + self.ttl_s)

    @in_transaction
    def report(
        self, connection: Connection, lease: Lease, epoch: int, value: float, saved: tuple[int, str] | None = None
    ) -> None:
        """Write the value of one finished epoch; LeaseLost if another worker holds the trial.

        The lease is renewed, and a new checkpoint `saved` = (epoch, host) recorded. UpdateFinishedTrialError if another
        program has ended the trial.
        """
        done = lease_table.c.epochs_done
        self._write(
            connection,
            lease,
            expires_at=self._now(connection) + self.ttl_s,
            epochs_done=case((done < epoch, epoch), else_=done),
            **_checkpoint(saved),
        )
        self.storage.write_report(connection, lease.trial_id, epoch, value)

    @in_transaction
    def release(self, connection: Connection, lease: Lease, *, crashed: bool = False) -> None:
        """Give the trial back, so that another worker can take it. LeaseLost if another worker holds the trial.

        crashed   True if the training crashed: the next start of the trial then counts as a new attempt
        """
        row = self._row(connection, lease)
        if row.token == lease.token and row.state == "open" and row.owner is None:
            return  # an earlier call released the lease, but its acknowledgement was lost
        if crashed:
            self._write(connection, lease, expires_at=0.0)
        else:
            self._write(connection, lease, expires_at=self._now(connection), owner=None)

    @in_transaction
    def finish(self, connection: Connection, lease: Lease, outcome: Outcome, reason: str, epochs_done: int) -> None:
        """Close the lease; reserved epochs that were not trained return to the budget. LeaseLost as in `report`.

        The trial must have ended in Optuna (`study.tell`) before. If the study was extended meanwhile, the trial gets
        its role in the newest version here.
        """
        locked = select(study_table).where(study_table.c.name == self.study).with_for_update()
        study = connection.execute(locked).mappings().one_or_none()
        row = self._row(connection, lease)
        if row.token == lease.token and (row.state == "done" or _reopened(connection, lease, row)):
            return  # an earlier call closed the lease, and `settle` may have opened it again: the answer was lost
        epochs = min(epochs_done, row.epochs_reserved)
        self._write(
            connection,
            lease,
            state="done",
            outcome=outcome,
            reason=reason,
            epochs_done=epochs,
            epochs_reserved=epochs,
        )
        if study is not None:
            roles.settle(self.storage, connection, dict(study), lease.trial_id)

    def _row(self, connection: Connection, lease: Lease) -> Row[Any]:
        row = connection.execute(
            select(lease_table)
            .where(lease_table.c.study == lease.study, lease_table.c.slot == lease.slot)
            .with_for_update()
        ).one_or_none()
        if row is None:
            raise lost(lease)
        return row

    def _write(self, connection: Connection, lease: Lease, **values: Any) -> None:
        """Change the lease's row; LeaseLost if `lease` does not have the newest token, or if the study was deleted."""
        if (
            not self._exists(connection)
            or connection.execute(update(lease_table).where(_held(lease)).values(**values)).rowcount != 1
        ):
            raise lost(lease)

    def check_lost(self, lease: Lease) -> None:
        """Raise an error if the worker cannot continue after it has lost `lease`.

        StudyGone if the study was deleted, StudyError if the row of the lease was deleted.
        """
        listed = select(func.count()).where(
            lease_table.c.study == lease.study, lease_table.c.trial_id == lease.trial_id
        )
        with contextlib.suppress(StorageUnreachable), self.storage.patience(10.0):
            self.check_study()
            if not self.storage.read(lambda connection: connection.execute(listed).scalar_one()):
                raise _row_gone(lease)

    # ---- workers

    @in_transaction
    def register(self, connection: Connection, worker: str, place: Place, device: str) -> None:
        """Write a row for the worker, and delete the reason of an earlier stop from the study's row."""
        now = self._now(connection)
        self._exists(connection)  # this call remembers the study, so that a later study of the same name is detected
        connection.execute(update(study_table).where(study_table.c.name == self.study).values(stopped_reason=None))
        enter(connection, self.study, worker, place, device, self.ttl_s, now)

    @in_transaction
    def beat(
        self, connection: Connection, worker: str, beat: Beat, lease: Lease | None = None, *, renew: bool = True
    ) -> Pulse:
        """Record a sign of life of the worker, and renew `lease` (not with `renew` False: the training hangs)."""
        now = self._now(connection)
        self._note_life(connection, now)
        held = lease is not None
        if lease is not None:
            values = _checkpoint(beat.saved)
            if renew:
                values["expires_at"] = now + self.ttl_s
            if values:
                held = connection.execute(update(lease_table).where(_held(lease)).values(**values)).rowcount == 1
            else:
                held = connection.execute(select(func.count()).where(_held(lease))).scalar_one() == 1
            held = held and self._exists(connection)
        return Pulse(stop=note_beat(connection, worker, beat, now), held=held)


def _lease(max_attempts: int, row: dict[str, Any]) -> Lease:
    """The lease of a row. The row of an open lease reserves all epochs of its trial."""
    names = Lease.__dataclass_fields__.keys() & row.keys()
    exhausted = row["attempt"] > max_attempts
    return Lease(**{name: row[name] for name in names}, exhausted=exhausted, epochs=row["epochs_reserved"])


def _choose(rows: Sequence[Row[Any]], worker: str, is_dead: Callable[[Row[Any]], bool]) -> tuple[Row[Any] | None, bool]:
    """The open lease that `worker` gets, or None; and whether the lease's earlier owner has died.

    The worker's own lease comes first, then a lease that was given back, then a lease whose owner is dead.
    """
    for row in rows:
        if row.owner == worker:
            return row, False
    for row in rows:
        if row.owner is None:
            return row, False
    for row in rows:
        if is_dead(row):
            return row, True
    return None, False


def _checkpoint(saved: tuple[int, str] | None) -> dict[str, Any]:
    return {} if saved is None else {"checkpoint_epoch": saved[0], "checkpoint_host": saved[1][:255]}


def lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"Trial {lease.number} is being trained by another worker now.")


def _row_gone(lease: Lease) -> StudyError:
    return StudyError(
        f"Study {lease.study!r}: the row of trial {lease.number} (slot {lease.slot}) is no longer in cvaeopt_lease.",
        "Expected: one row for each trial that was begun, which only this program changes.",
        "Restore a backup (cvaeopt admin restore), or give the study a new name.",
    )


def _held(lease: Lease) -> Any:
    """The SQL condition that `lease` has the newest token of its trial and is still open."""
    return and_(
        lease_table.c.study == lease.study,
        lease_table.c.slot == lease.slot,
        lease_table.c.token == lease.token,
        lease_table.c.owner == lease.owner,
        lease_table.c.state == "open",
    )


def _reopened(connection: Connection, lease: Lease, row: Row[Any]) -> bool:
    """Whether `roles.settle` has opened the lease again, because the trial continues in a newer version."""
    return row.owner is None and versions.of_trial(connection, lease.trial_id) > lease.version

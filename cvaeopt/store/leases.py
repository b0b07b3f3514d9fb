"""The fleet: which worker trains which trial, until when, and what the study may still spend.

A lease is a trial's place in the budget and the right to train it. `claim` hands one out in one serialised
transaction, together with its trial, so:

    no trial is RUNNING without a lease, and none has two
    slots never exceed the study's trials, reserved epochs never exceed its epochs
    whoever holds an older token of a lease can neither renew, report, release nor finish it

An expired lease is taken over by whoever asks next: same trial, next token. After an outage of the database every
lease looks expired; nobody is declared dead until the living had time to renew (`grace_until`). A worker that died
on the same machine is recognised by its process and replaced at once.

All times are the database's (`Storage.now`), so workers' clocks and time zones do not matter.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Row, and_, case, delete, func, or_, select, update

from cvaeopt.errors import LeaseLost, StorageUnreachable, StudyError, StudyGone, UserError
from cvaeopt.files import digest
from cvaeopt.store import ranking
from cvaeopt.store.damage import explained
from cvaeopt.store.optuna_private import STUDIES
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table

T = TypeVar("T")

CONSTRAINTS = ("diverged", "out_of_memory", "crashed")
"""Constraints that every finished trial carries, 0.0 when fine: samplers learn from them what cannot be trained."""

Outcome = Literal["complete", "pruned", "failed"]

_FORGET_S = 86400.0  # how long the row of a worker that is gone is shown


@dataclass(frozen=True)
class Lease:
    """The right to train one trial.

    token            rises with every owner; part of the names of files that only one owner may write
    attempt          starts since the last finished epoch, this one included
    exhausted        True if the trial killed its workers too often: end it, do not train it
    epochs           epochs of a whole trial
    epochs_done      epochs reported so far
    folder           the trial's folder under the artifact folder
    checkpoint_epoch, checkpoint_host    the newest checkpoint that was announced, and where
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


@dataclass(frozen=True)
class Idle:
    """There is nothing to train: for now ("wait": others may still leave a trial), or ever ("finished")."""

    kind: Literal["wait", "finished"]
    reason: str


@dataclass(frozen=True)
class Place:
    """Where a worker runs.

    kernel   names the running system and its process table: with equal `kernel`, a missing pid means dead
    """

    host: str
    pid: int
    kernel: str

    @classmethod
    def here(cls) -> Place:
        """This process."""
        host = socket.gethostname()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            table = Path("/proc/self/ns/pid").stat().st_ino
        except OSError:  # not Linux: death is then noticed by the lease's end only
            return cls(host, os.getpid(), "")
        return cls(host, os.getpid(), digest([host, boot, table]))

    def has_seen_die(self, kernel: str, pid: int) -> bool:
        """True if the process `pid` of `kernel` certainly runs no more."""
        if not self.kernel or kernel != self.kernel:
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False

    def new_id(self) -> str:
        """A worker's name, unique in the database: host-pid-random."""
        return f"{self.host[:64]}-{self.pid}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class WorkerRow:
    """One worker as `status` shows it.

    state   "dead" when it gave no sign of life for the time of a lease, or when another worker saw that its process
            is gone or took its trial over
    """

    id: str
    study: str
    host: str
    pid: int
    device: str
    state: str
    trial: int | None
    epoch: int | None
    beat_age_s: float
    uptime_s: float
    stopping: bool
    message: str


@dataclass(frozen=True)
class Pulse:
    """What a beat brought back: whether a stop was asked for, and whether the lease is still held."""

    stop: bool
    held: bool


@dataclass(frozen=True)
class Beat:
    """What a worker says about itself; `saved` is (epoch, host) of a new checkpoint."""

    state: str
    trial: int | None = None
    epoch: int | None = None
    message: str = ""
    saved: tuple[int, str] | None = None


class Fleet:
    """The workers of one study: the one that had the name at the first call, never a later study of the same name.

    ttl_s          how long a lease lives without a sign of life, seconds
    max_attempts   starts of a trial without a finished epoch between them, before it is given up
    clock          seconds; the database's clock unless a test pushes its own
    """

    def __init__(
        self,
        storage: Storage,
        study: str,
        *,
        ttl_s: float = 120.0,
        max_attempts: int = 3,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.storage = storage
        self.study = study
        self.ttl_s = ttl_s
        self.max_attempts = max_attempts
        self._clock = clock
        self._born: tuple[int, float] | None = None  # which study it is: its id, which may be used again, and its time

    def _ask(self, call: Callable[[], T]) -> T:
        """What `call` returns, as `Storage.retry`; StudyDamaged where a damaged row kept it from that."""
        with explained(self.storage, self.study):
            return self.storage.retry(call)

    # ---- the study itself

    def check_study(self) -> None:
        """StudyGone if the study was deleted since the first call, also if another one has its name now."""
        self.storage.retry(self._check_study)

    def _check_study(self) -> None:
        with self.storage.reading() as connection:
            if not self._is_there(connection):
                raise self._gone()

    def _is_there(self, connection: Connection) -> bool:
        born = connection.execute(
            select(study_table.c.study_id, study_table.c.created_at)
            .join(
                STUDIES,
                and_(STUDIES.c.study_id == study_table.c.study_id, STUDIES.c.study_name == study_table.c.name),
            )
            .where(study_table.c.name == self.study)
        ).one_or_none()
        if born is None:
            return False
        self._born = self._born or (born.study_id, born.created_at)
        return self._born == (born.study_id, born.created_at)

    def _gone(self) -> StudyGone:
        return StudyGone(
            f"Study {self.study!r} was deleted from {self.storage.url}.",
            "Expected: it stays while workers run.",
            "The files of its trials stay where they are. Restore a backup; or start a worker again, which makes the "
            "study anew, with files of its own.",
        )

    # ---- leases

    def claim(self, worker: str, place: Place | None = None) -> Lease | Idle:
        """A lease for `worker` with its trial RUNNING, or why there is none. StudyGone if the study was deleted.

        First a trial that was left (released, or its owner is dead), then a new one if the budget permits. A
        worker holds one lease at most: asking again returns that one, so a lost answer costs nothing.
        """
        return self._ask(lambda: self._claim(worker, place))

    def _claim(self, worker: str, place: Place | None) -> Lease | Idle:
        with self.storage.transaction() as connection:
            budget = self.storage.lock_study(connection, self.study)
            if not self._is_there(connection):
                raise self._gone()
            now = self._now(connection)
            self._sign_of_life(connection, now)
            grace_until = connection.execute(
                select(study_table.c.grace_until).where(study_table.c.name == self.study)
            ).scalar_one()
            in_grace = grace_until is not None and now < grace_until
            open_leases = connection.execute(
                select(lease_table, worker_table.c.kernel, worker_table.c.pid)
                .select_from(lease_table.outerjoin(worker_table, lease_table.c.owner == worker_table.c.id))
                .where(lease_table.c.study == self.study, lease_table.c.state == "open")
                .order_by(lease_table.c.slot)
            ).all()
            gone = {
                row.owner
                for row in open_leases
                if place is not None and row.pid is not None and place.has_seen_die(row.kernel, row.pid)
            } - {worker}
            if gone:
                self._bury(connection, gone)
            for row in open_leases:
                if row.owner == worker:
                    return self._take(connection, row, worker, now, budget, token=row.token)
            for row in open_leases:
                if row.owner is None:
                    return self._take(connection, row, worker, now, budget, token=row.token + 1)
            for row in open_leases:
                if row.owner in gone or (row.expires_at <= now and not in_grace):
                    self._bury(connection, {row.owner})
                    return self._take(connection, row, worker, now, budget, token=row.token + 1, crashed=True)
            spent = self._spent(connection, budget, now)
            if not spent:
                return self._new(connection, worker, now, budget)
            if open_leases:
                return Idle("wait", f"{spent}; {len(open_leases)} still being trained elsewhere")
            return Idle("finished", spent)

    def _bury(self, connection: Connection, owners: set[str]) -> None:
        """Show these workers as dead until they beat again."""
        connection.execute(
            update(worker_table)
            .where(worker_table.c.id.in_(owners), worker_table.c.state.not_in(("stopped", "dead")))
            .values(state="dead")
        )

    def _take(
        self,
        connection: Connection,
        row: Row[Any],
        worker: str,
        now: float,
        budget: Row[Any],
        *,
        token: int,
        crashed: bool = False,
    ) -> Lease:
        attempt, attempt_epoch = row.attempt, row.attempt_epoch
        if crashed:
            # A finished epoch since the last start proves that the trial does not kill its host at once.
            if row.epochs_done > attempt_epoch:
                attempt, attempt_epoch = 1, row.epochs_done
            else:
                attempt += 1
        connection.execute(
            update(lease_table)
            .where(lease_table.c.study == self.study, lease_table.c.slot == row.slot)
            .values(
                owner=worker,
                token=token,
                expires_at=now + self.ttl_s,
                attempt=attempt,
                attempt_epoch=attempt_epoch,
            )
        )
        return Lease(
            study=self.study,
            slot=row.slot,
            token=token,
            owner=worker,
            trial_id=row.trial_id,
            number=row.number,
            attempt=attempt,
            exhausted=attempt > self.max_attempts,
            epochs=budget.epochs,
            epochs_done=row.epochs_done,
            folder=row.folder,
            checkpoint_epoch=row.checkpoint_epoch,
            checkpoint_host=row.checkpoint_host,
        )

    def _spent(self, connection: Connection, budget: Row[Any], now: float) -> str:
        """Why no new trial may begin, or an empty text."""
        slots, reserved = connection.execute(
            select(func.count(), func.coalesce(func.sum(lease_table.c.epochs_reserved), 0)).where(
                lease_table.c.study == self.study
            )
        ).one()
        if budget.trials is not None and slots >= budget.trials:
            return f"all {budget.trials} trials are taken"
        if budget.total_epochs is not None and reserved + budget.epochs > budget.total_epochs:
            return f"{reserved} of {budget.total_epochs} epochs are taken and a trial needs {budget.epochs}"
        started_at = budget.started_at
        if budget.wall_clock_s is not None and started_at is not None and now - started_at >= budget.wall_clock_s:
            return f"the study's {budget.wall_clock_s / 3600:.3g} h are over"
        return self._enough(connection, budget)

    def _enough(self, connection: Connection, budget: Row[Any]) -> str:
        """Why the trials that have ended are enough, or an empty text."""
        rules = json.loads(budget.definition).get("budget", {})
        target, patience = rules.get("target_db"), rules.get("patience_trials")
        if target is None and patience is None:
            return ""
        best, since = ranking.progress(connection, budget.study_id)
        if best is None:
            return ""
        if target is not None and best >= target:
            return f"the best trial reaches {best:.2f} dB, the target was {target:g}"
        if patience is not None and since >= patience:
            return f"{since} trials have ended since the best one ({best:.2f} dB)"
        return ""

    def _new(self, connection: Connection, worker: str, now: float, budget: Row[Any]) -> Lease:
        try:
            trial_id, number = self.storage.next_trial(connection, budget.study_id)
        except KeyError:
            raise self._gone() from None
        slot = connection.execute(
            select(func.coalesce(func.max(lease_table.c.slot), -1) + 1).where(lease_table.c.study == self.study)
        ).scalar_one()
        folder = f"{self.study}/{number:05d}"
        connection.execute(
            lease_table.insert().values(
                study=self.study,
                slot=slot,
                trial_id=trial_id,
                number=number,
                state="open",
                owner=worker,
                token=1,
                expires_at=now + self.ttl_s,
                attempt=1,
                attempt_epoch=0,
                epochs_reserved=budget.epochs,
                epochs_done=0,
                folder=folder,
            )
        )
        if budget.started_at is None:
            connection.execute(update(study_table).where(study_table.c.name == self.study).values(started_at=now))
        return Lease(
            study=self.study,
            slot=slot,
            token=1,
            owner=worker,
            trial_id=trial_id,
            number=number,
            attempt=1,
            exhausted=False,
            epochs=budget.epochs,
            epochs_done=0,
            folder=folder,
        )

    def renew(self, lease: Lease) -> None:
        """Extend the lease by its time to live; LeaseLost if another worker holds the trial."""
        self._ask(lambda: self._renew(lease))

    def _renew(self, lease: Lease) -> None:
        with self.storage.transaction() as connection:
            self._write(connection, lease, expires_at=self._now(connection) + self.ttl_s)

    def report(self, lease: Lease, epoch: int, value: float, saved: tuple[int, str] | None = None) -> None:
        """Write the value of one finished epoch, fenced: LeaseLost if another worker holds the trial.

        The same transaction renews the lease and notes a new checkpoint, `saved` = (epoch, host).
        UpdateFinishedTrialError if the trial was ended by someone else.
        """
        self._ask(lambda: self._report(lease, epoch, value, saved))

    def _report(self, lease: Lease, epoch: int, value: float, saved: tuple[int, str] | None) -> None:
        with self.storage.transaction() as connection:
            done = lease_table.c.epochs_done
            self._write(
                connection,
                lease,
                expires_at=self._now(connection) + self.ttl_s,
                epochs_done=case((done < epoch, epoch), else_=done),
                **_checkpoint(saved),
            )
            self.storage.write_report(connection, lease.trial_id, epoch, value)

    def release(self, lease: Lease, *, crashed: bool = False) -> None:
        """Leave the trial to whoever is free; `crashed` counts as an attempt. LeaseLost if it is held elsewhere."""
        self._ask(lambda: self._release(lease, crashed))

    def _release(self, lease: Lease, crashed: bool) -> None:
        with self.storage.transaction() as connection:
            row = self._row(connection, lease)
            if row.token == lease.token and row.state == "open" and row.owner is None:
                return  # done before, its acknowledgement was lost
            if crashed:
                self._write(connection, lease, expires_at=0.0)
            else:
                self._write(connection, lease, expires_at=self._now(connection), owner=None)

    def finish(self, lease: Lease, outcome: Outcome, reason: str, epochs_done: int) -> None:
        """Close the lease; epochs that were reserved and not trained return to the study's budget.

        The trial must have been told before. LeaseLost if it is held elsewhere.
        """
        self._ask(lambda: self._finish(lease, outcome, reason, epochs_done))

    def _finish(self, lease: Lease, outcome: Outcome, reason: str, epochs_done: int) -> None:
        with self.storage.transaction() as connection:
            row = self._row(connection, lease)
            if row.token == lease.token and row.state == "done":
                return  # done before, its acknowledgement was lost
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
        """Change the lease's row if `lease` is its newest token and its study is there; LeaseLost otherwise."""
        if (
            not self._is_there(connection)
            or connection.execute(update(lease_table).where(_held(lease)).values(**values)).rowcount != 1
        ):
            raise lost(lease)

    def check_lost(self, lease: Lease) -> None:
        """Why `lease` is lost, where that ends the worker: StudyGone, or StudyError if the lease's row was deleted.

        Nothing is raised when another worker holds the trial, or when the database cannot be asked.
        """
        with contextlib.suppress(StorageUnreachable), self.storage.patience(10.0):
            self.check_study()
            if not self.storage.retry(lambda: self._is_listed(lease)):
                raise StudyError(
                    f"Study {self.study!r}: the row of trial {lease.number} (slot {lease.slot}) is no longer in "
                    "cvaeopt_lease.",
                    "Expected: one row for each trial that was begun, which only this program changes.",
                    "Restore a backup (cvaeopt admin restore), or give the study a new name.",
                )

    def _is_listed(self, lease: Lease) -> bool:
        with self.storage.reading() as connection:
            listed = select(func.count()).where(
                lease_table.c.study == lease.study, lease_table.c.trial_id == lease.trial_id
            )
            return bool(connection.execute(listed).scalar_one())

    # ---- workers

    def register(self, worker: str, place: Place, device: str) -> None:
        """Enter the worker; what an earlier stop said about the study is forgotten."""
        self._ask(lambda: self._register(worker, place, device))

    def _register(self, worker: str, place: Place, device: str) -> None:
        with self.storage.transaction() as connection:
            now = self._now(connection)
            self._is_there(connection)  # from now on this study is meant
            connection.execute(update(study_table).where(study_table.c.name == self.study).values(stopped_reason=None))
            connection.execute(
                delete(worker_table).where(
                    or_(
                        worker_table.c.id == worker,  # entered before, its acknowledgement was lost
                        and_(worker_table.c.study == self.study, worker_table.c.beat_at < now - _FORGET_S),
                    )
                )
            )
            connection.execute(
                worker_table.insert().values(
                    id=worker,
                    study=self.study,
                    host=place.host,
                    pid=place.pid,
                    kernel=place.kernel,
                    device=device,
                    state="starting",
                    started_at=now,
                    beat_at=now,
                    ttl_s=self.ttl_s,
                    stop=0,
                    message="",
                )
            )

    def beat(self, worker: str, beat: Beat, lease: Lease | None = None, *, renew: bool = True) -> Pulse:
        """A sign of life: the worker's row, and its lease renewed (unless `renew` is off: training hangs)."""
        return self._ask(lambda: self._beat(worker, beat, lease, renew))

    def _beat(self, worker: str, beat: Beat, lease: Lease | None, renew: bool) -> Pulse:
        with self.storage.transaction() as connection:
            now = self._now(connection)
            self._sign_of_life(connection, now)
            held = lease is not None
            if lease is not None:
                values = _checkpoint(beat.saved)
                if renew:
                    values["expires_at"] = now + self.ttl_s
                if values:
                    held = connection.execute(update(lease_table).where(_held(lease)).values(**values)).rowcount == 1
                else:
                    held = connection.execute(select(func.count()).where(_held(lease))).scalar_one() == 1
                held = held and self._is_there(connection)
            connection.execute(
                update(worker_table)
                .where(worker_table.c.id == worker)
                .values(state=beat.state, trial=beat.trial, epoch=beat.epoch, beat_at=now, message=beat.message)
            )
            stop = connection.execute(
                select(worker_table.c.stop).where(worker_table.c.id == worker)
            ).scalar_one_or_none()
            return Pulse(stop=bool(stop), held=held)

    def _sign_of_life(self, connection: Connection, now: float) -> None:
        """Note that the database is reachable; after a silence, give everybody time to renew before anyone expires."""
        alive_at = study_table.c.alive_at
        connection.execute(
            update(study_table)
            .where(study_table.c.name == self.study)
            .where(or_(alive_at.is_(None), alive_at < now - self.ttl_s / 16))  # spares the row most of the writes
            .values(
                grace_until=case(
                    (alive_at < now - self.ttl_s / 2, now + self.ttl_s / 4), else_=study_table.c.grace_until
                ),
                alive_at=now,
            )
        )

    def _now(self, connection: Connection) -> float:
        return self.storage.now(connection) if self._clock is None else self._clock()


def workers(storage: Storage, study: str | None = None) -> list[WorkerRow]:
    """The workers of `study`, or of all studies, in the order of their start."""

    def read() -> list[WorkerRow]:
        query = select(worker_table).order_by(worker_table.c.started_at, worker_table.c.id)
        if study is not None:
            query = query.where(worker_table.c.study == study)
        with storage.reading() as connection:
            now = storage.now(connection)
            rows = connection.execute(query).all()
        return [_shown(row, now) for row in rows]

    with explained(storage, study) if study is not None else contextlib.nullcontext():
        return storage.retry(read)


def ask_stop(storage: Storage, study: str, worker: str | None = None) -> list[str]:
    """The ids of the workers that were asked to stop after their current epoch: all of `study`, or one.

    Only workers that run now are asked: one that is started later is a wish to go on. UserError if no such
    worker runs.
    """

    def ask() -> list[str]:
        with storage.transaction() as connection:
            storage.lock_study(connection, study)
            now = storage.now(connection)
            rows = connection.execute(select(worker_table).where(worker_table.c.study == study)).all()
            live = [row for row in rows if _shown(row, now).state not in ("stopped", "dead")]
            asked = [row.id for row in live if worker in (None, row.id)]
            if worker is not None and not asked:
                names = ", ".join(row.id for row in live) or "none"
                raise UserError(f"No worker {worker!r} runs for study {study!r}.", f"Running: {names}.")
            connection.execute(update(worker_table).where(worker_table.c.id.in_(asked)).values(stop=1))
            if worker is None and asked:
                connection.execute(
                    update(study_table).where(study_table.c.name == study).values(stopped_reason="asked to stop")
                )
            return asked

    with explained(storage, study):
        return storage.retry(ask)


def _shown(row: Row[Any], now: float) -> WorkerRow:
    age_s = max(now - row.beat_at, 0.0)
    dead = row.state != "stopped" and age_s > row.ttl_s
    return WorkerRow(
        id=row.id,
        study=row.study,
        host=row.host,
        pid=row.pid,
        device=row.device,
        state="dead" if dead else row.state,
        trial=row.trial,
        epoch=row.epoch,
        beat_age_s=age_s,
        uptime_s=max(now - row.started_at, 0.0),
        stopping=bool(row.stop),
        message=row.message,
    )


def _checkpoint(saved: tuple[int, str] | None) -> dict[str, Any]:
    return {} if saved is None else {"checkpoint_epoch": saved[0], "checkpoint_host": saved[1][:255]}


def lost(lease: Lease) -> LeaseLost:
    """The error of a worker whose `lease` ended without it."""
    return LeaseLost(f"Trial {lease.number} is being trained by another worker now.")


def _held(lease: Lease) -> Any:
    """The condition that `lease` is the newest of its trial and still open."""
    return and_(
        lease_table.c.study == lease.study,
        lease_table.c.slot == lease.slot,
        lease_table.c.token == lease.token,
        lease_table.c.owner == lease.owner,
        lease_table.c.state == "open",
    )

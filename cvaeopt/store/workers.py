"""The workers of a study: the machine and state of each worker, and requests to stop."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, delete, or_, select, update

from cvaeopt.errors import UserError
from cvaeopt.files import digest
from cvaeopt.store.damage import explained
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table

_SHOWN_S: Final = 86400.0
"""How long a worker is still shown after its last sign of life, seconds."""

_MISSED_BEATS: Final = 3
"""A worker is silent after so many missed signs of life."""


@dataclass(frozen=True)
class Place:
    """The machine and the process of a worker.

    kernel   identifies the running system and its process table; '' if unknown. Processes with the same `kernel` can
             see whether each other's `pid` still exists.
    """

    host: str
    pid: int
    kernel: str

    @classmethod
    def here(cls) -> Place:
        """The place of this process."""
        host = socket.gethostname()
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            table = Path("/proc/self/ns/pid").stat().st_ino
        except OSError:  # not Linux: the death of a worker is then detected only when its lease expires
            return cls(host, os.getpid(), "")
        return cls(host, os.getpid(), digest([host, boot, table]))

    def has_seen_die(self, kernel: str, pid: int) -> bool:
        """True if the process `pid` of `kernel` has certainly ended."""
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
        """A new id for a worker, unique in the database: HOST-PID-RANDOM."""
        return f"{self.host[:64]}-{self.pid}-{secrets.token_hex(2)}"


@dataclass(frozen=True)
class WorkerRow:
    """One worker as `status` shows it.

    state        "dead" if the worker gave no sign of life for the duration of a lease, if another worker saw that its
                 process has ended, or if another worker took its trial over; "silent" if the worker missed its last
                 three signs of life
    trial        the trial whose lease the worker holds; otherwise the trial of its last sign of life
    epoch        finished epochs of this trial
    takeover_s   seconds until others may take the worker's trial over, if it is silent or its training hangs; else None
    """

    id: str
    study: str
    host: str
    pid: int
    device: str
    state: str
    trial: int | None
    epoch: int | None
    takeover_s: float | None
    beat_age_s: float
    uptime_s: float
    stopping: bool
    message: str


@dataclass(frozen=True)
class Beat:
    """The state that a worker reports with a sign of life; `saved` is (epoch, host) of a new checkpoint."""

    state: str
    trial: int | None = None
    epoch: int | None = None
    message: str = ""
    saved: tuple[int, str] | None = None


def beat_every_s(ttl_s: float) -> float:
    """Pause between two signs of life of a worker whose leases last `ttl_s`, seconds."""
    return min(ttl_s / 4, 10.0)


def enter(connection: Connection, study: str, worker: str, place: Place, device: str, ttl_s: float, now: float) -> None:
    """Write a row for the worker, and delete the rows of the study's workers without a recent sign of life."""
    connection.execute(
        delete(worker_table).where(
            or_(
                worker_table.c.id == worker,  # written by an earlier call, whose acknowledgement was lost
                and_(worker_table.c.study == study, worker_table.c.beat_at < now - _SHOWN_S),
            )
        )
    )
    connection.execute(
        worker_table.insert().values(
            id=worker,
            study=study,
            host=place.host,
            pid=place.pid,
            kernel=place.kernel,
            device=device,
            state="starting",
            started_at=now,
            beat_at=now,
            ttl_s=ttl_s,
            stop=0,
            message="",
        )
    )


def note_beat(connection: Connection, worker: str, beat: Beat, now: float) -> bool:
    """Write a sign of life into the worker's row; returns whether the worker was asked to stop."""
    connection.execute(
        update(worker_table)
        .where(worker_table.c.id == worker)
        .values(state=beat.state, trial=beat.trial, epoch=beat.epoch, beat_at=now, message=beat.message)
    )
    return bool(connection.execute(select(worker_table.c.stop).where(worker_table.c.id == worker)).scalar_one_or_none())


def mark_dead(connection: Connection, workers: Iterable[str]) -> None:
    """Set the state of these workers to "dead". Their next sign of life replaces this state."""
    connection.execute(
        update(worker_table)
        .where(worker_table.c.id.in_(workers), worker_table.c.state.not_in(("stopped", "dead")))
        .values(state="dead")
    )


def workers(storage: Storage, study: str | None = None) -> list[WorkerRow]:
    """The workers of `study` in the order of their start; without `study`, the workers of all studies."""

    lease = and_(lease_table.c.owner == worker_table.c.id, lease_table.c.state == "open")
    query = (
        select(
            worker_table,
            lease_table.c.number,
            lease_table.c.epochs_done,
            lease_table.c.expires_at,
            study_table.c.grace_until,
        )
        .select_from(
            worker_table.outerjoin(lease_table, lease).outerjoin(
                study_table, study_table.c.name == worker_table.c.study
            )
        )
        .order_by(worker_table.c.started_at, worker_table.c.id)
    )
    if study is not None:
        query = query.where(worker_table.c.study == study)

    def read(connection: Connection) -> list[WorkerRow]:
        now = storage.now(connection)
        return [_shown(row, now) for row in connection.execute(query).all()]

    with explained(storage, study) if study is not None else contextlib.nullcontext():
        return storage.read(read)


def ask_stop(storage: Storage, study: str, worker: str | None = None, *, dry_run: bool = False) -> list[str]:
    """Ask `worker`, or all workers of `study`, to stop after the current epoch; returns the ids of the asked workers.

    Only workers that run now are asked. A worker that is started later is not affected. With `dry_run`, nobody is
    asked. UserError if `worker` does not run.
    """

    def ask(connection: Connection) -> list[str]:
        storage.lock_study(connection, study)
        now = storage.now(connection)
        rows = connection.execute(select(worker_table).where(worker_table.c.study == study)).all()
        live = [row for row in rows if _state(row, now) not in ("stopped", "dead")]
        asked = [row.id for row in live if worker in (None, row.id)]
        if worker is not None and not asked:
            names = ", ".join(row.id for row in live) or "none"
            raise UserError(f"No worker {worker!r} runs for study {study!r}.", f"Running: {names}.")
        if dry_run:
            return asked
        connection.execute(update(worker_table).where(worker_table.c.id.in_(asked)).values(stop=1))
        if worker is None and asked:
            connection.execute(
                update(study_table).where(study_table.c.name == study).values(stopped_reason="asked to stop")
            )
        return asked

    with explained(storage, study):
        return storage.write(ask)


def _state(row: Row[Any], now: float) -> str:
    age_s = now - row.beat_at
    if row.state in ("stopped", "dead") or age_s > row.ttl_s:
        return "stopped" if row.state == "stopped" else "dead"
    return "silent" if age_s > _MISSED_BEATS * beat_every_s(row.ttl_s) else str(row.state)


def _shown(row: Row[Any], now: float) -> WorkerRow:
    state, trial, epoch, takeover_s = _state(row, now), row.trial, row.epoch, None
    if row.number is not None:
        epoch = max(row.epochs_done, (row.epoch or 0) if row.trial == row.number else 0)
        trial = row.number
        if state in ("silent", "stalled"):
            takeover_s = max(row.expires_at - now, (row.grace_until or 0.0) - now, 0.0)
    same = {name: getattr(row, name) for name in ("id", "study", "host", "pid", "device", "message")}
    return WorkerRow(
        **same,
        state=state,
        trial=trial,
        epoch=epoch,
        takeover_s=takeover_s,
        beat_age_s=max(now - row.beat_at, 0.0),
        uptime_s=max(now - row.started_at, 0.0),
        stopping=bool(row.stop),
    )

"""The thread beside the training: beats, lease renewal, reports in order, the pruner's verdict, requests to stop.

Training never blocks on the database. While it is away, reports wait in memory and in a file in the trial's folder,
and are delivered in order when it is back; the pruner is asked after each of them, exactly as without the outage.

The thread is supervised: whatever a round raises is counted and said, and the next round begins.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from optuna.exceptions import UpdateFinishedTrialError

from cvaeopt.errors import LeaseLost, StorageRefused, StorageUnreachable
from cvaeopt.run.events import Listener, Outage, Recovered, Stalled, Warned
from cvaeopt.store.leases import Beat, Fleet, Lease
from cvaeopt.store.storage import unreachable

Verdict = Literal["continue", "prune", "pending", "lost", "ended"]
"""What a report came to: go on; the pruner says stop; the database is away; another worker owns the trial;
somebody else ended the trial."""


def clock_with_sleep() -> float:
    """Seconds from a clock that also runs while the machine sleeps (where there is one)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass
class _Job:
    """The trial at hand; changed under the courier's lock only."""

    lease: Lease
    epochs: int
    ask: Callable[[], bool]  # the pruner, about all that was delivered
    spool: Path
    present: set[int]  # epochs whose value the database has
    progress_at: float
    deadline_s: float
    epoch: int = 0
    queue: deque[tuple[int, float]] = field(default_factory=deque)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    spooled: int = 0  # how many of `queue` are in the file
    judged: int = 0  # the last epoch the pruner was asked about
    saved: tuple[int, str] | None = None
    lost: bool = False
    ended: bool = False
    prune: bool = False
    stalled: bool = False
    spool_failed: bool = False
    spool_used: bool = False
    failure: Exception | None = None

    @property
    def over(self) -> bool:
        return self.lost or self.ended or self.prune or self.failure is not None


class Courier:
    """Runs from `start` to `close`; `begin` and `end` enclose a trial. `emit` is called from both threads.

    wait_s           how long a report waits for its verdict while the database seems well, seconds
    min_deadline_s   an epoch (or what precedes the first) may take this long, seconds
    deadline_factor  or this many times the median epoch, whichever is longer
    """

    def __init__(
        self,
        fleet: Fleet,
        worker: str,
        emit: Listener,
        *,
        wait_s: float = 30.0,
        min_deadline_s: float = 900.0,
        deadline_factor: float = 10.0,
        clock: Callable[[], float] = clock_with_sleep,
    ) -> None:
        self.fleet = fleet
        self.worker = worker
        self.stop_asked = False
        self.errors = 0
        self._emit = emit
        self._wait_s = wait_s
        self._min_deadline_s = min_deadline_s
        self._deadline_factor = deadline_factor
        self._clock = clock
        self._beat_every_s = min(fleet.ttl_s / 4, 10.0)
        self._patience_s = min(fleet.ttl_s / 8, 5.0)
        self._pause_s = min(fleet.ttl_s / 16, 2.0)
        self._lock = threading.Condition()
        self._job: _Job | None = None
        self._state, self._message = "starting", ""
        self._beat_due = 0.0
        self._renewed_at = 0.0
        self._away_since: float | None = None
        self._away_said_at = 0.0
        self._wake = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    # ---- called by the worker

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; a call that hangs in the database is abandoned after a few seconds."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def show(self, state: str, message: str = "") -> None:
        """What the worker's row says from now on."""
        with self._lock:
            if (state, message) != (self._state, self._message):
                self._state, self._message = state, message
                self._hurry(beat=True)

    def begin(self, lease: Lease, claimed_at: float, ask: Callable[[], bool], present: set[int], spool: Path) -> None:
        """Take care of the trial of `lease` until `end`.

        claimed_at   when the lease was asked for, by `clock_with_sleep`
        ask       the pruner's opinion of what was delivered so far
        present   epochs whose values the database has already; they are not written again
        spool     the file in which reports wait during an outage
        """
        with self._lock:
            self._renewed_at = claimed_at
            self._job = _Job(lease, lease.epochs, ask, spool, set(present), self._clock(), self._min_deadline_s)
            self._job.epoch = max(present, default=0)
            self._state, self._message = "running", ""
            self._hurry(beat=True)

    def end(self) -> None:
        """The trial is no longer ours to care for. Reports that were not delivered stay in its file."""
        with self._lock:
            self._job = None

    def judge(self) -> Verdict:
        """The pruner's verdict on what was delivered before a takeover; "continue" if nothing was."""
        job = self._current()
        if not job.present or max(job.present) >= job.epochs:
            return "continue"
        return "prune" if job.ask() else "continue"

    def report(self, epoch: int, value: float, *, wait: bool = True) -> Verdict:
        """Deliver the value of a finished epoch and say what it came to; the newest verdict if that is older.

        Waits for the verdict at most `wait_s`, and not at all while the database is known to be away or without
        `wait`. What the pruner raised is raised here.
        """
        job = self._current()
        with self._lock:
            now = self._clock()
            if wait:
                job.durations.append(now - job.progress_at)
            self._progress(job, epoch, now)
            job.queue.append((epoch, value))
            self._hurry()
            self._supervise()
            give_up_at = now + self._wait_s
            while True:
                verdict = self._verdict(job)
                if verdict is not None:
                    return verdict
                if job.judged >= epoch:
                    return "continue"
                if self._away_since is None and wait and self._clock() >= give_up_at:
                    self._note_away(now, f"no answer for {self._wait_s:g} s")
                if self._away_since is not None:
                    self._write_spool(job)
                    return "pending"
                if not wait:
                    return "pending"
                self._lock.wait(0.5)

    def saved(self, epoch: int, host: str) -> None:
        """Announce a checkpoint with the next beat."""
        with self._lock:
            if self._job is not None:
                self._job.saved = (epoch, host)

    def fence(self) -> bool:
        """True if the lease is ours for certain, False if the database cannot say; LeaseLost if it is not.

        To be called before a file is written or a trial told. Asks the database only when the last renewal is
        suspiciously old: the process was stopped, the machine slept, or training hung.
        """
        job = self._current()
        if job.lost:
            raise LeaseLost(f"Trial {job.lease.number} is being trained by another worker now.")
        asked_at = self._clock()
        if asked_at - self._renewed_at <= self.fleet.ttl_s / 2:
            return True
        if self._away_since is not None and asked_at - self._away_since < self.fleet.ttl_s / 2:
            return False
        try:
            with self.fleet.storage.patience(self._patience_s):
                self.fleet.renew(job.lease)
        except StorageUnreachable as error:
            with self._lock:
                self._note_away(asked_at, error.found)
            return False
        except LeaseLost:
            job.lost = True
            raise
        with self._lock:
            self._renewed_at = asked_at
            job.stalled = False
        return True

    def drain(self, limit_s: float, hurry: Callable[[], bool]) -> Verdict:
        """Wait until every report is delivered; the verdict, "continue" if all was well.

        StorageUnreachable when the outage passes `limit_s`, or soon after `hurry` says so.
        """
        job = self._current()
        waited_from = self._clock()
        with self._lock:
            while True:
                verdict = self._verdict(job)
                if verdict is not None:
                    return verdict
                if not job.queue:
                    return "continue"
                now = self._clock()
                self._progress(job, job.epoch, now)
                away_s = self.away_s()
                if away_s > limit_s or (away_s > 0 and hurry() and now - waited_from > self._patience_s):
                    raise unreachable(self.fleet.storage.url, away_s, f"{len(job.queue)} reports wait for it")
                if self._away_since is None and now - waited_from > self._wait_s:
                    self._note_away(waited_from, f"no answer for {self._wait_s:g} s")
                self._supervise()
                self._lock.wait(0.5)

    def expect(self, seconds: float) -> None:
        """Something longer than an epoch may follow: the next sign of progress is due in `seconds`."""
        job = self._current()
        with self._lock:
            job.progress_at, job.deadline_s = self._clock(), seconds

    def away_s(self) -> float:
        """How long the database has been away, seconds; 0 if it is not."""
        since = self._away_since
        return 0.0 if since is None else max(self._clock() - since, 1e-9)

    # ---- shared, under the lock

    def _current(self) -> _Job:
        job = self._job
        assert job is not None, "no trial has begun"
        return job

    def _hurry(self, *, beat: bool = False) -> None:
        if beat:
            self._beat_due = 0.0
        self._wake = True
        self._lock.notify_all()

    def _progress(self, job: _Job, epoch: int, now: float) -> None:
        job.epoch = max(job.epoch, epoch)
        job.progress_at = now
        job.stalled = False
        median_s = statistics.median(job.durations) if job.durations else 0.0
        job.deadline_s = max(self._min_deadline_s, self._deadline_factor * median_s)

    def _verdict(self, job: _Job) -> Verdict | None:
        if job.failure is not None:
            raise job.failure
        if job.lost:
            return "lost"
        if job.ended:
            return "ended"
        return "prune" if job.prune else None

    def _note_away(self, since: float, said: str) -> None:
        now = self._clock()
        if self._away_since is None:
            self._away_since = since
        elif now - self._away_said_at < 60.0:
            return
        self._away_said_at = now
        self._say(Outage(now - self._away_since, said))
        self._lock.notify_all()

    def _write_spool(self, job: _Job) -> None:
        """Append what is not in the file yet; the queue in memory stays what is delivered."""
        if job.spool_failed:
            return
        lines = [json.dumps({"epoch": epoch, "value": value}) + "\n" for epoch, value in list(job.queue)[job.spooled :]]
        try:
            job.spool.parent.mkdir(parents=True, exist_ok=True)
            job.spool_used = True
            with job.spool.open("a") as stream:
                stream.writelines(lines)
        except OSError as error:
            job.spool_failed = True
            self._say(Warned(f"Reports wait in memory only: {job.spool} cannot be written ({error.strerror})."))
        job.spooled = len(job.queue)

    def _say(self, event: Outage | Recovered | Stalled | Warned) -> None:
        try:
            self._emit(event)
        except Exception:  # a broken terminal must not end the beats
            self.errors += 1

    def _supervise(self) -> None:
        if not self._thread.is_alive() and not self._closed:
            self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
            self._thread.start()

    # ---- the thread

    def _run(self) -> None:
        while True:
            started = self._clock()
            try:
                pause_s = self._round()
            except StorageUnreachable as error:
                with self._lock:
                    self._note_away(started, error.found)
                pause_s = self._pause_s
            except StorageRefused as error:  # it will not pass: the worker is told with its next report
                with self._lock:
                    if self._job is not None:
                        self._job.failure = error
                        self._lock.notify_all()
                pause_s = self._pause_s
            except Exception as error:
                self.errors += 1
                if self.errors in (1, 10, 100):
                    self._say(Warned(f"The courier goes on after {type(error).__name__}: {error}"))
                pause_s = self._pause_s
            with self._lock:
                if not self._closed and not self._wake:
                    self._lock.wait(pause_s)
                self._wake = False
                if self._closed:
                    return

    def _round(self) -> float:
        """Beat if it is time, deliver what waits; how long nothing is due, seconds."""
        with self.fleet.storage.patience(self._patience_s):
            waiting = len(self._job.queue) if self._job is not None else 0
            if self._clock() >= self._beat_due:
                self._beat()
            self._deliver()
        with self._lock:
            if self._away_since is not None:
                seconds, self._away_since = self._clock() - self._away_since, None
                self._say(Recovered(seconds, waiting))
        return max(self._beat_due - self._clock(), 0.0)

    def _beat(self) -> None:
        with self._lock:
            job, asked_at = self._job, self._clock()
            beat = Beat(self._state, message=self._message)
            renew = True
            if job is not None:
                renew = asked_at - job.progress_at <= job.deadline_s
                beat = Beat(self._state if renew else "stalled", job.lease.number, job.epoch, self._message, job.saved)
                if not renew and not job.stalled:
                    job.stalled = True
                    self._say(Stalled(job.lease.number, job.deadline_s))
        lease = None if job is None or job.over else job.lease
        pulse = self.fleet.beat(self.worker, beat, lease, renew=renew)
        with self._lock:
            self._beat_due = asked_at + self._beat_every_s
            self.stop_asked = self.stop_asked or pulse.stop
            if job is not None and lease is not None:
                if pulse.held and renew:
                    self._renewed_at = max(self._renewed_at, asked_at)
                job.lost = job.lost or not pulse.held
                if job.saved == beat.saved:
                    job.saved = None
                self._lock.notify_all()

    def _deliver(self) -> None:
        job = self._job
        while job is not None and job is self._job:
            with self._lock:
                if not job.queue or job.over:
                    break
                epoch, value = job.queue[0]
                asked_at, saved = self._clock(), job.saved
            try:
                if epoch not in job.present:
                    self.fleet.report(job.lease, epoch, value, saved)
                    job.present.add(epoch)
                    if job.saved == saved:
                        job.saved = None
                    self._renewed_at = max(self._renewed_at, asked_at)
                # After its last epoch a trial is complete: to prune it then would only throw it away.
                prune = job.ask() and epoch < job.epochs
            except StorageUnreachable:
                raise
            except LeaseLost:
                job.lost = True
            except UpdateFinishedTrialError:
                job.ended = True
            except Exception as error:
                job.failure = error
            else:
                with self._lock:
                    job.queue.popleft()
                    job.spooled = max(job.spooled - 1, 0)
                    job.judged, job.prune = epoch, prune
            with self._lock:
                self._lock.notify_all()
        if job is not None and job.spool_used:
            with self._lock:
                if not job.queue:
                    job.spool_used = False
                    with contextlib.suppress(OSError):
                        job.spool.unlink(missing_ok=True)

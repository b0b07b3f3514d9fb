"""How the training reports to the database: values of epochs, checkpoints, the lease, and the pruner's verdict.

The training never waits for a database that does not answer. During an outage reports wait in memory and in a file in
the trial's folder. They are delivered in order when the database is back, and the pruner is asked after each of them,
exactly as without the outage. The database is called from a thread of its own, see `database_thread`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cvaeopt.errors import LeaseLost, StorageUnreachable
from cvaeopt.run.database_thread import DatabaseThread, Shared
from cvaeopt.run.events import Listener, Warned
from cvaeopt.run.pending_reports import PendingReports, Verdict
from cvaeopt.run.timing import Timing
from cvaeopt.store.leases import Lease, LeaseRegistry
from cvaeopt.store.outage import unreachable

_MAX_JOIN_S = 5.0  # how long `close` waits for a thread that hangs in the database


class Reporter:
    """Runs from `start` to `close`; a trial lasts from `begin` to `end`. `emit` is called from both threads."""

    def __init__(self, leases: LeaseRegistry, worker: str, emit: Listener, timing: Timing) -> None:
        self._leases = leases
        self._worker = worker
        self._timing = timing
        self._clock = timing.clock
        self._shared = Shared(emit, timing)
        self._thread = DatabaseThread(leases, worker, self._shared)

    @property
    def stop_asked(self) -> bool:
        """Whether an operator asked this worker to stop."""
        return self._shared.stop_asked

    @property
    def outage_s(self) -> float:
        """How long the database has not answered, seconds; 0 if it answers."""
        since = self._shared.outage_since
        return 0.0 if since is None else max(self._clock() - since, 1e-9)

    def start(self) -> None:
        """Begin to give signs of life."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; a call that hangs in the database is abandoned after a few seconds."""
        with self._shared.lock:
            self._shared.is_closed = True
            self._shared.lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=_MAX_JOIN_S)

    def show(self, state: str, message: str = "") -> None:
        """Show this state in the worker's row of the database from now on."""
        shared = self._shared
        with shared.lock:
            if (state, message) != (shared.state, shared.message):
                shared.state, shared.message = state, message
                shared.wake(beat=True)

    def begin(
        self, lease: Lease, claimed_at: float, ask_pruner: Callable[[], bool], delivered: set[int], path: Path
    ) -> None:
        """Renew `lease` and deliver the reports of its trial until `end`; the arguments are those of `PendingReports`.

        claimed_at   when the lease was asked for, by the clock of `Timing`
        """
        shared = self._shared
        with shared.lock:
            shared.renewed_at = claimed_at
            shared.trial = PendingReports(lease, ask_pruner, path, set(delivered), self._timing, self._clock())
            shared.state, shared.message = "running", ""
            shared.wake(beat=True)

    def end(self) -> None:
        """Stop renewing the lease. Reports that were not delivered stay in their file."""
        with self._shared.lock:
            self._shared.trial = None

    def judge(self) -> Verdict:
        """The pruner's verdict on what was delivered before a takeover; "continue" if nothing was."""
        trial = self._current()
        if not trial.delivered or max(trial.delivered) >= trial.lease.epochs:
            return "continue"
        return "prune" if trial.ask_pruner() else "continue"

    def report(self, epoch: int, value: float, *, wait: bool = True) -> Verdict:
        """Deliver the value of a finished epoch and return the verdict.

        Waits for the verdict at most `Timing.report_wait_s`, and not at all during an outage, or without `wait`: then
        the verdict is "pending", unless an earlier report has ended the trial. Raises what the pruner raised.
        """
        trial, shared = self._current(), self._shared
        with shared.lock:
            began = self._clock()
            if wait:
                trial.durations.append(began - trial.progress_at)
            trial.progressed(epoch, began)
            trial.waiting.append((epoch, value))
            shared.wake()
            self._restart_thread()
            while True:
                verdict = trial.verdict()
                if verdict is not None:
                    return verdict
                if trial.judged >= epoch:
                    return "continue"
                if wait:
                    self._note_silence(began)
                if shared.outage_since is not None:
                    self._write_file(trial)
                    return "pending"
                if not wait:
                    return "pending"
                shared.lock.wait(0.5)

    def saved(self, epoch: int, host: str) -> None:
        """Announce a checkpoint with the next sign of life."""
        with self._shared.lock:
            if self._shared.trial is not None:
                self._shared.trial.saved = (epoch, host)

    def check_lease(self) -> None:
        """LeaseLost if another worker has the trial now; call it before a file is written or a trial is told.

        The database is asked only if the last renewal is suspiciously old, because the process was stopped, the
        machine slept, or the training hung. If the database does not answer, the lease counts as held.
        """
        trial, shared = self._current(), self._shared
        if trial.lost:
            raise LeaseLost(f"Trial {trial.lease.number} is being trained by another worker now.")
        asked_at, half_life_s = self._clock(), self._timing.ttl_s / 2
        if asked_at - shared.renewed_at <= half_life_s or 0 < self.outage_s < half_life_s:
            return
        try:
            with self._leases.storage.patience(self._timing.patience_s):
                self._leases.renew(trial.lease)
        except StorageUnreachable as error:
            shared.note_outage(asked_at, error.found)
        except LeaseLost:
            trial.lost = True
            raise
        else:
            with shared.lock:
                shared.renewed(asked_at)
                trial.stalled = False

    def drain(self, is_hurried: Callable[[], bool]) -> Verdict:
        """Wait until every report is delivered; the verdict, "continue" if training may go on.

        StorageUnreachable when the outage passes `Timing.limit_s`, or soon after `is_hurried` returns True.
        """
        trial, shared = self._current(), self._shared
        began = self._clock()
        with shared.lock:
            while True:
                verdict = trial.verdict()
                if verdict is not None:
                    return verdict
                if not trial.waiting:
                    return "continue"
                now, outage_s = self._clock(), self.outage_s
                trial.progressed(trial.epoch, now)
                impatient = outage_s > 0 and is_hurried() and now - began > self._timing.patience_s
                if outage_s > self._timing.limit_s or impatient:
                    url, count = self._leases.storage.url, len(trial.waiting)
                    raise unreachable(url, outage_s, f"{count} reports wait for it")
                self._note_silence(began)
                self._restart_thread()
                shared.lock.wait(0.5)

    def expect(self, seconds: float) -> None:
        """Allow what follows, which may take longer than an epoch, to last for `seconds` without progress."""
        trial = self._current()
        with self._shared.lock:
            trial.progress_at, trial.deadline_s = self._clock(), seconds

    def _current(self) -> PendingReports:
        trial = self._shared.trial
        assert trial is not None, "no trial has begun"
        return trial

    def _note_silence(self, since: float) -> None:
        """Treat it as an outage if the thread has had no answer for too long."""
        wait_s = self._timing.report_wait_s
        if self._shared.outage_since is None and self._clock() - since >= wait_s:
            self._shared.note_outage(since, f"no answer for {wait_s:g} s")

    def _write_file(self, trial: PendingReports) -> None:
        if error := trial.write_file():
            message = f"Reports wait in memory only: {trial.path} cannot be written ({error.strerror})."
            self._shared.send(Warned(message))

    def _restart_thread(self) -> None:
        if not self._thread.is_alive() and not self._shared.is_closed:
            self._thread = DatabaseThread(self._leases, self._worker, self._shared)
            self._thread.start()

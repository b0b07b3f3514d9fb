"""The training's connection to the database: values of epochs, checkpoints, the lease, and the pruner's verdict.

The training continues during an outage of the database, up to `Timing.limit_s`. Reports then wait in memory and in a
file in the trial's folder. When the database answers again, the reports are delivered in order. The pruner is asked
after each report, exactly as without the outage. A separate thread calls the database, see `database_thread`.
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

_MAX_JOIN_S = 5.0  # how long `close` waits for a thread whose call to the database does not return


class Reporter:
    """Reports the trials of one worker from `start` to `close`, and each trial from `begin` to `end`.

    Both threads call `emit`.
    """

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
        """Seconds since the database stopped answering; 0 if it answers."""
        since = self._shared.outage_since
        return 0.0 if since is None else max(self._clock() - since, 1e-9)

    def start(self) -> None:
        """Start the thread, which gives signs of life."""
        self._thread.start()

    def close(self) -> None:
        """Stop the thread. If its call to the database does not return, the thread is abandoned after a few seconds."""
        with self._shared.lock:
            self._shared.is_closed = True
            self._shared.lock.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=_MAX_JOIN_S)

    def show(self, state: str, message: str = "") -> None:
        """From now on, show `state` and `message` in the worker's row of the database."""
        shared = self._shared
        with shared.lock:
            if (state, message) != (shared.state, shared.message):
                shared.state, shared.message = state, message
                shared.wake(beat=True)

    def begin(
        self, lease: Lease, claimed_at: float, ask_pruner: Callable[[], bool], delivered: set[int], path: Path
    ) -> None:
        """Renew `lease` and deliver the reports of its trial, until `end` is called.

        claimed_at   the time at which the worker asked for the lease, on the clock of `Timing`

        `PendingReports` describes the other arguments.
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
        """The pruner's verdict on the values that earlier owners delivered.

        "continue" if there are no such values, or if the last epoch is delivered.
        """
        trial = self._current()
        if not trial.delivered or max(trial.delivered) >= trial.lease.epochs:
            return "continue"
        return "prune" if trial.ask_pruner() else "continue"

    def report(self, epoch: int, value: float, *, wait: bool = True) -> Verdict:
        """Deliver the value of a finished epoch and return the verdict.

        This method waits for the verdict at most `Timing.report_wait_s`. It does not wait during an outage, or if
        `wait` is False. Without waiting, the verdict is "pending", unless an earlier report has ended the trial. This
        method raises the errors of the pruner, and the errors of the database except outages.
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
        """Write a checkpoint's epoch and host into the database, with the next report or sign of life."""
        with self._shared.lock:
            if self._shared.trial is not None:
                self._shared.trial.saved = (epoch, host)

    def check_lease(self) -> None:
        """Raise LeaseLost if another worker has the trial. Call this before a file is written or the trial is ended.

        The database is asked only if the last renewal is older than half of `Timing.ttl_s`. This happens if the
        process was stopped, the machine slept, or the training made no progress. If the database does not answer, the
        lease counts as held.
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
            shared.note_outage(asked_at, error.reason)
        except LeaseLost:
            trial.lost = True
            raise
        else:
            with shared.lock:
                shared.renewed(asked_at)
                trial.stalled = False

    def drain(self, is_hurried: Callable[[], bool]) -> Verdict:
        """Wait until every report is delivered; returns the verdict, "continue" if nothing ends the trial.

        StorageUnreachable if an outage lasts longer than `Timing.limit_s`. If `is_hurried` returns True, this method
        waits only `Timing.patience_s` for a database that does not answer.
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
        """Allow `seconds` without progress for the next step, which may take longer than an epoch."""
        trial = self._current()
        with self._shared.lock:
            trial.progress_at, trial.deadline_s = self._clock(), seconds

    def _current(self) -> PendingReports:
        trial = self._shared.trial
        assert trial is not None, "no trial has begun"
        return trial

    def _note_silence(self, since: float) -> None:
        """Announce an outage if the database has not answered within `Timing.report_wait_s` after `since`."""
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

"""The second thread of a worker: it gives signs of life, renews the lease, and delivers reports in order.

After an unexpected error the thread continues. Errors are counted, and some of them are reported as a warning.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError

from cvaeopt.errors import LeaseLost, StorageRefused, StorageUnreachable
from cvaeopt.run.events import Event, Listener, Outage, Recovered, Stalled, Warned
from cvaeopt.run.pending_reports import PendingReports
from cvaeopt.run.timing import Timing
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.workers import Beat

_REPEAT_OUTAGE_S = 60.0  # pause between two events about the same outage


@dataclass
class Shared:
    """The values that the worker's thread and the database thread share; changed only under `lock`, except `errors`.

    trial         the reports of the trial in training; None between two trials
    state         the state in the worker's row of the database
    message       the message in the worker's row of the database
    stop_asked    whether an operator asked this worker to stop
    renewed_at    the time of the lease's last renewal
    outage_since  the time at which the database stopped answering; None while it answers
    errors        the number of errors after which the thread continued
    """

    emit: Listener
    timing: Timing
    lock: threading.Condition = field(default_factory=threading.Condition)
    trial: PendingReports | None = None
    state: str = "starting"
    message: str = ""
    stop_asked: bool = False
    renewed_at: float = 0.0
    beat_due: float = 0.0
    outage_since: float | None = None
    outage_emitted_at: float = 0.0
    is_awake: bool = False  # whether the thread makes its next round without a pause
    is_closed: bool = False
    errors: int = 0

    def wake(self, *, beat: bool = False) -> None:
        """Make the thread begin another round at once. If `beat` is True, the round gives a sign of life."""
        with self.lock:
            if beat:
                self.beat_due = 0.0
            self.is_awake = True
            self.lock.notify_all()

    def renewed(self, at: float) -> None:
        """Record that a call which began at `at` has renewed the lease."""
        with self.lock:
            self.renewed_at = max(self.renewed_at, at)

    def note_outage(self, since: float, reason: str) -> None:
        """Record that the database has not answered since `since`.

        An event is sent when the outage begins, and again after each `_REPEAT_OUTAGE_S` seconds of the outage.
        """
        with self.lock:
            now = self.timing.clock()
            if self.outage_since is None:
                self.outage_since = since
            elif now - self.outage_emitted_at < _REPEAT_OUTAGE_S:
                return
            self.outage_emitted_at = now
            self.send(Outage(now - self.outage_since, reason))
            self.lock.notify_all()

    def note_answer(self, waiting: int) -> None:
        """Record that the database answers. `waiting` is the number of reports that waited for delivery."""
        with self.lock:
            if self.outage_since is not None:
                seconds, self.outage_since = self.timing.clock() - self.outage_since, None
                self.send(Recovered(seconds, waiting))

    def send(self, event: Event) -> None:
        """Emit `event`. An error of the listener is only counted: a broken terminal must not end the signs of life."""
        try:
            self.emit(event)
        except Exception:
            self.errors += 1


class DatabaseThread(threading.Thread):
    """Makes a round when a sign of life is due and after `Shared.wake`, until `Shared.is_closed` is True."""

    def __init__(self, leases: LeaseRegistry, worker: str, shared: Shared) -> None:
        super().__init__(name="database", daemon=True)
        self._leases = leases
        self._worker = worker
        self._shared = shared
        self._clock = shared.timing.clock

    def run(self) -> None:
        """Make rounds until the thread is closed; `Thread.start` calls this method."""
        shared = self._shared
        while True:
            began, pause_s = self._clock(), shared.timing.retry_every_s
            try:
                pause_s = self._round()
            except StorageUnreachable as error:
                shared.note_outage(began, error.reason)
            except StorageRefused as error:  # waiting does not help: the worker's next report raises the error
                with shared.lock:
                    if shared.trial is not None:
                        shared.trial.failure = error
                        shared.lock.notify_all()
            except Exception as error:
                shared.errors += 1
                if shared.errors in (1, 10, 100):
                    shared.send(Warned(f"The reporter goes on after {type(error).__name__}: {error}"))
            with shared.lock:
                if not shared.is_closed and not shared.is_awake:
                    shared.lock.wait(pause_s)
                shared.is_awake = False
                if shared.is_closed:
                    return

    def _round(self) -> float:
        """Give a sign of life if it is due, and deliver reports; returns the seconds until the next sign of life."""
        shared = self._shared
        with self._leases.storage.patience(shared.timing.patience_s):
            waiting = len(shared.trial.waiting) if shared.trial is not None else 0
            if self._clock() >= shared.beat_due:
                self._beat()
            self._deliver()
        shared.note_answer(waiting)
        return max(shared.beat_due - self._clock(), 0.0)

    def _beat(self) -> None:
        """Give a sign of life. Also renew the lease, unless the training has made no progress for too long."""
        shared = self._shared
        with shared.lock:
            trial, asked_at = shared.trial, self._clock()
            beat, renew = Beat(shared.state, message=shared.message), True
            if trial is not None:
                renew = asked_at - trial.progress_at <= trial.deadline_s
                state = shared.state if renew else "stalled"
                beat = Beat(state, trial.lease.number, trial.epoch, shared.message, trial.saved)
                if not renew and not trial.stalled:
                    trial.stalled = True
                    shared.send(Stalled(trial.lease.number, trial.deadline_s))
        lease = None if trial is None or trial.is_over else trial.lease
        pulse = self._leases.beat(self._worker, beat, lease, renew=renew)
        with shared.lock:
            shared.beat_due = asked_at + shared.timing.beat_every_s
            shared.stop_asked = shared.stop_asked or pulse.stop
            if trial is not None and lease is not None:
                if pulse.held and renew:
                    shared.renewed(asked_at)
                trial.lost = trial.lost or not pulse.held
                if trial.saved == beat.saved:
                    trial.saved = None
                shared.lock.notify_all()

    def _deliver(self) -> None:
        """Deliver the waiting reports in order, and ask the pruner after each report, until the trial is over."""
        shared = self._shared
        trial = shared.trial
        while trial is not None and trial is shared.trial:
            with shared.lock:
                if not trial.waiting or trial.is_over:
                    break
                epoch, value = trial.waiting[0]
            try:
                self._write(trial, epoch, value)
                # After its last epoch a trial is complete, so it is not pruned any more.
                prune = trial.ask_pruner() and epoch < trial.lease.epochs
            except StorageUnreachable:
                raise
            except LeaseLost:
                trial.lost = True
            except UpdateFinishedTrialError:
                trial.ended = True
            except Exception as error:
                trial.failure = error
            else:
                with shared.lock:
                    trial.delivered_first(prune)
            with shared.lock:
                shared.lock.notify_all()
        if trial is not None:
            with shared.lock:
                trial.delete_file()

    def _write(self, trial: PendingReports, epoch: int, value: float) -> None:
        if epoch in trial.delivered:  # the value was written, then an outage began while the pruner was asked
            return
        asked_at, saved = self._clock(), trial.saved
        self._leases.report(trial.lease, epoch, value, saved)
        with self._shared.lock:
            trial.delivered.add(epoch)
            if trial.saved == saved:
                trial.saved = None
            self._shared.renewed(asked_at)

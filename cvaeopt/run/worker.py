"""One worker on one device: take a trial, train it, and take the next trial, until the study's budget is met.

    claim a lease --> attempt: train its trial, end it or give it back --> claim the next
          |
          '- nothing to do: wait, or end

`attempt` handles a single trial. This module prints nothing; it sends events to a listener.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from cvaeopt.errors import (
    CvaeoptError,
    Interrupted,
    StorageRefused,
    StorageUnreachable,
    StudyError,
    TryAgain,
)
from cvaeopt.files import RunFolder, trouble
from cvaeopt.run.attempt import Attempt, Session
from cvaeopt.run.events import Event, Listener, Outage, Recovered, Stopping, Waiting, WorkerEnded, WorkerStarted
from cvaeopt.run.failures import FailuresInARow
from cvaeopt.run.reporter import Reporter
from cvaeopt.run.signals import Stop, StopNow
from cvaeopt.run.timing import Timing
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Beat, Place

if TYPE_CHECKING:  # `trial_run` imports torch, which this module does not need
    from cvaeopt.run.trial_run import Factory

_FIRST_PAUSE_S = 0.5  # first pause between two searches for a trial, or for room on a disk; each pause doubles
_FULL_DISK_POLLS = 3  # longest pause on a full disk, as a multiple of the longest pause without a trial
_STOP_CHECK_S = 0.5  # time between two checks for a request to stop during a pause
_REPEAT_OUTAGE_S = 60.0  # pause between two events about the same outage


class Worker:
    """A worker for one study on one device.

    study         the Optuna study, opened on `storage`
    factory       makes the training of a trial
    device        the device's name for `status`, such as "cuda:0"
    artifacts     the folder of all run folders
    listener      receives every event; two threads call it, but never at the same time
    stop          the requests to stop this process; workers that follow each other in one process share this object
    after_trial   called when this worker has ended, released or lost a trial; must not raise
    digest        the digest of the study's definition; None if the worker takes trials of every version
    newest        returns the study, the factory and the digest of the newest version of the definition. It is called
                  between two trials, when the definition has a new version.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: Storage,
        factory: Factory,
        *,
        device: str = "cpu",
        artifacts: Path = Path("storage/artifacts"),
        listener: Listener = lambda event: None,
        stop: Stop | None = None,
        after_trial: Callable[[], None] = lambda: None,
        digest: str | None = None,
        newest: Callable[[], tuple[optuna.Study, Factory, str]] | None = None,
        timing: Timing = Timing(),
    ) -> None:
        try:
            RunFolder.of_trial(artifacts, study.study_name, 0)
        except ValueError:
            raise StudyError(
                f"The study's name {study.study_name!r} cannot be a folder under {artifacts}.",
                todo="Give the study a name of letters, digits, '-' and '_'.",
            ) from None
        place = Place.here()
        self.id = place.new_id()
        leases = LeaseRegistry(storage, study.study_name, ttl_s=timing.ttl_s, digest=digest)
        self.reporter = Reporter(leases, self.id, self._emit, timing)
        self.session = Session(
            study=study,
            storage=storage,
            leases=leases,
            reporter=self.reporter,
            worker=self.id,
            place=place,
            device=device,
            artifacts=artifacts,
            factory=factory,
            emit=self._emit,
            stop_reason=self.stop_reason,
            timing=timing,
        )
        self._listener = listener
        self._after_trial = after_trial
        self._newest = newest
        self._timing = timing
        self._emit_lock = threading.RLock()
        self._stop = Stop() if stop is None else stop
        self._announced = False  # whether the request to stop was announced
        self._trials = 0  # number of trials that this worker has ended
        self._failures = FailuresInARow()
        self._attempt: Attempt | None = None  # the attempt at the trial in training
        self._given_back: tuple[int, int] | None = None  # (slot, token) of the lease that was given back last
        self._waited_for = ""  # the last announced reason to wait
        self._pause_s = _FIRST_PAUSE_S
        self._no_room_s = 0.0  # seconds of waiting for room on the disk since the last trial began

    def run(self) -> WorkerEnded:
        """How the worker ended: "finished" if the study's budget is met, "stopped" if a stop was requested.

        These errors end the worker:

            StorageUnreachable   an outage lasted longer than its limit; the trial has a checkpoint
            Interrupted          a second signal came
            TryAgain             the device is faulty, or the disk stays full
            UserError            too many trials failed in a row
            StudyGone            somebody deleted the study
            StudyError           somebody deleted the row of a trial or of a lease
            StudyDamaged         a row of the study cannot be read
            StorageRefused       the database refuses a right that the worker needs
        """
        session = self.session
        with _outage_events(session), self._stop:
            try:
                session.leases.register(self.id, session.place, session.device)
                self._emit(WorkerStarted(self.id, session.study.study_name, session.device))
                self.reporter.start()
                ended = self._loop()
                self._emit(ended)
                return ended
            except StopNow:
                self._release_at_once()
                raise Interrupted(
                    "Stopped at once by a second signal.",
                    todo="The trial continues from its last checkpoint when a worker runs again.",
                ) from None
            except CvaeoptError:
                raise
            except Exception:  # for a missing row Optuna raises KeyError, and the database reports a broken reference
                session.check_rows()
                raise
            finally:
                self.reporter.close()
                self._sign_off()

    def stop(self, now: bool = False) -> None:
        """Stop as after a signal: at once if `now` is True, otherwise after this epoch. Any thread may call this."""
        self._stop.ask_once(signal.SIGTERM)
        if now:
            os.kill(os.getpid(), signal.SIGTERM)

    def stop_reason(self) -> str:
        """The reason to stop after this epoch, or an empty text. A reason is announced when it is first returned."""
        reason = f"{self._stop.name} received" if self._stop else ""
        reason = reason or (self.reporter.stop_asked and "an operator asked to stop") or ""
        if reason and not self._announced:
            self._announced = True
            self.reporter.show("stopping", reason)
            self._emit(Stopping(reason))
        return reason

    def _loop(self) -> WorkerEnded:
        while True:
            reason = self.stop_reason()
            if reason:
                return WorkerEnded("stopped", reason, self._trials)
            asked_at = self._timing.clock()
            try:
                claimed = self.session.leases.claim(self.id, self.session.place)
                if isinstance(claimed, Idle) and claimed.kind == "extended":
                    self._take_newest()
                    continue
            except StorageUnreachable:
                if not self.stop_reason():
                    raise
                continue
            if isinstance(claimed, Lease):
                self._train(claimed, asked_at)
            elif claimed.kind == "finished":
                return WorkerEnded("finished", claimed.reason, self._trials)
            else:
                self._wait(claimed.reason)

    def _take_newest(self) -> None:
        """Go on with the newest version of the study's definition."""
        assert self._newest is not None, "a worker with a digest has a function that returns the newest version"
        study, factory, self.session.leases.digest = self._newest()
        self.session = dataclasses.replace(self.session, study=study, factory=factory)

    def _train(self, lease: Lease, claimed_at: float) -> None:
        """Make an attempt at the trial of `lease`, and record the result. On a full disk, wait for room."""
        attempt = self._attempt = Attempt(self.session, lease)
        try:
            attempt.run(claimed_at, is_own=(lease.slot, lease.token - 1) == self._given_back)
        except StorageUnreachable:
            if not self.stop_reason():
                raise
            # A stop was requested while the database does not answer: the lease expires by itself.
        finally:
            self.reporter.end()
        self._attempt = None
        if attempt.released:
            self._given_back = (lease.slot, lease.token)
        if attempt.began:
            self._waited_for, self._pause_s, self._no_room_s = "", _FIRST_PAUSE_S, 0.0
        self._trials += attempt.ended is not None
        self._after_trial()
        if attempt.ended is not None:
            self._failures.note(attempt.ended.failed, attempt.ended.reason)
        if attempt.no_room is not None:
            self._wait_for_room(lease, attempt.no_room)

    # ---- waiting

    def _wait(self, reason: str) -> None:
        """Pause because there is no trial now. A new reason is announced, and each pause is twice the last pause."""
        if reason != self._waited_for:
            self._waited_for = reason
            self._emit(Waiting(reason))
        self.reporter.show("waiting", reason)
        self._pause(self._timing.look_every_s)

    def _wait_for_room(self, lease: Lease, error: OSError) -> None:
        """Pause because a trial could not begin on a full disk. Only the first pause is announced.

        Each pause is twice the last pause. TryAgain if the disk stays full for `Timing.limit_s`.
        """
        artifacts = self.session.artifacts
        full = trouble(artifacts, error)
        if self._no_room_s >= self._timing.limit_s:
            raise TryAgain(
                f"Trial {lease.number} cannot begin: {full}, and was for {self._no_room_s:.0f} s ({error}).",
                todo=f"Make room under {artifacts}, then start the worker again; the trial is not lost.",
            ) from None
        if self._no_room_s == 0:
            self._waited_for, self._pause_s = full, _FIRST_PAUSE_S
            self._emit(Waiting(f"{full}; waiting for room"))
        self.reporter.show("waiting", full)
        self._no_room_s += self._pause(_FULL_DISK_POLLS * self._timing.look_every_s)

    def _pause(self, longest_s: float) -> float:
        """Pause twice as long as last time, at most `longest_s`, or until a stop is requested; returns the seconds."""
        pause_s = min(self._pause_s, longest_s)
        self._pause_s *= 2
        paused_s = 0.0
        while paused_s < pause_s and not self.stop_reason():
            step_s = min(pause_s - paused_s, _STOP_CHECK_S)
            self._timing.sleep(step_s)
            paused_s += step_s
        return paused_s

    # ---- the end

    def _release_at_once(self) -> None:
        with contextlib.suppress(Exception), self.session.storage.patience(1.0):
            if self._attempt is not None:
                self.session.leases.release(self._attempt.lease)

    def _sign_off(self) -> None:
        """Show the worker as stopped. If the database does not answer now, the worker is shown as dead later."""
        if self.reporter.outage_s > 0:
            return
        with contextlib.suppress(StorageUnreachable, StorageRefused), self.session.storage.patience(2.0):
            self.session.leases.beat(self.id, Beat("stopped"))

    # ---- events

    def _emit(self, event: Event) -> None:
        with self._emit_lock:
            self._listener(event)


@contextlib.contextmanager
def _outage_events(session: Session) -> Iterator[None]:
    """Inside the block, outages in this thread are announced as events, and `Timing.limit_s` limits them."""
    thread = threading.get_ident()
    emitted_at: list[float] = []

    def retrying(seconds: float, reason: str) -> None:
        now = time.monotonic()
        if threading.get_ident() == thread and (not emitted_at or now - emitted_at[-1] > _REPEAT_OUTAGE_S):
            emitted_at.append(now)
            session.emit(Outage(seconds, reason))

    def recovered(seconds: float) -> None:
        if threading.get_ident() == thread and emitted_at:
            emitted_at.clear()
            session.emit(Recovered(seconds))

    storage = session.storage
    before = (storage.on_retry, storage.on_recovery, storage.hurry, storage.limit_s)
    storage.on_retry, storage.on_recovery = retrying, recovered
    storage.hurry, storage.limit_s = session.is_stopping, session.timing.limit_s
    try:
        yield
    finally:
        storage.on_retry, storage.on_recovery, storage.hurry, storage.limit_s = before

"""One device: take a trial, train it, tell what came of it, until the study's budget is met.

    claim a lease --> attach to its trial --> factory --> epochs: save, report, ask the pruner --> tell --> finish
          |                                                |
          '- nothing to do: wait, or end                   '- asked to stop: release the lease, end
                                                              lease lost: leave everything as it is, go on

A trial is told before its lease is finished, so a crash between the two leaves a lease whose trial is over, and
whoever takes it over only closes it. Training and files belong to the `TrialRun` that the factory makes; this module
decides, and prints nothing: it sends events to a listener.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from cvaeopt.errors import (
    CvaeoptError,
    DataError,
    DeviceError,
    Diverged,
    Interrupted,
    LeaseLost,
    StorageRefused,
    StorageUnreachable,
    StudyDamaged,
    StudyError,
    StudyGone,
    TryAgain,
    UserError,
)
from cvaeopt.files import FULL, RunFolder, trouble
from cvaeopt.run.events import (
    EpochDone,
    Event,
    LeaseTaken,
    Listener,
    Outage,
    Recovered,
    Stopping,
    TrialEnded,
    TrialLeft,
    TrialStarted,
    Waiting,
    Warned,
    WorkerEnded,
    WorkerStarted,
)
from cvaeopt.run.reporter import Courier, clock_with_sleep
from cvaeopt.run.signals import Stop, StopNow, heard
from cvaeopt.store import damage
from cvaeopt.store.identity import of
from cvaeopt.store.leases import CONSTRAINTS, Beat, Fleet, Idle, Lease, Outcome, Place
from cvaeopt.store.storage import Storage


class Epoch(Protocol):
    """One finished epoch of a run, as `EpochResult` has it."""

    @property
    def epoch(self) -> int:
        """Epochs finished, this one included."""

    def row(self) -> dict[str, Any]:
        """The epoch's line of history.jsonl."""


class TrialRun(Protocol):
    """One trial being trained."""

    @property
    def epoch(self) -> int:
        """Epochs finished; above 0 after a resume."""

    @property
    def epochs(self) -> int:
        """Epochs of the whole trial."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per finished epoch, those before a resume included."""

    def value_of(self, row: dict[str, Any]) -> float:
        """What is reported for this epoch."""

    def final_value(self) -> float:
        """What is told when all epochs are trained."""

    def run(self) -> Iterator[Epoch]:
        """Train the epochs that are left."""

    def save(self) -> None:
        """Write a checkpoint, whole or not at all; OSError when the disk is full."""

    def settle(self) -> None:
        """Wait, a bounded time, until what was saved is where the next owner finds it; never raises."""

    def finish(self, state: Literal["complete", "pruned", "failed"], reason: str) -> None:
        """Leave what people want to see; never raises."""


Factory = Callable[[Trial, Lease], TrialRun]


_FIRST_PAUSE_S = 0.5  # between two looks for a trial; grows to `poll_s`
_FULL_POLLS = 3  # the longest pause between two looks for room on a full disk, in `poll_s`


class Worker:
    """A worker for one study on one device.

    study         the Optuna study, opened on `storage`
    factory       makes the run of a trial: settings suggested, folder opened, checkpoint restored
    device        its name for `status`, such as "cuda:0"
    artifacts     the folder of all run folders
    listener      is told every event, one at a time, from two threads
    ttl_s         how long a lease lives without a sign of life, seconds
    limit_s       how long an outage of the database may last, seconds; then StorageUnreachable. As long the disk
                  may be full while a trial is to begin; then TryAgain
    poll_s        pause between two looks for a trial while there is none, seconds
    max_attempts  starts of a trial without a finished epoch between them, before it is given up
    max_consecutive_failures   trials that may fail in a row before the worker gives up (diverged ones: 3 times that)
    checkpoint_every           epochs between two checkpoints
    stop           what the process was asked so far, where several workers of one process follow each other
    after_trial    called when a trial has ended here or was left: no lease is held, no lock is taken; must not raise
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
        ttl_s: float = 120.0,
        limit_s: float = 900.0,
        poll_s: float | None = None,
        max_attempts: int = 3,
        max_consecutive_failures: int = 3,
        checkpoint_every: int = 1,
        report_wait_s: float = 30.0,
        min_deadline_s: float = 900.0,
        deadline_factor: float = 10.0,
        signals: bool = True,
        stop: Stop | None = None,
        after_trial: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        try:
            RunFolder.of_trial(artifacts, study.study_name, 0)
        except ValueError:
            raise StudyError(
                f"The study's name {study.study_name!r} cannot be a folder under {artifacts}.",
                todo="Give the study a name of letters, digits, '-' and '_'.",
            ) from None
        self.study = study
        self.storage = storage
        self.fleet = Fleet(storage, study.study_name, ttl_s=ttl_s, max_attempts=max_attempts)
        self.place = Place.here()
        self.id = self.place.new_id()
        self.device = device
        self.artifacts = artifacts
        self.trials = 0
        self._factory = factory
        self._listener = listener
        self._limit_s = limit_s
        self._poll_s = min(ttl_s / 4, 10.0) if poll_s is None else poll_s
        self._max_failures = max_consecutive_failures
        self._checkpoint_every = checkpoint_every
        self._signals = signals
        self._after_trial = after_trial
        self._sleep = sleep
        self._emit_lock = threading.RLock()
        self._stop = Stop() if stop is None else stop
        self._announced = False
        self._failures: list[str] = []  # kinds of the failures since the last good trial
        self._lease: Lease | None = None
        self._folder = artifacts  # of the trial at hand
        self._last_reason = ""  # of the last trial that ended here
        self._waited_for = ""
        self._pause_s = _FIRST_PAUSE_S
        self._left: tuple[int, int] | None = None  # (slot, token) of the lease that was given back last
        self._full: OSError | None = None  # why the trial that was claimed last could not begin: no room on the disk
        self._full_s = 0.0  # how long room was waited for since a trial began last
        self.courier = Courier(
            self.fleet,
            self.id,
            self._emit,
            wait_s=report_wait_s,
            min_deadline_s=min_deadline_s,
            deadline_factor=deadline_factor,
        )

    def run(self) -> WorkerEnded:
        """How the worker ended: "finished" when the study's budget is met, "stopped" when asked to.

        StorageUnreachable when an outage passes its limit (the trial is checkpointed), Interrupted after a second
        signal, TryAgain after a device fault or when the disk stays full, UserError when trial after trial fails,
        StudyGone when somebody deleted the study, StudyError when somebody deleted the row of a lease, StudyDamaged
        when a row cannot be read, StorageRefused when the database takes a right away.
        """
        with self._watched_storage(), heard(self._stop.ask) if self._signals else contextlib.nullcontext():
            try:
                self.fleet.register(self.id, self.place, self.device)
                self._emit(WorkerStarted(self.id, self.study.study_name, self.device))
                self.courier.start()
                ended = self._loop()
                self._emit(ended)
                return ended
            except StopNow:
                self._release_in_passing()
                raise Interrupted(
                    "Stopped at once by a second signal.",
                    todo="The trial continues from its last checkpoint when a worker runs again.",
                ) from None
            except CvaeoptError:
                raise
            except Exception:  # Optuna knows a missing row as KeyError, the database as a broken reference
                self._check_rows()
                raise
            finally:
                self.courier.close()
                self._leave()

    def stop(self, now: bool = False) -> None:
        """Stop as after a signal, from any thread: after this epoch, or at once. Asking twice changes nothing."""
        self._stop.ask_once(signal.SIGTERM)
        if now:
            os.kill(os.getpid(), signal.SIGTERM)

    def _loop(self) -> WorkerEnded:
        while True:
            reason = self._stop_reason()
            if reason:
                return WorkerEnded("stopped", reason, self.trials)
            asked_at = clock_with_sleep()
            try:
                claimed = self.fleet.claim(self.id, self.place)
            except StorageUnreachable:
                if not self._stop_reason():
                    raise
                continue
            if isinstance(claimed, Lease):
                self._lease = claimed
                try:
                    self._train(claimed, asked_at)
                except StorageUnreachable:
                    if not self._stop_reason():
                        raise
                    # Asked to stop while the database is away: the lease runs out by itself.
                finally:
                    self.courier.end()
                self._lease = None
                self._after_trial()
                self._check_failures()
                if self._full is not None:
                    self._wait_for_room(claimed, self._full)
            elif claimed.kind == "finished":
                return WorkerEnded("finished", claimed.reason, self.trials)
            else:
                self._wait(claimed)

    def _wait(self, idle: Idle) -> None:
        if idle.reason != self._waited_for:
            self._waited_for = idle.reason
            self._emit(Waiting(idle.reason))
        self.courier.show("waiting", idle.reason)
        until = time.monotonic() + min(self._pause_s, self._poll_s)
        self._pause_s *= 1.5
        while not self._stop_reason() and (left := until - time.monotonic()) > 0:
            self._sleep(min(left, 0.5))

    def _wait_for_room(self, lease: Lease, error: OSError) -> None:
        """Pause after a trial could not begin on a full disk; said once, longer every time.

        TryAgain when the disk stays full for the time that an outage may last.
        """
        self._full = None
        full = trouble(self.artifacts, error)
        if self._full_s >= self._limit_s:
            raise TryAgain(
                f"Trial {lease.number} cannot begin: {full}, and was for {self._full_s:.0f} s ({error}).",
                todo=f"Make room under {self.artifacts}, then start the worker again; the trial is not lost.",
            ) from None
        if self._full_s == 0:
            self._waited_for, self._pause_s = full, _FIRST_PAUSE_S
            self._emit(Waiting(f"{full}; waiting for room"))
        self.courier.show("waiting", full)
        left = min(self._pause_s, _FULL_POLLS * self._poll_s)
        self._pause_s *= 2
        while not self._stop_reason() and left > 0:
            step = min(left, 0.5)
            self._sleep(step)
            self._full_s += step
            left -= step

    # ---- one trial

    def _train(self, lease: Lease, claimed_at: float) -> None:
        """Train the trial of `lease` until it is over, lost or left."""
        # Optuna's `ask` reads all trials first, for the sampler and for its cache of ids.
        self.study._thread_local.cached_all_trials = None
        self.study.get_trials(deepcopy=False)
        try:
            frozen = self.storage.get_trial(lease.trial_id)
        except KeyError:
            self._check_rows()
            raise StudyError(
                f"Trial {lease.number} of study {lease.study!r} is no longer in {self.storage.url}.",
                todo="Restore a backup, or give the study a new name.",
            ) from None
        self._folder = of(self.study).claim(self.artifacts) / f"{lease.number:05d}"
        if frozen.state.is_finished():
            with contextlib.suppress(LeaseLost):
                self._close_told(lease, frozen)
            return
        self.courier.begin(
            lease,
            claimed_at,
            lambda: self._prunes(lease),
            set(frozen.intermediate_values),
            self._folder / f"reports.{lease.token}.jsonl",
        )
        if lease.token > 1 and (lease.slot, lease.token - 1) != self._left:
            self._emit(LeaseTaken(lease.number, lease.token, lease.attempt, lease.epochs_done))
        run: TrialRun | None = None
        try:
            trial = Trial(self.study, lease.trial_id)
            if lease.exhausted:
                reason = f"given up: {lease.attempt - 1} workers died with it at epoch {lease.epochs_done}"
                self._tell(lease, trial, None, "failed", reason, "crashed")
                return
            try:
                run = self._factory(trial, lease)
                self._waited_for, self._pause_s, self._full_s = "", _FIRST_PAUSE_S, 0.0
                self._epochs(lease, trial, run)
            except (
                StorageUnreachable,
                StorageRefused,
                LeaseLost,
                DataError,
                DeviceError,
                TryAgain,
                StudyGone,
                StudyDamaged,
            ):
                raise
            except Exception as error:
                self._check_rows()  # what fails for want of the study's rows is no failure of the trial
                if run is None and isinstance(error, OSError) and error.errno in FULL:
                    # Put off: no trial of the budget is spent on a full disk.
                    self._release(lease)
                    self._full = OSError(error.errno, error.strerror)
                    return
                kind, reason = _kind_of(error)
                # The traceback holds the tensors of the failed step; they must go before the device is cleaned.
                error.__traceback__ = None
                error.__context__ = error.__cause__ = None
                if kind == "device fault":
                    raise TryAgain(
                        f"Trial {lease.number}: {reason}",
                        todo="The device is unusable for this process; start the worker again.",
                    ) from None
                self._tell(lease, trial, run, "failed", reason, kind)
        except LeaseLost as lost:
            self.fleet.check_lost(lease)
            self._emit(TrialLeft(lease.number, run.epoch if run is not None else 0, str(lost)))
        except TryAgain:
            self._release(lease, crashed=True)
            raise
        except (DataError, DeviceError, StudyDamaged, StorageRefused):
            self._release(lease)
            raise
        finally:
            run = None
            _clean_device()

    def _epochs(self, lease: Lease, trial: Trial, run: TrialRun) -> None:
        """Train, save, report and end the trial one way or the other."""
        self._emit(TrialStarted(lease.number, run.epoch, run.epochs, lease.attempt, dict(trial.params)))
        if lease.checkpoint_epoch is not None and run.epoch < lease.checkpoint_epoch:
            self._emit(Warned(_not_here(lease, run.epoch, self.artifacts)))
        # The last verdict before the takeover may not have been acted on.
        if self.courier.judge() == "prune":
            self._tell(lease, trial, run, "pruned", f"pruned at epoch {run.epoch}", "")
            return
        for epoch, value in self._backlog(lease, run):
            self.courier.report(epoch, value, wait=False)
        if self._stop_reason() and run.epoch < run.epochs:
            self._leave_trial(lease, run, run.epoch)
            return
        epochs = run.run()
        try:
            for result in epochs:
                row = result.row()
                value = run.value_of(row)
                if not math.isfinite(value):
                    raise Diverged("the reported value", value, result.epoch - 1)
                due = result.epoch % self._checkpoint_every == 0 or result.epoch == run.epochs
                if due:
                    self._save(lease, run)
                verdict = self.courier.report(result.epoch, value)
                pending = verdict == "pending"
                self._emit(EpochDone(lease.number, result.epoch, run.epochs, value, row, pending))
                if verdict == "lost":
                    raise LeaseLost(f"Trial {lease.number} is being trained by another worker now.")
                if verdict == "ended":
                    self._close_told(lease, self.storage.get_trial(lease.trial_id))
                    return
                if verdict == "prune":
                    break
                given_up = pending and self.courier.away_s() > self._limit_s
                leaving = self._stop_reason() and result.epoch < run.epochs
                if (given_up or leaving) and not due:
                    self._save(lease, run)
                if given_up:
                    self.courier.drain(self._limit_s, self._stopping)  # raises StorageUnreachable
                if leaving:
                    self._leave_trial(lease, run, result.epoch)
                    return
        finally:
            close = getattr(epochs, "close", None)
            if close is not None:
                close()
        verdict = self.courier.drain(self._limit_s, self._stopping)
        if verdict == "prune":
            self._tell(lease, trial, run, "pruned", f"pruned at epoch {run.epoch}", "")
        else:
            self._tell(lease, trial, run, "complete", "all epochs trained", "")

    def _backlog(self, lease: Lease, run: TrialRun) -> list[tuple[int, float]]:
        """(epoch, value) of finished epochs that the database may lack, in order."""
        values = {int(row["epoch"]): run.value_of(row) for row in run.history}
        for path in sorted(self._folder.glob("reports.*.jsonl")):
            with contextlib.suppress(OSError, ValueError, KeyError):  # a file cut short by a crash
                for line in path.read_text().splitlines():
                    entry = json.loads(line)
                    values.setdefault(int(entry["epoch"]), float(entry["value"]))
        known = set(self.storage.get_trial(lease.trial_id).intermediate_values)
        return [(epoch, values[epoch]) for epoch in sorted(values) if epoch <= run.epoch and epoch not in known]

    def _prunes(self, lease: Lease) -> bool:
        """The pruner's opinion of everything reported; as `Trial.should_prune`, from the database's view."""
        return self.study.pruner.prune(self.study, self.storage.get_trial(lease.trial_id))

    def _save(self, lease: Lease, run: TrialRun) -> None:
        """Write a checkpoint if the lease is ours; a full disk costs the checkpoint, not the trial."""
        self.courier.fence()
        try:
            run.save()
        except OSError as error:
            last = run.epoch == run.epochs
            self._emit(
                Warned(
                    f"Trial {lease.number}: no checkpoint for epoch {run.epoch}: {trouble(self.artifacts, error)}. "
                    f"{'The trial counts' if last else 'Training goes on'} without it. Make room there: "
                    f"{'it is tried once more when the trial ends' if last else 'the next checkpoint is tried again'}."
                )
            )
        else:
            self.courier.saved(run.epoch, socket.gethostname())

    def _tell(
        self, lease: Lease, trial: Trial, run: TrialRun | None, outcome: Outcome, reason: str, failed: str
    ) -> None:
        """End the trial everywhere: reports, files, attributes, Optuna, lease; in an order that a crash may cut."""
        self.courier.expect(self._limit_s + 900.0)
        verdict = self.courier.drain(self._limit_s, self._stopping)
        if verdict == "lost":
            raise LeaseLost(f"Trial {lease.number} is being trained by another worker now.")
        self.courier.fence()
        epochs_done = lease.epochs_done if run is None else run.epoch
        if run is not None:
            run.finish(outcome, reason)  # pictures must be uploaded before the trial is told
        value = run.final_value() if run is not None and outcome == "complete" else None
        state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}[outcome]
        if failed in _LEARNABLE:
            # Samplers never see failed trials; pruned ones with a constraint teach them where not to look.
            state = TrialState.PRUNED
        try:
            self._describe(lease, trial, epochs_done, reason, failed)
            self.courier.fence()
            self.study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:  # somebody told it meanwhile, in the dashboard for one
            self._close_told(lease, self.storage.get_trial(lease.trial_id))
            return
        self.fleet.finish(lease, outcome, reason, epochs_done)
        self._forget_leavings()
        self.trials += 1
        self._failures = [*self._failures, failed] if failed else []
        self._last_reason = reason
        self._emit(TrialEnded(lease.number, outcome, reason, epochs_done, value, failed))

    def _describe(self, lease: Lease, trial: Trial, epochs_done: int, reason: str, failed: str) -> None:
        """Write with the trial how it ended; what is there already (from a worker that died here) stays."""
        attributes: dict[str, Any] = {
            "epochs_done": epochs_done,
            "reason": reason,
            "worker": self.id,
            "attempt": lease.attempt,
        }
        if failed:
            attributes["failed"] = failed
        frozen = self.storage.get_trial(lease.trial_id)
        for key, entry in {"host": self.place.host, "device": self.device}.items():
            if key not in frozen.user_attrs:  # the run may know better
                attributes[key] = entry
        for key, entry in attributes.items():
            trial.set_user_attr(key, entry)
        for key in CONSTRAINTS:
            if key not in frozen.constraints:
                trial.set_constraint(key, 1.0 if _LEARNABLE.get(failed) == key else 0.0)

    def _close_told(self, lease: Lease, frozen: optuna.trial.FrozenTrial) -> None:
        """Close the lease of a trial that is over already: its worker died before it could, or somebody told it."""
        outcomes: dict[TrialState, Outcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        failed = frozen.user_attrs.get("failed", "")
        outcome = "failed" if failed else outcomes.get(frozen.state, "failed")
        reason = str(frozen.user_attrs.get("reason", "ended from outside"))
        epochs_done = int(frozen.user_attrs.get("epochs_done", frozen.last_step or 0))
        self.fleet.finish(lease, outcome, reason, epochs_done)
        self._forget_leavings()

    def _forget_leavings(self) -> None:
        """Delete what earlier owners left in the trial's folder: delivered reports, files cut short by a SIGKILL."""
        for path in [*self._folder.glob("reports.*.jsonl"), *self._folder.glob(".*.part")]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _leave_trial(self, lease: Lease, run: TrialRun, epoch: int) -> None:
        """Leave a trial that is not over to whoever is free; its last epoch is saved."""
        run.settle()
        self._release(lease)
        self._emit(TrialLeft(lease.number, epoch, self._stop_reason()))

    def _release(self, lease: Lease, *, crashed: bool = False) -> None:
        """Give the lease back; if the database is away it runs out by itself."""
        patience_s = 10.0 if self.courier.away_s() == 0 else 0.0
        try:
            with self.storage.patience(patience_s):
                self.fleet.release(lease, crashed=crashed)
            self._left = (lease.slot, lease.token)
        except (LeaseLost, StorageUnreachable, StorageRefused) as error:
            self._emit(Warned(f"Trial {lease.number} could not be released: {error}"))

    # ---- failures in a row

    def _check_failures(self) -> None:
        """UserError when trial after trial failed: then it is not the settings."""
        hard = [kind for kind in self._failures if kind not in ("diverged", "crashed")]
        if len(hard) < self._max_failures and len(self._failures) < 3 * self._max_failures:
            return
        raise UserError(
            f"{len(self._failures)} trials failed in a row, the last one with: {self._last_reason}",
            "Expected: failures to be the exception.",
            "Correct the cause and start the worker again; the failed trials are counted in the budget.",
        )

    def _check_rows(self) -> None:
        """StudyGone if the study was deleted, StudyDamaged if a row is; nothing while the database cannot be asked."""
        with contextlib.suppress(StorageUnreachable), self.storage.patience(10.0):
            self.fleet.check_study()
            damaged = damage.find(self.storage, self.study.study_name)
            if damaged is not None:
                raise damaged

    # ---- stopping

    def _stopping(self) -> bool:
        return bool(self._stop_reason())

    def _stop_reason(self) -> str:
        """Why to stop after this epoch, or an empty text; announced once."""
        reason = f"{self._stop.name} received" if self._stop else ""
        reason = reason or (self.courier.stop_asked and "an operator asked to stop") or ""
        if reason and not self._announced:
            self._announced = True
            self.courier.show("stopping", reason)
            self._emit(Stopping(reason))
        return reason

    def _release_in_passing(self) -> None:
        with contextlib.suppress(Exception), self.storage.patience(1.0):
            if self._lease is not None:
                self.fleet.release(self._lease)

    def _leave(self) -> None:
        """Say goodbye in the workers' table; best effort, the row shows "dead" otherwise."""
        if self.courier.away_s() > 0:
            return
        with contextlib.suppress(StorageUnreachable, StorageRefused), self.storage.patience(2.0):
            self.fleet.beat(self.id, Beat("stopped"))

    # ---- events

    @contextlib.contextmanager
    def _watched_storage(self) -> Iterator[None]:
        """Outages that the main thread meets between trials are events too."""
        main = threading.get_ident()
        said_at: list[float] = []

        def retrying(seconds: float, said: str) -> None:
            if threading.get_ident() == main and (not said_at or time.monotonic() - said_at[-1] > 60.0):
                said_at.append(time.monotonic())
                self._emit(Outage(seconds, said))

        def recovered(seconds: float) -> None:
            if threading.get_ident() == main and said_at:
                said_at.clear()
                self._emit(Recovered(seconds))

        storage = self.storage
        before = (storage.on_retry, storage.on_recovery, storage.hurry, storage.limit_s)
        storage.on_retry, storage.on_recovery = retrying, recovered
        storage.hurry, storage.limit_s = self._stopping, self._limit_s
        try:
            yield
        finally:
            storage.on_retry, storage.on_recovery, storage.hurry, storage.limit_s = before

    def _emit(self, event: Event) -> None:
        with self._emit_lock:
            self._listener(event)


_LEARNABLE = {"diverged": "diverged", "out of memory": "out_of_memory", "crashed": "crashed"}
"""Kinds of failure that settings can cause, each with its constraint."""


def _kind_of(error: Exception) -> tuple[str, str]:
    """What failed ("diverged", "out of memory", "device fault", "error") and its reason in one line."""
    name, message = type(error).__name__, str(error).strip()
    line = message.splitlines()[0] if message else ""
    if isinstance(error, Diverged):
        return "diverged", message
    if name == "OutOfMemoryError" or isinstance(error, MemoryError) or "out of memory" in message.lower():
        return "out of memory", f"{name}: {line}"
    if name == "AcceleratorError" or "CUDA error" in message or "device-side assert" in message:
        return "device fault", f"{name}: {line}"
    return "error", f"{name}: {line}" if line else name


def _not_here(lease: Lease, epoch: int, artifacts: Path) -> str:
    """What is said when a trial goes on after an earlier epoch than the one whose checkpoint was announced."""
    goes_on = f"it goes on after epoch {epoch}" if epoch else "it starts again from its first epoch"
    return (
        f"Trial {lease.number}: {goes_on}. The checkpoint of epoch {lease.checkpoint_epoch}, written on "
        f"{lease.checkpoint_host}, is not in {artifacts} here. Workers continue each other's trials if they share "
        "that folder (--artifacts) or an object store (--checkpoints)."
    )


def _clean_device() -> None:
    """Give back what a finished or failed run held, on the device too if torch is in use."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""One worker's attempt at one trial, from the claim of its lease until the trial has ended, is given back, or is lost.

    factory --> epochs: save, report, ask the pruner --> tell Optuna --> finish the lease
       |                     |
       |                     '- asked to stop: save, release the lease
       '- no room on the disk: release the lease       lease lost: leave everything as it is

The factory makes the training, and `trial_run` restores the trial's newest checkpoint.

Optuna records the end of the trial before the lease is finished. If the worker crashes between these two steps, the
trial has ended, but its lease is still open. The next worker that gets this lease only closes the lease.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from cvaeopt.errors import (
    DataError,
    DeviceError,
    Diverged,
    LeaseLost,
    StorageRefused,
    StorageUnreachable,
    StudyDamaged,
    StudyError,
    StudyGone,
    TryAgain,
)
from cvaeopt.files import FULL, trouble
from cvaeopt.run.events import EpochDone, LeaseTaken, Listener, TrialEnded, TrialLeft, TrialStarted, Warned
from cvaeopt.run.failures import LEARNABLE, kind_of
from cvaeopt.run.pending_reports import read_reports
from cvaeopt.run.reporter import Reporter
from cvaeopt.run.retention import delete_leftovers
from cvaeopt.run.timing import Timing
from cvaeopt.store import damage
from cvaeopt.store.identity import of
from cvaeopt.store.leases import CONSTRAINTS, Lease, LeaseRegistry, Outcome, lost
from cvaeopt.store.optuna_private import forget_trials
from cvaeopt.store.optuna_rows import STOP
from cvaeopt.store.status import BY_HAND
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Place
from cvaeopt.vae import device as devices

if TYPE_CHECKING:  # `trial_run` imports torch, which this module does not need
    from cvaeopt.run.trial_run import Factory, Trainable

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_MAX_FINISH_S = 900.0  # how long pictures, notes and uploads at a trial's end may take
_ASK_LIMIT_S = 10.0  # how long an optional call waits for the database


@dataclass(frozen=True)
class Session:
    """The parts that all attempts of one worker share.

    worker        the worker's id in the database
    factory       makes the training of a trial
    emit          receives every event
    stop_reason   returns the reason to stop after this epoch, or an empty text
    """

    study: optuna.Study
    storage: Storage
    leases: LeaseRegistry
    reporter: Reporter
    worker: str
    place: Place
    device: str
    artifacts: Path
    factory: Factory
    emit: Listener
    stop_reason: Callable[[], str]
    timing: Timing

    def is_stopping(self) -> bool:
        return bool(self.stop_reason())

    def read_trial(self, lease: Lease) -> FrozenTrial:
        """The trial of `lease`, read before it is trained; StudyError if the trial was deleted."""
        # All trials are read first, as in Optuna's `ask`: the sampler and Optuna's cache of ids need them.
        forget_trials(self.study)
        self.study.get_trials(deepcopy=False)
        try:
            return self.storage.get_trial(lease.trial_id)
        except KeyError:
            self.check_rows()
            raise StudyError(
                f"Trial {lease.number} of study {lease.study!r} is no longer in {self.storage.url}.",
                todo="Restore a backup, or give the study a new name.",
            ) from None

    def is_pruned(self, lease: Lease) -> bool:
        """Whether a user asked to stop the trial, or the pruner ends it, given all values in the database."""
        trial = self.storage.get_trial(lease.trial_id)
        return STOP in trial.system_attrs or self.study.pruner.prune(self.study, trial)

    def why_pruned(self, lease: Lease, epoch: int) -> str:
        """The reason of a trial that is pruned after `epoch` epochs."""
        by_hand = STOP in self.storage.get_trial(lease.trial_id).system_attrs
        return f"{BY_HAND if by_hand else 'pruned'} at epoch {epoch}"

    def describe(self, lease: Lease, trial: Trial, epochs_done: int, reason: str, failed: str) -> None:
        """Write into the trial's attributes how the trial ended. A host and device from the training are kept."""
        frozen = self.storage.get_trial(lease.trial_id)
        where = {"host": self.place.host, "device": self.device}
        attributes = {
            "epochs_done": epochs_done,
            "reason": reason,
            "worker": self.worker,
            "attempt": lease.attempt,
            **({"failed": failed} if failed else {}),
            **{key: entry for key, entry in where.items() if key not in frozen.user_attrs},
        }
        for key, entry in attributes.items():
            trial.set_user_attr(key, entry)
        for key in CONSTRAINTS:
            if key not in frozen.constraints:  # an earlier worker may have set some constraints before it died
                trial.set_constraint(key, 1.0 if LEARNABLE.get(failed) == key else 0.0)

    def check_rows(self) -> None:
        """Raise StudyGone if the study was deleted, and StudyDamaged if a row of the study is damaged.

        If the database does not answer, nothing is checked.
        """
        with contextlib.suppress(StorageUnreachable), self.storage.patience(_ASK_LIMIT_S):
            self.leases.check_study()
            damaged = damage.find(self.storage, self.study.study_name)
            if damaged is not None:
                raise damaged


class Attempt:
    """One attempt at the trial of `lease`.

    began      whether the factory has made the training
    ended      the end of the trial; None if this attempt did not end the trial
    released   whether the lease was given back
    no_room    the disk's error, if the trial could not begin because the disk was full; otherwise None
    """

    def __init__(self, session: Session, lease: Lease) -> None:
        self.lease = lease
        self.began = False
        self.ended: TrialEnded | None = None
        self.released = False
        self.no_room: OSError | None = None
        self._session = session
        self._reporter = session.reporter
        self._emit = session.emit
        self._folder = session.artifacts

    def run(self, claimed_at: float, *, is_own: bool) -> None:
        """Train the trial until it has ended, is given back or is lost.

        claimed_at   the time at which the worker asked for the lease, on the clock of `Timing`
        is_own       whether this worker was also the last owner of the lease; then no takeover is announced
        """
        session, lease = self._session, self.lease
        frozen = session.read_trial(lease)
        self._folder = of(session.study).claim(session.artifacts) / f"{lease.number:05d}"
        if frozen.state.is_finished():
            with contextlib.suppress(LeaseLost):
                self._close(frozen)
            return
        self._reporter.begin(
            lease,
            claimed_at,
            lambda: session.is_pruned(lease),
            set(frozen.intermediate_values),
            self._folder / f"reports.{lease.token}.jsonl",
        )
        if lease.token > 1 and not is_own:
            self._emit(LeaseTaken(lease.number, lease.token, lease.attempt, lease.epochs_done))
        try:
            self._run(Trial(session.study, lease.trial_id), stopped=STOP in frozen.system_attrs)
        except TryAgain:
            self._release(crashed=True)
            raise
        except (DataError, DeviceError, StudyDamaged, StorageRefused):
            self._release()
            raise
        finally:
            devices.free_memory()

    def _run(self, trial: Trial, *, stopped: bool) -> None:
        """Make the training and run it. If the training fails, end the trial as failed.

        stopped   whether a user asked to stop the trial before this attempt; then it ends without training
        """
        lease = self.lease
        run: Trainable | None = None
        try:
            if lease.exhausted:
                reason = f"given up: {lease.attempt - 1} workers died with it at epoch {lease.epochs_done}"
                self._tell(trial, None, "failed", reason, "crashed")
                return
            if stopped:
                self._tell(trial, None, "pruned", self._session.why_pruned(lease, lease.epochs_done))
                return
            try:
                run = self._session.factory(trial, lease)
                self.began = True
                self._train(trial, run)
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
                self._fail(trial, run, error)
        except LeaseLost as error:
            self._session.leases.check_lost(lease)
            self._emit(TrialLeft(lease.number, run.epoch if run is not None else 0, str(error)))

    def _fail(self, trial: Trial, run: Trainable | None, error: Exception) -> None:
        """End the trial as failed; TryAgain if the device is faulty.

        A trial that could not begin on a full disk is given back instead.
        """
        self._session.check_rows()  # if rows of the study are missing, every trial fails, whatever its settings
        if run is None and isinstance(error, OSError) and error.errno in FULL:
            self._release()
            self.no_room = OSError(error.errno, error.strerror)
            return
        kind, reason = kind_of(error)
        # The traceback refers to tensors of the failed step. These tensors must be freed before the device is cleaned.
        error.__traceback__ = None
        error.__context__ = error.__cause__ = None
        if kind == "device fault":
            raise TryAgain(
                f"Trial {self.lease.number}: {reason}",
                todo="The device is unusable for this process; start the worker again.",
            ) from None
        self._tell(trial, run, "failed", reason, kind)

    # ---- epochs

    def _train(self, trial: Trial, run: Trainable) -> None:
        """Train, save and report each epoch, then end the trial or give it back."""
        lease = self.lease
        self._emit(TrialStarted(lease.number, run.epoch, run.epochs, lease.attempt, dict(trial.params)))
        if lease.checkpoint_epoch is not None and run.epoch < lease.checkpoint_epoch:
            self._emit(Warned(_missing_checkpoint(lease, run.epoch, self._session.artifacts)))
        # The earlier owner may have stopped before it acted on the pruner's last verdict.
        if self._reporter.judge() == "prune":
            self._tell(trial, run, "pruned", self._session.why_pruned(self.lease, run.epoch))
            return
        for epoch, value in self._undelivered(run):
            self._reporter.report(epoch, value, wait=False)
        if self._session.is_stopping() and run.epoch < run.epochs:
            self._leave(run)
            return
        with contextlib.closing(run.run()) as epochs:
            for result in epochs:
                row = result.row()
                value = run.value_of(row)
                if not math.isfinite(value):
                    raise Diverged("the reported value", value, result.epoch - 1)
                self._save(run)
                verdict = self._reporter.report(result.epoch, value)
                self._emit(EpochDone(lease.number, result.epoch, run.epochs, value, row, verdict == "pending"))
                if verdict == "lost":
                    raise lost(lease)
                if verdict == "ended":
                    self._close(self._session.storage.get_trial(lease.trial_id))
                    return
                if verdict == "prune":
                    break
                if verdict == "pending" and self._reporter.outage_s > self._session.timing.limit_s:
                    self._reporter.drain(self._session.is_stopping)  # raises StorageUnreachable
                if self._session.is_stopping() and result.epoch < run.epochs:
                    self._leave(run)
                    return
        if self._reporter.drain(self._session.is_stopping) == "prune":
            self._tell(trial, run, "pruned", self._session.why_pruned(self.lease, run.epoch))
        else:
            self._tell(trial, run, "complete", "all epochs trained")

    def _undelivered(self, run: Trainable) -> list[tuple[int, float]]:
        """(epoch, value) of the finished epochs that are missing in the database, in rising order."""
        values = read_reports(self._folder) | {int(row["epoch"]): run.value_of(row) for row in run.history}
        known = set(self._session.storage.get_trial(self.lease.trial_id).intermediate_values)
        return [(epoch, values[epoch]) for epoch in sorted(values) if epoch <= run.epoch and epoch not in known]

    def _save(self, run: Trainable) -> None:
        """Write a checkpoint; LeaseLost if another worker has the trial. If the write fails, training continues."""
        self._reporter.check_lease()
        try:
            run.save()
        except OSError as error:
            goes_on, then = "Training goes on", "the next checkpoint is tried again"
            if run.epoch == run.epochs:
                goes_on, then = "The trial counts", "it is tried once more when the trial ends"
            self._emit(
                Warned(
                    f"Trial {self.lease.number}: no checkpoint for epoch {run.epoch}: "
                    f"{trouble(self._session.artifacts, error)}. {goes_on} without it. Make room there: {then}."
                )
            )
        else:
            self._reporter.saved(run.epoch, socket.gethostname())

    # ---- the end

    def _tell(self, trial: Trial, run: Trainable | None, outcome: Outcome, reason: str, failed: str = "") -> None:
        """End the trial in this order: reports, files, attributes, Optuna, lease. A crash may come after any step.

        failed   the kind of failure; empty if the trial did not fail
        """
        session, lease = self._session, self.lease
        self._reporter.expect(session.timing.limit_s + _MAX_FINISH_S)
        if self._reporter.drain(session.is_stopping) == "lost":
            raise lost(lease)
        self._reporter.check_lease()
        epochs_done = lease.epochs_done if run is None else run.epoch
        if run is not None:
            run.finish(outcome, reason)  # pictures must be attached before Optuna ends the trial
        value = run.final_value() if run is not None and outcome == "complete" else None
        # Samplers ignore failed trials. From a pruned trial with a violated constraint they learn what to avoid.
        state = TrialState.PRUNED if failed in LEARNABLE else _STATES[outcome]
        try:
            session.describe(lease, trial, epochs_done, reason, failed)
            self._reporter.check_lease()
            session.study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:  # somebody else has ended the trial, for example in the dashboard
            self._close(session.storage.get_trial(lease.trial_id))
            return
        session.leases.finish(lease, outcome, reason, epochs_done)
        delete_leftovers(self._folder)
        self.ended = TrialEnded(lease.number, outcome, reason, epochs_done, value, failed)
        self._emit(self.ended)

    def _close(self, frozen: FrozenTrial) -> None:
        """Close the lease of a trial that has already ended.

        An earlier owner ended the trial and died before it closed the lease, or somebody else ended the trial.
        """
        outcomes: dict[TrialState, Outcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        failed = frozen.user_attrs.get("failed", "")
        outcome = "failed" if failed else outcomes.get(frozen.state, "failed")
        reason = str(frozen.user_attrs.get("reason", "ended from outside"))
        epochs_done = int(frozen.user_attrs.get("epochs_done", frozen.last_step or 0))
        self._session.leases.finish(self.lease, outcome, reason, epochs_done)
        delete_leftovers(self._folder)

    def _leave(self, run: Trainable) -> None:
        """Wait for the upload of the last checkpoint, then give the trial back so that any worker can continue it."""
        run.settle()
        self._release()
        self._emit(TrialLeft(self.lease.number, run.epoch, self._session.stop_reason()))

    def _release(self, *, crashed: bool = False) -> None:
        """Give the lease back. If the database does not answer, the lease expires by itself."""
        patience_s = _ASK_LIMIT_S if self._reporter.outage_s == 0 else 0.0
        try:
            with self._session.storage.patience(patience_s):
                self._session.leases.release(self.lease, crashed=crashed)
            self.released = True
        except (LeaseLost, StorageUnreachable, StorageRefused) as error:
            self._emit(Warned(f"Trial {self.lease.number} could not be released: {error}"))


def _missing_checkpoint(lease: Lease, epoch: int, artifacts: Path) -> str:
    """The warning that the newest checkpoint is not here, so that the trial continues from an earlier epoch."""
    goes_on = f"it goes on after epoch {epoch}" if epoch else "it starts again from its first epoch"
    return (
        f"Trial {lease.number}: {goes_on}. The checkpoint of epoch {lease.checkpoint_epoch}, written on "
        f"{lease.checkpoint_host}, is not in {artifacts} here. Workers continue each other's trials if they share "
        "that folder (--artifacts) or an object store (--checkpoints)."
    )

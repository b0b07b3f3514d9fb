"""One worker's attempt at one trial, from its lease until the trial has ended, is given back, or is lost.

    factory --> epochs: save, report, ask the pruner --> tell the study --> finish the lease
       |                     |
       |                     '- asked to stop: save, release the lease
       '- no room on the disk: release the lease       lease lost: leave everything as it is

A trial is told before its lease is finished. A crash between the two leaves an open lease of a trial that has ended;
the next worker that gets this lease only closes it.
"""

from __future__ import annotations

import contextlib
import gc
import math
import socket
import sys
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
from cvaeopt.store.leases import CONSTRAINTS, Lease, LeaseRegistry, Outcome
from cvaeopt.store.optuna_private import forget_trials
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import Place

if TYPE_CHECKING:  # it imports torch, which this module does not need
    from cvaeopt.run.trial_run import Factory, Trainable

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_MAX_FINISH_S = 900.0  # how long pictures, notes and uploads at a trial's end may take
_ASK_LIMIT_S = 10.0  # how long calls that are only useful, and not needed, wait for the database


@dataclass(frozen=True)
class Session:
    """What all attempts of one worker share.

    worker        the worker's id in the database
    factory       makes the training of a trial
    emit          is told every event
    stop_reason   why to stop after this epoch, or an empty text
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
        """Whether the worker was asked to stop."""
        return bool(self.stop_reason())

    def read_trial(self, lease: Lease) -> FrozenTrial:
        """The trial of `lease` before it is trained; StudyError if it was deleted."""
        # Optuna's `ask` reads all trials first, for the sampler and for its cache of ids.
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
        """The pruner's answer for everything that the database has, as `Trial.should_prune` would give it."""
        return self.study.pruner.prune(self.study, self.storage.get_trial(lease.trial_id))

    def describe(self, lease: Lease, trial: Trial, epochs_done: int, reason: str, failed: str) -> None:
        """Write into the trial's attributes how it ended; host and device only if the training has not done so."""
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
            if key not in frozen.constraints:  # a worker that died here may have set some
                trial.set_constraint(key, 1.0 if LEARNABLE.get(failed) == key else 0.0)

    def check_rows(self) -> None:
        """StudyGone if the study was deleted, StudyDamaged if one of its rows is damaged.

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
    ended      how the trial ended, if this attempt ended it
    released   whether the lease was given back
    no_room    why the trial could not begin, if there was no room on the disk
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

        claimed_at   when the lease was asked for, by the clock of `Timing`
        is_own       whether this worker itself gave the lease back last, so that nothing was taken over
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
            self._run(Trial(session.study, lease.trial_id))
        except TryAgain:
            self._release(crashed=True)
            raise
        except (DataError, DeviceError, StudyDamaged, StorageRefused):
            self._release()
            raise
        finally:
            _clean_device()

    def _run(self, trial: Trial) -> None:
        """Make the training and train; end the trial as failed if it fails."""
        lease = self.lease
        run: Trainable | None = None
        try:
            if lease.exhausted:
                reason = f"given up: {lease.attempt - 1} workers died with it at epoch {lease.epochs_done}"
                self._tell(trial, None, "failed", reason, "crashed")
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
        except LeaseLost as lost:
            self._session.leases.check_lost(lease)
            self._emit(TrialLeft(lease.number, run.epoch if run is not None else 0, str(lost)))

    def _fail(self, trial: Trial, run: Trainable | None, error: Exception) -> None:
        """End the trial as failed; give it back instead if the disk or the device is the cause."""
        self._session.check_rows()  # without the study's rows every trial fails, and this one is not to blame
        if run is None and isinstance(error, OSError) and error.errno in FULL:
            self._release()
            self.no_room = OSError(error.errno, error.strerror)
            return
        kind, reason = kind_of(error)
        # The traceback refers to the tensors of the failed step; they must be freed before the device is cleaned.
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
        """Train, save, report, and end the trial or give it back."""
        lease = self.lease
        self._emit(TrialStarted(lease.number, run.epoch, run.epochs, lease.attempt, dict(trial.params)))
        if lease.checkpoint_epoch is not None and run.epoch < lease.checkpoint_epoch:
            self._emit(Warned(_missing_checkpoint(lease, run.epoch, self._session.artifacts)))
        # The worker that had the trial before may not have acted on the last verdict.
        if self._reporter.judge() == "prune":
            self._tell(trial, run, "pruned", f"pruned at epoch {run.epoch}")
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
                    raise _lost(lease)
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
            self._tell(trial, run, "pruned", f"pruned at epoch {run.epoch}")
        else:
            self._tell(trial, run, "complete", "all epochs trained")

    def _undelivered(self, run: Trainable) -> list[tuple[int, float]]:
        """(epoch, value) of finished epochs that the database does not have, in order."""
        values = read_reports(self._folder) | {int(row["epoch"]): run.value_of(row) for row in run.history}
        known = set(self._session.storage.get_trial(self.lease.trial_id).intermediate_values)
        return [(epoch, values[epoch]) for epoch in sorted(values) if epoch <= run.epoch and epoch not in known]

    def _save(self, run: Trainable) -> None:
        """Write a checkpoint if the lease is held; on a full disk the trial goes on without it."""
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
        """End the trial everywhere: reports, files, attributes, Optuna, lease. A crash may cut this at any place.

        failed   the kind of failure
        """
        session, lease = self._session, self.lease
        self._reporter.expect(session.timing.limit_s + _MAX_FINISH_S)
        if self._reporter.drain(session.is_stopping) == "lost":
            raise _lost(lease)
        self._reporter.check_lease()
        epochs_done = lease.epochs_done if run is None else run.epoch
        if run is not None:
            run.finish(outcome, reason)  # pictures must be attached before the trial is told
        value = run.final_value() if run is not None and outcome == "complete" else None
        # Samplers never see failed trials. A pruned trial with a violated constraint teaches them what to avoid.
        state = TrialState.PRUNED if failed in LEARNABLE else _STATES[outcome]
        try:
            session.describe(lease, trial, epochs_done, reason, failed)
            self._reporter.check_lease()
            session.study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:  # somebody has ended it meanwhile, for example in the dashboard
            self._close(session.storage.get_trial(lease.trial_id))
            return
        session.leases.finish(lease, outcome, reason, epochs_done)
        delete_leftovers(self._folder)
        self.ended = TrialEnded(lease.number, outcome, reason, epochs_done, value, failed)
        self._emit(self.ended)

    def _close(self, frozen: FrozenTrial) -> None:
        """Close the lease of a trial that has ended: its worker died before it could, or somebody ended it."""
        outcomes: dict[TrialState, Outcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
        failed = frozen.user_attrs.get("failed", "")
        outcome = "failed" if failed else outcomes.get(frozen.state, "failed")
        reason = str(frozen.user_attrs.get("reason", "ended from outside"))
        epochs_done = int(frozen.user_attrs.get("epochs_done", frozen.last_step or 0))
        self._session.leases.finish(self.lease, outcome, reason, epochs_done)
        delete_leftovers(self._folder)

    def _leave(self, run: Trainable) -> None:
        """Give back a trial that has not ended, so that any worker can continue it; its last epoch is saved."""
        run.settle()
        self._release()
        self._emit(TrialLeft(self.lease.number, run.epoch, self._session.stop_reason()))

    def _release(self, *, crashed: bool = False) -> None:
        """Give the lease back. If the database does not answer, the lease runs out by itself."""
        patience_s = _ASK_LIMIT_S if self._reporter.outage_s == 0 else 0.0
        try:
            with self._session.storage.patience(patience_s):
                self._session.leases.release(self.lease, crashed=crashed)
            self.released = True
        except (LeaseLost, StorageUnreachable, StorageRefused) as error:
            self._emit(Warned(f"Trial {self.lease.number} could not be released: {error}"))


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"Trial {lease.number} is being trained by another worker now.")


def _missing_checkpoint(lease: Lease, epoch: int, artifacts: Path) -> str:
    """The warning that a trial goes on from an earlier epoch than that of its newest checkpoint."""
    goes_on = f"it goes on after epoch {epoch}" if epoch else "it starts again from its first epoch"
    return (
        f"Trial {lease.number}: {goes_on}. The checkpoint of epoch {lease.checkpoint_epoch}, written on "
        f"{lease.checkpoint_host}, is not in {artifacts} here. Workers continue each other's trials if they share "
        "that folder (--artifacts) or an object store (--checkpoints)."
    )


def _clean_device() -> None:
    """Free what a finished or failed run has left, also on the device if torch is in use."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

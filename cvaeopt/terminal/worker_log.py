"""The events of a worker in words, with the study's best value and a baseline for comparison."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from cvaeopt.run import events
from cvaeopt.text import BASELINES, baseline_texts, count, duration, settings_text, sparkline

_AWAY: Final = ("stopped", "dead", "silent")
"""The states of workers that train nothing."""


@dataclass(frozen=True)
class Line:
    """One line about a worker.

    kind   "warning": also shown by a quiet console; "epoch": replaced by the line of the next epoch; "baselines": the
           same for all workers of the study; "": any other line
    """

    text: str
    style: str = ""
    kind: Literal["", "warning", "epoch", "baselines"] = ""


def time_left_s(facts: dict[str, Any], epoch_s: float, since: int = 0) -> float | None:
    """The time that the present workers need for the rest of a study, seconds.

    None if the budget limits neither the number of trials nor the total number of epochs, or if the facts do not tell.

    facts     the facts of the study, as `status` reads them
    epoch_s   seconds that one worker needs for one epoch
    since     epochs that this worker has trained since the facts were read

    A trial that was begun is assumed to train all its epochs. A trial that was not begun is assumed to train for as
    many epochs as the average ended trial, pruned trials included.
    """
    trials, budget, begun = facts["trials"], facts["budget"], facts["open_trials"]
    workers: int = sum(worker["trial"] is not None and worker["state"] not in _AWAY for worker in facts["workers"])
    ended = trials["complete"] + trials["pruned"] + trials["failed"]
    left: list[float] = []
    if budget["trials"] is not None:
        over = ended + trials.get("history", 0)
        spent = facts["epochs_spent"] - sum(trial["epoch"] for trial in begun)
        each = spent / over if over else budget["epochs"]
        new = max(budget["trials"] - ended - len(begun), 0)
        if new and each <= 0:
            return None
        left.append(sum(max(trial["epochs"] - trial["epoch"], 0) for trial in begun) + new * each)
    if budget["total_epochs"] is not None:
        left.append(float(budget["total_epochs"] - facts["epochs_spent"]))
    if not left:
        return None
    return max(min(left) - since, 0.0) * epoch_s / max(workers, 1)


def settings(params: dict[str, Any]) -> str:
    """The suggested settings of a trial in one line."""
    return settings_text(params) or "the fixed settings"


class WorkerLog:
    """The state of a worker, from its events. `lines` describes each event in words.

    live      whether live lines already show the trial in training. Then its start and its epochs produce no lines.

    worker    id of the worker; "" before the worker has started
    study     name of the study; "" before it is known
    trial     the trial in training; None between two trials
    epoch     finished epochs of this trial
    epoch_at  time of `clock` at which the last epoch ended or, before the first epoch, the trial started
    curve     values of the epochs of this trial that this worker trained, dB
    facts     the facts of the study, as they were last read; None before the first reading
    note      text about a wait, an outage or a stop; "" if there is none
    """

    def __init__(self, live: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.worker = ""
        self._live = live
        self._open(events.StudyOpened("", {}))

    def _open(self, event: events.StudyOpened) -> None:
        self.study = event.study
        self._baselines = event.baselines
        floors = [name for name in event.baselines if name in ("copy_first", "train_mean")]
        self._floor = max(floors, key=lambda name: event.baselines[name]) if floors else None
        self._own_best: tuple[float, int] | None = None
        self.trial: events.TrialStarted | None = None
        self.epoch = 0
        self.epoch_at = 0.0
        self.curve: list[float] = []
        self._seconds: list[float] = []
        self.facts: dict[str, Any] | None = None
        self._since_read = 0
        self.note = ""

    def lines(self, event: events.Event) -> list[Line]:
        """Update the state with one event. Return the lines that describe the event; the list may be empty."""
        match event:
            case events.StudyOpened():
                self._open(event)
            case events.StudyRead(facts=facts):
                self.facts, self._since_read = facts, 0
            case events.TrialStarted():
                return self._trial_started(event)
            case events.EpochDone():
                return self._epoch_done(event)
            case events.TrialEnded():
                return [self._trial_ended(event)]
            case _:
                return self._about_the_worker(event)
        return []

    def _about_the_worker(self, event: events.Event) -> list[Line]:
        match event:
            case events.WorkerStarted(worker=worker, study=study, device=device):
                self.worker, self.study = worker, study
                started = Line(f"worker {worker} on {device} takes trials of study {study}")
                levels = Line(f"baselines: {baseline_texts(self._baselines)} dB", kind="baselines")
                return [started, levels] if self._baselines else [started]
            case events.StudyExtended(study=study, known=known, version=version, by=by, changes=changes):
                self._own_best = None
                text = f"study {study}: this worker had version {known} of the definition and takes version {version}"
                return [Line(f"{text}{by and f' by {by}'}: {'; '.join(changes)}")]
            case events.LeaseTaken(number=number, attempt=attempt, epoch=epoch):
                return [Line(f"trial {number}: taken over after epoch {epoch} (attempt {attempt})")]
            case events.TrialLeft(number=number, epoch=epoch, reason=reason):
                self.trial = None
                return [Line(f"trial {number}: left after epoch {epoch} ({reason})", "yellow")]
            case events.Waiting(reason=reason):
                self.note = f"waiting: {reason}"
                return [Line(self.note)]
            case events.Outage(seconds=seconds, reason=reason):
                self.note = f"the database does not answer: {reason}"
                text = (
                    f"training goes on without the database, which has not answered for {duration(seconds)}: {reason}"
                )
                return [Line(f"{text}; reports are kept and delivered later", kind="warning")]
            case events.Recovered(seconds=seconds, delivered=delivered):
                self.note = ""
                reports = count(delivered, "report")
                return [Line(f"the database is back after {duration(seconds)}; {reports} delivered")]
            case events.Stalled(number=number, deadline_s=deadline_s):
                text = f"trial {number}: no epoch ended within {duration(deadline_s)}; another worker may take it over"
                return [Line(text, kind="warning")]
            case events.Stopping(reason=reason):
                self.note = f"stopping after this epoch: {reason}"
                return [Line(f"{self.note} (a second signal stops at once)", "yellow")]
            case events.Warned(message=message):
                return [Line(message, kind="warning")]
            case events.WorkerEnded(kind=kind, reason=reason, trials=trials):
                self.trial, self.note = None, ""
                return [Line(f"{kind}: {reason}; {count(trials, 'trial')} ended here")]
        return []

    def _trial_started(self, event: events.TrialStarted) -> list[Line]:
        self.trial, self.epoch, self.epoch_at = event, event.epoch, self.clock()
        self.curve = []
        self.note = ""
        since = f" from epoch {event.epoch}" if event.epoch else ""
        return [] if self._live else [Line(f"trial {event.number}{since}: {settings(event.params)}")]

    def _epoch_done(self, event: events.EpochDone) -> list[Line]:
        self.epoch, self.epoch_at = event.epoch, self.clock()
        self.curve.append(event.value)
        self._since_read += 1
        self._seconds = [*self._seconds[-19:], float(event.row.get("seconds", 0.0))]
        pending = "the report waits for the database" if event.pending else ""
        if self._live:
            self.note = pending or self.note
            return []
        left = duration(self.pace_s * (event.epochs - event.epoch))
        study = self.study_left()
        text = (
            f"trial {event.number} epoch {event.epoch}/{event.epochs}: {self.compared(event.value)}, "
            f"{self.pace_s:.1f} s an epoch, {left} left{study and f' ({study} for the study)'}"
        )
        return [Line(f"{text} ({pending})" if pending else text, kind="epoch")]

    def _trial_ended(self, event: events.TrialEnded) -> Line:
        params = f"  {settings(self.trial.params)}" if self.trial is not None and self._live else ""
        facts = self.facts or {}
        whole = facts["budget"]["epochs"] if len(facts.get("versions", ())) > 1 else event.epochs_done
        self.trial = None
        value = "" if event.value is None else f" {event.value:.2f} dB"
        record = ""
        # A trial of an earlier version with fewer epochs is not compared with the trials of the newest version.
        if event.value is not None and event.epochs_done == whole:
            best = self.best
            if best is None or event.value > best[0]:
                record = " (the best so far)"
            if self._own_best is None or event.value > self._own_best[0]:
                self._own_best = (event.value, event.number)
        return Line(
            f"trial {event.number} {event.outcome}{value}{record} after {count(event.epochs_done, 'epoch')}: "
            f"{event.reason} {sparkline(self.curve)}{params}",
            {"complete": "green", "pruned": "", "failed": "red"}[event.outcome],
        )

    # ---- figures

    @property
    def pace_s(self) -> float:
        """The median duration of the last 20 epochs, seconds; 0 before the first epoch."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @property
    def best(self) -> tuple[float, int] | None:
        """Value and number of the study's best trial; None if no trial has a value yet.

        The best trial is that of the last reading, or a better trial of this worker.
        """
        stored = self.facts["best"] if self.facts else None
        known = [(float(stored["value"]), int(stored["number"]))] if stored else []
        if self._own_best is not None:
            known.append(self._own_best)
        return max(known, key=lambda pair: pair[0], default=None)

    def compared(self, value: float) -> str:
        """A text with `value`, the study's best value, the better simple baseline, and the differences from both."""
        text = f"{value:.2f} dB"
        best = self.best
        if best is not None:
            text += f", study's best {best[0]:.2f} ({value - best[0]:+.2f})"
        if self._floor is not None:
            level = self._baselines[self._floor]
            text += f", {BASELINES[self._floor]} {level:.2f} ({value - level:+.2f})"
        return text

    def study_left(self) -> str:
        """The remaining time of the study in words; "" if the time is unknown."""
        if self.facts is None or not self.pace_s:
            return ""
        left_s = time_left_s(self.facts, self.pace_s, self._since_read)
        if left_s is None:
            return ""
        # The facts may be older than this trial, and several workers do not shorten it.
        own_s = 0.0 if self.trial is None else self.pace_s * (self.trial.epochs - self.epoch)
        return f"about {duration(max(left_s, own_s))} left"

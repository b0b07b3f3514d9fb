"""What the events of a worker say in words, beside the figures that they are compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cvaeopt.run import events
from cvaeopt.text import BASELINES, baseline_texts, count, duration, short, sparkline


@dataclass(frozen=True)
class Line:
    """One line about a worker.

    kind   "warning" is shown also when quiet, "epoch" is replaced by the next epoch, "baselines" is equal for all
           workers of the study; "" is any other line
    """

    text: str
    style: str = ""
    kind: Literal["", "warning", "epoch", "baselines"] = ""


def time_left_s(facts: dict[str, Any], epoch_s: float, since: int = 0) -> float | None:
    """How long the workers that run now need for the rest of a study, seconds; None if the budget does not tell.

    facts     as `status` gives them
    epoch_s   seconds of one epoch of one worker
    since     epochs that this worker has trained after the facts were read

    Trials to come are assumed to take as many epochs as the trials that ended took on average, pruned ones included.
    """
    trials, budget = facts["trials"], facts["budget"]
    training = [
        int(worker["epoch"] or 0)
        for worker in facts["workers"]
        if worker["trial"] is not None and worker["state"] != "dead"
    ]
    workers = len(training) or 1
    begun = sum(training)
    ended = trials["complete"] + trials["pruned"] + trials["failed"]
    if budget["trials"] is not None:
        each = (facts["epochs_spent"] - begun) / ended if ended else budget["epochs"]
        left = float(max(budget["trials"] - ended, 0) * each - begun)
    elif budget["total_epochs"] is not None:
        left = float(budget["total_epochs"] - facts["epochs_spent"])
    else:
        return None
    return max(left - since, 0.0) * epoch_s / workers


def settings(params: dict[str, Any]) -> str:
    """The suggestions of a trial in one line."""
    return ", ".join(f"{name} {short(value)}" for name, value in params.items()) or "the fixed settings"


class WorkerLog:
    """Follows a worker: `lines` turns each event into words, and the attributes hold the present state.

    live   whether the trial in training is drawn elsewhere: then its beginning and its epochs are no lines

    worker    its id, "" before it started
    study     the name of its study, "" before it is known
    trial     the trial in training, None between two
    epoch     epochs finished of it; `epoch_at` is when the last one ended, by `clock`
    curve     the values of its epochs that were trained here, dB
    facts     the whole study as `status` last showed it
    note      what the worker waits for, or ""
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
        """Take in one event; returns the lines that describe it, which may be none."""
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
            case events.LeaseTaken(number=number, attempt=attempt, epoch=epoch):
                return [Line(f"trial {number}: taken over after epoch {epoch} (attempt {attempt})")]
            case events.TrialLeft(number=number, epoch=epoch, reason=reason):
                self.trial = None
                return [Line(f"trial {number}: left after epoch {epoch} ({reason})", "yellow")]
            case events.Waiting(reason=reason):
                self.note = f"waiting: {reason}"
                return [Line(self.note)]
            case events.Outage(seconds=seconds, reason=reason):
                self.note = f"the database does not answer ({reason})"
                text = f"the database has not answered for {duration(seconds)} ({reason}); training goes on, "
                return [Line(f"{text}reports are kept and delivered later", kind="warning")]
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
        self.trial = None
        value = "" if event.value is None else f" {event.value:.2f} dB"
        record = ""
        if event.value is not None:
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
        """Seconds of an epoch, the median of the last ones; 0 before the first."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @property
    def best(self) -> tuple[float, int] | None:
        """Value and number of the study's best trial: the last one read, or a better one of this worker."""
        stored = self.facts["best"] if self.facts else None
        known = [(float(stored["value"]), int(stored["number"]))] if stored else []
        if self._own_best is not None:
            known.append(self._own_best)
        return max(known, key=lambda pair: pair[0], default=None)

    def compared(self, value: float) -> str:
        """A value beside the best of the study and the better of the simple baselines."""
        text = f"{value:.2f} dB"
        best = self.best
        if best is not None:
            text += f", best {best[0]:.2f} ({value - best[0]:+.2f})"
        if self._floor is not None:
            level = self._baselines[self._floor]
            text += f", {BASELINES[self._floor]} {level:.2f} ({value - level:+.2f})"
        return text

    def study_left(self) -> str:
        """How long the rest of the study takes, in words; "" if that is unknown."""
        if self.facts is None or not self.pace_s:
            return ""
        left_s = time_left_s(self.facts, self.pace_s, self._since_read)
        return "" if left_s is None else f"about {duration(left_s)} left"

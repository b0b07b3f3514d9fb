"""What a worker shows while it works: a few live lines on a terminal, one plain line an event in a pipe.

On a terminal:

    trial 7  lr 0.00123, tfr 0.44, kl_anneal_type cyclical
    ━━━━━━━━━━━━━━━━━━━━━━━━────────────  epoch 3/5, 1.2 s each, 2 s left
    27.31 dB  ▁▃▅▆█  best 28.10 (-0.79), mean frame 22.56 (+4.75)
    study demo: 4 of 8 trials, 2 workers, best 28.10 dB (trial 3), 40 s left
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Group, RenderableType
from rich.text import Text

from cvaeopt.errors import CvaeoptError
from cvaeopt.run import events
from cvaeopt.terminal.console import Console, epoch_bar, folded, live_width
from cvaeopt.text import BASELINES, baseline_texts, count, duration, short, sparkline

_READ_EVERY_S = 5.0
_READ_SHARE = 0.05  # of the time that may go into reading the study


def time_left_s(facts: dict[str, Any], epoch_s: float) -> float | None:
    """How long the workers that run now need for the rest of a study, seconds; None when nobody can say.

    facts     as `status` gives them
    epoch_s   seconds of one epoch of one worker

    Trials still to come are taken to be as long as those that ended: pruned ones count with what they were trained.
    """
    trials, budget = facts["trials"], facts["budget"]
    training = [
        int(one["epoch"] or 0) for one in facts["workers"] if one["trial"] is not None and one["state"] != "dead"
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
    return max(left, 0.0) * epoch_s / workers


class WorkerView:
    """Shows a worker's events on `console`. Used as a context; `heard` is the worker's listener.

    baselines   of the study's data, dB, against which a PSNR is shown
    read        what `status` says of the whole study; asked now and then in a thread of its own, so that a database
                that does not answer holds nobody up. What it raises is forgotten: the worker says what it means.
    """

    def __init__(
        self,
        console: Console,
        baselines: dict[str, float],
        read: Callable[[], dict[str, Any]] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._clock = clock
        self._worker = ""
        self._study = ""
        self._baselines = baselines
        floors = [name for name in baselines if name in ("copy_first", "train_mean")]
        self._floor = max(floors, key=lambda name: baselines[name]) if floors else None
        self._own_best: tuple[float, int] | None = None
        self._trial: events.TrialStarted | None = None
        self._epoch = 0
        self._epoch_at = 0.0
        self._curve: list[float] = []
        self._seconds: list[float] = []
        self._note = ""
        self._live = console.live
        self._screen = contextlib.ExitStack()
        self._facts: dict[str, Any] | None = None
        self._read = read
        self._closed = threading.Event()
        self._reader = threading.Thread(target=self._keep_reading, name="study", daemon=True)

    def __enter__(self) -> Self:
        if self._live:
            self._screen.enter_context(self._console.moving(self.renderable))
        if self._read is not None and not self._console.quiet:
            self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._screen.close()
        if self._reader.is_alive():
            self._reader.join(timeout=2.0)

    # ---- events

    def heard(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.WorkerStarted(worker=worker, study=study, device=device):
                self._worker, self._study = worker, study
                self._say(f"worker {worker} on {device} takes trials of study {study}")
                if self._baselines:
                    self._say(f"baselines: {baseline_texts(self._baselines)} dB")
            case events.LeaseTaken(number=number, attempt=attempt, epoch=epoch):
                self._say(f"trial {number}: taken over after epoch {epoch} (attempt {attempt})")
            case events.TrialStarted():
                self._trial_started(event)
            case events.EpochDone():
                self._epoch_done(event)
            case events.TrialEnded():
                self._trial_ended(event)
            case events.TrialLeft(number=number, epoch=epoch, reason=reason):
                self._trial = None
                self._say(f"trial {number}: left after epoch {epoch} ({reason})", "yellow")
            case events.Waiting(reason=reason):
                self._note = f"waiting: {reason}"
                self._say(self._note)
            case events.Outage(seconds=seconds, said=said):
                self._note = f"the database does not answer ({said})"
                self._console.warn(
                    f"the database has not answered for {duration(seconds)} ({said}); training goes on, "
                    "reports are kept and delivered later"
                )
            case events.Recovered(seconds=seconds, delivered=delivered):
                self._note = ""
                self._say(f"the database is back after {duration(seconds)}; {count(delivered, 'report')} delivered")
            case events.Stalled(number=number, deadline_s=deadline_s):
                self._console.warn(
                    f"trial {number}: no epoch ended within {duration(deadline_s)}; another worker may take it over"
                )
            case events.Stopping(reason=reason):
                self._note = f"stopping after this epoch: {reason}"
                self._say(f"{self._note} (a second signal stops at once)", "yellow")
            case events.Warned(message=message):
                self._console.warn(message)
            case events.WorkerEnded(kind=kind, reason=reason, trials=trials):
                self._trial, self._note = None, ""
                self._say(f"{kind}: {reason}; {count(trials, 'trial')} ended here")

    def _trial_started(self, event: events.TrialStarted) -> None:
        self._trial, self._epoch, self._epoch_at = event, event.epoch, self._clock()
        self._curve = []
        self._note = ""
        since = f" from epoch {event.epoch}" if event.epoch else ""
        if not self._live:
            self._say(f"trial {event.number}{since}: {_settings(event.params)}")

    def _epoch_done(self, event: events.EpochDone) -> None:
        self._epoch, self._epoch_at = event.epoch, self._clock()
        self._curve.append(event.value)
        self._seconds = [*self._seconds[-19:], float(event.row.get("seconds", 0.0))]
        pending = " (the report waits for the database)" if event.pending else ""
        if not self._live:
            left = duration(self._pace_s * (event.epochs - event.epoch))
            study = self._study_left()
            self._say(
                f"trial {event.number} epoch {event.epoch}/{event.epochs}: {self._compared(event.value)}, "
                f"{self._pace_s:.1f} s an epoch, {left} left{study and f' ({study} for the study)'}{pending}"
            )
        elif pending:
            self._note = pending.strip(" ()")

    def _trial_ended(self, event: events.TrialEnded) -> None:
        settings = f"  {_settings(self._trial.params)}" if self._trial is not None and self._live else ""
        self._trial = None
        style = {"complete": "green", "pruned": "", "failed": "red"}[event.outcome]
        value = "" if event.value is None else f" {event.value:.2f} dB"
        record = ""
        if event.value is not None:
            best = self._best
            if best is None or event.value > best[0]:
                record = " (the best so far)"
            if self._own_best is None or event.value > self._own_best[0]:
                self._own_best = (event.value, event.number)
        self._say(
            f"trial {event.number} {event.outcome}{value}{record} after {count(event.epochs_done, 'epoch')}: "
            f"{event.reason} {sparkline(self._curve)}{settings}",
            style,
        )

    # ---- the live lines

    def renderable(self) -> RenderableType:
        """The live lines, as they are now."""
        width = live_width(self._console.err)
        lines: list[RenderableType] = []
        trial = self._trial
        if trial is not None:
            attempt = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
            lines.append(
                folded(Text.assemble((f"trial {trial.number}{attempt}", "bold"), f"  {_settings(trial.params)}"), width)
            )
            since_s = self._clock() - self._epoch_at
            lines.append(epoch_bar(self._epoch, trial.epochs, self._pace_s, since_s, width))
            if self._curve:
                lines.append(folded(Text(f"{sparkline(self._curve, 16)}  {self._compared(self._curve[-1])}"), width))
        summary = self._summary()
        if summary:
            lines.append(folded(Text(summary, style="dim"), width))
        if self._note:
            lines.append(folded(Text(self._note, style="yellow"), width))
        return Group(*lines)

    def _summary(self) -> str:
        facts = self._facts
        if facts is None:
            return f"study {self._study}" if self._study else ""
        trials = facts["trials"]
        ended = trials["complete"] + trials["pruned"] + trials["failed"]
        total = facts["budget"]["trials"]
        parts = [f"{ended} of {count(total, 'trial')}" if total is not None else count(ended, "trial")]
        workers = sum(one["state"] not in ("stopped", "dead") for one in facts["workers"])
        parts.append(count(workers, "worker"))
        best = self._best
        if best is not None:
            parts.append(f"best {best[0]:.2f} dB (trial {best[1]})")
        if trials["failed"]:
            parts.append(f"{trials['failed']} failed")
        left = self._study_left()
        if left:
            parts.append(left)
        return f"study {facts['study']}: {', '.join(parts)}"

    # ---- figures

    @property
    def _pace_s(self) -> float:
        """Seconds of an epoch, the median of the last ones; 0 before the first."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    @property
    def _best(self) -> tuple[float, int] | None:
        """Value and trial of the best of the study: what the database said, or better ones of this worker since."""
        stored = self._facts["best"] if self._facts else None
        known = [(float(stored["value"]), int(stored["number"]))] if stored else []
        if self._own_best is not None:
            known.append(self._own_best)
        return max(known, key=lambda one: one[0], default=None)

    def _compared(self, value: float) -> str:
        text = f"{value:.2f} dB"
        best = self._best
        if best is not None:
            text += f", best {best[0]:.2f} ({value - best[0]:+.2f})"
        if self._floor is not None:
            level = self._baselines[self._floor]
            text += f", {BASELINES[self._floor]} {level:.2f} ({value - level:+.2f})"
        return text

    def _study_left(self) -> str:
        if self._facts is None or not self._pace_s:
            return ""
        left_s = time_left_s(self._facts, self._pace_s)
        return "" if left_s is None else f"about {duration(left_s)} left"

    def _keep_reading(self) -> None:
        assert self._read is not None
        while not self._closed.is_set():
            began = time.monotonic()
            with contextlib.suppress(CvaeoptError):  # the worker meets the same trouble, and says so
                self._facts = self._read()
            self._closed.wait(max(_READ_EVERY_S, (time.monotonic() - began) / _READ_SHARE))

    def _say(self, text: str, style: str = "") -> None:
        # Two workers often write to one terminal or log: the process says which of them speaks.
        who = f"[{self._worker.split('-')[-2]}] " if self._worker.count("-") >= 2 and not self._live else ""
        self._console.say(f"{who}{text}", style)


def _settings(params: dict[str, Any]) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in params.items()) or "the fixed settings"

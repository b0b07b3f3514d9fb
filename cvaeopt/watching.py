"""What a worker shows while it works: its events as a live bar, or as one plain line each."""

from __future__ import annotations

import statistics
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cvaeopt.console import Console, duration, short, sparkline
from cvaeopt.search import events


class WorkerView:
    """Shows a worker's events on `console`. Used as a context; `heard` is the worker's listener.

    baselines   of the study's data, dB, against which a PSNR is shown
    """

    def __init__(self, console: Console, baselines: dict[str, float]) -> None:
        self._console = console
        self._worker = ""
        self._floor = max((baselines[name] for name in ("copy_first", "train_mean") if name in baselines), default=None)
        self._best: float | None = None
        self._curve: list[float] = []
        self._seconds: list[float] = []
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                MofNCompleteColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                console=self._console.err,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def heard(self, event: events.Event) -> None:
        """Show one event."""
        match event:
            case events.WorkerStarted(worker=worker, study=study, device=device):
                self._worker = worker
                floor = "" if self._floor is None else f"; to beat: {self._floor:.2f} dB"
                self._say(f"worker {worker} on {device} takes trials of study {study}{floor}")
            case events.LeaseTaken(number=number, attempt=attempt, epoch=epoch):
                self._say(f"trial {number}: taken over after epoch {epoch} (attempt {attempt})")
            case events.TrialStarted():
                self._trial_started(event)
            case events.EpochDone():
                self._epoch_done(event)
            case events.TrialEnded():
                self._trial_ended(event)
            case events.TrialLeft(number=number, epoch=epoch, reason=reason):
                self._say(f"trial {number}: left after epoch {epoch} ({reason})", "yellow")
                self._end_bar()
            case events.Waiting(reason=reason):
                self._say(f"waiting: {reason}")
            case events.Outage(seconds=seconds, said=said):
                self._console.warn(
                    f"the database has not answered for {duration(seconds)} ({said}); training goes on, "
                    "reports are kept and delivered later"
                )
            case events.Recovered(seconds=seconds, delivered=delivered):
                self._say(f"the database is back after {duration(seconds)}; {delivered} reports delivered")
            case events.Stalled(number=number, deadline_s=deadline_s):
                self._console.warn(
                    f"trial {number}: no epoch ended within {duration(deadline_s)}; another worker may take it over"
                )
            case events.Stopping(reason=reason):
                self._say(f"stopping after this epoch: {reason} (a second signal stops at once)", "yellow")
            case events.Warned(message=message):
                self._console.warn(message)
            case events.WorkerEnded(kind=kind, reason=reason, trials=trials):
                self._say(f"{kind}: {reason}; {trials} trials ended here")

    def _trial_started(self, event: events.TrialStarted) -> None:
        self._curve = []
        params = ", ".join(f"{name} {short(value)}" for name, value in event.params.items())
        since = f" from epoch {event.epoch}" if event.epoch else ""
        self._say(f"trial {event.number}{since}: {params}")
        if self._bar is not None:
            self._end_bar()
            self._task = self._bar.add_task(
                f"trial {event.number}", total=event.epochs, completed=event.epoch, detail=""
            )

    def _epoch_done(self, event: events.EpochDone) -> None:
        self._curve.append(event.value)
        self._seconds = [*self._seconds[-19:], float(event.row.get("seconds", 0.0))]
        pace = statistics.median(self._seconds)
        left = duration(pace * (event.epochs - event.epoch))
        best = "" if self._best is None else f", best {self._best:.2f}"
        floor = "" if self._floor is None else f", {event.value - self._floor:+.2f} to baseline"
        text = f"{event.value:.2f} dB{best}{floor}, {pace:.1f} s/epoch, {left} left"
        if event.pending:
            text += " (report waits for the database)"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.epoch, detail=f"{sparkline(self._curve, 16)} {text}")
        else:
            self._say(f"trial {event.number} epoch {event.epoch}/{event.epochs}: {text}")

    def _trial_ended(self, event: events.TrialEnded) -> None:
        self._end_bar()
        style = {"complete": "green", "pruned": "", "failed": "red"}[event.outcome]
        value = "" if event.value is None else f" {event.value:.2f} dB"
        if event.value is not None and (self._best is None or event.value > self._best):
            self._best = event.value
        self._say(
            f"trial {event.number} {event.outcome}{value} after {event.epochs_done} epochs: {event.reason} "
            f"{sparkline(self._curve)}",
            style,
        )

    def _end_bar(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def _say(self, text: str, style: str = "") -> None:
        # Two workers often write to one terminal or log: the process says which of them speaks.
        who = f"[{self._worker.split('-')[-2]}] " if self._worker.count("-") >= 2 and self._bar is None else ""
        self._console.say(f"{who}{text}", style)

"""The display of a running worker: a few live lines on a terminal, or one plain line for each event in a pipe.

On a terminal:

    trial 7  lr 0.00123, tfr 0.44, kl_anneal_type cyclical
    ━━━━━━━━━━━━━━━━━━━━━━━━────────────  epoch 3/5, 1.2 s each, 2 s left
    27.31 dB  ▁▃▅▆█  study's best 28.10 (-0.79), mean frame 22.56 (+4.75)
    study demo: 4 of 8 trials, 2 workers, best 28.10 dB (trial 3), 40 s left

If a supervisor runs several workers on one device, each line begins with the number of the worker, such as [0].
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Self

from rich.console import Group, RenderableType
from rich.text import Text

from cvaeopt.run.events import Event
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.layout import epoch_bar, folded, live_width
from cvaeopt.terminal.results import GONE
from cvaeopt.terminal.worker_log import WorkerLog, settings
from cvaeopt.text import count, sparkline


class _View:
    """A context manager that draws `renderable()` at the foot of a terminal. In a pipe, it draws nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._screen = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._console.live:
            self._screen.enter_context(self._console.live_lines(self.renderable))
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.close()

    def renderable(self) -> RenderableType:
        raise NotImplementedError


class WorkerView(_View):
    """Shows a worker's events on `console`. The method `heard` is the listener that the worker calls."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self._log = WorkerLog(console.live, clock)

    def heard(self, event: Event) -> None:
        for line in self._log.lines(event):
            if line.kind == "warning":
                self._console.warn(line.text)
            else:
                self._console.say(f"{self._who()}{line.text}", line.style)

    def _who(self) -> str:
        # Several workers may write to the same terminal or log. The process id shows which worker wrote the line.
        parts = self._log.worker.split("-")
        return f"[{parts[-2]}] " if len(parts) > 2 and not self._console.live else ""

    def renderable(self) -> RenderableType:
        log, width = self._log, live_width(self._console.err)
        lines: list[RenderableType] = []
        if (trial := log.trial) is not None:
            attempt = f" (attempt {trial.attempt})" if trial.attempt > 1 else ""
            head = Text.assemble((f"trial {trial.number}{attempt}", "bold"), f"  {settings(trial.params)}")
            lines.append(folded(head, width))
            lines.append(epoch_bar(log.epoch, trial.epochs, log.pace_s, log.clock() - log.epoch_at, width))
            if log.curve:
                lines.append(folded(Text(f"{sparkline(log.curve, 16)}  {log.compared(log.curve[-1])}"), width))
        if summary := self._summary():
            lines.append(folded(Text(summary, style="dim"), width))
        if log.note:
            lines.append(folded(Text(log.note, style="yellow"), width))
        return Group(*lines)

    def _summary(self) -> str:
        log, facts = self._log, self._log.facts
        if facts is None:
            return f"study {log.study}" if log.study else ""
        trials = facts["trials"]
        ended = trials["complete"] + trials["pruned"] + trials["failed"]
        total = facts["budget"]["trials"]
        parts = [f"{ended} of {count(total, 'trial')}" if total is not None else count(ended, "trial")]
        workers = sum(worker["state"] not in GONE for worker in facts["workers"])
        parts.append(count(workers, "worker"))
        if log.best is not None:
            parts.append(f"best {log.best[0]:.2f} dB (trial {log.best[1]})")
        if trials["failed"]:
            parts.append(f"{trials['failed']} failed")
        if left := log.study_left():
            parts.append(left)
        return f"study {facts['study']}: {', '.join(parts)}"


class ProcessesView(_View):
    """Shows the events and the stderr lines of several workers on `console`. Each line begins with the worker's slot.

    On a terminal, the newest epoch of each worker is drawn at the foot. All other lines are printed above it.
    """

    def __init__(self, console: Console, size: int) -> None:
        super().__init__(console)
        self._logs = [WorkerLog() for _ in range(size)]
        self._latest = [""] * size
        self._shown_once: set[str] = set()

    def heard(self, slot: int, event: Event | str) -> None:
        """Show one event of the worker in `slot`, or one line that this worker wrote to stderr."""
        if isinstance(event, str):
            style = {"Warning": "yellow", "Error": "red"}.get(event.partition(":")[0], "")
            self._console.pass_on(f"[{slot}] {event}", style)
            return
        for line in self._logs[slot].lines(event):
            text = f"[{slot}] {line.text}"
            if line.kind == "warning":
                self._console.pass_on(f"[{slot}] Warning: {line.text}", "yellow")
                continue
            if line.kind == "baselines":
                if line.text in self._shown_once:
                    continue
                self._shown_once.add(line.text)
            self._latest[slot] = text if line.kind == "epoch" else ""
            if line.kind != "epoch" or not self._console.live:
                self._console.say(text)

    def renderable(self) -> RenderableType:
        width = live_width(self._console.err)
        return Group(*(folded(Text(text), width) for text in self._latest if text))

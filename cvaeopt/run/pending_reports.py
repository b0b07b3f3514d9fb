"""The reports of one trial on their way to the database."""

from __future__ import annotations

import contextlib
import json
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cvaeopt.run.timing import Timing
from cvaeopt.store.leases import Lease

Verdict = Literal["continue", "prune", "pending", "lost", "ended"]
"""The answer to a report: train on; the pruner ends the trial; the database does not answer now; another worker has
the trial; somebody else has ended the trial."""


@dataclass
class PendingReports:
    """The reports of one trial: those that wait, and what the database and the pruner answered to the others.

    Two threads use it; it is changed only under the reporter's lock.

    ask_pruner   whether the pruner would end the trial, given all reports that were delivered
    path         the file in which reports wait during an outage
    delivered    epochs whose value the database has
    """

    lease: Lease
    ask_pruner: Callable[[], bool]
    path: Path
    delivered: set[int]
    timing: Timing
    progress_at: float
    epoch: int = field(init=False)  # epochs finished
    deadline_s: float = field(init=False)  # the lease is renewed so long after the last progress
    waiting: deque[tuple[int, float]] = field(default_factory=deque)  # (epoch, value)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))  # of the last epochs, seconds
    judged: int = 0  # the last epoch that the pruner was asked about
    saved: tuple[int, str] | None = None  # (epoch, host) of a checkpoint that the database does not know yet
    lost: bool = False
    ended: bool = False
    prune: bool = False
    stalled: bool = False
    failure: Exception | None = None
    _in_file: int = 0  # how many of `waiting` are in the file
    _has_file: bool = False
    _is_writable: bool = True

    def __post_init__(self) -> None:
        self.epoch = max(self.delivered, default=0)
        self.deadline_s = self.timing.min_deadline_s

    @property
    def is_over(self) -> bool:
        """Whether no more reports are delivered."""
        return self.lost or self.ended or self.prune or self.failure is not None

    def verdict(self) -> Verdict | None:
        """Why the training must stop, or None if it may go on; raises what the pruner or the database raised."""
        if self.failure is not None:
            raise self.failure
        if self.lost:
            return "lost"
        if self.ended:
            return "ended"
        return "prune" if self.prune else None

    def progressed(self, epoch: int, now: float) -> None:
        """Note that the training is alive, with `epoch` epochs finished, and set the next deadline."""
        self.epoch = max(self.epoch, epoch)
        self.progress_at = now
        self.stalled = False
        median_s = statistics.median(self.durations) if self.durations else 0.0
        self.deadline_s = max(self.timing.min_deadline_s, self.timing.deadline_factor * median_s)

    def delivered_first(self, prune: bool) -> None:
        """Note that the first waiting report was delivered, and what the pruner answered."""
        epoch, _ = self.waiting.popleft()
        self._in_file = max(self._in_file - 1, 0)
        self.judged, self.prune = epoch, prune

    def write_file(self) -> OSError | None:
        """Append to the file what is not in it yet; the error that prevented it, once."""
        if not self._is_writable:
            return None
        rows = list(self.waiting)[self._in_file :]
        self._in_file = len(self.waiting)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._has_file = True
            with self.path.open("a") as stream:
                stream.writelines(json.dumps({"epoch": epoch, "value": value}) + "\n" for epoch, value in rows)
        except OSError as error:
            self._is_writable = False
            return error
        return None

    def delete_file(self) -> None:
        """Delete the file once all of its reports are delivered."""
        if self._has_file and not self.waiting:
            self._has_file = False
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def read_reports(folder: Path) -> dict[int, float]:
    """The values by epoch that earlier owners of a trial left in its folder because they could not deliver them."""
    values: dict[int, float] = {}
    for path in sorted(folder.glob("reports.*.jsonl")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # a crash may have cut the file short
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                values.setdefault(int(entry["epoch"]), float(entry["value"]))
    return values

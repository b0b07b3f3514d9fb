"""The reports of one trial, until the database has received them."""

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
"""The answer to a report.

continue   nothing ends the trial
prune      the pruner ends the trial
pending    there is no answer yet, for example during an outage of the database
lost       another worker has the trial
ended      somebody else has ended the trial
"""


@dataclass
class PendingReports:
    """The waiting reports of one trial, and the answers of the database and the pruner to its earlier reports.

    Two threads use this object. They change it under the reporter's lock, except `lost`, `ended` and `failure`.

    ask_pruner   returns whether the pruner ends the trial, given all delivered reports
    path         the file in which reports wait during an outage
    delivered    the epochs whose values are in the database
    """

    lease: Lease
    ask_pruner: Callable[[], bool]
    path: Path
    delivered: set[int]
    timing: Timing
    progress_at: float
    epoch: int = field(init=False)  # number of finished epochs
    deadline_s: float = field(init=False)  # how long after the last progress the lease is renewed
    waiting: deque[tuple[int, float]] = field(default_factory=deque)  # (epoch, value)
    durations: deque[float] = field(default_factory=lambda: deque(maxlen=50))  # durations of the last epochs, s
    judged: int = 0  # the last epoch for which the pruner has answered
    saved: tuple[int, str] | None = None  # (epoch, host) of a checkpoint that is not in the database yet
    lost: bool = False
    ended: bool = False
    prune: bool = False
    stalled: bool = False
    failure: Exception | None = None
    _in_file: int = 0  # number of waiting reports that are in the file
    _has_file: bool = False
    _is_writable: bool = True

    def __post_init__(self) -> None:
        self.epoch = max(self.delivered, default=0)
        self.deadline_s = self.timing.min_deadline_s

    @property
    def is_over(self) -> bool:
        """Whether the delivery of reports has ended."""
        return self.lost or self.ended or self.prune or self.failure is not None

    def verdict(self) -> Verdict | None:
        """The reason to stop the training, or None if it may continue; raises errors of the pruner and the database."""
        if self.failure is not None:
            raise self.failure
        if self.lost:
            return "lost"
        if self.ended:
            return "ended"
        return "prune" if self.prune else None

    def progressed(self, epoch: int, now: float) -> None:
        """Record that `epoch` epochs were finished at the time `now`, and set the next deadline."""
        self.epoch = max(self.epoch, epoch)
        self.progress_at = now
        self.stalled = False
        median_s = statistics.median(self.durations) if self.durations else 0.0
        self.deadline_s = max(self.timing.min_deadline_s, self.timing.deadline_factor * median_s)

    def delivered_first(self, prune: bool) -> None:
        """Record that the first waiting report was delivered, and the pruner's answer `prune`."""
        epoch, _ = self.waiting.popleft()
        self._in_file = max(self._in_file - 1, 0)
        self.judged, self.prune = epoch, prune

    def write_file(self) -> OSError | None:
        """Append the waiting reports that are not in the file yet.

        Returns the error if the file cannot be written. After an error, later calls do nothing and return None.
        """
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
        """Delete the file if all of its reports are delivered."""
        if self._has_file and not self.waiting:
            self._has_file = False
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def read_reports(folder: Path) -> dict[int, float]:
    """The undelivered values by epoch that earlier owners of a trial have left in the trial's folder."""
    values: dict[int, float] = {}
    for path in sorted(folder.glob("reports.*.jsonl")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # after a crash the last line may be incomplete
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                values.setdefault(int(entry["epoch"]), float(entry["value"]))
    return values

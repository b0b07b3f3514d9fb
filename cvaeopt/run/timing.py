"""How long a worker waits, and by which clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def clock_with_sleep() -> float:
    """Seconds from a clock that also counts while the machine sleeps, where the system has one."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True)
class Timing:
    """The times of a worker, in seconds. The defaults fit every study; tests pass shorter ones.

    ttl_s            a lease that is not renewed for this long may be taken over by another worker
    limit_s          an outage of the database, or a full disk, may last this long before the worker gives up
    poll_s           longest pause between two looks for a trial
    report_wait_s    a report waits this long for the pruner's verdict while the database seems to work
    min_deadline_s   an epoch, or what precedes the first one, may take this long before the lease is not renewed
    deadline_factor  an epoch may also take this many times the median epoch, whichever is longer
    """

    ttl_s: float = 120.0
    limit_s: float = 900.0
    poll_s: float = 10.0
    report_wait_s: float = 30.0
    min_deadline_s: float = 900.0
    deadline_factor: float = 10.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = clock_with_sleep

    @property
    def look_every_s(self) -> float:
        """Longest pause between two looks for a trial; several fit into the life of a lease."""
        return min(self.ttl_s / 4, self.poll_s)

    @property
    def beat_every_s(self) -> float:
        """Pause between two signs of life."""
        return min(self.ttl_s / 4, 10.0)

    @property
    def patience_s(self) -> float:
        """How long one call of the reporter's thread waits for the database."""
        return min(self.ttl_s / 8, 5.0)

    @property
    def retry_every_s(self) -> float:
        """Pause of the reporter's thread after a call that failed."""
        return min(self.ttl_s / 16, 2.0)

"""How long a worker waits, and which clock it uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from cvaeopt.store.workers import beat_every_s


def clock_with_sleep() -> float:
    """Seconds from a clock that also counts while the machine sleeps.

    A system without such a clock gives the seconds of its monotonic clock.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(frozen=True)
class Timing:
    """The times of a worker, in seconds. The defaults fit every study; tests pass shorter ones.

    ttl_s            another worker may take over a lease that was not renewed for this long
    limit_s          the worker gives up if an outage of the database, or a full disk, lasts longer than this
    poll_s           longest pause between two searches for a trial
    report_wait_s    longest time that a report waits for the pruner's verdict; then the worker assumes an outage
    min_deadline_s   shortest deadline; the lease is not renewed if the training makes no progress for this long
    deadline_factor  the deadline is this many times the median epoch if that is longer than `min_deadline_s`
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
        """Longest pause between two searches for a trial, at most a quarter of `ttl_s`."""
        return min(self.ttl_s / 4, self.poll_s)

    @property
    def beat_every_s(self) -> float:
        """Pause between two signs of life, at most a quarter of `ttl_s`."""
        return beat_every_s(self.ttl_s)

    @property
    def patience_s(self) -> float:
        """How long one call of the database thread waits for the database."""
        return min(self.ttl_s / 8, 5.0)

    @property
    def retry_every_s(self) -> float:
        """Pause of the database thread after a call that failed."""
        return min(self.ttl_s / 16, 2.0)

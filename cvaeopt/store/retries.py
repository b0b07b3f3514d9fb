"""The loop that repeats a call while the database does not answer. There is no other such loop in this program."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from cvaeopt.store.outage import unreachable

T = TypeVar("T")

HURRY_S: Final = 2.0
"""How long a call is repeated after the process was asked to stop, seconds."""

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 3.0
_jitter = random.Random()


def ignore(*_: object) -> None:
    """Do nothing. This is the default of `on_retry` and `on_recovery`."""


def repeat(
    call: Callable[[int], T],
    describe: Callable[[Exception], str | None],
    *,
    url: str,
    limit_s: float,
    hurry: Callable[[], bool] = lambda: False,
    on_retry: Callable[[float, str], None] = ignore,
    on_recovery: Callable[[float], None] = ignore,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """The result of `call(attempt)`, which is repeated during an outage, with growing pauses. `attempt` counts from 0.

    describe      returns the database's message for an outage, None for another error; may raise a clearer error
    url           the URL of the database for error messages, with its password masked
    limit_s       how long an outage may last before StorageUnreachable, seconds
    hurry         returns True if the process was asked to stop; the limit is then at most HURRY_S
    on_retry      called before each repetition with (seconds of the outage so far, the database's message)
    on_recovery   called when a repeated call succeeded, with the seconds of the outage
    """
    failed_at: float | None = None
    pause = _FIRST_PAUSE_S
    attempt = 0
    while True:
        started = clock()
        try:
            result = call(attempt)
        except Exception as error:
            said = describe(error)
            if said is None:
                raise
        else:
            if failed_at is not None:
                on_recovery(clock() - failed_at)
            return result
        failed_at = started if failed_at is None else failed_at  # the outage includes the time of the first failed call
        outage_s = clock() - failed_at
        if outage_s >= limit_s or (outage_s >= HURRY_S and hurry()):
            raise unreachable(url, outage_s, said)
        on_retry(outage_s, said)
        sleep(min(pause * _jitter.uniform(0.5, 1.0), limit_s - outage_s))
        pause = min(pause * 2, _LONGEST_PAUSE_S)
        attempt += 1

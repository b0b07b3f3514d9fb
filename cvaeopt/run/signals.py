"""The signals that ask this process to stop: after its epoch first, and at once by a second one.

SIGINT    Ctrl-C, also where it was inherited as ignored, as by a command that a script starts with `&`
SIGTERM   kill, Docker, Kubernetes, systemd, Slurm
SIGHUP    the terminal or the ssh session is gone; stays ignored where it was inherited so, as under nohup
SIGUSR1   what submitit and several clusters send some minutes before they kill

stop = Stop()
with heard(stop.ask):
    while not stop:                 # true after the first signal
        ...                         # StopNow is raised here by the second one
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopNow(KeyboardInterrupt):
    """A second signal came. No `except Exception` on its way out may hold it up."""


class Stop:
    """What this process was asked so far. True once it was asked to stop.

    at_once   whether the second request raises StopNow in the main thread
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.name = ""  # of the first signal
        self.count = 0
        self._at_once = at_once

    def __bool__(self) -> bool:
        return self.count > 0

    def ask(self, number: int) -> None:
        """Note one request; a signal handler, so it takes no lock and writes nothing."""
        self.name = self.name or signal.Signals(number).name
        self.count += 1
        if self.count > 1 and self._at_once:
            raise StopNow

    def ask_once(self, number: int) -> None:
        """As if `number` had been the first signal; nothing when there was one. From any thread."""
        self.name = self.name or signal.Signals(number).name
        self.count = max(self.count, 1)


def interrupt(number: int) -> NoReturn:
    """End at the first signal, as Ctrl-C does: for what has no epoch to finish."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def heard(received: Callable[[int], None]) -> Iterator[None]:
    """Inside the block `received(number)` is called for every signal of `ASKING`; in other threads nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda number, _frame: received(number))
        for number in ASKING
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

"""The signals that ask this process to stop: after its epoch first, and at once by a second one.

SIGINT    Ctrl-C, also where it was inherited as ignored, as by a command that a script starts with `&`
SIGTERM   kill, Docker, Kubernetes, systemd, Slurm
SIGHUP    the terminal or the ssh session is gone; stays ignored where it was inherited so, as under nohup
SIGUSR1   what submitit and several clusters send some minutes before they kill

with Stop() as stop:
    while not stop:                 # true after the first signal
        ...                         # StopNow is raised here by the second one
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopNow(KeyboardInterrupt):
    """The signal that ends the work at once came. No `except Exception` on its way out may hold it up."""


class Stop:
    """What this process was asked so far. True once it was asked to stop.

    raise_at   which request raises StopNow in the main thread: 2 where the first one ends the work after its epoch, 1
               where there is no epoch to finish, None where a supervisor only counts

    Inside `with stop:` every signal of `STOP_SIGNALS` is a request; the blocks may be nested. In a thread that is not
    the main one, the block changes nothing.
    """

    def __init__(self, *, raise_at: int | None = 2) -> None:
        self.name = ""  # of the first signal
        self.count = 0
        self._raise_at = raise_at
        self._before: list[dict[signal.Signals, Any]] = []  # the handlers before each block

    def __bool__(self) -> bool:
        return self.count > 0

    def __enter__(self) -> Self:
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, self._ask)
        self._before.append(before)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.pop().items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def ask_once(self, number: int) -> None:
        """Count `number` as the first signal, from any thread; nothing changes if there was one already."""
        self.name = self.name or signal.Signals(number).name
        self.count = max(self.count, 1)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # A signal handler: it takes no lock and writes nothing.
        self.name = self.name or signal.Signals(number).name
        self.count += 1
        if self._raise_at is not None and self.count >= self._raise_at:
            raise StopNow

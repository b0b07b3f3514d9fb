"""The signals that ask this process to stop: the first signal after its epoch, the second signal at once.

SIGINT    Ctrl-C; also counted if the process inherited it as ignored, for example if a script started it with `&`
SIGTERM   kill, Docker, Kubernetes, systemd, Slurm
SIGHUP    the terminal or ssh session has ended; stays ignored if the process inherited it as ignored, as with nohup
SIGUSR1   submitit and several clusters send this signal some minutes before they kill the process

with Stop() as stop:
    while not stop:                 # `stop` is true after the first signal
        ...                         # the second signal raises StopNow here
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StopNow(KeyboardInterrupt):
    """A signal ended the work at once. `except Exception` does not catch this error, so nothing delays the end."""


class Stop:
    """The requests to stop that this process has received. The object is true after the first request.

    raise_at   number of the request that raises StopNow in the main thread: 2 if the first request ends the work after
               its epoch, 1 if there is no epoch to finish, None if a supervisor only counts the requests

    Inside `with stop:` every signal of `STOP_SIGNALS` is a request. The blocks may be nested. Outside the main thread
    the block changes nothing.
    """

    def __init__(self, *, raise_at: int | None = 2) -> None:
        self.name = ""  # name of the first signal
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
        """Count `number` as the first request; does nothing after an earlier request. Any thread may call this."""
        self.name = self.name or signal.Signals(number).name
        self.count = max(self.count, 1)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        # This is a signal handler, so it takes no lock and writes nothing.
        self.name = self.name or signal.Signals(number).name
        self.count += 1
        if self._raise_at is not None and self.count >= self._raise_at:
            raise StopNow

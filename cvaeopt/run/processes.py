"""Several trials at the same time on one device: a parent process keeps K workers running, each in its own process.

    parent                                    child (`cvaeopt worker`, one trial at a time)
      |------ socket: stop, now, closed ------->|   stop after the epoch; stop at once; the parent is gone
      |<----- socket: events as JSON -----------|   the first event means that settings, data and study are in order
      |<----- stderr: warnings and errors ------|   each line is shown after the number of the child

Processes have three advantages. The results of a trial cannot depend on the other trials. A child that ends, fails or
is killed frees only its own memory. The next trial starts without waiting for the other trials. bench/README.md
compares processes with one stacked network and with threads.

The first child starts alone, so that an error in the input is reported once and the frames are decoded once. When the
first child is ready, the other children start and map the same decoded frames.

Each child has its own process group, so a Ctrl-C reaches only the parent. A scheduler may send one signal to the parent
and to every child. A child then counts this signal, but does not count the parent's order to stop as a second signal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cvaeopt.errors import Interrupted, StorageUnreachable, TryAgain, UserError
from cvaeopt.run import events, signals
from cvaeopt.text import count
from cvaeopt.vae import device as devices

log = logging.getLogger(__name__)

_PARENT = "CVAEOPT_PARENT"  # a child's environment variable: the descriptor of its socket, and the number of children
_STOP, _NOW = b"s", b"n"
_CONTEXT_BYTES = 600e6  # memory of a process on a CUDA device before its first tensor
_POLL_S = 0.1
_KILL_AFTER_S = 5.0  # a child that has not stopped this long after an order to stop at once is killed

Heard = Callable[[int, events.Event | str], None]
"""A function that receives (slot, event) or (slot, line on stderr). Several threads call it."""


def threads_each(size: int, given: int | None, cores: int, openmp: str = "") -> int:
    """CPU threads of each of `size` workers: `given`, or an equal share of the cores.

    openmp   the value of OMP_NUM_THREADS, which may limit the share
    """
    if given is not None:
        return given
    share = max(1, cores // size)
    return min(share, int(openmp)) if openmp.isdecimal() and int(openmp) else share


def memory_fraction(total_bytes: float, size: int) -> float:
    """The fraction of a device's memory that each of `size` processes may allocate.

    With this limit, no trial runs out of memory because another trial took too much. The fraction is an equal share
    minus the memory that the process itself needs, but at least half of an equal share.
    """
    even = total_bytes / size
    return max(even - _CONTEXT_BYTES, even / 2) / total_bytes


# ---- the child's side


class ParentProcess:
    """A worker's connection to its parent process. The worker receives orders and sends events.

    size   number of workers that share the device
    """

    def __init__(self, end: socket.socket, size: int = 1) -> None:
        self.size = size
        self._end = end
        self._stop: Callable[[bool], None] | None = None
        self._ordered = False
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        threading.Thread(target=self._obey, name="parent", daemon=True).start()

    @classmethod
    def inherited(cls) -> ParentProcess | None:
        """The connection of this process, on the first call only; None if a user started the worker."""
        descriptor, _, size = os.environ.pop(_PARENT, "").partition(",")
        if not descriptor:
            return None
        end = socket.socket(fileno=int(descriptor))
        end.set_inheritable(False)
        return cls(end, int(size))

    def tell(self, event: events.Event) -> None:
        """Send one event; does nothing if the parent has ended. Any thread may call this method."""
        with self._sending, contextlib.suppress(OSError):
            self._end.sendall(f"{events.to_json(event)}\n".encode())

    def share(self, device: str) -> None:
        """Limit the memory of this process on a CUDA `device` to its share; does nothing on other devices."""
        if self.size > 1 and device.startswith("cuda"):
            import torch

            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(memory_fraction(total, self.size), device)

    def attach(self, stop: Callable[[bool], None]) -> None:
        """From now on, call `stop(at_once)` for every order of the parent.

        Before the first call of `attach` there is nothing to save, so an order ends the process. Workers may follow
        each other in one process: if an earlier worker received an order, `stop(False)` is called at once.
        """
        with self._lock:
            self._stop = stop
            if self._ordered:
                stop(False)

    def _obey(self) -> None:
        while True:
            try:
                order = self._end.recv(1)
            except OSError:
                order = b""
            with self._lock:
                stop = self._stop
                self._ordered = True
            if stop is None:
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                stop(order == _NOW)
            if not order:
                return


# ---- the parent's side


@dataclass
class _Slot:
    """A place for one child at a time. It also records what happened to earlier children in this place."""

    index: int
    process: subprocess.Popen[str] | None = None
    end: socket.socket | None = None
    readers: list[threading.Thread] = field(default_factory=list)
    ready: bool = False
    began: float = 0.0
    deaths: int = 0  # number of deaths in a row
    start_at: float = field(default=float("inf"))
    code: int | None = None  # exit code of the slot; None while a child runs or will be started


class Processes:
    """`size` children of one command, kept running until each child has ended by itself.

    command       the command line of a child
    environment   the environment of a child, to which the socket of its parent is added
    heard         receives the children's events and lines, and warnings about children that died
    max_restarts  largest number of restarts in a row, after a child was killed or ended with the code of TryAgain
    pause_s       pause before the first restart, seconds; the pause doubles each time, up to a minute
    lasting_s     if a child ran for this many seconds, the next restart is again the first in a row
    """

    def __init__(
        self,
        command: Sequence[str],
        size: int,
        environment: Mapping[str, str],
        heard: Heard,
        *,
        max_restarts: int = 5,
        pause_s: float = 2.0,
        lasting_s: float = 600.0,
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._heard = heard
        self._max_restarts = max_restarts
        self._pause_s = pause_s
        self._lasting_s = lasting_s
        self._slots = [_Slot(index) for index in range(size)]
        self._stop = signals.Stop(raise_at=None)

    def run(self) -> int:
        """Run all children until they have ended; returns their common exit code, see `merged`.

        After the first signal every child finishes its epoch and saves. A second signal stops the children at once. A
        third signal kills them.
        """
        with self._stop:
            try:
                self._slots[0].start_at = 0.0
                self._supervise()
            finally:
                for slot in self._slots:
                    self._untie(slot)
        if self._stop.count > 1:
            return Interrupted.exit_code
        return merged([slot.code or 0 for slot in self._slots])

    def _supervise(self) -> None:
        passed_on, kill_at = 0, float("inf")
        while any(slot.code is None for slot in self._slots):
            now = time.monotonic()
            if self._stop.count > passed_on:
                passed_on = self._stop.count
                self._order(_STOP if passed_on == 1 else _NOW)
                if passed_on > 1:
                    kill_at = min(kill_at, now + (_KILL_AFTER_S if passed_on == 2 else 0.0))
            for slot in self._slots:
                if slot.process is None:
                    if slot.code is None and slot.start_at <= now:
                        self._start(slot)
                    continue
                if now >= kill_at:
                    slot.process.kill()
                code = slot.process.poll()
                if code is not None:
                    self._ended(slot, code)
            self._start_others()
            time.sleep(_POLL_S)

    def _start(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            slot.process = subprocess.Popen(
                self._command,
                env={**self._environment, _PARENT: f"{theirs.fileno()},{len(self._slots)}"},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        slot.end, slot.ready, slot.began = ours, False, time.monotonic()
        slot.readers = [
            threading.Thread(target=read, args=(slot, slot.process, ours), daemon=True)
            for read in (self._read_lines, self._read_events)
        ]
        for reader in slot.readers:
            reader.start()

    def _read_lines(self, slot: _Slot, process: subprocess.Popen[str], _end: socket.socket) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._heard(slot.index, line.rstrip("\n"))

    def _read_events(self, slot: _Slot, _process: subprocess.Popen[str], end: socket.socket) -> None:
        with contextlib.suppress(OSError), end.makefile(encoding="utf-8") as lines:  # OSError: the child has ended
            for line in lines:
                if line.endswith("\n"):  # a child that is killed may leave an incomplete line
                    slot.ready = True
                    self._heard(slot.index, events.from_json(line))

    def _start_others(self) -> None:
        """Start the waiting children if any child is ready."""
        if not self._stop and any(slot.ready for slot in self._slots):
            for slot in self._slots:
                if slot.process is None and not slot.deaths:
                    slot.start_at = min(slot.start_at, 0.0)

    def _ended(self, slot: _Slot, code: int) -> None:
        """Start the child again, or close its slot."""
        for reader in slot.readers:
            reader.join(timeout=2.0)
        self._untie(slot)
        slot.process = None
        self._start_others()
        if self._stop:
            # A child that was asked to stop before it was ready has nothing to save.
            slot.code = 0 if -code in signals.STOP_SIGNALS else _as_exit_code(code)
            return
        if code >= 0 and code != TryAgain.exit_code:
            slot.code = code
        else:
            lasted = time.monotonic() - slot.began >= self._lasting_s
            slot.deaths = 1 if lasted else slot.deaths + 1
            what = f"the worker was killed by {_name(-code)}" if code < 0 else f"the worker ended with code {code}"
            if slot.deaths > self._max_restarts:
                slot.code = _as_exit_code(code)
                self._warn(slot, f"{what}, {count(slot.deaths, 'time')} in a row; given up")
            else:
                pause_s = min(self._pause_s * 2 ** (slot.deaths - 1), 60.0)
                slot.start_at = time.monotonic() + pause_s
                tries = f"{slot.deaths} of {self._max_restarts}"
                self._warn(slot, f"{what}; started again in {pause_s:.0f} s ({tries})")
        if slot.code is not None and all(other.start_at == float("inf") for other in self._slots if other is not slot):
            # The first child never became ready, and the others would fail in the same way.
            for other in self._slots:
                other.code = slot.code

    def _warn(self, slot: _Slot, message: str) -> None:
        self._heard(slot.index, events.Warned(message))

    def _order(self, order: bytes) -> None:
        """Send `order` to every child, and close the slots without a child."""
        for slot in self._slots:
            if slot.process is None:
                slot.code = 0 if slot.code is None else slot.code
            elif slot.end is not None:
                with contextlib.suppress(OSError):  # the child has ended already
                    slot.end.send(order)

    def _untie(self, slot: _Slot) -> None:
        if slot.end is not None:
            with contextlib.suppress(OSError):  # the child has ended already
                slot.end.shutdown(socket.SHUT_RDWR)  # `close` alone does not reach the child while its events are read
            slot.end.close()
            slot.end = None


def supervise(
    arguments: Sequence[str], size: int, variables: Mapping[str, str | None], threads: int | None, heard: Heard
) -> int:
    """Run `size` workers as `cvaeopt ARGUMENTS` until all have ended; returns their common exit code.

    variables   settings of the children, by the names of environment variables without CVAEOPT_. The settings are not
                given as options, because a URL may contain a password, and every user can read command lines.
    threads     CPU threads of each child; None divides the cores equally
    """
    cores = devices.cores()
    each = threads_each(size, threads, cores, os.environ.get("OMP_NUM_THREADS", ""))
    if variables.get("GPU") == "cpu" and size * each > cores:
        log.warning(
            "%d trials of %s share %s: none is faster for it.", size, count(each, "thread"), count(cores, "core")
        )
    given = {f"CVAEOPT_{name}": value for name, value in variables.items() if value}
    environment = {**os.environ, **given, "CVAEOPT_THREADS": str(each), "OMP_NUM_THREADS": str(each)}
    environment.pop("CVAEOPT_TRIALS_PER_GPU", None)
    return Processes([sys.executable, "-m", "cvaeopt.cli", *arguments], size, environment, heard).run()


def _as_exit_code(code: int) -> int:
    """The exit code that a shell reports for a process. `code` is negative if a signal killed the process."""
    return 128 - code if code < 0 else code


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def merged(codes: Sequence[int]) -> int:
    """The common exit code of all children; 0 only if all codes are 0.

    A code that needs a person has priority over a code that asks for another try.
    """
    order = (Interrupted.exit_code, UserError.exit_code, 1, StorageUnreachable.exit_code, TryAgain.exit_code)
    for code in order:
        if code in codes:
            return code
    return max(codes, default=0)

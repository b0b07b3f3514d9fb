"""Notices: the user's command is run at a study's end, at a new best trial and at a worker's failure.

The command is `notify` in the study's table [service]. It gets the facts as JSON on its stdin. A thread runs it, one
notice after the other, each for a limited time. Whatever happens to the command, the study goes on. The first failure
of the command is logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Self

from cvaeopt.errors import CvaeoptError, Interrupted
from cvaeopt.run.events import Event, LeaseTaken, Listener, TrialEnded, WorkerEnded, WorkerStarted
from cvaeopt.store.announcements import dead_to_announce, may_announce_end
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.text import count

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
"""How long the command may take, seconds; and how long the end of a worker waits for its last notices."""

_PATIENCE_S: Final = 5.0  # how long a notice waits for the database
_MAX_CHARACTERS: Final = 300  # of the command's own error message in the log

Facts = dict[str, Any]


class Notices:
    """The notices of one worker about one study, inside a `with` block around the worker's whole work.

    command    the user's command, for the shell; None for no notices
    device     name of the worker's device
    timeout_s  see TIMEOUT_S

    If an error ends the block, it is the worker's failure, except a second signal. At the end of the block the process
    waits for the last notices, little longer than one command may take.
    """

    def __init__(
        self, command: str | None, storage: Storage, study: str, device: str, *, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._command = command
        self._storage = storage
        self._study = study
        self._device = device
        self._timeout_s = timeout_s
        self._waiting: queue.Queue[Callable[[], list[Facts]] | None] = queue.Queue()
        self._has_failed = False
        self._worker = f"{socket.gethostname()}-{os.getpid()}"  # until the worker says its id
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._command is not None:
            self._thread = threading.Thread(target=self._work, args=(self._command,), name="notices", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if self._thread is None:
            return
        if isinstance(error, Exception) and not isinstance(error, Interrupted):
            self._waiting.put(lambda: self._failed(error))
        self._waiting.put(None)
        self._thread.join(self._timeout_s + _PATIENCE_S)
        if self._thread.is_alive():
            self._complain("notices were still waiting when the worker ended")

    def before(self, listener: Listener) -> Listener:
        """A listener that takes note of an event and passes it on to `listener`."""

        def heard(event: Event) -> None:
            if self._thread is not None:
                self._note(event)
            listener(event)

        return heard

    def _note(self, event: Event) -> None:
        match event:
            case WorkerStarted(worker=worker):
                self._worker = worker
            case TrialEnded(number=number, outcome="complete"):
                self._waiting.put(lambda: self._new_best(number))
            case LeaseTaken(number=number):
                self._waiting.put(lambda: self._dead(number))
            case WorkerEnded(kind="finished", reason=reason):
                self._waiting.put(lambda: self._end(reason))

    # ---- in the thread

    def _work(self, command: str) -> None:
        while (make := self._waiting.get()) is not None:
            try:
                with self._storage.patience(_PATIENCE_S):
                    notices = make()
            except Exception as error:  # such as an outage of the database, which the worker reports itself
                self._complain(f"a notice could not be made ({type(error).__name__}: {error})")
                continue
            for facts in notices:
                self._send(command, facts)

    def _new_best(self, number: int) -> list[Facts]:
        known = status(self._storage, self._study)
        best = known["best"]
        if best is None or best["number"] != number:
            return []
        text = f"Study {self._study}: trial {number} is the best so far, {best['value']:.2f} dB."
        return [self._facts("new-best", text, {"trial": number, "value": best["value"]}, known)]

    def _dead(self, number: int) -> list[Facts]:
        notices = []
        for worker in dead_to_announce(self._storage, self._study, number):
            reason = f"died in trial {number} after epoch {worker['epoch'] or 0}; another worker has taken the trial"
            what = {"worker": worker["id"], "host": worker["host"], "device": worker["device"], "error": "died"}
            text = f"Worker {worker['id']} of study {self._study} {reason}."
            notices.append(self._facts("worker-failed", text, {**what, "trial": number, "reason": reason}))
        return notices

    def _failed(self, error: Exception) -> list[Facts]:
        reason, kind = str(error), type(error).__name__
        what = {"worker": self._worker, "host": socket.gethostname(), "device": self._device, "error": kind}
        text = f"Worker {self._worker} of study {self._study} failed: {reason}"
        return [self._facts("worker-failed", text, {**what, "reason": reason})]

    def _end(self, reason: str) -> list[Facts]:
        if not may_announce_end(self._storage, self._study):
            return []
        known = status(self._storage, self._study)
        best, trials = known["best"], known["trials"]
        ended = count(trials["complete"] + trials["pruned"] + trials["failed"], "trial")
        won = "none is complete" if best is None else f"best {best['value']:.2f} dB (trial {best['number']})"
        text = f"Study {self._study} has ended after {ended}: {won}. {reason[:1].upper()}{reason[1:]}."
        return [self._facts("study-ended", text, {"reason": reason}, known)]

    def _facts(self, event: str, text: str, what: Facts, known: Facts | None = None) -> Facts:
        if known is None:
            with contextlib.suppress(CvaeoptError):
                known = status(self._storage, self._study)
        time_now = datetime.now(UTC).isoformat(timespec="seconds")
        return {"event": event, "text": text, "study": self._study, "time": time_now, **what, "status": known}

    def _send(self, command: str, facts: Facts) -> None:
        content = self._storage.scrub(json.dumps(facts)) + "\n"
        try:
            process = subprocess.Popen(
                command,
                shell=True,  # the study's file is the user's own, and a pipe is the usual command
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                errors="replace",
                start_new_session=True,  # a Ctrl-C for the worker does not reach it, and its children can be killed
            )
        except OSError as error:
            self._complain(f"the command cannot be started ({error.strerror})")
            return
        try:
            _, errors = process.communicate(content, timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            self._kill(process)
            self._complain(f"the command took longer than {self._timeout_s:g} s and was killed")
            return
        if process.returncode:
            said = " ".join(errors.split())[:_MAX_CHARACTERS]
            self._complain(f"the command ended with code {process.returncode}{f' ({said})' if said else ''}")

    def _kill(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a child in another session may keep stderr open
            process.communicate(timeout=1.0)

    def _complain(self, what: str) -> None:
        """Log the first failure."""
        if not self._has_failed:
            self._has_failed = True
            log.warning("[service] notify: %s. The study goes on; later failures of it are not shown.", what)

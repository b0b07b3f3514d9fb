"""What a process that trains does before, beside and after its workers."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cvaeopt.errors import Interrupted, StorageUnreachable, TryAgain
from cvaeopt.run import worker_process
from cvaeopt.run.events import Event, StudyRead
from cvaeopt.run.signals import STOP_SIGNALS
from cvaeopt.run.worker_process import WorkerProcess
from tests.support.waiting import until


class Uploads:
    """An object store that remembers whether somebody waited for it."""

    url, waited, complete = "s3://bucket", False, True

    def close(self) -> bool:
        self.waited = True
        return self.complete


class Patient:
    """A database whose calls nobody makes."""

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        yield


def process(folder: Path, uploads: Uploads | None = None, heard: list[Event] | None = None) -> WorkerProcess:
    listener = (lambda event: None) if heard is None else heard.append
    nothing, remote = cast(Any, None), cast(Any, uploads)
    return WorkerProcess(cast(Any, Patient()), nothing, "cpu", folder, listener, remote)


@pytest.mark.parametrize("error", [StorageUnreachable("away"), TryAgain("device"), ValueError("a bug")])
def test_whatever_ends_a_worker_its_last_checkpoint_is_uploaded(tmp_path: Path, error: Exception) -> None:
    uploads = Uploads()
    with pytest.raises(type(error)), process(tmp_path, uploads).entered():
        raise error
    assert uploads.waited


def test_a_checkpoint_that_could_not_be_uploaded_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    uploads = Uploads()
    uploads.complete = False
    with caplog.at_level(logging.WARNING), process(tmp_path, uploads).entered():
        pass
    (said,) = caplog.messages
    assert said == f"not all checkpoints reached s3://bucket; they are in {tmp_path} on this machine"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_one_signal_waits_for_the_uploads_and_two_do_not(tmp_path: Path, number: signal.Signals) -> None:
    uploads = Uploads()
    place = process(tmp_path, uploads)
    with place.entered():
        signal.raise_signal(number)
        assert place.stop.name == number.name
    assert uploads.waited
    uploads = Uploads()
    with pytest.raises(KeyboardInterrupt), process(tmp_path, uploads).entered():
        signal.raise_signal(number)
        signal.raise_signal(number)
    assert not uploads.waited
    with pytest.raises(Interrupted), process(tmp_path, uploads).entered():
        raise Interrupted("by a second signal of the worker itself")
    assert uploads.waited


def test_the_study_is_read_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    monkeypatch.setattr(worker_process.status, "status", lambda storage, name: {"study": name})
    with process(tmp_path, heard=heard)._reading("main"):
        until(lambda: heard == [StudyRead({"study": "main"})])


def test_a_database_that_does_not_answer_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Event] = []
    asked, answer = threading.Event(), threading.Event()

    def away(storage: object, name: str) -> dict[str, Any]:
        asked.set()
        answer.wait()
        raise StorageUnreachable("away")

    monkeypatch.setattr(worker_process.status, "status", away)
    with process(tmp_path, heard=heard)._reading("main"):
        until(asked.is_set)
        answer.set()  # only now: whoever had waited for it would wait for ever
    assert heard == []

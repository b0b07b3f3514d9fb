"""Notices: the user's command hears of a study's end, a new best trial and a failed worker; the study never of it."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from cvaeopt.errors import DataError, Interrupted
from cvaeopt.run.events import EpochDone, TrialEnded, WorkerStarted
from cvaeopt.run.notices import Notices
from cvaeopt.run.signals import StopNow
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store.leases import Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.tables import study_table
from cvaeopt.store.workers import Beat, Place
from testbed import tiny
from tests.support.fakes import FakeRun, Fakes, expire
from tests.support.waiting import LONG_S, until

pytestmark = pytest.mark.usefixtures("uncharted_module")

DOCS = (Path(__file__).parents[2] / "docs" / "notify.md").read_text()
COMMANDS = [tomllib.loads(block)["service"]["notify"] for block in re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)]
DEFINITION = tiny.definition(sampler={"kind": "random"})


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


@pytest.fixture
def lite(tmp_path: Path, template_file: Path) -> Iterator[Storage]:
    """Where the back end cannot matter."""
    shutil.copy(template_file, tmp_path / "x.db")
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as opened:
        yield opened


def work(storage: Storage, folder: Path, command: str | None = None, **behaviour: Any) -> str:
    """Train the tiny study with a worker whose notices go to `folder`/heard, one line each; how the worker ended."""
    study = create_or_open(storage, DEFINITION)
    with Notices(command or f"cat >> '{folder}/heard'", storage, "tiny", "cpu", timeout_s=LONG_S) as notices:
        events = notices.before(behaviour.pop("listener", lambda event: None))
        factory = Fakes(folder / "artifacts", **behaviour)
        timing = Timing(poll_s=0.05)
        return (
            Worker(study, storage, factory, artifacts=folder / "artifacts", listener=events, timing=timing).run().kind
        )


def heard(folder: Path) -> list[dict[str, Any]]:
    path = folder / "heard"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_end_is_announced_once_for_all_workers_and_again_after_an_extension(
    storage: Storage, tmp_path: Path
) -> None:
    values = {0: 21.0, 1: 20.0, 2: 22.0, 3: 1.0}

    def value_at(number: int, epoch: int) -> float:
        return values[number]

    for _ in range(2):  # the second worker comes when all is done
        assert work(storage, tmp_path, value_at=value_at) == "finished"
    first, second, end = heard(tmp_path)
    assert [(one["event"], one["trial"], one["value"]) for one in (first, second)] == [
        ("new-best", 0, 21.0),
        ("new-best", 2, 22.0),
    ]
    assert end["event"] == "study-ended"
    assert end["text"] == "Study tiny has ended after 3 trials: best 22.00 dB (trial 2). All 3 trials are taken."
    assert end["status"]["trials"]["complete"] == 3
    with storage.transaction() as connection:
        connection.execute(update(study_table).values(trials=4))
    assert work(storage, tmp_path, value_at=value_at) == "finished"
    assert [one["event"] for one in heard(tmp_path)[3:]] == ["study-ended"]


def test_a_worker_that_fails_says_why_and_one_that_the_user_stops_does_not(lite: Storage, tmp_path: Path) -> None:
    for error in (DataError("The folder is gone."), Interrupted("Stopped."), ValueError("secret-7f3a: a bug")):

        def fails(run: FakeRun, epoch: int, error: Exception = error) -> None:
            raise error

        def breaks(event: object, error: Exception = error) -> None:
            if isinstance(event, WorkerStarted):
                raise error

        lite._source = "postgresql://me:secret-7f3a@host/db"  # a password that an error message repeats
        behaviour = {"before_epoch": fails} if isinstance(error, DataError) else {"listener": breaks}
        with pytest.raises(type(error)):
            work(lite, tmp_path, **behaviour)
    data, bug = heard(tmp_path)
    assert (data["event"], data["error"], data["reason"]) == ("worker-failed", "DataError", "The folder is gone.")
    assert data["text"].startswith(f"Worker {data['worker']} of study tiny failed: The folder")
    assert data["status"]["workers"][0]["id"] == data["worker"]
    assert (bug["error"], "secret" in json.dumps(bug)) == ("ValueError", False)


def test_a_worker_that_died_is_announced_once_by_the_one_that_takes_its_trial(storage: Storage, tmp_path: Path) -> None:
    create_or_open(storage, DEFINITION)
    registry = LeaseRegistry(storage, "tiny")
    registry.register("gone-1-ab", Place("far", 1, ""), "cuda:0")
    lease = registry.claim("gone-1-ab")
    assert isinstance(lease, Lease)
    registry.beat("gone-1-ab", Beat("running", 0, 1), lease)
    for _ in range(2):  # taken over twice, and the first one gives it back
        expire(storage)
        with pytest.raises(Interrupted):
            work(storage, tmp_path, listener=interrupting)
    (died,) = heard(tmp_path)
    assert (died["event"], died["worker"], died["host"], died["trial"]) == ("worker-failed", "gone-1-ab", "far", 0)
    assert died["text"].startswith("Worker gone-1-ab of study tiny died in trial 0 after epoch 1")


def interrupting(event: object) -> None:
    if isinstance(event, EpochDone):
        raise StopNow  # as at a second signal


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo no such host >&2; exit 6", r"ended with code 6 \(no such host\)"),
        ("no-such-command-7f3a", "ended with code 127"),
        ("exec true <&-", ""),  # reads nothing, and ends well
    ],
)
def test_a_command_that_fails_is_said_once_and_the_study_goes_on(
    lite: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture, command: str, said: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert work(lite, tmp_path, command) == "finished"  # three new best trials and an end
    assert len(caplog.messages) == bool(said)
    assert re.search(said, " ".join(caplog.messages))


def test_a_command_that_hangs_is_killed_with_its_children(
    lite: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_or_open(lite, DEFINITION)
    child = tmp_path / "child"

    class Late(subprocess.Popen[str]):
        """Its time is over as soon as its child runs."""

        def communicate(self, input: str | None = None, timeout: float | None = None) -> Any:
            if input is not None:
                until(lambda: child.exists() and child.read_text().endswith("\n"))
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            return super().communicate(timeout=LONG_S)

    monkeypatch.setattr("cvaeopt.run.notices.subprocess.Popen", Late)
    caplog.set_level(logging.WARNING)
    command = f"sleep 1000 & echo $! > '{child}'; wait"
    with pytest.raises(ValueError, match="a bug"), Notices(command, lite, "tiny", "cpu", timeout_s=LONG_S):
        raise ValueError("a bug")
    until(lambda: not is_running(int(child.read_text())))
    assert [f"took longer than {LONG_S:g} s and was killed" in message for message in caplog.messages] == [True]


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_the_facts_come_without_the_database_too(
    lite: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that ends because the database is away can still say so."""
    create_or_open(lite, DEFINITION)
    monkeypatch.setattr("cvaeopt.run.notices.status", lambda *given: (_ for _ in ()).throw(DataError("away")))
    with pytest.raises(ValueError, match="bug"), Notices(f"cat > '{tmp_path}/heard'", lite, "tiny", "cpu"):
        raise ValueError("bug")
    assert heard(tmp_path)[0]["status"] is None


def test_without_a_command_nothing_is_run(lite: Storage) -> None:
    events: list[object] = []
    with Notices(None, lite, "tiny", "cpu") as notices:
        notices.before(events.append)(TrialEnded(0, "complete", "", 1, 2.0))
    assert events == [TrialEnded(0, "complete", "", 1, 2.0)]


# ---- the examples of the documentation


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_send_the_sentence(tmp_path: Path, command: str) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
    for name in ("curl", "sendmail"):  # writes its arguments and what it would send
        fake = tmp_path / name
        fake.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > '{tmp_path}/sent'\ncat >> '{tmp_path}/sent'\n")
        fake.chmod(0o755)
    where = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CHAT_WEBHOOK": "https://chat.example/hook"}
    text = 'Study main: trial 17 is "the best" so far, 33.10 dB.'
    for event in ("study-ended", "new-best"):
        (tmp_path / "sent").unlink(missing_ok=True)
        facts = json.dumps({"event": event, "text": text, "study": "main", "status": None})
        ended = subprocess.run(
            ["sh", "-c", command], input=facts, text=True, env=where, capture_output=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        sent = (tmp_path / "sent").read_text()
        told = text in sent or json.dumps(text) in sent
        assert told == (event == "study-ended" or "select" not in command)
        assert "https://" in sent or "To: me@lab.example\nSubject: Study main" in sent


def test_there_is_an_example_for_ntfy_mail_and_a_chat() -> None:
    assert len(COMMANDS) == 4
    for word in ("ntfy.sh", "sendmail -t", "CHAT_WEBHOOK"):
        assert any(word in command for command in COMMANDS)

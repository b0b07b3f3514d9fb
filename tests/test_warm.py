"""The processes of tests/support/warm.py are what a new interpreter would be, to whoever starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import until

CODE = """
import os, socket, sys
assert "torch" in sys.modules
given = os.environ["GIVEN"]
print(given, os.getcwd(), sys.argv[1:], sys.stdin.read(), flush=True)
socket.socket(fileno=int(sys.argv[1])).sendall(b"here")
print("problem", file=sys.stderr)
sys.exit(7)
"""


def test_a_fork_has_what_it_was_given_and_ends_as_it_says(warm_python: str, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [warm_python, "-c", CODE, str(theirs.fileno()), "two words"]
        given = {**os.environ, "GIVEN": "☃"}
        options = {"capture_output": True, "text": True, "cwd": tmp_path, "env": given, "check": False}
        ended = subprocess.run(words, input="in", pass_fds=[theirs.fileno()], **options)
        assert ended.returncode == 7, ended.stderr
        assert ended.stdout == f"☃ {tmp_path} ['{theirs.fileno()}', 'two words'] in\n"
        assert ended.stderr == "problem\n"
        assert ours.recv(4) == b"here"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_fork_and_its_launcher(warm_python: str, number: signal.Signals) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait() == -number
    until(lambda: not Path(f"/proc/{child}").exists())


def test_a_killed_fork_is_a_killed_process(warm_python: str) -> None:
    code = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([warm_python, "-c", code], check=False).returncode == -signal.SIGKILL

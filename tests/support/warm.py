"""Python processes that start at once: forks of one process that has imported what a worker needs.

The launcher is a program in the place of the interpreter: the fixture `warm` puts it into `sys.executable`. It passes
its command line, environment, folder and open files to the server, which runs them in a fork, and it ends as the fork
ends. A signal to the launcher reaches the fork, and the fork is killed when the launcher is. In the fork,
`sys.executable` is the launcher too, so that the children of a worker start as quickly. Charts are left blank, see
tests/support/uncharted.py.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOADED = (
    *("torch", "torch._dynamo", "alembic.runtime.environment", "matplotlib.figure", "optuna.artifacts"),
    *("cvaeopt.cli", "cvaeopt.run.worker_process", "cvaeopt.suggest.bayesian", "cvaeopt.outcome.retrain"),
    *("cvaeopt.outcome.report", "tests.support.fakes", "testbed.tiny"),
)
HIGH = 500  # the server's own open files have lower numbers

LAUNCHER = """
import json, os, signal, socket, sys
child, early = 0, []
def relay(number, frame):
    if child:
        os.kill(child, number)
    else:
        early.append(number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, relay)
files = []
for name in os.listdir("/proc/self/fd"):
    try:
        os.fstat(int(name))
        files.append(int(name))
    except OSError:  # the list's own
        pass
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
request = {"words": sys.argv[3:], "executable": sys.argv[2], "folder": os.getcwd(), "files": files}
request = json.dumps({**request, "environment": dict(os.environ)}).encode() + b"\\n"
socket.send_fds(server, [request[:1]], files)
server.sendall(request[1:])
answers = server.makefile("rb")
child = int(answers.readline())
for number in early:
    os.kill(child, number)
code = int(answers.readline() or 70)
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def served(folder: Path) -> Iterator[str]:
    """The path of a launcher, while its server runs."""
    place, launcher, script = folder / "socket", folder / "python", folder / "launcher.py"
    script.write_text(LAUNCHER)
    launcher.write_text(f"#!/bin/sh\nexec '{sys.executable}' -IS '{script}' '{place}' \"$0\" \"$@\"\n")
    launcher.chmod(0o755)
    line = [sys.executable, "-m", "tests.support.warm", str(place)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, start_new_session=True, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield str(launcher)
        server.terminate()


def main() -> None:
    """Serve until a signal ends this process; in a fork, return after what was asked for has run."""
    for name in LOADED:
        importlib.import_module(name)
    from cvaeopt.pictures import curves
    from tests.support.uncharted import BLANK

    curves._file = lambda drawing, kind: BLANK
    gc.freeze()
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "only a process with one thread can be forked"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(sys.argv[1])
        listening.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = listening.accept()
            if not os.fork():
                break
            connection.close()
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    asked = receive(connection)
    child = os.fork()
    if child:
        keep(connection, child)
    become(asked)


def receive(connection: socket.socket) -> dict[str, Any]:
    """What a launcher asks for, with its open files at their numbers plus HIGH."""
    data, received, _, _ = socket.recv_fds(connection, 1, 64)
    with connection.makefile("rb") as rest:
        asked: dict[str, Any] = json.loads(data + rest.readline())
    for number, file in zip(asked["files"], received, strict=True):
        fcntl.fcntl(file, fcntl.F_DUPFD, number + HIGH)
        os.close(file)
    return asked


def keep(connection: socket.socket, child: int) -> None:
    """Wait for a fork, tell the launcher how it ended, and end this process; kill the fork if the launcher is gone."""
    os.closerange(HIGH, 2 * HIGH)
    connection.sendall(b"%d\n" % child)
    ended = os.pidfd_open(child)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(b"%d\n" % code)
    finally:
        os._exit(0)


def become(asked: dict[str, Any]) -> None:
    """Run `-m MODULE ...` or `-c CODE ...` in this process, as a new interpreter would."""
    os.closerange(3, HIGH)
    for number in asked["files"]:
        os.dup2(number + HIGH, number)
        os.close(number + HIGH)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", 1 if os.isatty(1) else -1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.executable = asked["executable"]
    sys.path[:0] = first = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    random.seed()
    for path in first:
        if (Path(path) / "sitecustomize.py").exists():
            sys.modules.pop("sitecustomize", None)
            importlib.import_module("sitecustomize")
            break
    kind, what, *words = asked["words"]
    sys.argv = [kind, *words]
    if kind == "-m":
        sys.modules.pop(what, None)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        assert kind == "-c", kind
        exec(what, {"__name__": "__main__"})


if __name__ == "__main__":
    main()

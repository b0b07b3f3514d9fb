"""Writing never stops the work, and nothing that is printed is obeyed by a terminal."""

from __future__ import annotations

import errno
import io
import os
import pty
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.live import Live
from rich.text import Text

from cvaeopt.errors import DataError
from cvaeopt.terminal import results
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.streams import Output, Terminal
from cvaeopt.terminal.training import training
from tests.support.broken_streams import closed_pipe, full_disk
from tests.support.screens import FACTS, FRESH, console, pipe, plain, terminal, written

# ---- where nothing can be written


@contextmanager
def closed_terminal() -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    os.close(ours)
    with os.fdopen(theirs, "w", buffering=1) as stream:
        yield stream


@contextmanager
def no_stream() -> Iterator[None]:
    yield None


BROKEN = [(closed_pipe, errno.EPIPE), (full_disk, errno.ENOSPC), (closed_terminal, errno.EIO), (no_stream, errno.EBADF)]


@pytest.mark.parametrize(("place", "why"), BROKEN)
def test_what_cannot_be_written_is_dropped_and_that_is_said_once(place: Callable[[], Any], why: int) -> None:
    heard: list[OSError] = []
    with place() as stream:
        output = Output(stream, on_loss=heard.append)
        for _ in range(3):
            assert output.write("epoch 1\n") == 8
            output.flush()
        assert output.lost is not None
        assert [error.errno for error in heard] == [why]


@pytest.mark.parametrize(("place", "why"), BROKEN)
def test_everything_a_console_shows_may_be_lost(place: Callable[[], Any], why: int) -> None:
    with place() as stream:
        shown = Console(verbose=True)
        shown.out = Terminal(file=Output(stream), force_terminal=True, width=80)
        shown.err = Terminal(file=Output(stream), force_terminal=True, width=80)
        with shown.progress() as progress, shown.live_lines(lambda: Text("lines")):
            progress("decoding", 1, 2)
        with training(shown, "run", 4, []) as heard:
            heard({"epoch": 1, "val_psnr": 20.0, "train_loss": 0.1, "lr": 1e-3, "seconds": 2.0})
        with Live(Text("x"), console=shown.out, screen=True):
            results.status(shown, FACTS)
        shown.error(DataError("found"))
        assert shown.lost is not None and shown.lost.errno in (why, errno.EPIPE)


PYTHON = """
import sys
from cvaeopt.terminal.streams import Output
sys.stdout, sys.stderr = Output(sys.stdout), Output(sys.stderr)
print("x" * 100_000)
print("y", file=sys.stderr)
raise SystemExit(7)
"""


@pytest.mark.parametrize("place", [closed_pipe, full_disk, closed_terminal])
def test_python_ends_with_the_commands_own_code(place: Callable[[], Any]) -> None:
    for lost in ("stdout", "stderr"):
        other = "stderr" if lost == "stdout" else "stdout"
        with place() as stream:
            ended = subprocess.run(
                [sys.executable, "-c", PYTHON], **{lost: stream, other: subprocess.PIPE}, text=True, check=False
            )
        assert ended.returncode == 7
        assert (ended.stdout or ended.stderr) in ("y\n", "x" * 100_000 + "\n")


class Disk(io.StringIO):
    """A file on a disk that is full for a while."""

    full = True

    def write(self, text: str) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_a_log_that_has_room_again_says_where_lines_are_missing() -> None:
    disk = Disk()
    output = Output(disk)
    output.write("one\n")
    output.write("two\n")
    disk.full = False
    output.write("three\n")
    output.write("four\n")
    assert disk.getvalue().split("\n") == [
        "",
        "Warning: some lines are missing here (No space left on device).",
        "three",
        "four",
        "",
    ]


def test_a_reader_that_has_stopped_holds_nobody_up_and_may_go_on() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb", buffering=0) as reader, os.fdopen(writing, "w") as stream:
        output = Output(stream, patience_s=0.0)
        while output.lost is None:
            output.write("x" * 1000 + "\n")
        output.write("also lost\n")
        while reader.read(1 << 20):
            pass
        output.write("read again\n")
        said = reader.read(1 << 20)
    assert said == b"\nWarning: some lines are missing here (nobody reads them).\nread again\n"


def test_results_wait_for_a_slow_reader_and_arrive_whole() -> None:
    text = "".join(f"{number} é\n" for number in range(20_000))
    code = "import sys; from cvaeopt.terminal.streams import Output; Output(sys.stdout).write(sys.stdin.read())"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    said = subprocess.run([sys.executable, "-c", code], input=text.encode(), stdout=-1, env=environment, check=True)
    assert said.stdout.decode() == text


def test_an_alphabet_without_the_character_gets_its_number() -> None:
    place = io.BytesIO()
    stream = io.TextIOWrapper(place, encoding="ascii")
    Terminal(file=Output(stream)).print(Text("donn\u00e9es/\udcff"), soft_wrap=True)
    assert place.getvalue() == b"donn\\xe9es/\\udcff\n"


# ---- what a terminal would obey

EVIL = "a\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\x00\x7f\u202eb\u2028c"


def obeyed(text: str) -> set[str]:
    """Characters of `text` that move a cursor, change a direction or control a terminal."""
    controls = {sign for sign in text if unicodedata.category(sign) in ("Cc", "Zl", "Zp") and sign != "\n"}
    return controls | {sign for sign in text if unicodedata.bidirectional(sign) in DIRECTIONS}


DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
evil = st.text(st.one_of(st.characters(), st.sampled_from(EVIL)), min_size=1, max_size=20)


def hostile(text: str) -> dict[str, Any]:
    """Facts of a study in which every text is `text`."""
    workers = [{**worker, "id": text, "host": text, "device": text, "state": text} for worker in FACTS["workers"]]
    return {
        **FACTS,
        "study": text,
        "metric": text,
        "storage": text,
        "best": {**FACTS["best"], "params": {text: text}},
        "last": {"number": 1, "state": text, "value": None, "reason": text},
        "failures": [{"number": 1, "reason": text}],
        "stopped": text,
        "workers": workers,
        "confirmation": {
            **FRESH,
            "studies": [text],
            "ended": 6,
            "best": None,
            "table": [dict.fromkeys("abcdef", text)],
        },
    }


@given(evil)
def test_nothing_from_a_database_is_obeyed(text: str) -> None:
    for make in (pipe, lambda: terminal(color_system=None)):
        shown = console(make, verbose=True)
        facts = hostile(text)
        results.status(shown, facts)
        results.workers(shown, [{**worker, "study": text, "stopping": False} for worker in facts["workers"]])
        shown.say(text)
        shown.warn(text)
        shown.pass_on(text)
        shown.result(text)
        shown.error(DataError(text, text, text))
        results.resolved(shown, text, {text: {text: text}})
        assert not obeyed(written(shown.out) + written(shown.err))


def test_colours_of_our_own_are_kept() -> None:
    shown = console(lambda: terminal(color_system="standard"))
    shown.warn(EVIL)
    assert written(shown.err).startswith("\x1b[33m")
    assert plain(written(shown.err)) == "Warning: a[31m]0;title2Jbc\n"

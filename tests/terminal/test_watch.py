"""A study shown again and again, on a terminal and in a pipe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from cvaeopt.errors import StorageUnreachable
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.streams import Output, Terminal
from cvaeopt.terminal.watch import watch
from tests.support.screens import FACTS, Script, console, pipe, plain, terminal, written

LATER = {**FACTS, "epochs_spent": 2400}
AWAY = StorageUnreachable("The database did not answer for 10 s.")


def test_watching_a_pipe_says_a_line_for_every_change() -> None:
    shown, script = console(pipe), Script(FACTS, FACTS, LATER, LATER)
    watch(shown, script.read, sleep=script.sleep)
    lines = written(shown.out).splitlines()
    assert lines == [
        f"main: 12 complete, 30 pruned, 2 running, 7 failed; {spent} epochs spent; best 33.10 dB (trial 17); 1 worker"
        for spent in (2345, 2400)
    ]


def test_watching_a_terminal_outlives_the_database_and_leaves_the_last_state_behind() -> None:
    shown, script = console(terminal), Script(FACTS, AWAY, LATER)
    watch(shown, script.read, sleep=script.sleep)
    text = written(shown.out)
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    assert text.count(enter) == text.count(leave) == 1
    assert "did not answer for 10 s" in plain(text)
    assert "2400 epochs spent" in plain(text.partition(leave)[2])


def test_watching_a_pipe_outlives_the_database_and_says_so_once() -> None:
    shown, script = console(pipe), Script(FACTS, AWAY, AWAY, LATER, AWAY, LATER)
    watch(shown, script.read, sleep=script.sleep)
    assert [re.findall(r"\d+ epochs", line) for line in written(shown.out).splitlines()] == [
        ["2345 epochs"],
        ["2400 epochs"],
    ]
    outage = "Warning: The database did not answer for 10 s. Waiting for it."
    assert written(shown.err).splitlines() == [outage, outage]


def test_watching_ends_when_nobody_reads_any_more() -> None:
    shown = Console()
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        shown.out = Terminal(file=Output(stream))
        readings = 0

        def read() -> dict[str, Any]:
            nonlocal readings
            readings += 1
            if readings == 2:  # although there is nothing new to write
                os.close(reading)
            return FACTS

        watch(shown, read, sleep=lambda _: None)
    assert readings == 2


@pytest.mark.parametrize("make", [terminal, pipe])
def test_watching_what_is_not_there_is_an_error(make: Callable[[], Terminal]) -> None:
    shown, script = console(make), Script(AWAY)
    with pytest.raises(StorageUnreachable):
        watch(shown, script.read, sleep=script.sleep)

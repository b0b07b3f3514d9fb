"""The display of `status --watch`, which shows a study repeatedly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cvaeopt.errors import StorageUnreachable
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.results import GONE, status, study_table, trial_counts
from cvaeopt.text import count


def stream_json(console: Console, read: Callable[[], dict[str, Any]]) -> None:
    """Print what `read` returns repeatedly, one JSON object per line, until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        for facts in states(console, read):
            console.json(facts, indent=None)


def watch(
    console: Console,
    read: Callable[[], dict[str, Any]],
    every_s: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show the study repeatedly until Ctrl-C; in a pipe, print a line for every change.

    On a terminal the view fills the screen. When the view ends, the last state is printed. If the database stops
    answering, the view waits for the database. The first reading raises an error if the database does not answer.
    """
    with contextlib.suppress(KeyboardInterrupt):
        if console.out.is_interactive:
            _watch_live(console, read, every_s, sleep)
            return
        before = ""
        for facts in states(console, read, every_s, sleep):
            line = _summary(facts)
            if line != before:
                console.result(line)
                before = line


def states(
    console: Console,
    read: Callable[[], dict[str, Any]],
    every_s: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Yield what `read` returns, repeatedly, until the reader of stdout has gone. Warn once about each outage."""
    before = ""
    for facts, note in _readings(console, read, every_s, sleep):
        if not note:
            yield facts
        elif not before:
            console.warn(f"{note} Waiting for it.")
        before = note


def _readings(
    console: Console, read: Callable[[], dict[str, Any]], every_s: float, sleep: Callable[[float], None]
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield what `read` last returned and a note, repeatedly, until the reader of stdout has gone.

    The note is "" if the last reading succeeded. Otherwise it describes the outage. The first reading may raise
    StorageUnreachable.
    """
    facts, note = read(), ""
    while console.lost is None:
        yield facts, note
        sleep(every_s)
        try:
            facts, note = read(), ""
        except StorageUnreachable as error:
            note = error.found


def _watch_live(
    console: Console, read: Callable[[], dict[str, Any]], every_s: float, sleep: Callable[[float], None]
) -> None:
    readings = _readings(console, read, every_s, sleep)
    facts, note = next(readings)
    live = Live(_page(facts, note), console=console.out, screen=True, refresh_per_second=4)
    try:  # not `with`: Ctrl-C during the first drawing must also restore the screen
        live.start()
        for facts, note in readings:
            live.update(_page(facts, note), refresh=True)
    finally:
        live.stop()
        status(console, facts)


def _page(facts: dict[str, Any], note: str) -> RenderableType:
    """One screen of `status --watch`."""
    head = f"{datetime.now():%H:%M:%S}  Ctrl-C ends this view, not the study"
    return Group(Text(note, style="yellow") if note else Text(head, style="dim"), Text(), study_table(facts))


def _summary(facts: dict[str, Any]) -> str:
    """A study in one line."""
    leader = facts["best"]
    best = f"best {leader['value']:.2f} dB (trial {leader['number']})" if leader else "no complete trial yet"
    workers = sum(worker["state"] not in GONE for worker in facts["workers"])
    confirmed = (facts.get("confirmation") or {}).get("best")
    if confirmed:
        best += f", confirmed {confirmed['value']:.2f} dB (trial {confirmed['number']})"
    return (
        f"{facts['study']}: {trial_counts(facts['trials'])}; {count(facts['epochs_spent'], 'epoch')} spent; {best}; "
        f"{count(workers, 'worker')}"
    )

"""A study shown again and again: `status --watch`."""

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
    """What `read` returns, as one JSON object in each line, again and again until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        for facts in states(console, read):
            console.json(facts, indent=None)


def watch(
    console: Console,
    read: Callable[[], dict[str, Any]],
    every_s: float = 2.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """`status` again and again until Ctrl-C; in a pipe, a line for every change.

    On a terminal it takes the whole screen, and prints the last state when it ends. If the database stops answering it
    is waited for; if it does not answer the first time, that is an error.
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
    """What `read` returns, again and again while somebody reads stdout; stderr names an outage once."""
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
    """What `read` last returned, and why it is old, if it is. The first reading may raise."""
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
    try:  # not `with`: Ctrl-C during the first drawing must give the screen back, too
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

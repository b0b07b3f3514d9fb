"""What is seen of several workers on one device: their lines, each with the number of its process in front."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Group, RenderableType
from rich.text import Text

from cvaeopt.run.processes import Crew, threads_each
from cvaeopt.terminal.console import Console, folded, live_width
from cvaeopt.text import count
from cvaeopt.vae import device as devices

_OF_WORKER = re.compile(r"\[\d+\] (.*)")  # how a worker's own lines begin in a pipe; warnings and errors do not
_EPOCH = re.compile(r"trial \d+ epoch \d+/\d+: ")


class CrewView:
    """Shows the children's lines on `console`, each with its slot in front. Used as a context.

    On a terminal the newest epoch of each child stands at the foot, and only what is worth keeping moves up.
    """

    def __init__(self, console: Console, size: int) -> None:
        self._console = console
        self._latest = [""] * size
        self._said_once: set[str] = set()
        self._screen = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if self._console.live:
            self._screen.enter_context(self._console.moving(self.renderable))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.close()

    def heard(self, slot: int, line: str) -> None:
        """Show one line of the child in `slot`."""
        own = _OF_WORKER.fullmatch(line)
        if own is None:
            style = {"Warning": "yellow", "Error": "red"}.get(line.partition(":")[0], "")
            self._console.pass_on(f"[{slot}] {line}", style)
            return
        text = own[1]
        if text.startswith("baselines: "):  # those of the data, the same for all
            if text in self._said_once:
                return
            self._said_once.add(text)
        if self._console.live:
            epoch = _EPOCH.match(text) is not None
            self._latest[slot] = text if epoch else ""
            if epoch:
                return
        self._console.say(f"[{slot}] {text}")

    def renderable(self) -> RenderableType:
        """The lines at the foot, as they are now."""
        width = live_width(self._console.err)
        shown = [f"[{slot}] {text}" for slot, text in enumerate(self._latest) if text]
        return Group(*(folded(Text(line), width) for line in shown))


def supervise(
    console: Console,
    arguments: Sequence[str],
    size: int,
    variables: Mapping[str, str],
    threads: int | None,
    *,
    on_cpu: bool,
) -> int:
    """The exit code of `size` workers that were started as `cvaeopt ARGUMENTS` and ran until all had ended.

    variables   settings of the children, by the names of their environment variables without CVAEOPT_; there, because
                a URL may hold a password, and everybody can read a command line
    threads     of each child; None shares the cores
    """
    cores = devices.cores()
    each = threads_each(size, threads, cores, os.environ.get("OMP_NUM_THREADS", ""))
    if on_cpu and size * each > cores:
        console.warn(f"{size} trials of {count(each, 'thread')} share {count(cores, 'core')}: none is faster for it.")
    given = {f"CVAEOPT_{name}": value for name, value in variables.items()}
    environment = {**os.environ, **given, "CVAEOPT_THREADS": str(each), "OMP_NUM_THREADS": str(each)}
    environment.pop("CVAEOPT_TRIALS_PER_GPU", None)
    with CrewView(console, size) as view:
        command = [sys.executable, "-m", "cvaeopt.cli", *arguments]
        return Crew(command, size, environment, view.heard).run()

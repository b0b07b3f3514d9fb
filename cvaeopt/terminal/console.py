"""The console of a command, made with rich. Results are written to stdout, everything else to stderr.

On a terminal there are live bars. In a pipe, each event is one plain line.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import shlex
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from cvaeopt.errors import CvaeoptError
from cvaeopt.terminal.streams import Output, Terminal
from cvaeopt.text import Advice

_PLAIN_EVERY_S = 5.0


class Console:
    """The stdout and stderr of a command.

    quiet     whether only results are written, without progress
    verbose   whether errors are written with their tracebacks
    results   whether the user needs the text on stdout; False if files or the database also hold the results
    spell     returns the line of an advised command, given the words after `cvaeopt`. A command replaces this function,
              so that the line names the study, the storage and the folder as the user named them.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, results: bool = True) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.results = results
        self.spell: Callable[[Sequence[str]], str] = lambda words: shlex.join(["cvaeopt", *words])
        self.out = Terminal(highlight=False)
        self.err = Terminal(stderr=True, highlight=False)
        self._secrets: dict[str, str] = {}
        self._screen = threading.RLock()  # held while a thread draws the live lines or prints a line

    @property
    def live(self) -> bool:
        """Whether live lines are drawn: stderr is an interactive terminal, and the console is not quiet."""
        return self.err.is_interactive and not self.quiet

    @property
    def lost(self) -> OSError | None:
        """The error that made text for stdout get lost; None if no text was lost."""
        stream = self.out.file
        return stream.lost if isinstance(stream, Output) else None

    def conceal(self, secret: str, shown: str) -> None:
        """Replace `secret` by `shown` in every later warning and error, also in tracebacks."""
        if secret:
            self._secrets[secret] = shown

    def _advised(self, text: str) -> str:
        return f"{text.sentence} {self.spell(text.command)}" if isinstance(text, Advice) else text

    def say(self, text: str, style: str = "") -> None:
        """Write one line of progress to stderr; a quiet console writes nothing."""
        if not self.quiet:
            with self._screen:
                self.err.print(Text(self._advised(text), style=style), soft_wrap=not self.err.is_terminal)

    def warn(self, text: str) -> None:
        """Write a warning to stderr, as one line. A quiet console writes warnings too."""
        with self._screen:
            self.err.print(Text(f"Warning: {self._clean(text)}", style="yellow"), soft_wrap=not self.err.is_terminal)

    def pass_on(self, text: str, style: str = "") -> None:
        """Write a line to stderr that comes from another process. A quiet console writes the line too."""
        with self._screen:
            self.err.print(Text(self._clean(text), style=style), soft_wrap=not self.err.is_terminal)

    def show_warnings(self, name: str) -> None:
        """Write every later warning that the package `name` logs to stderr."""
        log = logging.getLogger(name)
        log.handlers = [_Warnings(self)]
        log.propagate = False

    def result(self, text: str) -> None:
        """Write one line of the result to stdout. The line is not folded, so that the user can copy it."""
        self.out.print(Text(self._advised(text)), soft_wrap=True)

    def json(self, value: Any, indent: int | None = 2) -> None:
        """Write a result for other programs to stdout, as JSON; in one line if `indent` is None."""
        text = json.dumps(value, allow_nan=False, indent=indent, default=str)
        self.out.file.write(text.replace("\x7f", "\\u007f") + "\n")  # json.dumps escapes every other control character

    def show(self, content: RenderableType) -> None:
        """Write tables of the result to stdout; in a pipe at least 100 columns wide and without trailing blanks."""
        if self.out.is_terminal:
            self.out.print(content)
            return
        page = Terminal(file=io.StringIO(), width=max(100, self.out.width), highlight=False, color_system=None)
        with page.capture() as captured:
            page.print(content)
        self.result("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def error(self, error: CvaeoptError) -> None:
        """Write an error to stderr: what was found, what was expected and what to do.

        The error is a panel on a terminal and one line in a pipe. If `verbose`, the traceback comes first.
        """
        if self.verbose:
            self.err.print(Text(self._clean("".join(traceback.format_exception(error)))), soft_wrap=True)
        if not self.err.is_terminal:
            text = " ".join(filter(None, (error.found, error.expected, self._advised(error.todo))))
            self.err.print(Text(self._clean(f"Error: {text}")), soft_wrap=True)
            return
        parts = [Text(self._clean(part)) for part in (error.found, error.expected, error.todo) if part]
        if error.todo:
            parts[-1].stylize("bold")
        self.err.print(
            Panel(Group(*parts), title="Error", title_align="left", border_style="red", width=min(100, self.err.width))
        )

    def _clean(self, text: str) -> str:
        text = self._advised(text)
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, self._secrets[secret])
        return text

    @contextlib.contextmanager
    def live_lines(self, lines: Callable[[], RenderableType]) -> Iterator[None]:
        """Inside the block, draw `lines()` at the foot of the terminal, four times per second."""
        # Not Live's own thread: it clears the wrong lines if another thread prints a line at the same time.
        live = Live(get_renderable=lines, console=self.err, auto_refresh=False, transient=True)
        closed = threading.Event()

        def keep_drawing() -> None:
            while not closed.wait(0.25):
                with self._screen:
                    live.refresh()

        drawing = threading.Thread(target=keep_drawing, name="drawing", daemon=True)
        with live:
            drawing.start()
            try:
                yield
            finally:
                closed.set()
                drawing.join()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (what, done, total) that shows a bar for each `what`; in a pipe, a line every few seconds."""
        if self.quiet:
            yield lambda what, done, total: None
        elif self.live:
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.err,
                transient=True,
            ) as bars:
                yield _bars(bars)
        else:
            yield self._plain_progress()

    def _plain_progress(self) -> Callable[[str, int, int], None]:
        shown_at: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            last = shown_at.setdefault(what, now)
            if last == math.inf or (done < total and now - last < _PLAIN_EVERY_S):
                return
            self.say(f"{what}: {done} of {total}")
            shown_at[what] = math.inf if done >= total else now

        return report


class _Warnings(logging.Handler):
    """Writes logged warnings to a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(record.getMessage())


def _bars(bars: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return report

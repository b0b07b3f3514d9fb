"""Where a command writes: results to stdout, everything else to stderr. Made with rich.

On a terminal there are live bars; in a pipe each event is one plain line.
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
    """Where a command writes.

    quiet     no progress, results only
    verbose   tracebacks with errors
    results   whether stdout is what the command is run for; False where files or the database hold its results, too
    spell     makes a line of the words of an advised command; a command sets it so that the study, the storage and the
              folder are named as the user has named them
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, results: bool = True) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.results = results
        self.spell: Callable[[Sequence[str]], str] = lambda words: shlex.join(["cvaeopt", *words])
        self.out = Terminal(highlight=False)
        self.err = Terminal(stderr=True, highlight=False)
        self._secrets: dict[str, str] = {}
        self._screen = threading.RLock()  # one thread at a time draws the live lines or prints others

    @property
    def live(self) -> bool:
        """Whether lines can move: a terminal that can do it and is not quiet."""
        return self.err.is_interactive and not self.quiet

    @property
    def lost(self) -> OSError | None:
        """Why something that was written to stdout did not arrive; None if all did."""
        stream = self.out.file
        return stream.lost if isinstance(stream, Output) else None

    def conceal(self, secret: str, shown: str) -> None:
        """From now on `shown` stands for `secret` in every error, also in tracebacks."""
        if secret:
            self._secrets[secret] = shown

    def _advised(self, text: str) -> str:
        return f"{text.sentence} {self.spell(text.command)}" if isinstance(text, Advice) else text

    def say(self, text: str, style: str = "") -> None:
        """One line of progress on stderr; nothing if quiet."""
        if not self.quiet:
            with self._screen:
                self.err.print(Text(self._advised(text), style=style), soft_wrap=not self.err.is_terminal)

    def warn(self, text: str) -> None:
        """One line about something that is not as it should be, on stderr, also if quiet."""
        with self._screen:
            self.err.print(Text(f"Warning: {self._clean(text)}", style="yellow"), soft_wrap=not self.err.is_terminal)

    def pass_on(self, text: str, style: str = "") -> None:
        """One line that another process meant for stderr, also when quiet."""
        with self._screen:
            self.err.print(Text(self._clean(text), style=style), soft_wrap=not self.err.is_terminal)

    def show_warnings(self, name: str) -> None:
        """From now on the warnings that package `name` logs are shown here."""
        log = logging.getLogger(name)
        log.handlers = [_Warnings(self)]
        log.propagate = False

    def result(self, text: str) -> None:
        """One line of the result, on stdout; never folded, so that it can be copied."""
        self.out.print(Text(self._advised(text)), soft_wrap=True)

    def json(self, value: Any, indent: int | None = 2) -> None:
        """A result for other programs, on stdout; on one line if `indent` is None."""
        text = json.dumps(value, allow_nan=False, indent=indent, default=str)
        self.out.file.write(text.replace("\x7f", "\\u007f") + "\n")  # JSON escapes every other control character

    def show(self, content: RenderableType) -> None:
        """Tables of the result, on stdout; in a pipe at least 100 columns wide, without trailing blanks."""
        if self.out.is_terminal:
            self.out.print(content)
            return
        page = Terminal(file=io.StringIO(), width=max(100, self.out.width), highlight=False, color_system=None)
        with page.capture() as captured:
            page.print(content)
        self.result("\n".join(line.rstrip() for line in captured.get().splitlines()))

    def error(self, error: CvaeoptError) -> None:
        """A panel with what was found, what was expected and what to do; with -v the traceback first."""
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
        """Inside the block `lines` are drawn at the foot of the terminal, four times a second."""
        # Live's own thread counts the lines it has to clear without regard for a line printed meanwhile.
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
    def announce(self, text: str, after_s: float = 2.0) -> Iterator[None]:
        """Says `text` if the block takes longer than `after_s` seconds."""
        timer = threading.Timer(after_s, self.say, [text])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[str, int, int], None]]:
        """A callback (what, done, total): a bar for each `what`, or a line every few seconds in a pipe."""
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
    """Says logged warnings on a console."""

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

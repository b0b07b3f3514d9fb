"""What people see while they wait: progress, tables and one panel an error. Made with rich.

On a terminal there are live bars; in a pipe one plain line an event. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import shlex
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cvaeopt.errors import CvaeoptError, StorageUnreachable
from cvaeopt.terminal.streams import Output, Terminal
from cvaeopt.text import BASELINES, Advice, baseline_texts, count, duration, short, sparkline

_PLAIN_EVERY_S = 5.0


class Console:
    """Where a command writes.

    quiet     no progress, results only
    verbose   tracebacks with errors
    results   whether the command is run for what it writes to stdout; False where files or the database hold that, too

    `spell` makes the line of an advised command of its words after `cvaeopt`; set it where the study, the storage or
    the folder has to be named as the user has named it.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, results: bool = True) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.results = results
        self.spell: Callable[[Sequence[str]], str] = lambda words: shlex.join(["cvaeopt", *words])
        self.out = Terminal(highlight=False)
        self.err = Terminal(stderr=True, highlight=False)
        self._secrets: dict[str, str] = {}
        self._screen = threading.RLock()  # lines that move and lines that stay are drawn one after the other

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
        """One line of progress on stderr; nothing when quiet."""
        if not self.quiet:
            with self._screen:
                self.err.print(Text(self._advised(text), style=style), soft_wrap=not self.err.is_terminal)

    def warn(self, text: str) -> None:
        """One line that should not be missed, on stderr, also when quiet."""
        with self._screen:
            self.err.print(Text(f"Warning: {self._clean(text)}", style="yellow"), soft_wrap=not self.err.is_terminal)

    def pass_on(self, text: str, style: str = "") -> None:
        """One line that another process meant for stderr, also when quiet."""
        with self._screen:
            self.err.print(Text(self._clean(text), style=style), soft_wrap=not self.err.is_terminal)

    def hear(self, name: str) -> None:
        """Say the warnings that the modules below package `name` log."""
        log = logging.getLogger(name)
        log.handlers = [_Warnings(self)]
        log.propagate = False

    def result(self, text: str) -> None:
        """One line of the result, on stdout; never folded, so that it can be copied."""
        self.out.print(Text(self._advised(text)), soft_wrap=True)

    def json(self, value: Any) -> None:
        """A result for other programs, on stdout."""
        self.out.file.write(_json(value, indent=2, default=str) + "\n")

    def stream_json(self, read: Callable[[], dict[str, Any]]) -> None:
        """What `read` answers as one JSON object a line, again and again until Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            for facts in self.states(read):
                self.out.file.write(_json(facts) + "\n")

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
        """The panel of an error: found, expected, what to do; with -v its traceback first."""
        if self.verbose:
            self.err.print(Text(self._clean("".join(traceback.format_exception(error)))), soft_wrap=True)
        if not self.err.is_terminal:
            said = " ".join(filter(None, (error.found, error.expected, self._advised(error.todo))))
            self.err.print(Text(self._clean(f"Error: {said}")), soft_wrap=True)
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
    def moving(self, lines: Callable[[], RenderableType]) -> Iterator[None]:
        """Draws `lines` at the foot of the terminal, four times a second, until the block ends."""
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

    # ---- whole results

    def check_report(self, report: dict[str, Any]) -> None:
        """What `check-data` found."""
        rows = [
            (folder, count, ", ".join(report["sizes"].get(folder, [])) or "-")
            for folder, count in report["counts"].items()
        ]
        rows += [
            (f"test sequence {one['name']}", one["labels"], "with true frames" if one["truth"] else "labels only")
            for one in report["sequences"]
        ]
        self.result(f"{report['root']}: {count(report['clips'], 'clip')} of 16 frames")  # a path must not be folded
        self.show(grid(("what", "files", ""), rows, (1,)))
        if report["baselines"]:
            self.result("Baselines on the validation video, dB: " + baseline_texts(report["baselines"]))
        for problem in report["problems"]:
            self.result(f"- {problem}")
        hidden = report["problem_count"] - len(report["problems"])
        if hidden > 0:
            self.result(f"- and {hidden} more")
        if report["ok"]:
            self.result("The folder can be used.")
        else:
            them = "it" if report["problem_count"] == 1 else "them"
            self.result(f"{count(report['problem_count'], 'problem')}: mend {them} first.")

    def resolved(self, title: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """What a command would do: tables of names and values."""
        self.result(title)
        for name, values in tables.items():
            self.result(f"\n[{name}]")
            for key, value in values.items():
                self.result(f"{key} = {value if isinstance(value, str) else json.dumps(value)}")

    def planned(self, facts: dict[str, Any]) -> None:
        """What `confirm` would have trained."""
        runs = f"{count(facts['new_runs'], 'run')} of {count(facts['epochs'], 'epoch')}"
        self.result(f"Would register {runs} as {facts['new']}." if facts["new"] else "Every run is registered already.")
        rows = [
            (
                ", ".join(map(str, one["trials"])),
                f"{one['searched']:.2f}",
                ", ".join(f"{name} {short(value)}" for name, value in one["params"].items()),
            )
            for one in facts["leaders"]
        ]
        self.show(grid(("trial", "searched, dB", "settings"), rows, (0, 1)))
        self.result(f"Fresh seeds: {', '.join(map(str, facts['seeds']))}")

    def confirmed(self, rows: Sequence[Mapping[str, str]], spread: float | None, paired: bool) -> None:
        """The leaders of a study, ranked by fresh runs."""
        self.show(_confirmed(rows))
        if spread is not None:
            self.result(f"One run of equal settings scatters by {spread:.2f} dB (standard deviation, all leaders).")
        if paired:
            self.result("Leaders are compared seed by seed.")

    def score(self, sheet: dict[str, Any]) -> None:
        """A score sheet."""
        gain = sheet["gain_over_baselines"]
        self.result(
            f"{sheet['checkpoint']} (epoch {sheet['epoch']}): validation PSNR {sheet['val_psnr']:.2f} dB, "
            f"late frames {sheet['val_psnr_late']:.2f} dB"
        )
        self.result(f"Baselines, dB: {baseline_texts(sheet['baselines'])}")
        verdict = f"{gain:.2f} dB above" if gain > 0 else f"{-gain:.2f} dB BELOW"
        missing = sheet["baselines"]["nearest_pose"] - sheet["val_psnr"]
        also = f", {'but' if gain > 0 else 'and'} {missing:.2f} dB below the nearest pose" if missing >= 0 else ""
        self.result(f"That is {verdict} the better of copying the first frame and showing the mean frame{also}.")
        for name, value in sheet["public"].items():
            self.result(f"Public score of sequence {name}: {value:.2f} dB")

    def status(self, facts: dict[str, Any]) -> None:
        """A study and its workers."""
        self.show(_status(facts))

    def workers(self, workers: Sequence[dict[str, Any]]) -> None:
        """The workers of all studies."""
        if not workers:
            self.result("No worker has run here yet.")
            return
        rows = [
            (
                one["id"],
                one["study"],
                one["device"],
                "stopping" if one["stopping"] and one["state"] not in _GONE else one["state"],
                "-" if one["trial"] is None else one["trial"],
                "-" if one["epoch"] is None else one["epoch"],
                f"{duration(one['beat_age_s'])} ago",
            )
            for one in workers
        ]
        self.show(grid(("worker", "study", "device", "state", "trial", "epoch", "last beat"), rows, (4, 5, 6)))

    def watch(
        self, read: Callable[[], dict[str, Any]], every_s: float = 2.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """`status` again and again until Ctrl-C; in a pipe, a line for every change.

        On a terminal it has the screen for itself, and leaves the last state behind. A database that goes away is
        waited for; one that is not there at first is an error.
        """
        with contextlib.suppress(KeyboardInterrupt):
            if self.out.is_interactive:
                self._watch_live(read, every_s, sleep)
                return
            said = ""
            for facts in self.states(read, every_s, sleep):
                line = _summary(facts)
                if line != said:
                    self.result(line)
                    said = line

    def states(
        self, read: Callable[[], dict[str, Any]], every_s: float = 2.0, sleep: Callable[[float], None] = time.sleep
    ) -> Iterator[dict[str, Any]]:
        """What `read` answers, again and again while somebody reads stdout; an outage is said once on stderr."""
        before = ""
        for facts, note in self._readings(read, every_s, sleep):
            if not note:
                yield facts
            elif not before:
                self.warn(f"{note} Waiting for it.")
            before = note

    def _readings(
        self, read: Callable[[], dict[str, Any]], every_s: float, sleep: Callable[[float], None]
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """The newest answer of `read`, and what is wrong if it is not of now. The first reading may raise."""
        facts, note = read(), ""
        while self.lost is None:
            yield facts, note
            sleep(every_s)
            try:
                facts, note = read(), ""
            except StorageUnreachable as error:
                note = error.found

    def _watch_live(self, read: Callable[[], dict[str, Any]], every_s: float, sleep: Callable[[float], None]) -> None:
        readings = self._readings(read, every_s, sleep)
        facts, note = next(readings)
        live = Live(_page(facts, note), console=self.out, screen=True, refresh_per_second=4)
        try:  # not `with`: Ctrl-C during the first drawing must give the screen back, too
            live.start()
            for facts, note in readings:
                live.update(_page(facts, note), refresh=True)
        finally:
            live.stop()
            self.status(facts)

    # ---- long work

    @contextlib.contextmanager
    def training(
        self, title: str, epochs: int, history: Sequence[dict[str, Any]], metric: str = "val_psnr"
    ) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A callback for each finished epoch's row: a bar with the curve, or one line an epoch in a pipe.

        history   rows of the epochs that were trained before
        """
        rows = list(history)
        finished_at = time.monotonic()

        def pace_s() -> float:
            return statistics.median(float(row["seconds"]) for row in rows[-20:]) if rows else 0.0

        def figures() -> str:
            best = max(rows, key=lambda row: float(row[metric]))
            row = rows[-1]
            return (
                f"{row[metric]:.2f} dB, best {best[metric]:.2f} (epoch {best['epoch']}), "
                f"loss {row['train_loss']:.4g}, lr {row['lr']:.1e}"
            )

        def lines() -> RenderableType:
            width = live_width(self.err)
            done = int(rows[-1]["epoch"]) if rows else 0
            since_s = time.monotonic() - finished_at
            shown = [folded(Text(title, style="bold"), width), epoch_bar(done, epochs, pace_s(), since_s, width)]
            if rows:
                shown.append(folded(Text(f"{sparkline([row[metric] for row in rows], 16)}  {figures()}"), width))
            return Group(*shown)

        def heard(row: dict[str, Any]) -> None:
            nonlocal finished_at
            finished_at = time.monotonic()
            rows.append(row)
            if not self.live:
                left = duration(pace_s() * (epochs - row["epoch"]))
                self.say(f"{title} epoch {row['epoch']}/{epochs}: {figures()}, {row['seconds']:.1f} s, {left} left")

        if not self.live:
            yield heard
            return
        with self.moving(lines):
            yield heard
        self.say(f"{title} epoch {rows[-1]['epoch']}/{epochs}: {figures()}" if rows else "")

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
        said_at: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            last = said_at.setdefault(what, now)
            if last == math.inf or (done < total and now - last < _PLAIN_EVERY_S):
                return
            self.say(f"{what}: {done} of {total}")
            said_at[what] = math.inf if done >= total else now

        return report


class _Warnings(logging.Handler):
    """Says logged warnings on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.warn(record.getMessage())


def _json(value: Any, **options: Any) -> str:
    # JSON writes every other control character as \\u....
    return json.dumps(value, allow_nan=False, **options).replace("\x7f", "\\u007f")


def _bars(bars: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return report


def grid(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Table:
    """A plain table; `right` are the indices of the columns that hold numbers. Cells are text, never markup."""
    table = Table(header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def live_width(terminal: Terminal) -> int:
    """Columns of lines that move.

    Few enough that narrowing a window to 80 columns leaves no trace of them, and that the ^C which a terminal echoes
    does not begin a line of its own.
    """
    return min(80, terminal.width) - 3


def folded(text: Text, width: int) -> RenderableType:
    """`text` in lines of at most `width` columns."""
    return Constrain(text, width)


def epoch_bar(epoch: int, epochs: int, pace_s: float, since_s: float, width: int) -> RenderableType:
    """A bar of finished epochs, with seconds an epoch and the time that is left.

    pace_s    seconds of an epoch, 0 if unknown
    since_s   seconds since the last epoch ended
    """
    # Between two epochs the bar moves with the clock, but never pretends that the epoch is done.
    share = min(since_s / pace_s, 0.95) if pace_s and epoch < epochs else 0.0
    text = f"epoch {epoch}/{epochs}"
    if pace_s:
        text += f", {pace_s:.1f} s each, {duration(pace_s * (epochs - epoch - share))} left"
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=epochs, completed=epoch + share, width=max(width - len(text) - 2, 4)), Text(text))
    return bar


_MOST_FAILURES = 5
_MOST_STOPPED = 3


def _page(facts: dict[str, Any], note: str) -> RenderableType:
    """One screen of `status --watch`."""
    head = f"{datetime.now():%H:%M:%S}  Ctrl-C ends this view, not the study"
    return Group(Text(note, style="yellow") if note else Text(head, style="dim"), Text(), _status(facts))


def _summary(facts: dict[str, Any]) -> str:
    """A study in one line."""
    found = facts["best"]
    best = f"best {found['value']:.2f} dB (trial {found['number']})" if found else "no complete trial yet"
    workers = sum(one["state"] not in _GONE for one in facts["workers"])
    confirmed = (facts.get("confirmation") or {}).get("best")
    if confirmed:
        best += f", confirmed {confirmed['value']:.2f} dB (trial {confirmed['number']})"
    return (
        f"{facts['study']}: {_counts(facts['trials'])}; {count(facts['epochs_spent'], 'epoch')} spent; {best}; "
        f"{count(workers, 'worker')}"
    )


def _counts(trials: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in trials.items() if count) or "none yet"


_GONE = ("stopped", "dead")


def _status(facts: dict[str, Any]) -> RenderableType:
    """Everything `status` knows, as one thing that can be refreshed."""
    trials, best, budget = facts["trials"], facts["best"], facts["budget"]
    limits = [count(budget["trials"], "trial") if budget["trials"] else "any number of trials"]
    limits[0] += f" of {count(budget['epochs'], 'epoch')}"
    if budget.get("total_epochs"):
        limits.append(f"{count(budget['total_epochs'], 'epoch')} in all")
    if budget.get("wall_clock_h"):
        limits.append(f"{budget['wall_clock_h']:g} h")
    if budget.get("target_db") is not None:
        limits.append(f"until {budget['target_db']:g} dB")
    if budget.get("patience_trials"):
        limits.append(f"until {count(budget['patience_trials'], 'trial')} in a row found nothing better")
    whole = Table.grid(padding=(0, 2))
    whole.add_column(style="bold", no_wrap=True)
    whole.add_column(overflow="fold")
    whole.add_row("study", Text(f"{facts['study']}, {facts['metric']}, in {facts['storage']}"))
    whole.add_row("budget", Text(f"{', '.join(limits)}; {count(facts['epochs_spent'], 'epoch')} spent"))
    whole.add_row("trials", Text(_counts(trials)))
    if best:
        lost = [
            BASELINES.get(name, name)
            for name, level in facts["baselines"].items()
            if level is not None and best["value"] <= level
        ]
        below = f" (below {' / '.join(lost)})" if lost else ""
        style = "yellow" if lost else "green"
        fresh = facts.get("confirmation")
        counts = f"; {_verdict(fresh)}" if fresh and fresh["table"] else ""
        whole.add_row("best", Text(f"{best['value']:.2f} dB, trial {best['number']}{below}{counts}", style=style))
        whole.add_row("", Text(", ".join(f"{name} {short(value)}" for name, value in best["params"].items())))
    else:
        whole.add_row("best", Text("no complete trial yet"))
    if facts["baselines"]:
        whole.add_row("baselines", Text(baseline_texts(facts["baselines"]) + " dB"))
    last = facts["last"]
    if last:
        value = "" if last["value"] is None else f" {last['value']:.2f} dB"
        whole.add_row("last", Text(f"trial {last['number']} {last['state']}{value}: {last['reason'] or 'no reason'}"))
    if facts["stopped"]:
        whole.add_row("stopped", Text(str(facts["stopped"]), style="yellow"))
    failures = facts["failures"]
    for index, failure in enumerate(failures[-_MOST_FAILURES:]):
        label = "" if index else "failed"
        whole.add_row(label, Text(f"trial {failure['number']}: {failure['reason']}", style="red"))
    if len(failures) > _MOST_FAILURES:
        whole.add_row("", Text(f"and {len(failures) - _MOST_FAILURES} earlier ones"))
    fresh = facts.get("confirmation")
    if fresh and fresh["table"]:
        ran = f"{fresh['ended']} of {count(fresh['runs'], 'fresh run')} of {len(fresh['leaders'])} leaders ended"
        best = fresh["best"]
        said = f": trial {best['number']}, {best['value']:.2f} dB" if best else ""
        whole.add_row("confirmed", Text(f"{ran}{said}; see {', '.join(fresh['studies'])}"))
        return Group(whole, Text(), _confirmed(fresh["table"]), Text(), _workers(facts["workers"]))
    return Group(whole, Text(), _workers(facts["workers"]))


def _verdict(fresh: Mapping[str, Any]) -> str:
    """Whether the search's best value still counts beside its confirmation."""
    if fresh["best"]:
        return "the highest of the search; what counts is the confirmed mean"
    if fresh["ended"] < fresh["runs"]:
        return "the highest of the search; counts until every fresh run has ended"
    return "the highest of the search; counts, as no fresh run came to its end"


def _confirmed(rows: Sequence[Mapping[str, str]]) -> Table:
    return grid(list(rows[0]), [list(row.values()) for row in rows], (0, 1, 4, 5))


def _workers(workers: list[dict[str, Any]]) -> RenderableType:
    """Who runs, and the last of those that stopped."""
    here = [one for one in workers if one["state"] != "stopped"]
    stopped = sorted((one for one in workers if one["state"] == "stopped"), key=lambda one: float(one["beat_age_s"]))
    table = grid(("worker", "device", "state", "trial", "epoch", "last beat"), (), (3, 4, 5))
    for one in [*here, *stopped[:_MOST_STOPPED]]:
        cells = [one[key] for key in ("id", "device", "state", "trial", "epoch")]
        texts = ["-" if cell is None else str(cell) for cell in cells]
        style = {"dead": "red", "stalled": "red", "stopped": "dim", "stopping": "yellow"}.get(one["state"], "")
        table.add_row(*(Text(text) for text in (*texts, f"{duration(one['beat_age_s'])} ago")), style=style)
    if not workers:
        return Text("No worker yet.")
    if len(stopped) > _MOST_STOPPED:
        return Group(table, Text(f"and {len(stopped) - _MOST_STOPPED} that stopped before", style="dim"))
    return table

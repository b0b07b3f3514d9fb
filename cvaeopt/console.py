"""What people see while they wait: progress, tables and one panel an error. Made with rich.

On a terminal there are live bars; in a pipe one plain line an event. Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console as Terminal
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cvaeopt.errors import CvaeoptError

SPARKS = "▁▂▃▄▅▆▇█"
_PLAIN_EVERY_S = 5.0


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """The shape of a curve in one line; the newest `width` values, '·' for those that are not finite."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return "·" * len(shown)
    low, high = min(finite), max(finite)
    step = (high - low) / (len(SPARKS) - 1) or 1.0
    return "".join(SPARKS[round((value - low) / step)] if math.isfinite(value) else "·" for value in shown)


def duration(seconds: float) -> str:
    """Seconds as people say them: '48 s', '12 min', '3 h 05', '2 d 4 h'."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d}"
    return f"{hours // 24} d {hours % 24} h"


class Console:
    """Where a command writes.

    quiet     no progress, results only
    verbose   tracebacks with errors
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.out = Terminal(soft_wrap=True, highlight=False)
        self.err = Terminal(stderr=True, highlight=False)

    @property
    def live(self) -> bool:
        """Whether bars can move: a terminal that is not quiet."""
        return self.err.is_terminal and not self.quiet

    def say(self, text: str, style: str = "") -> None:
        """One line of progress on stderr; nothing when quiet."""
        if not self.quiet:
            self.err.print(Text(text, style=style), soft_wrap=not self.err.is_terminal)

    def warn(self, text: str) -> None:
        """One line that should not be missed, on stderr, also when quiet."""
        self.err.print(Text(f"Warning: {text}", style="yellow"), soft_wrap=not self.err.is_terminal)

    def result(self, text: str) -> None:
        """One line of the result, on stdout."""
        self.out.print(Text(text))

    def table(self, table: Table) -> None:
        """A table of the result, on stdout; at least 80 columns wide in a pipe."""
        if self.out.is_terminal:
            self.out.print(table, soft_wrap=False)
        else:
            Terminal(file=self.out.file, width=max(100, self.out.width), highlight=False).print(table)

    def error(self, error: CvaeoptError) -> None:
        """The panel of an error: found, expected, what to do."""
        if not self.err.is_terminal:
            self.err.print(Text(f"Error: {error}"), soft_wrap=True)
            return
        lines = [escape(error.found)]
        if error.expected:
            lines.append(escape(error.expected))
        if error.todo:
            lines.append(f"[bold]{escape(error.todo)}[/bold]")
        self.err.print(Panel("\n".join(lines), title="Error", title_align="left", border_style="red"))

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
        self.table(grid(f"{report['root']}: {report['clips']} clips of 16 frames", ("what", "files", ""), rows, (1,)))
        if report["baselines"]:
            self.result("Baselines on the validation video, dB: " + _baselines(report["baselines"]))
        for problem in report["problems"]:
            self.result(f"- {problem}")
        hidden = report["problem_count"] - len(report["problems"])
        if hidden > 0:
            self.result(f"- and {hidden} more")
        self.result("The folder can be used." if report["ok"] else f"{report['problem_count']} problems: mend them first.")

    def settings(self, values: dict[str, Any], title: str) -> None:
        """Settings, one a line."""
        self.result(title)
        for name, value in values.items():
            self.result(f"  {name} = {json.dumps(value)}")

    def score(self, sheet: dict[str, Any]) -> None:
        """A score sheet."""
        gain = sheet["gain_over_baselines"]
        self.result(
            f"{sheet['checkpoint']} (epoch {sheet['epoch']}): validation PSNR {sheet['val_psnr']:.2f} dB, "
            f"late frames {sheet['val_psnr_late']:.2f} dB"
        )
        self.result(f"Baselines, dB: {_baselines(sheet['baselines'])}")
        verdict = f"{gain:.2f} dB above" if gain > 0 else f"{-gain:.2f} dB BELOW"
        self.result(f"That is {verdict} the better of copying the first frame and showing the mean frame.")
        for name, value in sheet["public"].items():
            self.result(f"Public score of sequence {name}: {value:.2f} dB")

    def status(self, facts: dict[str, Any]) -> None:
        """A study and its fleet."""
        self.table(_status(facts))

    def watch(self, read: Callable[[], dict[str, Any]], every_s: float = 2.0) -> None:
        """`status` again and again until Ctrl-C; in a pipe, once for every change."""
        if not self.out.is_terminal:
            said = ""
            while True:
                facts = read()
                line = json.dumps({key: facts[key] for key in ("trials", "epochs_spent", "best")})
                if line != said:
                    self.out.print(Text(line))
                    said = line
                time.sleep(every_s)
        with Live(_status(read()), console=self.out, refresh_per_second=4) as live:
            while True:
                time.sleep(every_s)
                live.update(_status(read()))

    # ---- long work

    @contextlib.contextmanager
    def training(self, epochs: int, done: int, title: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """A callback for each finished epoch's row: a bar with the curve, or one line an epoch in a pipe."""
        curve: list[float] = []

        def line(row: dict[str, Any]) -> str:
            curve.append(row["val_psnr"])
            return (
                f"epoch {row['epoch']}/{epochs}  {row['val_psnr']:.2f} dB (best {max(curve):.2f})  "
                f"loss {row['train_loss']:.4f}  lr {row['lr']:.1e}  {row['seconds']:.1f} s"
            )

        if not self.live:
            yield lambda row: self.say(f"{title}  {line(row)}")
            return
        with _epoch_bars(self.err) as bars:
            task = bars.add_task(title, total=epochs, completed=done, detail="")

            def show(row: dict[str, Any]) -> None:
                detail = f"{sparkline([*curve, row['val_psnr']])} {line(row)}"
                bars.update(task, completed=row["epoch"], detail=detail)

            yield show

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
        said: dict[str, float] = {}

        def report(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            if done < total and now - said.setdefault(what, now) < _PLAIN_EVERY_S:
                return
            if done < total or said.get(what) != math.inf:
                self.say(f"{what}: {done} of {total}")
            said[what] = math.inf if done >= total else now

        return report


def _bars(bars: Progress) -> Callable[[str, int, int], None]:
    tasks: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    return report


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[int] = ()) -> Table:
    """A plain table; `right` are the indices of the columns that hold numbers. Cells are text, never markup."""
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _baselines(values: dict[str, float | None]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in values.items() if value is not None)


def _epoch_bars(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(),
        console=console,
    )


def _status(facts: dict[str, Any]) -> Table:
    """One table that holds the parts of `status`, so that it can be refreshed as a whole."""
    trials, best = facts["trials"], facts["best"]
    budget = facts["budget"]
    limits = [f"{budget['trials']} trials" if budget["trials"] else "any number of trials"]
    limits.append(f"of {budget['epochs']} epochs")
    if budget.get("total_epochs"):
        limits.append(f"at most {budget['total_epochs']} epochs in all")
    if budget.get("wall_clock_h"):
        limits.append(f"at most {budget['wall_clock_h']} h")
    whole = Table.grid(padding=(0, 2))
    whole.add_column(style="bold", no_wrap=True)
    whole.add_column(overflow="fold")
    whole.add_row("study", Text(f"{facts['study']}  ({facts['metric']}, {facts['storage']})"))
    whole.add_row("budget", Text(f"{', '.join(limits)}; {facts['epochs_spent']} epochs spent"))
    whole.add_row("trials", Text(", ".join(f"{count} {state}" for state, count in trials.items())))
    if best:
        params = ", ".join(f"{name} {short(value)}" for name, value in best["params"].items())
        whole.add_row("best", Text(f"{best['value']:.2f} dB, trial {best['number']}: {params}"))
    else:
        whole.add_row("best", Text("no complete trial yet"))
    if facts["baselines"]:
        whole.add_row("baselines", Text(_baselines(facts["baselines"]) + " dB"))
    if facts.get("stopped"):
        whole.add_row("stopped", Text(str(facts["stopped"]), style="yellow"))
    for failure in facts["failures"][-5:]:
        whole.add_row("failed", Text(f"trial {failure['number']}: {failure['reason']}", style="red"))
    rows = [
        (
            one["id"],
            one["device"],
            one["state"],
            "-" if one["trial"] is None else one["trial"],
            "-" if one["epoch"] is None else one["epoch"],
            duration(one["beat_age_s"]),
        )
        for one in facts["workers"]
    ]
    if rows:
        table = grid("", ("worker", "device", "state", "trial", "epoch", "last beat"), rows, (3, 4, 5))
        whole.add_row("workers", table)
    else:
        whole.add_row("workers", Text("none yet"))
    return whole


def short(value: Any) -> str:
    """A setting's value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

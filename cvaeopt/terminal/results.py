"""Functions that print the results of check-data, dry runs, confirm, score, status and workers on stdout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cvaeopt.terminal.console import Console
from cvaeopt.terminal.layout import grid
from cvaeopt.text import BASELINES, baseline_texts, count, duration, settings_text, version_text

GONE = ("stopped", "dead")
"""The states of workers that no longer run."""

_MAX_REASONS = 5  # reasons why trials are history, of an extension
_MAX_NUMBERS = 12
_MAX_FAILURES = 5
_MAX_STOPPED = 3


def check_report(console: Console, report: dict[str, Any]) -> None:
    rows = [
        (folder, count, ", ".join(report["sizes"].get(folder, [])) or "-") for folder, count in report["counts"].items()
    ]
    rows += [
        (
            f"test sequence {sequence['name']}",
            sequence["labels"],
            "with true frames" if sequence["truth"] else "labels only",
        )
        for sequence in report["sequences"]
    ]
    if any(files for _, files, _ in rows):
        console.result(f"{report['root']}: {count(report['clips'], 'clip')} of 16 frames")  # the path is not folded
        console.show(grid(("what", "files", ""), rows, (1,)))
    if report["baselines"]:
        console.result("Baselines on the validation video, dB: " + baseline_texts(report["baselines"]))
    for problem in report["problems"]:
        console.result(f"- {problem}")
    hidden = report["problem_count"] - len(report["problems"])
    if hidden > 0:
        console.result(f"- and {hidden} more")
    if report["ok"]:
        console.result("The folder can be used.")
    else:
        them = "it" if report["problem_count"] == 1 else "them"
        console.result(f"{count(report['problem_count'], 'problem')}: mend {them} first.")


def resolved(console: Console, title: str, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what a command would do, as a title and tables of names and values."""
    console.result(title)
    for name, values in tables.items():
        console.result(f"\n[{name}]")
        for key, value in values.items():
            console.result(f"{key} = {value if isinstance(value, str) else json.dumps(value)}")


def planned(console: Console, facts: dict[str, Any]) -> None:
    runs = f"{count(facts['new_runs'], 'run')} of {count(facts['epochs'], 'epoch')}"
    console.result(f"Would register {runs} as {facts['new']}." if facts["new"] else "Every run is registered already.")
    rows = [
        (
            ", ".join(map(str, leader["trials"])),
            f"{leader['searched']:.2f}",
            settings_text(leader["params"]),
        )
        for leader in facts["leaders"]
    ]
    console.show(grid(("trial", "searched, dB", "settings"), rows, (0, 1)))
    console.result(f"Fresh seeds: {', '.join(map(str, facts['seeds']))}")


def confirmed(console: Console, rows: Sequence[Mapping[str, str]], spread: float | None, paired: bool) -> None:
    """Print the leaders of a study, ranked by their fresh runs.

    spread   standard deviation between runs of equal settings, dB; None if unknown
    paired   whether leaders are compared seed by seed
    """
    console.show(_confirmed(rows))
    if spread is not None:
        console.result(f"One run of equal settings scatters by {spread:.2f} dB (standard deviation, all leaders).")
    if paired:
        console.result("Leaders are compared seed by seed.")


def score(console: Console, sheet: dict[str, Any]) -> None:
    gain = sheet["gain_over_baselines"]
    console.result(
        f"{sheet['checkpoint']} (epoch {sheet['epoch']}): validation PSNR {sheet['val_psnr']:.2f} dB, "
        f"late frames {sheet['val_psnr_late']:.2f} dB"
    )
    console.result(f"Baselines, dB: {baseline_texts(sheet['baselines'])}")
    verdict = f"{gain:.2f} dB above" if gain > 0 else f"{-gain:.2f} dB BELOW"
    missing = sheet["baselines"]["nearest_pose"] - sheet["val_psnr"]
    also = f", {'but' if gain > 0 else 'and'} {missing:.2f} dB below the nearest pose" if missing >= 0 else ""
    console.result(f"That is {verdict} the better of copying the first frame and showing the mean frame{also}.")
    frames = ", ".join(str(number) for number in sheet["worst_frames"])
    if all(item["psnr_is"] == "unknown" for item in sheet["explained"]):
        console.result(f"Worst frames: {frames}. No measure is clearly related to the PSNR of a frame.")
    else:
        console.result(f"Worst frames: {frames}. What goes with the PSNR of a frame (a correlation is not a cause):")
        for item in sheet["explained"]:
            console.result(f"- {item['text']}")
    for name, value in sheet["public"].items():
        console.result(f"Public score of sequence {name}: {value:.2f} dB")


def status(console: Console, facts: dict[str, Any]) -> None:
    console.show(study_table(facts))


def workers(console: Console, workers: Sequence[dict[str, Any]]) -> None:
    if not workers:
        console.result("No worker has run here yet.")
        return
    shown = [
        (
            row["id"],
            row["study"],
            row["device"],
            "stopping" if row["stopping"] and row["state"] not in GONE else row["state"],
            "-" if row["trial"] is None else row["trial"],
            "-" if row["epoch"] is None else row["epoch"],
            f"{duration(row['beat_age_s'])} ago",
        )
        for row in workers
    ]
    console.show(grid(("worker", "study", "device", "state", "trial", "epoch", "last beat"), shown, (4, 5, 6)))
    for line in _takeovers(workers):
        console.result(line)


def _takeovers(workers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each worker that trains no more, about when others take its trial over."""
    lines = []
    for worker in workers:
        if (left_s := worker["takeover_s"]) is not None:
            cause = "is silent" if worker["state"] == "silent" else "ends no epoch"
            when = f"goes to others in {duration(left_s)}" if left_s > 0 else "waits for another worker"
            lines.append(f"{worker['id']} {cause}: its trial {worker['trial']} {when}.")
    return lines


def trial_counts(trials: dict[str, int]) -> str:
    """The number of trials in each state, such as '12 complete, 2 running'."""
    return ", ".join(f"{count} {state}" for state, count in trials.items() if count) or "none yet"


def study_table(facts: dict[str, Any]) -> RenderableType:
    """The whole output of `status`, as one block that can be drawn repeatedly."""
    trials, best, budget = facts["trials"], facts["best"], facts["budget"]
    whole = Table.grid(padding=(0, 2))
    whole.add_column(style="bold", no_wrap=True)
    whole.add_column(overflow="fold")
    whole.add_row("study", Text(f"{facts['study']}, {facts['metric']}, in {facts['storage']}"))
    whole.add_row("budget", Text(f"{', '.join(_limits(budget))}; {count(facts['epochs_spent'], 'epoch')} spent"))
    whole.add_row("trials", Text(trial_counts(trials)))
    for version in facts.get("versions", [])[1:]:
        whole.add_row(f"version {version['version']}", Text(version_text(version)))
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
        whole.add_row("", Text(settings_text(best["params"])))
    else:
        whole.add_row("best", Text("no complete trial yet"))
    if facts["baselines"]:
        whole.add_row("baselines", Text(baseline_texts(facts["baselines"]) + " dB"))
    for index, sentence in enumerate(facts.get("bounds", ())):
        whole.add_row("" if index else "at a bound", Text(sentence, style="yellow"))
    if "gain" in facts:
        text = facts["gain"]["text"] if facts["gain"] else "the trials so far do not tell what more trials would gain"
        whole.add_row("more trials", Text(text))
    last = facts["last"]
    if last:
        value = "" if last["value"] is None else f" {last['value']:.2f} dB"
        whole.add_row("last", Text(f"trial {last['number']} {last['state']}{value}: {last['reason'] or 'no reason'}"))
    if facts["stopped"]:
        whole.add_row("stopped", Text(str(facts["stopped"]), style="yellow"))
    if by_hand := facts.get("stopped_by_hand"):
        shown = ", ".join(map(str, by_hand[-_MAX_FAILURES:]))
        others = f" and {len(by_hand) - _MAX_FAILURES} earlier ones" if len(by_hand) > _MAX_FAILURES else ""
        whole.add_row("by hand", Text(f"stopped: trial {shown}{others}"))
    failures = facts["failures"]
    for index, failure in enumerate(failures[-_MAX_FAILURES:]):
        label = "" if index else "failed"
        whole.add_row(label, Text(f"trial {failure['number']}: {failure['reason']}", style="red"))
    if len(failures) > _MAX_FAILURES:
        whole.add_row("", Text(f"and {len(failures) - _MAX_FAILURES} earlier ones"))
    fresh = facts.get("confirmation")
    if fresh and fresh["table"]:
        ran = f"{fresh['ended']} of {count(fresh['runs'], 'fresh run')} of {len(fresh['leaders'])} leaders ended"
        best = fresh["best"]
        winner = f": trial {best['number']}, {best['value']:.2f} dB" if best else ""
        whole.add_row("confirmed", Text(f"{ran}{winner}; see {', '.join(fresh['studies'])}"))
        return Group(whole, Text(), _confirmed(fresh["table"]), Text(), _workers_of_study(facts["workers"]))
    return Group(whole, Text(), _workers_of_study(facts["workers"]))


def _limits(budget: Mapping[str, Any]) -> list[str]:
    """The limits of a study's budget in words."""
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
    return limits


def _verdict(fresh: Mapping[str, Any]) -> str:
    """A text that says whether the best value of the search or the mean of the fresh runs decides the best trial."""
    if fresh["best"]:
        return "the highest of the search; what counts is the confirmed mean"
    if fresh["ended"] < fresh["runs"]:
        return "the highest of the search; counts until every fresh run has ended"
    return "the highest of the search; counts, as no fresh run came to its end"


def _confirmed(rows: Sequence[Mapping[str, str]]) -> Table:
    return grid(list(rows[0]), [list(row.values()) for row in rows], (0, 1, 4, 5))


def _workers_of_study(workers: list[dict[str, Any]]) -> RenderableType:
    """A table of the workers that did not stop, and of the last workers that stopped."""
    running = [worker for worker in workers if worker["state"] != "stopped"]
    stopped = sorted(
        (worker for worker in workers if worker["state"] == "stopped"), key=lambda worker: float(worker["beat_age_s"])
    )
    table = grid(("worker", "device", "state", "trial", "epoch", "last beat"), (), (3, 4, 5))
    for worker in [*running, *stopped[:_MAX_STOPPED]]:
        cells = [worker[key] for key in ("id", "device", "state", "trial", "epoch")]
        texts = ["-" if cell is None else str(cell) for cell in cells]
        style = {"dead": "red", "stalled": "red", "silent": "yellow", "stopped": "dim", "stopping": "yellow"}.get(
            worker["state"], ""
        )
        table.add_row(*(Text(text) for text in (*texts, f"{duration(worker['beat_age_s'])} ago")), style=style)
    if not workers:
        return Text("No worker yet.")
    below = [Text(line, style="yellow") for line in _takeovers(running)]
    if len(stopped) > _MAX_STOPPED:
        below.insert(0, Text(f"and {len(stopped) - _MAX_STOPPED} that stopped before", style="dim"))
    return Group(table, *below)


def extension(console: Console, facts: dict[str, Any], dry_run: bool) -> None:
    """Print what an extension changes, and what becomes of the study's trials."""
    verb = "would go on" if dry_run else "goes on"
    console.result(f"Study {facts['study']} {verb} with version {facts['version']} of its definition:")
    for change in facts["changes"]:
        console.result(f"  {change}")
    number = "all" if facts["counts"] is None else str(facts["counts"])
    rows = [(number, "count", "they mean the same")] if number != "0" else []
    for key, label, text in (
        ("continues", "continue", "from their checkpoints to the new number of epochs"),
        ("partial", "count as pruned", "their checkpoints are not kept"),
        ("open", "are trained now", "they end under the version with which they began"),
    ):
        if facts[key]:
            rows.append((str(len(facts[key])), label, f"{text}: {trial_numbers(facts[key])}"))
    by_reason: dict[str, list[int]] = {}
    for trial in facts["history"]:
        by_reason.setdefault(trial["reason"], []).append(trial["number"])
    for reason, numbers in list(by_reason.items())[:_MAX_REASONS]:
        rows.append((str(len(numbers)), "are history", f"{reason}: {trial_numbers(numbers)}"))
    if len(by_reason) > _MAX_REASONS:
        rest = sum(len(numbers) for numbers in list(by_reason.values())[_MAX_REASONS:])
        rows.append((str(rest), "are history", f"{len(by_reason) - _MAX_REASONS} more reasons, see --json"))
    if rows:
        console.show(grid(("trials", "", ""), rows, (0,)))
    if facts["queued"]:
        console.result(f"Queued: {count(len(facts['queued']), 'point')}, which workers train first.")
    if facts["free"] is not None:
        console.result(f"Trials that may still begin: {facts['free']}.")


def trial_numbers(numbers: Sequence[int]) -> str:
    """The first numbers of trials, such as 'trials 1, 2, 5'."""
    shown = ", ".join(map(str, numbers[:_MAX_NUMBERS]))
    return f"trial{'' if len(numbers) == 1 else 's'} {shown}{' ...' if len(numbers) > _MAX_NUMBERS else ''}"

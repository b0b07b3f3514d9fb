"""The figures of `bench/replay.py`, as the plan in bench/README.md says them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.tabled import Cube, Entry, best_of, truths
from bench.worlds import quality

OURS = "ours"
MARKS = (3, 5, 10, 20, 60)  # trainings' worth of epochs
NEAR_DB = 0.25  # within so much of the table's best
DRAWS = 4000  # of the bootstrap
GOAL = {"optuna": 1 / 2, "random": 1 / 3, "skopt": 1 / 5}  # ours' epochs as a share of theirs
BELOW_DB, ABOVE_DB = 0.1, 0.5

Row = dict[str, Any]
Group = dict[int, Row]  # by repeat


def key_of(row: Row) -> tuple[Any, ...]:
    """What names a run."""
    return tuple(row[name] for name in ("half", "way", "method", "workers", "trainings", "repeat"))


def truth_at(row: Row, epochs: int, nothing: float) -> float:
    """The truth of what is recommended once so many epochs are spent, dB."""
    return next((truth for spent, truth, _ in reversed(row["steps"]) if spent <= epochs), nothing)


def epochs_to(row: Row, target: float) -> float:
    """Epochs spent until the recommendation is worth the target for the first time; infinite if it never is."""
    return next((float(spent) for spent, truth, _ in row["steps"] if truth >= target), math.inf)


def optimism(row: Row) -> float | None:
    """What was reported beyond the truth at the end, dB; None where nothing is recommended."""
    return row["steps"][-1][2] - row["steps"][-1][1] if row["steps"] else None


def interval(values: Sequence[float], figure: Any) -> tuple[float, float, float]:
    """`figure` (of an array, along its last axis) with its 95 % bootstrap interval."""
    sample = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(sample), size=(DRAWS, len(sample)))
    return float(figure(sample)), *_ends(figure(sample[draws], axis=-1))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Ratio of the medians with its 95 % interval, resampled repeat by repeat; NaN where both are infinite."""
    pairs = np.array([ours, theirs], dtype=float)
    draws = np.random.default_rng(0).integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    with np.errstate(invalid="ignore"):
        found = np.median(pairs[0][draws], axis=-1) / np.median(pairs[1][draws], axis=-1)
        middle = float(np.median(pairs[0]) / np.median(pairs[1]))
    return middle, *_ends(found)


def _ends(drawn: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % places; infinite values stand last, as they are no numbers to interpolate between."""
    rising = np.sort(np.where(np.isnan(drawn), np.inf, drawn))
    return float(rising[int(0.025 * len(rising))]), float(rising[math.ceil(0.975 * len(rising)) - 1])


def grouped(rows: Sequence[Row]) -> dict[tuple[str, int, int], dict[str, Group]]:
    """{(way, workers, trainings): {method: {repeat: row}}}."""
    found: dict[tuple[str, int, int], dict[str, Group]] = {}
    for row in rows:
        case = found.setdefault((row["way"], row["workers"], row["trainings"]), {})
        case.setdefault(row["method"], {})[row["repeat"]] = row
    return dict(sorted(found.items()))


def case_report(methods: dict[str, Group], trainings: int, epochs: int, target: float, nothing: float) -> list[str]:
    """The tables of one way, number of workers and budget."""
    marks = [mark for mark in MARKS if mark <= trainings]
    head = ["method", "repeats", f"epochs to {target:.2f} dB", "got there", *(f"after {mark}" for mark in marks)]
    lines = ["| " + " | ".join([*head, "reported beyond the truth"]) + " |", "|" + "---|" * (len(head) + 1)]
    for name, group in methods.items():
        reached = [epochs_to(row, target) for row in group.values()]
        beyond = [one for one in map(optimism, group.values()) if one is not None]
        worth = [[truth_at(row, mark * epochs, nothing) for row in group.values()] for mark in marks]
        cells = [name, str(len(group)), _said(interval(reached, np.median), 0)]
        cells += [f"{statistics.fmean(map(math.isfinite, reached)):.0%}"]
        cells += [_said(interval(one, np.mean), 2) for one in worth]
        lines.append("| " + " | ".join([*cells, _said(interval(beyond, np.mean), 2) if beyond else "-"]) + " |")
    return [*lines, "", *_compared(methods, marks, epochs, target, nothing)]


def _compared(methods: dict[str, Group], marks: Sequence[int], epochs: int, target: float, nothing: float) -> list[str]:
    """Ours against every other method on the repeats that both have, and whether the goal is met."""
    if OURS not in methods:
        return []
    lines = ["| `ours` against | repeats | epochs to the target, ratio of medians | goal |"]
    lines[0] += "".join(f" truth after {mark}, difference |" for mark in marks) + " goal |"
    lines.append("|" + "---|" * (5 + len(marks)))
    for name, group in methods.items():
        repeats = sorted(methods[OURS].keys() & group.keys())
        if name == OURS or len(repeats) < 2:
            continue
        ours, theirs = ([one[repeat] for repeat in repeats] for one in (methods[OURS], group))
        times = ratio(*([epochs_to(row, target) for row in rows] for rows in (ours, theirs)))
        differences = []
        for mark in marks:
            one, other = ([truth_at(row, mark * epochs, nothing) for row in rows] for rows in (ours, theirs))
            room = target + NEAR_DB - statistics.fmean(other)
            differences.append((*interval(np.subtract(one, other), np.mean), room))
        cells = [name, str(len(repeats)), _said(times, 2), _met(times[0] <= GOAL[name]) if name in GOAL else "-"]
        cells += [_said(one[:3], 2, sign=True) for one in differences]
        equal = all(one[0] >= (ABOVE_DB if one[3] >= ABOVE_DB else -BELOW_DB) for one in differences)
        never = all(one[0] >= -BELOW_DB for one in differences)
        cells += [f"never below: {_met(never)}; above where there is room: {_met(equal)}"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def report(rows: Sequence[Row], of: Sequence[Entry], cube: Cube) -> str:
    """Every table, in Markdown."""
    worth = np.sort(truths(of))
    nothing, best = float(worth[: max(1, len(worth) // 4)].mean()), best_of(of)
    epochs = max(len(curve) for entry in of for curve in entry.curves.values())
    sure = sum(len(entry.values) >= 6 for entry in of)
    foretold, error = quality(of, cube)
    lines = [
        "# Methods replayed on the table of real trainings",
        "",
        f"{len(of)} settings of the half, the table's best {best:.2f} dB "
        f"({f'{sure} settings with six seeds' if sure else 'PRELIMINARY: two seeds a setting'}); target {NEAR_DB} dB "
        f"below it. The surrogate foretells {foretold:.0%} of the variance of settings that it has not seen, to "
        f"{error:.2f} dB (median). 95 % intervals in brackets; `inf`: not within the budget. The plan stands in "
        "[the benchmarks' README](../README.md).",
        "",
    ]
    for (way, workers, trainings), methods in grouped(rows).items():
        lines += [f"## {way}, {workers} workers, {trainings} trainings' worth of epochs", ""]
        lines += case_report(methods, trainings, epochs, best - NEAR_DB, nothing)
    return "\n".join(lines)


def _said(found: tuple[float, float, float], digits: int, sign: bool = False) -> str:
    middle, low, high = (f"{value:{'+' if sign else ''}.{digits}f}" for value in found)
    return f"{middle} [{low}, {high}]"


def _met(met: bool) -> str:
    return "met" if met else "missed"

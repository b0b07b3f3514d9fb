"""Tables of `bench/real.py`: means with Student's intervals, paired differences, rank correlations."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvaeopt.outcome.intervals import interval

OURS = "ours"
NOTHING_DB = 12.0  # what no recommendation, or one that diverges, is worth: about what an untrained network has
DRAWS = 2000

Rows = list[dict[str, Any]]


def of_campaign(rows: Rows, digests: dict[str, str], studies: dict[str, str]) -> Rows:
    """The lines of these sizes and data, and of our own methods only those of the studies as they are shipped now."""
    return [
        row for row in rows if row.get("digest") in digests.values() and row.get("study") in (None, *studies.values())
    ]


def worth(row: dict[str, Any]) -> float:
    """Mean of the recommendation's fresh trainings, dB."""
    values = row.get("retrained") or [None]
    return math.fsum(NOTHING_DB if value is None else value for value in values) / len(values)


def optimism(row: dict[str, Any]) -> float | None:
    """Reported minus retrained, dB; None where nothing is recommended or it diverges."""
    values = row.get("retrained")
    return None if not values or None in values else row["reported"] - worth(row)


def methods_table(rows: Rows) -> str:
    """Every method in every space, and over both."""
    order = sorted(dict.fromkeys(row["method"] for row in rows), key=lambda name: name != OURS)
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    head = (
        "| space | method | repeats | retrained | ours minus it | reported minus retrained | trials: complete, pruned, "
        "diverged | epochs |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for space in [*spaces, "both"]:
        for method in order:
            mine = {_pair(row): row for row in rows if row["method"] == method and space in (row["space"], "both")}
            if not mine:
                continue
            ours = {_pair(row): row for row in rows if row["method"] == OURS}
            differences = [worth(ours[pair]) - worth(mine[pair]) for pair in mine if pair in ours]
            hopes = [one for one in map(optimism, mine.values()) if one is not None]
            states = [[trial["state"] for trial in row["trials"]] for row in mine.values()]
            counts = [
                f"{sum(state.count(kind) for state in states) / len(states):.1f}"
                for kind in ("complete", "pruned", "diverged")
            ]
            cells = [
                space,
                method,
                str(len(mine)),
                text([worth(row) for row in mine.values()], ".2f") if space != "both" else "",
                "-" if method == OURS or not differences else text(differences),
                text(hopes) if hopes else "-",
                ", ".join(counts),
                f"{sum(row['spent'] for row in mine.values()) / len(mine):.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _pair(row: dict[str, Any]) -> tuple[str, int]:
    return row["space"], row["repeat"]


def text(values: Sequence[float], form: str = "+.2f") -> str:
    """Mean and 95 % t interval."""
    over = interval(values)
    return f"{over.mean:{form}}" + ("" if over.low is None else f" [{over.low:{form}}, {over.high:{form}}]")


def recommended(rows: Rows) -> str:
    """What was recommended, and what it reached: one line a study."""
    lines = ["| space | repeat | method | recommended | reported | retrained |", "|---|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: (row["space"], row["repeat"])):
        if row["chosen"] is None:
            lines.append(f"| {row['space']} | {row['repeat']} | {row['method']} | nothing | - | - |")
            continue
        settings = ", ".join(f"{name} {_short(value)}" for name, value in row["params"].items())
        values = [value for value in row["retrained"] if value is not None]
        over = interval(values) if values else None
        spread = "" if over is None or over.standard_error is None else f" ({min(values):.2f} to {max(values):.2f})"
        diverged = len(row["retrained"]) - len(values)
        reached = "-" if over is None else f"{over.mean:.2f}{spread}"
        lines.append(
            f"| {row['space']} | {row['repeat']} | {row['method']} | {'point: ' if row['point'] else ''}{settings} | "
            f"{row['reported']:.2f} | {reached}{f', {diverged} diverged' if diverged else ''} |"
        )
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---- budgets


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, ties shared."""
    sample = np.asarray(values, dtype=float)
    below, same = sample[:, None] > sample, sample[:, None] == sample
    return below.sum(1) + (same.sum(1) + 1) / 2


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one side does not vary."""
    first, second = ranks(one), ranks(other)
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def regret(short: Sequence[float], long: Sequence[float]) -> float:
    """What choosing the best of the short trainings loses in the long ones, dB."""
    return float(np.max(long) - np.asarray(long)[int(np.argmax(short))])


def upper_half(short: Sequence[float], long: Sequence[float]) -> float:
    """Spearman's rank correlation among the settings of the better half in the long trainings."""
    keep = np.asarray(long) >= np.median(long)
    return spearman(np.asarray(short)[keep], np.asarray(long)[keep])


def bootstrapped(
    figure: Callable[[np.ndarray, np.ndarray], float], short: Sequence[float], long: Sequence[float]
) -> tuple[float, float, float]:
    """`figure` and its 95 % interval over settings drawn with replacement."""
    first, second = np.asarray(short, dtype=float), np.asarray(long, dtype=float)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(first), size=(DRAWS, len(first)))
    found = np.array([figure(first[rows], second[rows]) for rows in drawn])
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (math.nan, math.nan)
    return figure(first, second), float(low), float(high)


def budgets_table(rows: Rows, lengths: Sequence[int], again: int) -> str:
    """How well each length foretells the longest one, and a second training of one length the first."""
    curves: dict[str, list[float]] = {
        label: [_number(row["values"][label]) for row in rows] for label in rows[0]["values"]
    }
    long = str(lengths[-1])
    head = "| trained for | foretells | settings | Spearman's rho | rho in the better half | regret, dB |"
    lines = [head, "|---|---|---|---|---|---|"]
    pairs = [(str(epochs), long, str(epochs)) for epochs in lengths[:-1]]
    pairs.append((str(again), "again", f"{again}, another seed of"))
    for short, target, label in pairs:
        one, other = curves[short], curves[target]
        cells = [
            f"{short} epochs",
            f"{target} epochs" if target != "again" else f"{label} the same",
            str(len(rows)),
            *(_three(bootstrapped(figure, one, other)) for figure in (spearman, upper_half, regret)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    diverged = {label: sum(row["values"][label] is None for row in rows) for label in curves}
    best = {label: max(values) for label, values in curves.items()}
    lines += [
        "",
        "Diverged: " + ", ".join(f"{count} at {label}" for label, count in diverged.items()) + ". "
        "Best: " + ", ".join(f"{value:.2f} dB at {label}" for label, value in best.items()) + ".",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> float:
    return NOTHING_DB if value is None else value


def _three(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def epochs_table(rows: Rows) -> str:
    """How well an epoch of a training foretells the end of the SAME training, over the trials of random search.

    What a pruner sees; a training that diverged is left out.
    """
    lines = [
        "| space | after epoch | settings | Spearman's rho | rho in the better half | regret, dB |",
        "|---|---|---|---|---|---|",
    ]
    for space in dict.fromkeys(row["space"] for row in rows):
        curves = [
            trial["curve"]
            for row in rows
            if (row["space"], row["method"]) == (space, "random")
            for trial in row["trials"]
            if trial["state"] == "complete"
        ]
        if len(curves) < 3:
            continue
        ends = [curve[-1] for curve in curves]
        for quarter in (1, 2, 3):
            epoch = max(1, len(curves[0]) * quarter // 4)
            early = [curve[epoch - 1] for curve in curves]
            figures = [_three(bootstrapped(figure, early, ends)) for figure in (spearman, upper_half, regret)]
            lines.append("| " + " | ".join([space, f"{epoch} of {len(curves[0])}", str(len(curves)), *figures]) + " |")
    return "\n".join(lines)


def seed_parts(values: np.ndarray) -> tuple[float, float]:
    """Standard deviations in (settings, seeds) values, dB: what a seed does to all settings alike, and the rest.

    From the mean squares of a two-way layout; a part that they make negative is 0.
    """
    settings, seeds = values.shape
    means = values.mean(0)
    rest = values - values.mean(1, keepdims=True) - means + values.mean()
    residual = float((rest**2).sum()) / ((settings - 1) * (seeds - 1))
    common = float(means.var(ddof=1)) - residual / settings
    return math.sqrt(max(0.0, common)), math.sqrt(residual)


def seeds_table(rows: Rows) -> str:
    """How much of the scatter between training seeds all recommended settings share."""
    lines = ["| space | settings | seeds | what a seed does to all, dB | the rest, dB |", "|---|---|---|---|---|"]
    for space in dict.fromkeys(row["space"] for row in rows):
        found = {row["key"]: row["retrained"] for row in rows if row["space"] == space and row["chosen"] is not None}
        values = np.array([one for one in found.values() if None not in one], dtype=float)
        if len(values) >= 2 and values.shape[1] >= 2:
            common, rest = seed_parts(values)
            lines.append(f"| {space} | {len(values)} | {values.shape[1]} | {common:.2f} | {rest:.2f} |")
    return "\n".join(lines)


def report(rows: Rows, folder: Path | None) -> str:
    """All tables as text; with a folder also real.md in it."""
    parts, shown, about = [], 0, {}
    for part in ("methods", "budgets"):
        facts = [row for row in rows if row["part"] == "facts" and row["of"] == part]
        if not facts:
            continue
        latest = facts[-1]
        about[part] = latest["size"]
        mine = [row for row in of_campaign(rows, latest["digests"], latest["studies"]) if row["part"] == part]
        shown += len(mine)
        if not mine:
            continue
        parts.append(
            f"## {part.capitalize()}\n\n{latest['machine']['processor']}, one core a process, torch "
            f"{latest['machine']['torch']}. Baselines: mean frame {latest['baselines']['mean_frame']} dB, copy of the "
            f"first frame {latest['baselines']['copy_first']} dB."
        )
        if part == "methods":
            mine.sort(key=lambda row: (row["space"], row["repeat"]))
            parts += [methods_table(mine), "### What was recommended", recommended(mine)]
            parts += ["### Training seeds", seeds_table(mine), "### Early epochs", epochs_table(mine)]
        else:
            parts.append(budgets_table(mine, latest["size"]["lengths"], latest["size"]["again"]))
    others = sum(row["part"] != "facts" for row in rows) - shown
    if others:
        parts.append(f"{others} lines of other sizes or studies are left out.")
    text = "\n\n".join(parts) + "\n"
    if folder is not None:
        (folder / "real.md").write_text(
            "# Search methods on the real network\n\nMade by `python -m bench.real --report`, explained in "
            "[the benchmarks' README](../README.md). dB of validation PSNR, 95 % intervals in brackets.\n\n"
            f"Sizes: `{json.dumps(about)}`\n\n{text}"
        )
    return text

"""Tables and plots of `bench/search.py`: means with bootstrap intervals, paired differences, tests, curves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

OURS = "ours"
UNPRUNED = "ours, unpruned"
ORDER = (
    "random", "skopt", "optuna", "hyperband", "tpe", UNPRUNED, "ours, paused", "ours, tpe", "ours, foreseeing", OURS,
)  # fmt: skip
NOTHING_DB = 15.0  # the worth of no recommendation: an untrained network, where all curves start
BUDGETS = ("1000", "3000")

Rows = list[dict[str, Any]]
Group = dict[int, dict[str, Any]]  # by seed


def bootstrap(values: Sequence[float], draws: int = 4000) -> tuple[float, float]:
    """95 % interval of the mean, by resampling; the same for the same values."""
    sample = np.asarray(values, dtype=float)
    generator = np.random.default_rng(0)
    means = sample[generator.integers(len(sample), size=(draws, len(sample)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros left out; 1 if there is no other difference."""
    kept = [one for one in differences if one != 0]
    return float(wilcoxon(kept).pvalue) if kept else 1.0


def grouped(rows: Rows) -> dict[tuple[str, int, str], Group]:
    """{(problem, workers, method): {seed: row}}."""
    found: dict[tuple[str, int, str], Group] = defaultdict(dict)
    for row in rows:
        group = found[row["problem"], row["workers"], row["method"]]
        if len(row["ends"]) >= len(group.get(row["seed"], {"ends": {}})["ends"]):  # the longer of two
            group[row["seed"]] = row
    return found


def true_of(row: dict[str, Any], budget: str) -> float:
    """The true value of what was recommended, dB."""
    return _worth(row["ends"][budget]["true"])


def _worth(value: float | None) -> float:
    return NOTHING_DB if value is None else max(float(value), NOTHING_DB)  # settings that diverge are worth nothing


def marks(group: Group, budget: str) -> dict[str, Any]:
    """True value, optimism and chance of the top three, each with its interval, over the seeds of one method."""
    there = [row for row in group.values() if budget in row["ends"]]
    values = [true_of(row, budget) for row in there]
    ends = [row["ends"][budget] for row in there if math.isfinite(row["ends"][budget]["true"] or -math.inf)]
    optimism = [end["reported"] - end["true"] for end in ends]
    found: dict[str, Any] = {"seeds": len(values)}
    if values:
        found["true"] = [statistics.fmean(values), *bootstrap(values)]
    if optimism:
        found["optimism"] = [statistics.fmean(optimism), *bootstrap(optimism)]
        found["top3"] = statistics.fmean(float(end["top3"]) for end in ends)
        sure = [end for end in ends if end["error"]]
        if sure:
            missed = [abs(end["reported"] - end["true"]) > 1.96 * end["error"] for end in sure]
            found["outside_interval"] = statistics.fmean(missed)
    return found


def paired(ours: Group, theirs: Group, budget: str) -> dict[str, Any] | None:
    """Ours minus theirs on the seeds that both have: mean difference, interval, p, share of seeds won."""
    seeds = sorted(
        seed for seed in ours.keys() & theirs.keys() if all(budget in one[seed]["ends"] for one in (ours, theirs))
    )
    if len(seeds) < 2:
        return None
    differences = [true_of(ours[seed], budget) - true_of(theirs[seed], budget) for seed in seeds]
    return {
        "seeds": len(seeds),
        "difference": [statistics.fmean(differences), *bootstrap(differences)],
        "p": signed_rank_p(differences),
        "won": statistics.fmean(one > 0 for one in differences),
    }


def epochs_to(group: Group, target: float, step: int = 100) -> float | None:
    """Median over seeds of the epochs after which the recommendation is worth the target; None if half never are."""
    found = []
    for row in group.values():
        reached = [index for index, value in enumerate(row["trace"], 1) if value is not None and value >= target]
        found.append(reached[0] * step if reached else math.inf)
    middle = statistics.median(found)
    return middle if math.isfinite(middle) else None


def summary(rows: Rows) -> list[dict[str, Any]]:
    """One entry a problem, number of workers and method, with everything that the tables show."""
    groups = grouped(rows)
    entries = []
    for problem, workers in sorted({key[:2] for key in groups}, key=lambda key: (key[1], key[0])):
        random = groups.get((problem, workers, "random"), {})
        long = [row for row in random.values() if "3000" in row["ends"]]
        target = statistics.median(true_of(row, "3000") for row in long) if long else None
        for method in ORDER:
            group = groups.get((problem, workers, method))
            if not group:
                continue
            entry: dict[str, Any] = {"problem": problem, "workers": workers, "method": method}
            for budget in BUDGETS:
                entry[budget] = marks(group, budget)
                against = groups.get((problem, workers, OURS))
                if against and method != OURS:
                    entry[budget]["ours_minus"] = paired(against, group, budget)
            if target is not None and problem != "null":
                traced = {seed: row for seed, row in group.items() if len(row["trace"]) == 30}
                entry["epochs_to_random_3000"] = epochs_to(traced, target) if traced else None
                entry["target_db"] = target
            entries.append(entry)
    return entries


def table(entries: list[dict[str, Any]]) -> str:
    """The entries as a Markdown table."""
    head = (
        "| problem | W | method | seeds | true at 1,000 | true at 3,000 | optimism at 3,000 | top 3 | "
        "epochs to random's 3,000 | ours minus it at 3,000 (p) |"
    )
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    for entry in entries:
        small, large = entry["1000"], entry["3000"]
        shown = large if large["seeds"] else small
        versus = large.get("ours_minus")
        epochs = entry.get("epochs_to_random_3000")
        cells = [
            entry["problem"],
            entry["workers"],
            entry["method"],
            shown["seeds"] if shown["seeds"] == small["seeds"] else f"{small['seeds']}, {large['seeds']}",
            _interval(small.get("true")),
            _interval(large.get("true")),
            _interval(large.get("optimism"), "+.2f"),
            f"{large['top3']:.0%}" if "top3" in large else "-",
            "-"
            if entry["problem"] == "null" or not large["seeds"]
            else ("never" if epochs is None else f"{epochs:,.0f}"),
            f"{_interval(versus['difference'], '+.2f')} ({_p(versus['p'])})" if versus else "-",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _interval(value: Sequence[float] | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value[0]:{form}} [{value[1]:{form}}, {value[2]:{form}}]"


def _p(value: float) -> str:
    return f"{value:.0e}" if value < 0.001 else f"{value:.3f}"


def plot(rows: Rows, path: Path) -> None:
    """True value of the recommendation against epochs spent, one panel a problem, one worker; 95 % bands."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = grouped(rows)
    problems = [name for name in ("cross", "benign", "fitted", "heavy", "late") if (name, 1, OURS) in groups]
    if not problems:
        return
    figure, axes = pyplot.subplots(1, len(problems), figsize=(3.4 * len(problems), 4.2), squeeze=False)
    for axis, problem in zip(axes[0], problems, strict=True):
        for method in ORDER:
            traces = [row["trace"] for row in groups.get((problem, 1, method), {}).values() if len(row["trace"]) == 30]
            if len(traces) < 3:
                continue
            values = np.array([[_worth(one) for one in trace] for trace in traces])
            epochs = np.arange(1, 31) * 100
            error = 1.96 * values.std(0, ddof=1) / math.sqrt(len(values))
            mean = values.mean(0)
            axis.plot(
                epochs[2:], mean[2:], color=f"C{ORDER.index(method)}", label=f"{method} ({len(values)})", linewidth=1.3
            )
            if method in (OURS, "tpe", "optuna"):
                band = (mean - error)[2:], (mean + error)[2:]
                axis.fill_between(epochs[2:], *band, color=f"C{ORDER.index(method)}", alpha=0.15, linewidth=0)
        axis.set_title(problem)
        axis.set_xlabel("epochs spent")
        axis.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
    axes[0][0].set_ylabel("true value of the recommendation, dB")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def report(rows: Rows, folder: Path | None) -> str:
    """The table as text; with a folder also search.md and search.png in it."""
    text = table(summary(rows)) + "\n"
    if folder is not None:
        (folder / "search.md").write_text(
            f"# Search methods on simulated studies\n\n{len(rows):,} runs; made by `python -m bench.search --report`, "
            f"explained in [the benchmarks' README](../README.md). Intervals are 95 %, dB.\n\n{text}"
        )
        plot(rows, folder / "search.png")
    return text

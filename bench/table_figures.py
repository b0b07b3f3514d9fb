"""What the table says of its landscape: the gate that decides how the replay is judged.

python -m bench.table_figures                    # of all settings that are there
python -m bench.table_figures --settings 60      # of the first 60
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from optuna.distributions import CategoricalDistribution

from bench import machine
from bench.table import KEPT, SEEDS, SPACE, Key, Row, kept
from bench.tabled import Cube, Entry, best_of, entries, place, truths
from cvaeopt.search.definition import Definition, load_definition

DRAWS = 2000  # of the bootstrap
EARLY = (6, 10, 15, 30)  # epochs from which the end is foretold
EDGE = 0.05  # of a range: nearer than this to its end counts as at the bound


def expected_best(values: Sequence[float] | np.ndarray, count: int) -> float:
    """The expected best of `count` values drawn with replacement."""
    rising = np.sort(np.asarray(values, dtype=float))
    shares = (np.arange(len(rising) + 1) / len(rising)) ** count
    return float(np.diff(shares) @ rising)


def interval(figure: Callable[[np.ndarray], float], values: np.ndarray) -> tuple[float, float, float]:
    """`figure` of the values and its 95 % interval over settings drawn with replacement."""
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    low, high = np.quantile([figure(values[rows]) for rows in draws], [0.025, 0.975])
    return figure(values), float(low), float(high)


def explained(x: np.ndarray, y: np.ndarray, degree: int = 3) -> float:
    """Share of y's variance that a polynomial of x foretells for settings that it was not fitted to."""
    design = np.vander((x - x.mean()) / (x.std() or 1.0), degree + 1)
    hat = design @ np.linalg.pinv(design)
    missed = (y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)
    return 1 - float((missed**2).sum() / ((y - y.mean()) ** 2).sum())


def seed_noise(of: Sequence[Entry]) -> tuple[float, float]:
    """(standard deviation of one training of a setting about its own mean, dB; its share of the values' variance).

    Of the common seeds, without what a seed does to all settings alike; from a median, as single settings scatter far.
    """
    pairs = np.array([[one.values[seed] for seed in SEEDS] for one in of], dtype=float)
    own = float(np.median(np.abs(np.diff(pairs)))) / 0.6745 / np.sqrt(2)
    return own, float(own**2 / pairs.var())


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation; ties in the order in which they stand."""
    ranks = [np.argsort(np.argsort(several)) for several in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def at_bounds(of: Sequence[Entry], definition: Definition) -> list[tuple[str, int, float, int, int]]:
    """(setting, how many of these have it, their median place in its range, how many at its lower and upper end)."""
    found = []
    for name, known in Cube(definition).distributions.items():
        places = [place(known, one.params[name]) for one in of if name in one.params] if _is_range(known) else []
        if places:
            low, high = sum(one <= EDGE for one in places), sum(one >= 1 - EDGE for one in places)
            found.append((name, len(places), statistics.median(places), low, high))
    return found


def _is_range(known: object) -> bool:
    return not isinstance(known, CategoricalDistribution)


def foretold(of: Sequence[Entry], epoch: int, window: int) -> tuple[float, float]:
    """(rank correlation of the values at an epoch with the end; dB that keeping the best sixth there loses)."""
    curves = [one.curves[SEEDS[0]] for one in of]
    early = [statistics.fmean(curve[max(0, epoch - window) : epoch]) for curve in curves]
    ends = [statistics.fmean(curve[-window:]) for curve in curves]
    top = np.argsort(early)[::-1][: max(1, len(of) // 6)]
    return spearman(early, ends), max(ends) - max(ends[rank] for rank in top)


def last_quarter(of: Sequence[Entry], window: int) -> float:
    """Median over these settings of what the last quarter of the epochs gains, dB."""
    gains = []
    for one in of:
        for curve in one.curves.values():
            until = len(curve) * 3 // 4
            gains.append(statistics.fmean(curve[-window:]) - statistics.fmean(curve[until - window : until]))
    return statistics.median(gains)


def report(rows: dict[Key, Row], definition: Definition) -> str:
    """The figures in words and tables (Markdown)."""
    of = entries(rows, definition.window)
    steady = sorted((one for one in of if one.steady), key=lambda one: -one.mean)
    if len(steady) < 10:
        return f"{len(steady)} settings with both seeds: too few for figures; 10 are needed.\n"
    values, worth = np.array([one.mean for one in steady]), truths(of)
    log_lr = np.log([one.params["lr"] for one in steady])
    quartiles = np.quantile(worth, [0.25, 0.5, 0.75])
    room = interval(lambda some: float(some.max()) - expected_best(some, 20), worth)
    better, decile = len(steady) // 2, steady[: max(3, len(steady) // 10)]
    lines = [
        "# The table of real trainings",
        "",
        f"{len(rows)} trainings, {len(of)} settings with all common seeds, {len(of) - len(steady)} of them diverged; "
        f"{sum(row['seconds'] for row in rows.values()) / 3600:.1f} core-hours, "
        f"{statistics.median(row['seconds'] for row in rows.values()):.0f} core-seconds a training (median).",
        "",
        "| figure | all settings | the better half |",
        "|---|---|---|",
        f"| quartiles, dB | {', '.join(f'{value:.1f}' for value in quartiles)} | |",
        f"| best, dB | {best_of(of):.2f} | |",
        "| expected best of 5, 10, 20 random ones, dB | "
        + ", ".join(f"{expected_best(worth, count):.2f}" for count in (5, 10, 20))
        + " | |",
        f"| best less expected best of 20, dB | {room[0]:.2f} [{room[1]:.2f}, {room[2]:.2f}] | |",
        f"| share of variance that log lr alone explains | {explained(log_lr, values):.2f} | "
        f"{explained(log_lr[:better], values[:better]):.2f} |",
    ]
    noises = [seed_noise(some) for some in (steady, steady[:better])]
    lines += [
        "| a seed's own noise, dB (share of variance) | "
        + " | ".join(f"{own:.2f} ({share:.3f})" for own, share in noises)
        + " |",
        f"| gain of the last quarter, best decile, dB | {last_quarter(decile, definition.window):.2f} | |",
        "",
        f"Where the best decile ({len(decile)} settings) lies in the ranges:",
        "",
        "| setting | searched in | median place | at the lower end | at the upper end |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {n} | {middle:.2f} | {low} | {high} |"
            for name, n, middle, low, high in at_bounds(decile, definition)
        ),
        "",
        "What an epoch foretells (first common seed):",
        "",
        "| after epoch | Spearman's rho | loss of keeping the best sixth, dB |",
        "|---|---|---|",
        *(
            "| {} | {:.2f} | {:.2f} |".format(epoch, *foretold(steady, epoch, definition.window))
            for epoch in EARLY
            if epoch < definition.epochs
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the figures of the table as far as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=int, help="of the first settings only")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT, help="the table's file")
    options = parser.parse_args()
    rows = kept(options.out).rows()
    if options.settings:
        rows = {key: row for key, row in rows.items() if key[0] < options.settings}
    print(report(rows, load_definition(str(SPACE))), end="")


if __name__ == "__main__":
    main()

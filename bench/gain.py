"""How often the statements about the gain of more trainings are true.

    python -m bench.gain --repeats 200     # what bench/results/gain.jsonl lacks, and the figures

The shipped search is replayed on one half of the table of real trainings. When some of its trials have ended, the
product's own code says what N more trials may be expected to gain. Then the search goes on for N trials, and the true
gain is read: the true value of the best trial then, less that of the best trial before.
"""

from __future__ import annotations

import argparse
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from bench import machine
from bench.replay import WAYS, Replayed, Row, Worlds, half_of, methods, state_of
from bench.simulation import Run
from bench.table import KEPT as TABLE
from bench.table import SPACE, kept
from bench.tabled import entries
from bench.worlds import World
from cvaeopt.outcome.gain import expected_gain
from cvaeopt.search.definition import load_definition

KEPT = "gain.jsonl"
AFTER = (12, 25, 50)  # ended trials before the statement
MORE = (5, 10, 20)


class Judged(Replayed):
    """A search with one worker that says, and then sees, what its next trials gain.

    said   the statements, each with what was true as `true`
    """

    def __init__(self, world: World, repeat: int) -> None:
        method, points = methods()["ours"]
        self.said: list[Row] = []
        self._repeat = repeat
        self._best: list[float | None] = []  # true value of the best trial after each number of ended trials
        super().__init__(world, method, points, 1, repeat)

    def new(self) -> Run | None:
        """The next trial. Before it begins, every earlier one has ended."""
        best = self.reading().best
        self._best.append(None if best is None else self.truths[best.number])
        ended = len(self._best) - 1
        if ended in AFTER:
            trials = self.study.get_trials(deepcopy=False)
            found = expected_gain(self.definition, trials, MORE, seed=self._repeat)
            self.said += [{"after": ended, **one.plain()} for one in found]
        return super().new() if ended < AFTER[-1] + MORE[-1] else None

    def judged(self) -> list[Row]:
        """Search to the end; the statements whose truth is known."""
        self.go((AFTER[-1] + MORE[-1]) * self.epochs, lambda spent, seen: None)
        known = []
        for one in self.said:
            later = int(one["after"]) + int(one["trials"])
            if later < len(self._best):
                before, after = self._best[int(one["after"])], self._best[later]
                assert before is not None and after is not None  # a statement needs a complete trial
                known.append({**one, "true": round(after - before, 3)})
        return known


def report(rows: list[Row]) -> str:
    """The figures in Markdown: how often statements were true, with 95 % intervals over repeats."""
    lines = [
        "| way | after | more | expected, dB | true, dB | at most 'sure' (80 % said) | in the interval (80 % said) |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        for one in row["said"]:
            for key in ((row["way"], one["after"], one["trials"]), (row["way"], "all", "all")):
                groups[key].append(one)
    for key, said in sorted(groups.items(), key=str):
        below = [one["true"] <= one["sure"] for one in said]
        within = [one["low"] <= one["true"] <= one["high"] for one in said]
        means = (float(np.mean([one[name] for one in said])) for name in ("mean", "true"))
        shares = (f"{np.mean(several):.0%} of {len(said)}" for several in (below, within))
        lines.append("| " + " | ".join([*map(str, key), *(f"{mean:.2f}" for mean in means), *shares]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replay what is missing, keep it, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", type=int, choices=(0, 1), default=1, help="half of the settings")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--table", type=Path, default=machine.RESULTS / TABLE, help="the table's file")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    of = half_of(entries(kept(options.table).rows(), load_definition(str(SPACE)).window), options.half)
    state, worlds = state_of(of), Worlds(of)
    rows = [row for row in machine.rows_of(options.out) if row["state"] == state and row["half"] == options.half]
    done = {(row["way"], row["repeat"]) for row in rows}
    for repeat in range(options.repeats):
        for way in options.ways:
            if (way, repeat) not in done:
                said = Judged(worlds.world(way, repeat), repeat).judged()
                row = {"half": options.half, "way": way, "repeat": repeat, "state": state, "said": said}
                machine.append(options.out, row)
                rows.append(row)
    print(report(rows), end="")


if __name__ == "__main__":
    main()

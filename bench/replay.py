"""Methods of searching, replayed on the table of real trainings.

    python -m bench.replay                                       # what bench/results/replay.jsonl lacks
    python -m bench.replay --methods ours optuna --ways nearest --workers 1 --trainings 20 --repeats 200
    python -m bench.replay --report                              # pack the results and print the figures

What is replayed, on which half of the settings and how it is judged stands in bench/README.md, "The plan of the
replay". Every run is one line, keyed by half, way, method, workers, trainings and repeat; lines of another state of the
table do not count. Several processes may write one file if they are given different methods, ways or workers.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import RandomSampler, TPESampler

from bench import machine, replay_baselines, replay_figures
from bench.machine import rows_of
from bench.simulation import Method, Reading, Run, Study
from bench.table import SEEDS, SPACE, kept
from bench.tabled import Cube, Entry, entries
from bench.worlds import Fitted, Nearest, Surrogate, World
from cvaeopt.config import Config
from cvaeopt.files import digest
from cvaeopt.outcome.transfer import transfer
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.search.space import fitting, suggest
from cvaeopt.search.tables import ForecastPruner
from cvaeopt.suggest.sampler import pruner_for, sampler_for

KEPT = "replay.jsonl"
STUDIES = Path(__file__).parent.parent / "studies"
WAYS = ("nearest", "surrogate")
WORKERS = (1, 4, 8)
TRAININGS = (20, 60)  # budgets; the marks within them are replay_figures.MARKS
GRID = 10  # epochs between two readings
Row = dict[str, Any]


def shipped(study: str = "main") -> Definition:
    """Sampler, pruner and points of the shipped study over the table's space, carried over to its epochs."""
    own, main = load_definition(str(SPACE)), load_definition(study, STUDIES)
    tables, theirs = own.plain(), main.plain()
    stretch = own.epochs / main.epochs
    tables["sampler"], tables["pruner"] = theirs["sampler"], dict(theirs["pruner"])
    for name in ("warmup_epochs", "interval_epochs"):
        if name in tables["pruner"]:
            tables["pruner"][name] = max(1, round(tables["pruner"][name] * stretch))
    points = []
    for point in main.points():
        config = Config.parse({**main.fixed, **point, "num_epoch": main.epochs}, f"a point of '{study}'")
        points.append(fitting(own.search, own.fixed, transfer(config, own.epochs, "proportional").plain()))
    tables["enqueue"] = [point for index, point in enumerate(points) if point and point not in points[:index]]
    return Definition.parse(tables, own.name, f"the table's space, searched as '{study}'")


@cache
def methods() -> dict[str, tuple[Method, bool]]:
    """Every method on Optuna's interface, and whether it begins with the shipped points."""
    ours = shipped()
    assert isinstance(ours.pruner, ForecastPruner)
    as_shipped = Method(
        lambda seed: sampler_for(ours.model_copy(update={"seed": seed})),
        lambda problem: pruner_for(ours),
        window=ours.window,
        block=math.gcd(ours.pruner.warmup_epochs, ours.pruner.interval_epochs),
        learns=True,
    )
    return {
        "ours": (as_shipped, True),
        "ours, unpruned": (replace(as_shipped, pruner=lambda problem: NopPruner(), block=10), True),
        "optuna": (Method(lambda seed: TPESampler(seed=seed), lambda problem: MedianPruner(), block=1), False),
        "tpe": (Method(lambda seed: TPESampler(seed=seed)), False),
        "random": (Method(lambda seed: RandomSampler(seed=seed)), False),
    }


OTHERS = {"skopt": replay_baselines.skopt, "smac": replay_baselines.smac}
"""Methods of other packages, one worker each; left out where their package is not installed."""


class Replayed(Study):
    """A study whose trainings come from a world of settings, in simulated time."""

    def __init__(self, world: World, method: Method, points: bool, workers: int, seed: int) -> None:
        self.definition = shipped()
        super().__init__(method, method.pruner(None), workers, seed, self.definition.epochs, GRID)
        self.world = world
        self.truths: dict[int, float] = {}
        for point in self.definition.points() if points else []:
            self.study.enqueue_trial(point)

    def new(self) -> Run | None:
        trial = self.study.ask()
        suggest(self.definition, trial)
        met = self.world.meet(trial.params)
        if met is None:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return None
        # The trial becomes the setting that it was given: in memory, the storage holds the very object.
        frozen = self.study._storage.get_trial(trial._trial_id)
        frozen.params = dict(met.params)
        frozen.distributions = {name: self.world.cube.distributions[name] for name in met.params}
        self.truths[trial.number] = met.truth
        return self.begin(trial, [], met.curve)


def one_run(world: World, name: str, workers: int, trainings: int, repeat: int) -> Row:
    """What a method recommends while it spends its epochs: [epochs, truth, what it reports] wherever that changes."""
    began = time.process_time()
    epochs = shipped().epochs
    steps: list[tuple[int, float, float]] = []

    def read(spent: int, truth: float, reported: float) -> None:
        if not steps or steps[-1][1:] != (truth, reported):
            steps.append((spent, truth, reported))

    if name in OTHERS:
        begun = OTHERS[name](world, load_definition(str(SPACE)), trainings * epochs, repeat, read)
    else:
        method, points = methods()[name]
        study = Replayed(world, method, points, workers, repeat)

        def reading(spent: int, seen: Reading) -> None:
            if seen.best is not None:
                read(spent, study.truths[seen.best.number], seen.best.value)

        study.go(trainings * epochs, reading)
        begun = study.begun
    return {
        "steps": [[spent, round(truth, 3), round(reported, 3)] for spent, truth, reported in steps],
        "trials": begun,
        "seconds": round(time.process_time() - began, 1),
    }


# ---- the campaign


def half_of(of: Iterable[Entry], half: int) -> list[Entry]:
    """The settings of one half."""
    return [entry for entry in of if entry.half == half]


def state_of(of: list[Entry]) -> str:
    """What two lines must share to be comparable: the trainings that methods are replayed on."""
    return digest([[entry.key, sorted(entry.values.items())] for entry in of])


class Worlds:
    """The worlds of one half of the table: every study begins with all settings unused."""

    def __init__(self, of: list[Entry]) -> None:
        self.of = of
        self.cube = Cube(load_definition(str(SPACE)))

    @cached_property
    def fitted(self) -> Fitted:
        return Fitted(self.of, self.cube)

    def world(self, way: str, repeat: int) -> World:
        """What the study of a repeat is replayed on."""
        if way == "nearest":
            return Nearest(self.of, self.cube, SEEDS[repeat % len(SEEDS)])
        return Surrogate(self.fitted, repeat)


def done_already(path: Path, state: str) -> set[tuple[Any, ...]]:
    """The runs of this state of the table whose line is there."""
    return {replay_figures.key_of(row) for row in rows_of(path) if row["state"] == state}


def campaign(of: list[Entry], half: int, wanted: Iterable[tuple[Any, ...]], path: Path, until_s: float) -> int:
    """Do the wanted (way, method, workers, trainings, repeat) that the file lacks; how many were done."""
    ends, count = time.monotonic() + until_s, 0
    state = state_of(of)
    done, worlds = done_already(path, state), Worlds(of)
    for way, name, workers, trainings, repeat in wanted:
        row: Row = {"half": half, "way": way, "method": name, "workers": workers}
        row |= {"trainings": trainings, "repeat": repeat, "state": state}
        if replay_figures.key_of(row) in done:
            continue
        if time.monotonic() > ends:
            break
        row |= one_run(worlds.world(way, repeat), name, workers, trainings, repeat)
        machine.append(path, row)
        count += 1
    return count


def pack(path: Path, state: str) -> list[Row]:
    """Move the lines of this state of the table into the packed file, each run once; the lines."""
    rows = {replay_figures.key_of(row): row for row in rows_of(path) if row["state"] == state}
    machine.pack(path, [rows[key] for key in sorted(rows)])
    path.unlink(missing_ok=True)
    return list(rows.values())


def available() -> list[str]:
    """The methods that can be run here."""
    return [*methods(), *(name for name in OTHERS if importlib.util.find_spec(name) is not None)]


def main() -> None:
    """Replay what was asked for and is missing, or show the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=machine.RESULTS / "table.jsonl")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1, help="0: to choose defaults; 1: for figures")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--methods", nargs="+", default=available(), choices=available())
    parser.add_argument("--workers", nargs="+", type=int, default=list(WORKERS))
    parser.add_argument("--trainings", nargs="+", type=int, default=list(TRAININGS), help="budgets")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--until-s", type=float, default=math.inf, help="start no run after so many seconds")
    parser.add_argument("--report", action="store_true", help="run nothing: pack the results and print the figures")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT)
    options = parser.parse_args()
    definition = load_definition(str(SPACE))
    of = half_of(entries(kept(options.table).rows(), definition.window), options.half)
    if sum(entry.steady for entry in of) < 10:
        parser.error(f"half {options.half} of the table has {len(of)} settings; at least 10 are needed")
    if options.report:
        print(replay_figures.report(pack(options.out, state_of(of)), of, Cube(definition)), end="")
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    wanted = [
        (way, name, workers, trainings, repeat)
        for trainings in options.trainings
        for repeat, workers, way, name in itertools.product(
            range(options.repeats), options.workers, options.ways, options.methods
        )
        if name not in OTHERS or (workers == 1 and (name != "skopt" or trainings <= 20))
    ]
    count = campaign(of, options.half, wanted, options.out, options.until_s)
    absent = ", ".join(set(OTHERS) - set(available())) or "nothing"
    print(f"{count} runs done, {len(wanted)} wanted, in {options.out}; left out, since not installed: {absent}")


if __name__ == "__main__":
    main()

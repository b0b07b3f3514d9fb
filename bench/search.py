"""Which way of searching finds better settings for the same epochs, and reports what is true of them.

    python -m bench.search --quick                                # under two minutes; nothing is kept
    python -m bench.search                                        # everything: some hours of one core
    python -m bench.search --problems cross null --methods ours tpe --workers 1 --seeds 30
    python -m bench.search --report                               # tables and plots of what has been run

Studies are simulated on the problems of `bench/problems.py`: trials of 100 epochs, W workers that run side by side in
simulated time (an epoch lasts as long for all of them, but for 10 % between trials), and a budget of epochs. A trial
that is still running when the budget ends does not count. The samplers and pruners are the real ones.

Every run is one line of bench/results/search.jsonl, keyed by problem, method, workers and seed; those that are there,
or in search.jsonl.gz, into which `--report` packs them, are not run again. A run goes on to 3,000 epochs and is read
off at 1,000 and 3,000: no method here knows its budget, except that `ours` keeps back what its confirmation costs, and
is therefore read off that much earlier.

`skopt` needs `pip install 'cvaeopt[bench]'`; without it that method is left out and said to be.
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import importlib.util
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from bench import machine, search_figures
from bench.problems import DIMENSIONS, EPOCHS, PROBLEMS, Point, Problem, problem
from cvaeopt.files import write_bytes
from cvaeopt.suggest.bayesian import GaussianProcessSampler
from cvaeopt.suggest.estimate import estimate
from cvaeopt.suggest.pruner import ForecastPruner
from cvaeopt.suggest.sampler import AlternatingSampler

BUDGETS = (1000, 3000)
GRID = 100  # epochs between two readings of the recommendation
SEED_NOISE_DB = 0.35
WINDOW = 5
STARTUP = 6  # trials before our sampler has a model
SPACE = {f"x{index}": FloatDistribution(0.0, 1.0) for index in range(DIMENSIONS)}
KEPT = "search.jsonl"


@dataclass(frozen=True)
class Method:
    """One way of searching.

    sampler   makes the sampler of a seed
    pruner    makes the pruner for a problem
    window    a trial's value is the mean of its last so many epochs
    confirm   trains leaders again at the end, as many as `confirmation` says; their epochs count
    block     epochs between two decisions
    learns    diverged trials are told as pruned with a constraint, not as failed
    paused    (first rung, factor): trials are paused at rungs instead, and go on once they are among the best there
    """

    sampler: Callable[[int], BaseSampler]
    pruner: Callable[[Problem], BasePruner] = lambda problem: NopPruner()
    window: int = 1
    confirm: bool = False
    block: int = 10
    learns: bool = False
    paused: tuple[int, int] | None = None


def _point_of(trial: FrozenTrial) -> list[float]:
    return [trial.params[name] for name in SPACE]


def forecast(problem: Problem, **options: Any) -> BasePruner:
    """Our pruner as it is shipped, on this problem."""
    own = {"window": WINDOW, "warmup_epochs": 25, "interval_epochs": 5}
    return ForecastPruner(**{**own, **options}, shows_at=lambda trial: problem.shows_at(_point_of(trial)))


def tpe(seed: int) -> BaseSampler:
    """TPE as Optuna 5 has it by default."""
    return TPESampler(seed=seed)


def gaussian_process(seed: int) -> BaseSampler:
    """Our sampler without TPE's turns."""
    return GaussianProcessSampler(
        SPACE, seed=seed, n_startup_trials=STARTUP, window=WINDOW, seed_noise_db=SEED_NOISE_DB
    )


def own_tpe(seed: int, n_startup_trials: int = 5) -> BaseSampler:
    """TPE as our studies use it; their streams for each trial change no distribution and are left out."""
    return TPESampler(seed=seed, n_startup_trials=n_startup_trials, multivariate=True, constant_liar=True)


def shipped(seed: int) -> BaseSampler:
    """Our sampler as `studies/main.toml` has it."""
    return AlternatingSampler(gaussian_process(seed), own_tpe(seed, 0), every=2, first=STARTUP)


class Foresight(BasePruner):
    """Stops at epoch 25 what is worth less than the best complete trial, and knows it: nobody can do better there."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.last_step != 25 or not complete:
            return False
        return self._problem.true(_point_of(trial)) < max(self._problem.true(_point_of(one)) for one in complete)


METHODS: dict[str, Method] = {
    "random": Method(lambda seed: RandomSampler(seed=seed)),
    "optuna": Method(tpe, lambda problem: MedianPruner(), block=1),
    "tpe": Method(tpe),
    "hyperband": Method(tpe, lambda problem: HyperbandPruner(1, EPOCHS, 3), block=1),
    "ours": Method(shipped, forecast, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, unpruned": Method(shipped, window=WINDOW, confirm=True, learns=True),
    "ours, tpe": Method(own_tpe, forecast, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, gp": Method(gaussian_process, forecast, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, foreseeing": Method(shipped, Foresight, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, paused": Method(shipped, window=WINDOW, confirm=True, block=5, learns=True, paused=(25, 2)),
}
SKOPT = "skopt"


@dataclass
class Run:
    """A simulated trial."""

    number: int
    point: list[float]
    curve: np.ndarray
    pace: float
    trial: Trial | None = None
    epoch: int = 0
    value: float = math.nan  # of a complete one
    rungs: dict[int, float] = field(default_factory=dict)


@dataclass
class Reading:
    """What a method would recommend at one moment."""

    best: Run | None
    complete: list[Run]
    runs: int


class Study:
    """One simulated study: time, workers, epochs spent.

    epochs   of a trial
    grid     epochs between two readings
    """

    epochs = EPOCHS
    grid = GRID

    def __init__(self, problem: Problem, method: Method, workers: int, seed: int) -> None:
        self.problem = problem
        self.method = method
        self.workers = workers
        self.seed = seed
        self.generator = np.random.default_rng([seed, workers, 77])
        self.finished = 0  # epochs of finished blocks
        self.spent = 0.0  # epochs trained so far, those of unfinished blocks included
        self.complete: list[Run] = []
        self.paused: list[Run] = []
        self.rungs: dict[int, list[float]] = {}
        self.begun = 0
        self.study = optuna.create_study(
            direction="maximize", sampler=method.sampler(seed), pruner=method.pruner(problem), study_name=f"s{seed}"
        )

    def go(self, budget: int, read: Callable[[int, Reading], None]) -> None:
        """Search until the budget is spent; `read(epochs, reading)` is called at every multiple of `grid`.

        It ends early where no trial is left to begin (`_new` returns None).
        """
        queue: list[tuple[float, int, Run]] = []
        for worker in range(self.workers):
            self._start(queue, worker * 1e-6)
        mark = self.grid
        while self.spent < budget and queue:
            now, _, run = heapq.heappop(queue)
            self.finished += self._ahead(run)
            self.spent = self.finished + sum(self._ahead(other) - (end - now) / other.pace for end, _, other in queue)
            while mark <= budget and mark < self.spent:  # passed within the block: what ends with it came too late
                read(mark, self.reading())
                mark += self.grid
            over = self._advance(run)
            while mark <= min(self.spent, budget):
                read(mark, self.reading())
                mark += self.grid
            if over:
                self._start(queue, now)
            else:
                self._push(queue, now, run)

    def reading(self) -> Reading:
        """The recommendation now: the best complete trial."""
        best = max(self.complete, key=lambda run: (run.value, -run.number), default=None)
        return Reading(best, list(self.complete), self.begun)

    def _start(self, queue: list[tuple[float, int, Run]], now: float) -> None:
        run = self._promoted() or self._new()
        if run is not None:
            self._push(queue, now, run)

    def _push(self, queue: list[tuple[float, int, Run]], now: float, run: Run) -> None:
        heapq.heappush(queue, (now + self._ahead(run) * run.pace, run.number, run))

    def _ahead(self, run: Run) -> int:
        """Epochs of the block that the run is in; fewer where it ends or diverges in it."""
        length = min(self.method.block, self.epochs - run.epoch)
        bad = np.flatnonzero(~np.isfinite(run.curve[run.epoch : run.epoch + length]))
        return int(bad[0]) + 1 if len(bad) else length

    def _new(self) -> Run | None:
        trial = self.study.ask(SPACE)
        point = [trial.params[name] for name in SPACE]
        # The same point trained again would be another draw; the draw depends on the trial alone.
        generator = np.random.default_rng([self.seed, trial.number])
        self.begun += 1
        pace = float(self.generator.lognormal(0, 0.1))
        return Run(trial.number, point, self.problem.run(point, generator), pace, trial)

    def _advance(self, run: Run) -> bool:
        """Train a block of epochs; True when the worker is free again."""
        method, trial = self.method, run.trial
        assert trial is not None
        until = run.epoch + self._ahead(run)
        pruning = not isinstance(self.study.pruner, NopPruner)
        if not math.isfinite(run.curve[until - 1]):
            run.epoch = until
            if method.learns:
                trial.set_constraint("diverged", 1.0)
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, state=TrialState.FAIL)
            return True
        if pruning or method.learns:
            for epoch in range(run.epoch + 1, until + 1):
                trial.report(float(run.curve[epoch - 1]), epoch)
        run.epoch = until
        if run.epoch == self.epochs:
            if method.learns:
                trial.set_constraint("diverged", 0.0)
            run.value = estimate(run.curve, method.window).value
            self.study.tell(trial, run.value)
            self.complete.append(run)
            return True
        if pruning and trial.should_prune():
            if method.learns:
                trial.set_constraint("diverged", 0.0)
            self.study.tell(trial, state=TrialState.PRUNED)
            return True
        return method.paused is not None and self._pauses(run, *method.paused)

    # ---- pausing: asynchronous successive halving that can take a trial up again

    def _pauses(self, run: Run, first: int, factor: int) -> bool:
        rung = _rung(run.epoch, first, factor)
        if rung is None:
            return False
        run.rungs[rung] = estimate(run.curve[: run.epoch], self.method.window).value
        self.rungs.setdefault(rung, []).append(run.rungs[rung])
        if self._promotable(run, rung, factor):
            return False
        self.paused.append(run)
        return True

    def _promotable(self, run: Run, rung: int, factor: int) -> bool:
        better = sum(value > run.rungs[rung] for value in self.rungs[rung])
        return better < len(self.rungs[rung]) // factor

    def _promoted(self) -> Run | None:
        if self.method.paused is None:
            return None
        for run in sorted(self.paused, key=lambda run: (-run.epoch, -run.rungs[run.epoch])):
            if self._promotable(run, run.epoch, self.method.paused[1]):
                self.paused.remove(run)
                return run
        return None


def _rung(epoch: int, first: int, factor: int) -> int | None:
    rung = first
    while rung < epoch:
        rung *= factor
    return epoch if rung == epoch < EPOCHS else None


@dataclass(frozen=True)
class Outcome:
    """What a method hands over at the end of a budget: a point, its reported value and that value's standard error."""

    run: Run | None
    reported: float
    error: float | None


def confirmation(budget: int, epochs: int = EPOCHS) -> tuple[int, int]:
    """(leaders, fresh seeds each) for a budget of so many epochs, `epochs` a trial.

    A fifth of the budget where several leaders are compared, a tenth where one is only looked at again.
    """
    affordable = budget // (5 * epochs)
    leaders = min(3, max(1, affordable // 2))
    return leaders, affordable // leaders if leaders > 1 else 1


def handed_over(problem: Problem, method: Method, reading: Reading, seed: int, confirm: tuple[int, int]) -> Outcome:
    """The recommendation, confirmed by fresh trainings where the method does that."""
    if reading.best is None or not method.confirm:
        return Outcome(reading.best, math.nan if reading.best is None else reading.best.value, None)
    leaders, seeds = confirm
    candidates = sorted(reading.complete, key=lambda run: -run.value)[:leaders]
    fresh = []
    for rank, run in enumerate(candidates):
        draws = [np.random.default_rng([seed, 10_000 + reading.runs, rank, again]) for again in range(seeds)]
        fresh.append([estimate(problem.run(run.point, draw), method.window, SEED_NOISE_DB) for draw in draws])
    chosen, reported, error = confirmed(
        [run.value for run in candidates],
        np.array([[one.value for one in several] for several in fresh]),
        statistics.fmean((one.error or 0.0) ** 2 for several in fresh for one in several),
    )
    return Outcome(candidates[chosen], reported, error)


def confirmed(searched: list[float], values: np.ndarray, stated: float) -> tuple[int, float, float]:
    """(which leader is handed over, the value reported for it, that value's standard error).

    searched   each leader's value in the search
    values     (leaders, seeds) of its fresh trainings
    stated     mean squared standard error of one training, as the estimator states it

    Leaders are compared by the mean of all their trainings. The value reported is that of the fresh ones alone, drawn
    towards the mean of all leaders as far as noise alone explains how they differ (James and Stein): otherwise the
    luckiest of them would be believed.
    """
    seeds = values.shape[1]
    seen = float(values.var(1, ddof=1).mean()) if seeds > 1 else 0.0
    variance = max(stated, seen) / seeds
    means = values.mean(1)
    apart = float(means.var(ddof=1)) if len(means) > 1 else 0.0
    believed = max(0.0, 1 - variance / apart) if apart else 0.0
    overall = [(one + mean * seeds) / (seeds + 1) for one, mean in zip(searched, means, strict=True)]
    chosen = max(range(len(means)), key=lambda rank: overall[rank])
    reported = float(means.mean() + believed * (means[chosen] - means.mean()))
    return chosen, reported, math.sqrt(variance * (believed + (1 - believed) / len(means)))


def one_run(name: str, method_name: str, workers: int, seed: int, budgets: tuple[int, ...] = BUDGETS) -> dict[str, Any]:
    """One line of the results."""
    began = time.perf_counter()
    made = problem(name)
    if method_name == SKOPT:
        method = Method(tpe)
        readings = _skopt_readings(made, seed, max(budgets))
    else:
        method = METHODS[method_name]
        readings = {}
        Study(made, method, workers, seed).go(max(budgets), readings.__setitem__)
    ends = {}
    for budget in budgets:
        leaders, seeds = confirmation(budget)
        reading = readings[budget - leaders * seeds * EPOCHS * method.confirm]
        outcome = handed_over(made, method, reading, seed, (leaders, seeds))
        ends[str(budget)] = _marks(made, outcome, reading)
    trace = [
        _finite(-math.inf if one.best is None else made.true(one.best.point)) for _, one in sorted(readings.items())
    ]
    return {
        "problem": name,
        "method": method_name,
        "workers": workers,
        "seed": seed,
        "ends": ends,
        "trace": trace,
        "seconds": round(time.perf_counter() - began, 2),
    }


def _marks(problem: Problem, outcome: Outcome, reading: Reading) -> dict[str, Any]:
    true = -math.inf if outcome.run is None else problem.true(outcome.run.point)
    if not math.isfinite(true):  # nothing is recommended, or settings that diverge
        return {"true": None, "trials": reading.runs, "complete": len(reading.complete)}
    truths = sorted((problem.true(run.point) for run in reading.complete), reverse=True)
    return {
        "true": round(true, 3),
        "reported": round(outcome.reported, 3),
        "error": None if outcome.error is None else round(outcome.error, 3),
        "top3": bool(true >= truths[min(2, len(truths) - 1)]),
        "trials": reading.runs,
        "complete": len(reading.complete),
    }


def _finite(value: float) -> float | None:
    return round(value, 2) if math.isfinite(value) else None


# ---- scikit-optimize, as seed report 001 used it


def moving_average(curve: np.ndarray) -> float:
    """Seed 001's score: 0.99 of the last score and 0.01 of the epoch, from 0; a NaN ends it with what there is."""
    score = 0.0
    for value in curve:
        if not math.isfinite(value):
            break
        score = 0.99 * score + 0.01 * float(value)
    return score


def _skopt_readings(problem: Problem, seed: int, budget: int) -> dict[int, Reading]:
    """gp_minimize over full trainings, one after the other; its own best score is the recommendation."""
    from skopt import gp_minimize

    runs: list[Run] = []

    def objective(x: Point) -> float:
        run = Run(len(runs), list(x), problem.run(x, np.random.default_rng([seed, len(runs)])), 1.0)
        run.value = moving_average(run.curve)
        runs.append(run)
        return -run.value

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The defaults but for two that only cost time: 10,000 candidates and 5 restarts of its inner optimiser.
        gp_minimize(
            objective,
            [(0.0, 1.0)] * DIMENSIONS,
            n_calls=budget // EPOCHS,
            random_state=seed,
            n_points=2000,
            n_restarts_optimizer=2,
        )
    readings = {}
    for mark in range(GRID, budget + 1, GRID):
        done = runs[: mark // EPOCHS]
        best = max(done, key=lambda run: run.value, default=None)
        readings[mark] = Reading(best, [run for run in done if np.isfinite(run.curve).all()], len(done))
    return readings


# ---- the campaign


def done_already(path: Path) -> set[tuple[str, str, int, int]]:
    """The runs whose line is in the file; a line that was cut short counts as missing."""
    return {_key(row) for row in rows_of(path)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The results in the file and in the packed one beside it, without lines that were cut short."""
    lines = path.read_text().splitlines() if path.exists() else []
    packed = path.with_name(path.name + ".gz")
    if packed.exists():
        lines = [*gzip.decompress(packed.read_bytes()).decode().splitlines(), *lines]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def pack(path: Path) -> list[dict[str, Any]]:
    """Move all results into the packed file, one row a run; the rows."""
    rows: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    for row in rows_of(path):
        known = rows.get(_key(row))
        if known is None or len(row["ends"]) >= len(known["ends"]):
            rows[_key(row)] = row
    lines = [json.dumps(rows[key], separators=(",", ":"), allow_nan=False) + "\n" for key in sorted(rows)]
    write_bytes(path.with_name(path.name + ".gz"), gzip.compress("".join(lines).encode(), mtime=0))
    path.unlink(missing_ok=True)
    return list(rows.values())


def _key(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["problem"], row["method"], row["workers"], row["seed"]


def campaign(
    wanted: Iterable[tuple[str, str, int, int]],
    path: Path,
    budgets: tuple[int, ...] = BUDGETS,
    until_s: float = math.inf,
) -> int:
    """Do the wanted runs that the file lacks, one line each; how many were done before the time was up."""
    began, done, count = time.monotonic(), done_already(path), 0
    for key in wanted:
        if key in done:
            continue
        if time.monotonic() - began > until_s:
            break
        machine.append(path, one_run(*key, budgets))
        count += 1
    return count


def quick(methods: list[str]) -> None:
    """Two seeds of everything at the small budget, in a file that is thrown away; prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / KEPT
        wanted = [(name, one, 1, seed) for seed in range(2) for name in PROBLEMS for one in methods]
        wanted += [(name, one, 4, 0) for name in ("cross", "null") for one in methods if one != SKOPT]
        campaign(wanted, path, BUDGETS[:1])
        print(search_figures.report(rows_of(path), None))


def main() -> None:
    """Run what was asked for and is missing, then show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", default=[SKOPT, *METHODS], choices=[SKOPT, *METHODS])
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--until-s", type=float, default=math.inf, help="start no run after so many seconds")
    parser.add_argument("--report", action="store_true", help="run nothing: pack the results, tables and plot")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT)
    options = parser.parse_args()
    if options.report:
        print(search_figures.report(pack(options.out), machine.RESULTS))
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    methods = options.methods
    if SKOPT in methods and importlib.util.find_spec("skopt") is None:
        print("skopt is not installed (pip install 'cvaeopt[bench]'): left out.", file=sys.stderr)
        methods = [name for name in methods if name != SKOPT]
    wanted = [
        (name, method, workers, seed)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for workers in options.workers
        for name in options.problems
        for method in methods
        if method != SKOPT or workers == 1
    ]
    if options.quick:
        quick(methods)
        return
    count = campaign(wanted, options.out, tuple(options.budgets), options.until_s)
    print(f"{count} runs done, {len(wanted)} wanted, results in {options.out}")


if __name__ == "__main__":
    main()

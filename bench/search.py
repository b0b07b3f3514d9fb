"""Which way of searching finds better settings for the same epochs, and reports what is true of them.

    python -m bench.search --quick                                # under two minutes; nothing is kept
    python -m bench.search                                        # everything: some hours of one core
    python -m bench.search --problems cross null --methods ours tpe --workers 1 --seeds 30
    python -m bench.search --report                               # tables and plots of all runs so far

Studies are simulated (`bench/simulation.py`) on the problems of `bench/problems.py`: trials of 100 epochs, W workers,
and a budget of epochs. Every run is one line of bench/results/search.jsonl, identified by problem, method, workers and
seed. Runs that are there, or in search.jsonl.gz, into which `--report` packs them, are not run again. A run goes on to
3,000 epochs and is read off at 1,000 and at 3,000. No method knows its budget, but `ours` reserves the epochs of its
confirmation, and is therefore read off that much earlier.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from bench import machine, search_figures
from bench.machine import rows_of
from bench.problems import DIMENSIONS, EPOCHS, PROBLEMS, Problem, problem
from bench.simulation import Method, Reading, Run, Study
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
Key = tuple[str, str, int, int]
"""A run: problem, method, workers and seed."""


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


METHODS: dict[str, Method] = {
    "random": Method(lambda seed: RandomSampler(seed=seed)),
    "optuna": Method(tpe, lambda problem: MedianPruner(), block=1),
    "tpe": Method(tpe),
    "hyperband": Method(tpe, lambda problem: HyperbandPruner(1, EPOCHS, 3), block=1),
    "ours": Method(shipped, forecast, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, unpruned": Method(shipped, window=WINDOW, confirm=True, learns=True),
    "ours, tpe": Method(own_tpe, forecast, window=WINDOW, confirm=True, block=5, learns=True),
    "ours, gp": Method(gaussian_process, forecast, window=WINDOW, confirm=True, block=5, learns=True),
}


class Simulated(Study):
    """A study of a problem whose truth is known."""

    def __init__(self, problem: Problem, method: Method, workers: int, seed: int) -> None:
        super().__init__(method, method.pruner(problem), workers, seed, EPOCHS, GRID)
        self.problem = problem

    def new(self) -> Run:
        trial = self.study.ask(SPACE)
        point = [trial.params[name] for name in SPACE]
        # What the training seed and the epochs add depends on the study's seed and the trial's number alone.
        return self.begin(trial, point, self.problem.run(point, np.random.default_rng([self.seed, trial.number])))


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
    method = METHODS[method_name]
    readings: dict[int, Reading] = {}
    Simulated(made, method, workers, seed).go(max(budgets), readings.__setitem__)
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


# ---- the campaign


def pack(path: Path) -> list[dict[str, Any]]:
    """Move all results into the packed file, one row a run; the rows."""
    rows: dict[Key, dict[str, Any]] = {}
    for row in rows_of(path):
        known = rows.get(_key(row))
        if known is None or len(row["ends"]) >= len(known["ends"]):
            rows[_key(row)] = row
    machine.pack(path, [rows[key] for key in sorted(rows)])
    path.unlink(missing_ok=True)
    return list(rows.values())


def _key(row: dict[str, Any]) -> Key:
    return row["problem"], row["method"], row["workers"], row["seed"]


def campaign(
    wanted: Iterable[Key],
    path: Path,
    budgets: tuple[int, ...] = BUDGETS,
    until_s: float = math.inf,
) -> int:
    """Do the wanted runs that the file lacks, one line each; how many were done before the time was up."""
    began, done, count = time.monotonic(), {_key(row) for row in rows_of(path)}, 0
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
        wanted += [(name, one, 4, 0) for name in ("cross", "null") for one in methods]
        campaign(wanted, path, BUDGETS[:1])
        print(search_figures.report(rows_of(path), None))


def main() -> None:
    """Run what was asked for and is missing, then show the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
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
    wanted = [
        (name, method, workers, seed)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for workers in options.workers
        for name in options.problems
        for method in options.methods
    ]
    if options.quick:
        quick(options.methods)
        return
    count = campaign(wanted, options.out, tuple(options.budgets), options.until_s)
    print(f"{count} runs done, {len(wanted)} wanted, results in {options.out}")


if __name__ == "__main__":
    main()

"""What a suggestion costs in a study with many stored trials.

    python -m bench.suggest                # studies of 500, 1,250 and 5,000 trials
    python -m bench.suggest --trials 500   # one of them

The studies are those of studies/main.toml with trials as a search leaves them: a quarter complete with 100 reported
epochs, most others pruned between epochs 25 and 90, a few diverged. They are written into an SQLite file by plain
inserts. A fresh process then opens each study as a worker does and asks for suggestions; the first one reads all
trials. Seconds are those of one core's processor time, so that other programs do not count. Results are kept in
bench/results/suggest.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import optuna

from bench import machine
from bench.filled import Finished, write
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.search.space import distribution, suggest
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open

SIZES = (500, 1250, 5000)
EPOCHS = 100
SUGGESTIONS = 8  # of a process after its first one; half are the Gaussian process's, half TPE's
_context = multiprocessing.get_context("spawn")


def definition() -> Definition:
    """The study `main` without its enqueued points, so that every trial asks the sampler."""
    shipped = load_definition("main", Path(__file__).parents[1] / "studies")
    return shipped.model_copy(update={"enqueue": []})


def fill(storage: Storage, chosen: Definition, trials: int) -> None:
    """Write that many finished trials with their curves into the study; the same ones every time."""
    study_id = create_or_open(storage, chosen)._study_id
    generator = np.random.default_rng(trials)
    distributions = {name: distribution(dimension) for name, dimension in chosen.search.items()}
    kinds = generator.choice(["complete", "pruned", "diverged"], trials, p=[0.25, 0.7, 0.05])
    lasts = np.where(kinds == "complete", EPOCHS, 5 * generator.integers(5, 19, trials))
    places = generator.random((trials, len(distributions)))
    levels = 28 - 20 * (places[:, 0] - 0.7) ** 2 - 2 * places[:, 1] + generator.normal(0, 0.4, trials)
    steps = np.arange(1, EPOCHS + 1)
    curves = levels[:, None] - 6 * np.exp(-steps / 30) + generator.normal(0, 0.3, (trials, EPOCHS))
    found = [
        Finished(
            {name: _value(one, float(place)) for place, (name, one) in zip(row, distributions.items(), strict=True)},
            curve[: int(last)].tolist(),
            float(curve[-5:].mean()) if kind == "complete" else None,
            str(kind),
        )
        for kind, last, row, curve in zip(kinds, lasts, places, curves, strict=True)
    ]
    notes = {"reason": "all epochs trained", "epochs_done": EPOCHS, "seed": 1, "device": "cpu", "host": "here"}
    with storage.transaction() as connection:
        write(connection, study_id, chosen, found, notes)


def _value(one: Any, fraction: float) -> float:
    value = one.low * (one.high / one.low) ** fraction if one.log else one.low + fraction * (one.high - one.low)
    return float(round(value) if isinstance(one.low, int) else value)


def ask(url: str, answers: Any) -> None:
    """Seconds of the first suggestion of this process and of later ones, and its peak memory."""
    chosen, before = definition(), _peak_mb()
    with open_storage(url) as storage:
        study = create_or_open(storage, chosen)
        times: dict[str, list[float]] = {"first": [], "gp": [], "tpe": []}
        for index in range(1 + SUGGESTIONS):
            at = time.process_time()
            trial = study.ask()
            suggest(chosen, trial)
            kind = "tpe" if trial.number % 2 else "gp"
            times["first" if index == 0 else kind].append(time.process_time() - at)
    answers.put({"times": times, "imported_mb": before, "peak_mb": _peak_mb()})


def _peak_mb() -> float | None:
    """The most memory that this process has held so far; None where the system does not tell."""
    # Not from getrusage: there a new process begins with the peak of the one that started it.
    kilobytes = machine.of_kernel("/proc/self/status", "VmHWM:")
    return round(int(kilobytes) / 1024) if kilobytes else None


def measure(trials: int) -> dict[str, Any]:
    """One row: the suggestions of a process of its own in a study with so many trials."""
    with tempfile.TemporaryDirectory(prefix="cvaeopt-suggest-") as folder:
        url = f"sqlite:///{folder}/study.db"
        with open_storage(url) as storage:
            fill(storage, definition(), trials)
        answers = _context.Queue()
        process = _context.Process(target=ask, args=(url, answers))
        process.start()
        found = answers.get(timeout=600)
        process.join()
    times = found["times"]
    return {
        "trials": trials,
        "epochs": EPOCHS,
        "first_s": round(times["first"][0], 3),
        **{f"{kind}_s": round(statistics.median(times[kind]), 3) for kind in ("gp", "tpe")},
        "imported_mb": found["imported_mb"],
        "peak_mb": found["peak_mb"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.suggest", description="Cost of a suggestion.")
    parser.add_argument("--trials", type=int, nargs="+", default=list(SIZES), help="trials of the studies")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for trials in parser.parse_args().trials:
        rows.append(measure(trials))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    path = machine.keep("suggest", {"machine": {**machine.facts(), "busy": os.getloadavg()[0]}, "rows": rows})
    print(f"kept in {path.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()

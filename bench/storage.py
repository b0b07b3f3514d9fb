"""The load run: how many workers one database serves, and what a large study costs.

    python -m bench.storage                # both back ends, W = 1 ... 200, then 2,000 trials of 100 epochs
    python -m bench.storage --quick        # seconds
    python -m bench.storage --backend postgres --workers 1000 --epoch-s 30 --epochs 5 --ramp-s 150 --seconds 300 \\
        --keep scale-1000x30

W workers claim trials, report one epoch every `--epoch-s`, ask for the pruner's verdict, beat, tell and finish,
through the code that real workers use, but train nothing. They all come at once (the worst case), or one after the
other within `--ramp-s`, as a scheduler starts them. The latency of a report runs from the moment it was due to the
verdict, so a report that waits behind a late one counts its waiting. Afterwards the database must hold every report
that was acknowledged, once, with its value. Results are kept in bench/results/storage-*.json; with `--keep NAME` the
load alone is run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import psycopg
from optuna.trial import Trial, TrialState
from sqlalchemy import select

from bench import machine
from bench.filled import Finished, write
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store.leases import Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.optuna_rows import STEPS
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.tables import lease_table
from cvaeopt.store.workers import Beat, Place
from testbed.postgres import Postgres

NAME = "load"
PROCESSES = 4  # the workers are threads of so many processes: one process would measure its own lock
BEND_S = 1.0  # the 95th percentile from which a back end counts as overloaded
PATIENCE_S = 20.0  # how long after a run's end its last trials, which end an epoch later, may still deliver, seconds
PRELOAD = ["bench.machine", "cvaeopt.store.study", "cvaeopt.store.leases", "psycopg", "testbed.postgres"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


def definition(trials: int, epochs: int) -> Definition:
    """A study of four settings, searched as a default study is."""
    tables = {
        "study": {"metric": "val_psnr", "seed": 5},
        "budget": {"trials": trials, "epochs": epochs},
        "search": {
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "tfr": {"type": "float", "low": 0.0, "high": 1.0},
            "kl_anneal_ratio": {"type": "float", "low": 0.1, "high": 1.0},
            "kl_anneal_cycle": {"type": "int", "low": 1, "high": 9},
        },
    }
    return Definition.parse(tables, NAME, "bench/storage.py")


def value_of(number: int, epoch: int) -> float:
    """What every simulated trial reports."""
    return number + 1.0 - 1.0 / (epoch + 1)


# ---- load


@dataclass(frozen=True)
class Load:
    """What every worker of a run does.

    epochs    epochs of a trial
    seconds   length of the run
    epoch_s   length of an epoch, seconds
    ramp_s    the workers come one after the other in this time, seconds; 0: all at once
    """

    epochs: int
    seconds: float
    epoch_s: float = 1.0
    ramp_s: float = 0.0


def simulate(url: str, count: int, asked: Load, gate: Any, answers: Any) -> None:
    """`count` workers in threads of this process; what they measured goes to `answers`."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    with contextlib.ExitStack() as stack:
        storages = [stack.enter_context(open_storage(url, start_limit_s=120.0)) for _ in found]
        gate.wait(timeout=300)
        began = time.monotonic()
        threads = [
            threading.Thread(target=_work, args=(storage, asked, began, found[index], index))
            for index, storage in enumerate(storages)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    answers.put(found)


def _work(storage: Storage, asked: Load, began: float, found: dict[str, Any], index: int) -> None:
    retries: list[str] = []
    storage.on_retry = lambda outage_s, said: retries.append(said)
    found |= {"reports": [], "claims": [], "acknowledged": [], "errors": [], "retries": retries}
    try:
        _trials(storage, asked, began, found, index)
    except Exception as error:
        found["errors"].append(f"{type(error).__name__}: {error}")


def _trials(storage: Storage, asked: Load, began: float, found: dict[str, Any], index: int) -> None:
    registry = LeaseRegistry(storage, NAME)
    place = Place.here()
    worker = f"{place.new_id()}-{index}"
    ends = began + asked.seconds + asked.epoch_s
    due = began + random.Random(f"{os.getpid()}-{index}").uniform(0.0, asked.ramp_s or 1.0)
    if asked.ramp_s:
        time.sleep(max(due - time.monotonic(), 0.0))
    registry.register(worker, place, "none")
    beat_at = time.monotonic()
    while due + asked.epochs * asked.epoch_s <= ends:
        asked_at = time.monotonic()
        lease = registry.claim(worker, place)
        found["claims"].append(time.monotonic() - asked_at)
        if not isinstance(lease, Lease):
            raise RuntimeError(lease.reason)
        due = max(due, time.monotonic())
        for epoch in range(1, asked.epochs + 1):
            due += asked.epoch_s
            while (left := due - time.monotonic()) > 0:
                time.sleep(min(left, max(beat_at + 10.0 - time.monotonic(), 0.0)))
                if time.monotonic() - beat_at >= 10.0:
                    beat_at = time.monotonic()
                    registry.beat(worker, Beat("running", lease.number, epoch - 1), lease)
            if time.monotonic() > ends + PATIENCE_S:
                raise TimeoutError("too late to go on")
            registry.report(lease, epoch, value_of(lease.number, epoch))
            storage.get_trial(lease.trial_id)  # what the pruner is asked about
            found["reports"].append(time.monotonic() - due)
            found["acknowledged"].append((lease.number, epoch))
        storage.set_trial_state_values(lease.trial_id, TrialState.COMPLETE, [value_of(lease.number, asked.epochs)])
        registry.finish(lease, "complete", "all epochs trained", asked.epochs)


def load(url: str, workers: int, asked: Load) -> dict[str, Any]:
    """One row of the table: `workers` on a fresh database at `url`."""
    with open_storage(url) as storage:
        return _load(storage, url, workers, asked)


def _load(storage: Storage, url: str, workers: int, asked: Load) -> dict[str, Any]:
    study = create_or_open(storage, definition(100_000, asked.epochs))
    processes = min(PROCESSES, workers)
    shares = [workers // processes + (index < workers % processes) for index in range(processes)]
    gate, answers = _context.Barrier(processes), _context.Queue()
    running = [_context.Process(target=simulate, args=(url, share, asked, gate, answers)) for share in shares]
    for process in running:
        process.start()
    with _Connections(url) as connections:
        found = [one for _ in running for one in answers.get(timeout=asked.seconds + PATIENCE_S + 400)]
    for process in running:
        process.join()
    answers.close()
    answers.join_thread()
    stored = {
        (trial.number, epoch): value
        for trial in study.get_trials(deepcopy=False)
        for epoch, value in trial.intermediate_values.items()
    }
    with storage.reading() as connection:
        rows = connection.execute(select(STEPS.c.trial_id)).all()
        numbers = connection.execute(select(lease_table.c.number)).scalars().all()
    acknowledged = [entry for one in found for entry in one["acknowledged"]]
    reports = sorted(late for one in found for late in one["reports"])
    claims = sorted(late for one in found for late in one["claims"])
    return {
        "workers": workers,
        "epoch_s": asked.epoch_s,
        "ramp_s": asked.ramp_s,
        "seconds": asked.seconds,
        "connections": connections.most,
        "reports": len(reports),
        "p50_s": _quantile(reports, 0.50),
        "p95_s": _quantile(reports, 0.95),
        "max_s": _quantile(reports, 1.0),
        "claim_p50_s": _quantile(claims, 0.50),
        "claim_max_s": _quantile(claims, 1.0),
        "errors": [error for one in found for error in one["errors"]],
        "retries": sum(len(one["retries"]) for one in found),
        "said": sorted({said for one in found for said in one["retries"]})[:5],
        "lost": sum(stored.get(entry) != value_of(*entry) for entry in acknowledged),
        "doubled": len(rows) - len(stored),
        # Trials that were taken over: the next simulated worker begins again, a real one goes on.
        "retaken": len(acknowledged) - len(set(acknowledged)),
        "shared_trials": len(numbers) - len(set(numbers)),
    }


class _Connections:
    """Counts, in a thread, how many connections a PostgreSQL database has: `most` at one moment (None on SQLite)."""

    def __init__(self, url: str) -> None:
        self.most: int | None = None
        self._url = url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count)

    def __enter__(self) -> _Connections:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _count(self) -> None:
        if self._url.startswith("sqlite"):
            return
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._over.wait(2.0):
                (now,) = connection.execute(query, ["cvaeopt"]).fetchone() or (0,)
                self.most = max(self.most or 0, now)


def _quantile(values: list[float], share: float) -> float | None:
    """From sorted values, seconds; None if there are none."""
    return round(values[min(int(share * len(values)), len(values) - 1)], 4) if values else None


# ---- a large study


def fill(storage: Storage, trials: int, epochs: int) -> None:
    """`trials` finished trials of `epochs` epochs in the study, with what a worker leaves behind each."""
    chosen = definition(trials + 1000, epochs)
    study_id = create_or_open(storage, chosen)._study_id
    rng = random.Random(0)
    found = [
        Finished(
            {
                name: rng.uniform(1, 9) if name == "kl_anneal_cycle" else rng.uniform(0.0011, 0.0099)
                for name in chosen.search
            },
            [value_of(number, epoch) for epoch in range(1, epochs + 1)],
            value_of(number, epochs),
        )
        for number in range(trials)
    ]
    notes = {"reason": "all epochs trained", "epochs_done": epochs, "seed": 1, "device": "cpu", "host": "here"}
    closed = {
        "study": NAME,
        "state": "done",
        "token": 1,
        "expires_at": 0.0,
        "attempt": 1,
        "attempt_epoch": 0,
        "epochs_reserved": epochs,
        "epochs_done": epochs,
        "outcome": "complete",
    }
    with storage.transaction() as connection:
        leases = [
            {**closed, "slot": number, "number": number, "trial_id": trial_id, "folder": f"{NAME}/{number:05d}"}
            for number, trial_id in enumerate(write(connection, study_id, chosen, found, notes))
        ]
        connection.execute(lease_table.insert(), leases)


def start_worker(url: str, trials: int, epochs: int, answers: Any) -> None:
    """What a worker does before it trains, timed, in a process that has only imported its modules."""
    times: dict[str, float] = {}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    at = time.monotonic()

    def lap(what: str) -> None:
        nonlocal at
        now = time.monotonic()
        times[what], at = now - at, now

    with open_storage(url) as storage:
        chosen = definition(trials + 1000, epochs)
        study = create_or_open(storage, chosen)
        lap("open_s")
        registry = LeaseRegistry(storage, NAME)
        place = Place.here()
        worker = place.new_id()
        registry.register(worker, place, "none")
        lease = registry.claim(worker, place)
        assert isinstance(lease, Lease)
        lap("claim_s")
        study.get_trials(deepcopy=False)
        lap("read_trials_s")
        suggest(chosen, Trial(study, lease.trial_id))
        lap("first_suggestion_s")
        times["total_s"] = sum(times.values())
        times["memory_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answers.put(times)


def large(url: str, trials: int, epochs: int, repeats: int) -> dict[str, Any]:
    """Cost of `status` and of a worker's start in a study of `trials` x `epochs`."""
    with open_storage(url) as storage:
        at = time.monotonic()
        fill(storage, trials, epochs)
        filled_s = time.monotonic() - at
        times = []
        for _ in range(repeats):
            at = time.monotonic()
            shown = status(storage, NAME)
            times.append(time.monotonic() - at)
            assert shown["trials"]["complete"] == trials
            assert shown["epochs_spent"] == trials * epochs
    starts = []
    for _ in range(repeats):
        answers = _context.Queue()
        process = _context.Process(target=start_worker, args=(url, trials, epochs, answers))
        process.start()
        starts.append(answers.get(timeout=300))
        process.join()
        answers.close()
        answers.join_thread()
    return {
        "trials": trials,
        "epochs": epochs,
        "fill_s": round(filled_s, 2),
        "status_s": machine.spread(times),
        "start": {key: round(statistics.median(one[key] for one in starts), 4) for key in starts[0]},
        "start_repeats": repeats,
    }


# ---- all of it


def measure(backend: str, counts: list[int], asked: Load, study: tuple[int, int] | None) -> dict[str, Any]:
    """Everything about one back end; without `study` the load alone."""
    home = Path(tempfile.mkdtemp(prefix="cvaeopt-load-"))
    server = None
    facts = {**machine.facts(), "busy": os.getloadavg()[0]}  # what else the machine did, in processes
    result: dict[str, Any] = {"backend": backend, "machine": facts, "load": []}
    try:
        if backend == "postgres":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                server = Postgres.launch()
            with psycopg.connect(server.url(), autocommit=True) as connection:
                # Its default of 100 is too few for 200 workers, each of which holds one connection or two.
                connection.execute(f"ALTER SYSTEM SET max_connections = {max(500, 2 * max(counts) + 50)}")
                # As in production, unlike the throw-away servers of the tests.
                connection.execute("ALTER SYSTEM SET fsync = on")
            server.stop()
            server.start()

        def url(name: str) -> str:
            return f"sqlite:///{home / name}.db" if server is None else server.new_database(name)

        for count in counts:
            row = load(url(f"load_{count}"), count, asked)
            result["load"].append(row)
            print(_row(backend, row), flush=True)
        over = [row["workers"] for row in result["load"] if row["p95_s"] is None or row["p95_s"] > BEND_S]
        result["bends_at"] = min(over, default=None)
        facts["busy_after"] = os.getloadavg()[0]
        if study is not None:
            result["large"] = large(url("large"), *study, repeats=3)
            print(f"{backend}: {json.dumps(result['large'])}", flush=True)
    finally:
        if server is not None:
            server.remove()
        shutil.rmtree(home, ignore_errors=True)
    return result


HEAD = (
    "| back end | W | epoch s | connections | reports | p50 s | p95 s | max s | claim p50 s "
    "| errors | retries | lost | doubled |\n" + "|---" * 13 + "|"
)


def _row(backend: str, row: dict[str, Any]) -> str:
    names = ["workers", "epoch_s", "connections", "reports", "p50_s", "p95_s", "max_s", "claim_p50_s"]
    cells = [backend, *("-" if row.get(name) is None else str(row[name]) for name in names), str(len(row["errors"]))]
    cells += [str(row[name]) for name in ("retries", "lost", "doubled")]
    return "| " + " | ".join(cells) + " |"


def table(results: list[dict[str, Any]]) -> str:
    """All rows as a Markdown table."""
    return "\n".join([HEAD, *(_row(result["backend"], row) for result in results for row in result["load"])])


def main(words: list[str] | None = None) -> int:
    """0 if no report was lost or doubled and no trial was given to two workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 10, 50, 100, 200])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each run")
    parser.add_argument("--epoch-s", type=float, default=1.0, help="length of an epoch, seconds")
    parser.add_argument("--ramp-s", type=float, default=0.0, help="the workers come one after the other in this time")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of a trial")
    parser.add_argument("--keep", help="the load alone, kept as bench/results/storage-NAME.json")
    parser.add_argument("--quick", action="store_true", help="a few workers, a small study; nothing is kept")
    options = parser.parse_args(words)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    counts, seconds, epochs = options.workers, options.seconds, options.epochs
    study = None if options.keep else (2000, 100)
    if options.quick:
        counts, seconds, epochs, study = [1, 6], 2.0, 1, (40, 10)
    results = []
    for backend in ("sqlite", "postgres") if options.backend == "both" else (options.backend,):
        result = measure(backend, counts, Load(epochs, seconds, options.epoch_s, options.ramp_s), study)
        result["command"] = " ".join(["python -m bench.storage", *(sys.argv[1:] if words is None else words)])
        results.append(result)
        if not options.quick:
            machine.keep(f"storage-{options.keep or backend}", result)
    print(table(results))
    for result in results:
        print(f"{result['backend']} bends at: {result['bends_at'] or 'not reached'}")
    rows = [row for result in results for row in result["load"]]
    return 1 if any(row["lost"] or row["doubled"] or row["shared_trials"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

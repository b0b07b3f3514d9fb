"""The fault campaign: workers are killed, frozen and cut off while they train, and the study must come out whole.

    python -m bench.faults                      # 12 rounds on SQLite, 8 on PostgreSQL, and as much of plain Optuna
    python -m bench.faults --quick              # one round of each
    python -m bench.faults --backend postgres --rounds 20 --baseline-rounds 0 --resume

Every round has its own database, four worker processes that train real (tiny) networks, and a schedule drawn from
its seed: a SIGKILL about every 20 epochs trained, and in between a SIGTERM, a SIGSTOP that outlasts the lease, the
database gone for seconds (30 s in one round of each back end) and a full disk. Before PostgreSQL stands a proxy, which
freezes for seconds, loses the answers of COMMITs, and resets connections inside them. A supervisor replaces what died.
Afterwards the database is compared with what it should hold, and every curve with that of a run nobody disturbed.

The same schedule is then played against plain `study.optimize` with Optuna's heartbeat and retry callback. Results
are kept in bench/results/faults-*.json after every round, so `--resume` continues a campaign that was cut short.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import torch
from optuna.trial import TrialState
from sqlalchemy import select

from bench import machine
from cvaeopt.errors import CheckpointError, CvaeoptError
from cvaeopt.files import RunFolder
from cvaeopt.run.events import Event, LeaseTaken, Outage, TrialEnded, TrialLeft, Warned
from cvaeopt.run.objective import Objective
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.tables import lease_table
from cvaeopt.vae import checkpoint
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from testbed.postgres import Postgres
from testbed.proxy import Proxy

ZONES = ("UTC", "Asia/Tokyo", "America/New_York", "Asia/Kolkata")
SHIFTS_S = (0, 3600, -7200, 45)  # how far the workers' clocks are off, seconds
NAME = "faults"
PRELOAD = [  # all that is slow to import, so that a replaced worker is at work soon
    "bench.machine",
    "cvaeopt.pictures.run_pictures",
    "cvaeopt.run.objective",
    "cvaeopt.store.study",
    "cvaeopt.run.worker",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "optuna_dashboard",
    "psycopg",
    "testbed.postgres",
    "testbed.tiny",
]


@dataclass(frozen=True)
class Size:
    """How large a round is.

    ttl_s        lifetime of a lease (the baseline's grace period), seconds
    kill_every   epochs trained between two SIGKILLs
    away_s       how long the database is gone, shortest and longest, seconds; long_away_s in one round
    full_s       how long the disk is full, shortest and longest, seconds
    freeze_s     how long the proxy passes nothing on, shortest and longest, seconds
    silence_s    how long a worker waits for the answer to a statement, seconds (60 outside this campaign)
    deadline_s   a round that is not over by then has failed, seconds; long enough for a busy machine
    """

    trials: int = 8
    epochs: int = 12
    frames: int = 20
    workers: int = 4
    ttl_s: float = 3.0
    kill_every: int = 20
    away_s: tuple[float, float] = (3.0, 6.0)
    long_away_s: float = 30.0
    full_s: tuple[float, float] = (2.0, 4.0)
    freeze_s: tuple[float, float] = (4.0, 8.0)
    silence_s: float = 2.0
    deadline_s: float = 300.0
    seed: int = 11

    @property
    def total(self) -> int:
        """Epochs that the study needs."""
        return self.trials * self.epochs

    def definition(self) -> Definition:
        """The study: random search, so that a suggestion depends on the trial's number alone."""
        tables = {
            "study": {"metric": "val_psnr", "seed": self.seed},
            "budget": {"trials": self.trials, "epochs": self.epochs, "total_epochs": self.total},
            "fixed": {**tiny.WIDTHS, "batch_size": 2, "kl_norm": "element", "output": "sigmoid"},
            "search": {
                "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                "tfr": {"type": "float", "low": 0.0, "high": 1.0},
            },
            "sampler": {"kind": "random"},
        }
        return Definition.parse(tables, NAME, "bench/faults.py")


@dataclass(frozen=True)
class Fault:
    """Something that happens once `at` epochs were trained; `seconds` is how long it lasts."""

    at: int
    kind: str  # kill | term | stop | database | disk | freeze | drop | reset
    seconds: float = 0.0


def schedule(seed: int, size: Size, long_outage: bool, network: bool = False) -> list[Fault]:
    """The faults of a round by epochs trained; enough for a side that trains everything four times.

    network   whether there are connections, which a proxy can disturb
    """
    rng = random.Random(seed)
    faults = []
    lasts = {"stop": (1.5 * size.ttl_s, 2.5 * size.ttl_s), "database": size.away_s, "disk": size.full_s}
    lasts |= {"freeze": size.freeze_s}
    for window in range(4):
        kinds = ["term", "stop", "database", "disk", *(("freeze", "drop", "reset") if network else ())]
        rng.shuffle(kinds)
        for index, kind in enumerate(kinds):
            at = window * size.total + round((index + rng.uniform(0.2, 0.8)) * size.total / len(kinds))
            seconds = rng.uniform(*lasts.get(kind, (0.0, 0.0)))
            if kind == "database" and long_outage and window == 0:
                seconds = size.long_away_s
            faults.append(Fault(at, kind, seconds))
    for index in range(1, 4 * size.total // size.kill_every):
        faults.append(Fault(round(size.kill_every * (index + rng.uniform(-0.3, 0.3))), "kill"))
    return sorted(faults, key=lambda fault: fault.at)


# ---- what runs in a worker process


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know."""

    url: str
    artifacts: Path
    log: Path
    full: Path  # while this file exists the disk counts as full (where no small disk can be mounted)
    size: Size
    zone: str
    shift_s: int
    stranger: bool  # no other worker can look into this one's process table, as if it ran on another machine


class Log:
    """Lines that survive a SIGKILL: each is one write to a file opened for appending."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def __call__(self, what: str, number: int = -1, epoch: int = -1) -> None:
        os.write(self._file, f"{what} {number} {epoch} {os.getpid()} {time.monotonic():.2f}\n".encode())

    def hear(self, event: Event) -> None:
        if isinstance(event, LeaseTaken | TrialLeft):
            self(type(event).__name__, event.number, event.epoch)
        elif isinstance(event, TrialEnded):
            self(f"ended-{event.outcome}", event.number, event.epochs_done)
            if event.outcome == "failed":
                print(f"Trial {event.number} failed: {event.reason}", file=sys.stderr, flush=True)
        elif isinstance(event, Outage):
            self("Outage")
        elif isinstance(event, Warned):
            self("Unsaved" if "no checkpoint" in event.message else "Warned")
            print(event.message, file=sys.stderr, flush=True)


class Counted:
    """A run that writes to the log when an epoch begins and when it is trained, before it is saved."""

    def __init__(self, run: Any, log: Log, full: Path) -> None:
        self._run, self._log, self._full = run, log, full

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def run(self) -> Iterator[Any]:
        yield from count_epochs(self._run.run(), self._log, self._run.number, self._run.epoch, self._run.epochs)

    def save(self) -> None:
        if self._full.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._run.save()


def count_epochs(results: Iterator[Any], log: Log, number: int, epoch: int, epochs: int) -> Iterator[Any]:
    """`results`, with a line in the log before and after each epoch."""
    while epoch < epochs:
        epoch += 1
        log("begin", number, epoch)
        result = next(results)
        log("end", number, epoch)
        yield result


def train_ours(task: Task) -> None:
    """One worker, as `cvaeopt worker` runs it."""
    log = _prepare(task)
    definition = task.size.definition()
    try:
        with open_storage(task.url, start_limit_s=60.0, silence_s=task.size.silence_s) as storage:
            study = create_or_open(storage, definition)
            objective = Objective(definition, _data(task.size), "cpu", task.artifacts)
            worker = Worker(
                study,
                storage,
                lambda trial, lease: Counted(objective.open(trial, lease.token), log, task.full),
                artifacts=task.artifacts,
                listener=log.hear,
                timing=Timing(ttl_s=task.size.ttl_s),
            )
            if task.stranger:
                place = dataclasses.replace(worker.session.place, kernel="")
                worker.session = dataclasses.replace(worker.session, place=place)
            worker.run()
    except CvaeoptError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def train_plainly(task: Task) -> None:
    """One worker of the baseline: Optuna's own loop, heartbeat and retry."""
    log = _prepare(task)
    definition, data = task.size.definition(), _data(task.size)

    def objective(trial: optuna.Trial) -> float:
        trainer = Trainer(suggest(definition, trial), data, "cpu")
        value = 0.0
        for result in count_epochs(trainer.run(), log, trial.number, 0, definition.epochs):
            value = float(result.row()[definition.metric])
            trial.report(value, result.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study = optuna.load_study(
        study_name=NAME,
        storage=_plain_storage(task.url, task.size),
        sampler=optuna.samplers.RandomSampler(),
        pruner=optuna.pruners.NopPruner(),
    )
    only = (TrialState.COMPLETE,)
    study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(task.size.trials, states=only)])


def _plain_storage(url: str, size: Size) -> optuna.storages.RDBStorage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.storages.RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://"),
            heartbeat_interval=1,
            grace_period=round(size.ttl_s),
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )


def _prepare(task: Task) -> Log:
    os.environ["TZ"] = os.environ["PGTZ"] = task.zone
    time.tzset()
    if task.shift_s:
        ctypes.CDLL(None).cvaeopt_shift(ctypes.c_long(task.shift_s))
    output = os.open(task.log.with_suffix(".err"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return Log(task.log)


def _data(size: Size) -> Any:
    return tiny.dataset(size.frames, 5)


# ---- what happens to them


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long shift;
void cvaeopt_shift(long seconds) { shift = seconds; }
int clock_gettime(clockid_t id, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, at);
    if (!failed && id == CLOCK_REALTIME) at->tv_sec += shift;
    return failed;
}
int gettimeofday(struct timeval *at, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int failed = real(at, zone);
    if (!failed) at->tv_sec += shift;
    return failed;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Processes:
    """Starts workers quickly: they fork from a server that has imported torch, and may have a clock of their own."""

    def __init__(self, home: Path) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        source, library = home / "shift.c", home / "shift.so"
        source.write_text(SHIM)
        command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        try:
            self.clocks = subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
        except OSError:
            self.clocks = False
        before = os.environ.get("LD_PRELOAD")
        if self.clocks:
            os.environ["LD_PRELOAD"] = str(library)
        try:
            self.run(_nothing)  # the server starts with the first process
        finally:
            os.environ.pop("LD_PRELOAD", None)
            if before is not None:
                os.environ["LD_PRELOAD"] = before

    def start(self, target: Callable[..., None], *arguments: Any) -> BaseProcess:
        """A new process."""
        process = self._context.Process(target=target, args=arguments)
        process.start()
        return process

    def run(self, target: Callable[..., None], *arguments: Any) -> None:
        """Run to the end; RuntimeError if it fails."""
        process = self.start(target, *arguments)
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"{target.__name__} ended with {process.exitcode}")


def _nothing() -> None:
    return None


class SqliteServer:
    """A folder of SQLite files; to stop one is to hold its lock."""

    name = "sqlite"

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock: sqlite3.Connection | None = None
        self._file = Path()

    def new(self, name: str) -> str:
        self._file = self._home / f"{name}.db"
        return f"sqlite:///{self._file}"

    def stop(self) -> bool:
        """True if the lock could be taken now."""
        lock = sqlite3.connect(self._file, isolation_level=None, timeout=1.0)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:  # a frozen worker may hold it
            lock.close()
            return False
        self._lock = lock
        return True

    def start(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def drop(self) -> None:
        for path in self._home.glob(f"{self._file.name}*"):
            path.unlink()

    def close(self) -> None:
        self.start()


class PostgresServer:
    """A PostgreSQL of our own behind a proxy; to stop it is an immediate shutdown, as when its machine fails."""

    name = "postgres"

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._server = Postgres.launch()
        self.proxy = Proxy(self._server.sockets / ".s.PGSQL.5432")
        self._database = ""

    def new(self, name: str) -> str:
        self._database = name.replace("-", "_")
        self._server.new_database(self._database)
        self.proxy.disarm()
        return self.proxy.url(self._database)

    def stop(self) -> bool:
        self._server.stop()
        return True

    def start(self) -> None:
        self._server.start()

    def drop(self) -> None:
        self._server.drop_database(self._database)

    def close(self) -> None:
        self.proxy.close()
        self._server.remove()


class Disk:
    """Where the artifacts go: a small memory disk that can really be filled, if we may mount one."""

    def __init__(self, home: Path) -> None:
        self.root = home / "disk"
        self.root.mkdir()
        self.flag = home / "full"
        command = ["mount", "-t", "tmpfs", "-o", "size=48m", "cvaeopt-faults", str(self.root)]
        try:
            self.mounted = subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0
        except OSError:
            self.mounted = False
        self._filler = self.root / "filler"

    def fill(self) -> None:
        """Leave no byte free; to be repeated, because deleted files make room again."""
        if not self.mounted:
            self.flag.touch()
            return
        with self._filler.open("ab", buffering=0) as stream:
            for block in (bytes(1 << 20), bytes(1 << 12)):
                try:
                    while stream.write(block) == len(block):
                        pass
                except OSError:
                    pass

    def free(self) -> None:
        """End of the shortage."""
        self.flag.unlink(missing_ok=True)
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", str(self.root)], check=False)


@dataclass
class Crew:
    """The supervisor of one round: keeps `size.workers` processes running and plays the faults."""

    target: Callable[[Task], None]
    processes: Processes
    server: SqliteServer | PostgresServer
    disk: Disk
    task: Task
    faults: list[Fault]
    seed: int
    zones: bool
    clocks: bool
    played: Counter[str] = field(default_factory=Counter)
    started: int = 0
    asked: int = 0
    killed: int = 0
    finished: int = 0
    crashed: list[int] = field(default_factory=list)

    def play(self) -> tuple[bool, float]:
        """(whether all workers came to an end, seconds)."""
        rng = random.Random(self.seed + 1)
        began = time.monotonic()
        size = self.task.size
        alive: dict[BaseProcess, str] = {}  # what was done to it
        frozen: dict[BaseProcess, float] = {}
        away_until = full_until = frozen_until = 0.0
        proxy = getattr(self.server, "proxy", None)
        starts: list[float] = []
        waiting = list(self.faults)
        for _ in range(size.workers):
            alive[self._start()] = ""
        try:
            while time.monotonic() - began < size.deadline_s:
                now = time.monotonic()
                for process in [one for one, until in frozen.items() if now >= until]:
                    del frozen[process]
                    os.kill(process.pid or 0, signal.SIGCONT)
                if away_until and now >= away_until:
                    self.server.start()
                    away_until = 0.0
                if frozen_until and now >= frozen_until:
                    proxy.thaw()
                    frozen_until = 0.0
                if full_until:
                    if now >= full_until:
                        self.disk.free()
                        full_until = 0.0
                    else:
                        self.disk.fill()
                for process in [one for one in alive if one.exitcode is not None]:
                    if self._bury(process, alive.pop(process)):
                        # As a service manager does: at once, but not again and again.
                        crashed = process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM)
                        starts.append(now + (3.0 if crashed else 0.0))
                for due in [at for at in starts if at <= now]:
                    starts.remove(due)
                    alive[self._start()] = ""
                if not alive and not starts:
                    return True, time.monotonic() - began
                trained = tally(self.task.log)["end"]
                if waiting and waiting[0].at <= trained:
                    fault = waiting[0]
                    free = [one for one, done in alive.items() if not done and one not in frozen]
                    if fault.kind in ("kill", "term", "stop"):
                        if not free:
                            continue
                        victim = rng.choice(free)
                        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}[fault.kind]
                        os.kill(victim.pid or 0, number)
                        if fault.kind == "stop":
                            frozen[victim] = now + fault.seconds
                        else:
                            alive[victim] = fault.kind
                    elif fault.kind == "database":
                        if away_until or not self.server.stop():
                            continue
                        away_until = time.monotonic() + fault.seconds
                    elif fault.kind == "freeze":
                        proxy.freeze()
                        frozen_until = now + fault.seconds
                    elif fault.kind in ("drop", "reset"):
                        proxy.arm(fault.kind, times=len(alive) + 1)  # at the next COMMITs, whoever they are of
                    else:
                        full_until = now + fault.seconds
                    waiting.pop(0)
                    self.played[fault.kind] += 1
                time.sleep(0.03)
            return False, time.monotonic() - began
        finally:
            if away_until:
                self.server.start()
            if proxy is not None:
                proxy.thaw()
                proxy.disarm()
            self.disk.free()
            for process in alive:
                process.kill()
                process.join()

    def _start(self) -> BaseProcess:
        index = self.started
        self.started += 1
        task = dataclasses.replace(
            self.task,
            zone=ZONES[index % len(ZONES)] if self.zones else "UTC",
            shift_s=SHIFTS_S[index % len(SHIFTS_S)] if self.clocks else 0,
        )
        return self.processes.start(self.target, task)

    def _bury(self, process: BaseProcess, done: str) -> bool:
        """Count how the process ended; True if another one must take its place."""
        code = process.exitcode
        process.join()
        if done == "kill" and code == -signal.SIGKILL:
            self.killed += 1
            return True
        if done == "term" and code in (0, -signal.SIGTERM):
            self.asked += 1
            return True
        if code == 0:
            self.finished += 1
            return False
        self.crashed.append(code if code is not None else 0)
        return True


def tally(log: Path) -> Counter[str]:
    """How often each kind of line stands in the log."""
    try:
        return Counter(line.split(" ", 1)[0] for line in log.read_text().splitlines())
    except FileNotFoundError:
        return Counter()


# ---- rounds


Curves = dict[int, dict[str, Any]]


def undisturbed(processes: Processes, size: Size, home: Path) -> Curves:
    """Parameters, value and curve of every trial when one worker trains them all in peace."""
    folder = home / "undisturbed"
    folder.mkdir()
    url = f"sqlite:///{folder / 'study.db'}"
    task = Task(url, folder / "artifacts", folder / "log", folder / "full", size, "UTC", 0, False)
    processes.run(train_ours, task)
    return _curves(url)


def _curves(url: str) -> Curves:
    with open_storage(url) as storage:
        trials = optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)
    return {
        trial.number: {
            "params": trial.params,
            "curve": trial.intermediate_values,
            "value": trial.values,
            "state": trial.state.name,
        }
        for trial in trials
    }


def examine(url: str, log: Path, artifacts: Path, size: Size, reference: Curves) -> dict[str, Any]:
    """What is in the database of one of our rounds, against what should be."""
    found = _curves(url)
    with open_storage(url) as storage, storage.reading() as connection:
        leases = connection.execute(select(lease_table)).all()
    states = Counter(trial["state"] for trial in found.values())
    finished = sum(states[state] for state in ("COMPLETE", "PRUNED", "FAIL"))
    lines = tally(log)
    whole = halves = 0
    for number in found:
        folder = RunFolder.of_trial(artifacts, NAME, number)
        with contextlib.suppress(CheckpointError):
            whole += checkpoint.load_model(folder.last).epoch == size.epochs
        for path in folder.root.glob("last*.pt"):
            try:
                checkpoint.load_model(path)
            except CheckpointError:
                halves += 1
    trials = sum(len(trial["curve"]) for trial in found.values())
    return {
        "trials": dict(states),
        "finished": finished,
        "failed": finished - states["COMPLETE"],
        "lost": size.trials - len(found.keys() & reference.keys()),
        "duplicates": len(found) - len({json.dumps(trial["params"], sort_keys=True) for trial in found.values()}),
        "stuck": states["RUNNING"] + states["WAITING"] + sum(lease.state == "open" for lease in leases),
        "overshoot_trials": max(len(found) - size.trials, 0),
        "overshoot_epochs": max(trials, sum(lease.epochs_reserved for lease in leases)) - size.total,
        "identical_curves": sum(found[number] == reference[number] for number in reference if number in found),
        "whole_checkpoints": whole,  # of the last epoch; the study's rule keeps those of its best trials only
        "half_checkpoints": halves,
        **_spent(lines, finished, size),
        "takeovers": lines["LeaseTaken"],
        "left": lines["TrialLeft"],
        "checkpoints_skipped": lines["Unsaved"],
        "outages_noticed": lines["Outage"],
    }


def examine_plain(url: str, log: Path, size: Size) -> dict[str, Any]:
    """The same of a round of the baseline."""
    storage = _plain_storage(url, size)
    trials = optuna.load_study(study_name=NAME, storage=storage).get_trials(deepcopy=False)
    storage.engine.dispose()
    states = Counter(trial.state.name for trial in trials)
    origins = Counter(trial.system_attrs.get("failed_trial", trial.number) for trial in trials)
    complete = Counter(
        trial.system_attrs.get("failed_trial", trial.number) for trial in trials if trial.state == TrialState.COMPLETE
    )
    return {
        "trials": dict(states),
        "finished": states["COMPLETE"],
        "lost": len(origins) - len(complete),  # points that were begun and never came to a value
        "duplicates": sum(complete.values()) - len(complete),
        "retries": len(trials) - len(origins),
        "stuck": states["RUNNING"] + states["WAITING"],
        "overshoot_trials": max(states["COMPLETE"] - size.trials, 0),
        **_spent(tally(log), states["COMPLETE"], size),
    }


def _spent(lines: Counter[str], finished: int, size: Size) -> dict[str, Any]:
    """Epochs begun and trained in any process, and those of them that trials of the budget came to their end with."""
    needed = min(finished, size.trials) * size.epochs
    return {
        "epochs_needed": needed,
        "epochs_begun": lines["begin"],
        "epochs_trained": lines["end"],
        "useful": round(needed / max(lines["end"], 1), 4),
        "useful_of_begun": round(needed / max(lines["begin"], 1), 4),
    }


def passes(found: dict[str, Any], size: Size) -> bool:
    """Whether one of our rounds is as it should be in all that is exact."""
    return bool(
        found["ended"]
        and found["finished"] == found["identical_curves"] == size.trials
        and found["failed"] == found["lost"] == found["duplicates"] == found["stuck"] == found["half_checkpoints"] == 0
        and found["overshoot_trials"] == found["overshoot_epochs"] == 0
        and not found["workers_crashed"]
    )


def play_round(
    index: int,
    side: str,
    server: SqliteServer | PostgresServer,
    processes: Processes,
    size: Size,
    reference: Curves,
    home: Path,
) -> dict[str, Any]:
    """One round of one side ("ours" or "plain"): its facts for the results file."""
    folder = Path(tempfile.mkdtemp(prefix=f"{side}-{index}-", dir=home))
    disk = Disk(folder)
    url = server.new(f"{side}-{index}")
    log = folder / "log"
    zones, strangers = index % 2 == 1, index % 4 >= 2
    # A SQLite database has no clock of its own: the workers of one machine share the machine's.
    clocks = zones and processes.clocks and server.name != "sqlite"
    if side == "plain":  # its workers could not: several at once on an empty database fail
        storage = _plain_storage(url, size)
        optuna.create_study(study_name=NAME, storage=storage, direction="maximize")
        storage.engine.dispose()
    faults = schedule(1000 + index, size, long_outage=index == 1, network=server.name == "postgres")
    task = Task(url, disk.root / "artifacts", log, disk.flag, size, "UTC", 0, strangers)
    crew = Crew(
        train_ours if side == "ours" else train_plainly,
        processes,
        server,
        disk,
        task,
        faults,
        index,
        zones,
        clocks,
    )
    try:
        ended, seconds = crew.play()
        found: dict[str, Any] = {
            "round": index,
            "ended": ended,
            "seconds": round(seconds, 1),
            "faults": dict(crew.played),
            "long_outage": index == 1,
            "zones": zones,
            "clocks": clocks,
            "other_machines": strangers,
            "disk": "tmpfs" if disk.mounted else "injected",
            "workers_started": crew.started,
            "workers_killed": crew.killed,
            "workers_asked": crew.asked,
            "workers_finished": crew.finished,
            "workers_crashed": crew.crashed,
        }
        if side == "ours":
            found |= examine(url, log, task.artifacts, size, reference)
            found["passed"] = passes(found, size)
        else:
            found |= examine_plain(url, log, size)
    finally:
        disk.close()
        server.drop()
    if side == "plain" or found["passed"]:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"  what the workers said: {log.with_suffix('.err')}", flush=True)
    return found


def summary(rounds: list[dict[str, Any]], size: Size) -> dict[str, Any]:
    """The campaign in one row: the sums of the rounds' numbers, and the share of useful epochs."""
    numbers = [key for key, value in rounds[0].items() if isinstance(value, int | float) and key != "round"]
    needed = sum(found["epochs_needed"] for found in rounds)
    total: Counter[str] = Counter()
    for found in rounds:
        total.update(found["faults"])
    return {
        **{key: round(sum(found.get(key, 0) for found in rounds), 1) for key in numbers},
        "rounds": len(rounds),
        "faults": dict(sorted(total.items())),
        "trials_expected": size.trials * len(rounds),
        "workers_crashed": sum(len(found["workers_crashed"]) for found in rounds),
        "rounds_not_ended": sum(not found["ended"] for found in rounds),
        "useful": round(needed / max(sum(found["epochs_trained"] for found in rounds), 1), 4),
        "useful_of_begun": round(needed / max(sum(found["epochs_begun"] for found in rounds), 1), 4),
        "worst_useful": min(found["useful"] for found in rounds),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The campaign as a Markdown table, one column a side."""
    sides = []
    for result in results:
        for side in ("ours", "plain"):
            if result["rounds"][side]:
                who = "cvaeopt" if side == "ours" else "plain Optuna"
                sides.append((f"{who}, {result['backend']}", result["summary"][side]))
    rows: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("rounds", lambda row: row["rounds"]),
        ("rounds in which all of this was exact", lambda row: row.get("passed", "-")),
        ("SIGKILL / SIGTERM / SIGSTOP", lambda row: " / ".join(_of(row, "kill", "term", "stop"))),
        ("database gone / disk full", lambda row: " / ".join(_of(row, "database", "disk"))),
        ("frozen / answer lost / reset in COMMIT", lambda row: " / ".join(_of(row, "freeze", "drop", "reset"))),
        ("trials finished (should be)", lambda row: f"{row['finished']:.0f} ({row['trials_expected']})"),
        ("trials beyond the budget", lambda row: row["overshoot_trials"]),
        ("epochs beyond the budget", lambda row: row.get("overshoot_epochs", "-")),
        ("points begun that have no value", lambda row: row["lost"]),
        ("points with two values", lambda row: row["duplicates"]),
        ("trials or leases left open", lambda row: row["stuck"]),
        ("trials begun again from epoch 0", lambda row: row.get("retries", 0)),
        ("trials continued by another worker", lambda row: row.get("takeovers", "-")),
        ("curves equal to the undisturbed run", lambda row: row.get("identical_curves", "-")),
        ("half-written checkpoints", lambda row: row.get("half_checkpoints", "-")),
        ("useful epochs, of those trained", lambda row: f"{row['useful']:.1%} (worst round {row['worst_useful']:.1%})"),
        ("useful epochs, of those begun", lambda row: f"{row['useful_of_begun']:.1%}"),
        ("workers that died of something else", lambda row: row["workers_crashed"]),
        ("rounds cut off at the deadline", lambda row: row["rounds_not_ended"]),
    ]
    lines = ["| | " + " | ".join(name for name, _ in sides) + " |", "|---|" + "---|" * len(sides)]
    for what, read in rows:
        lines.append(f"| {what} | " + " | ".join(str(read(row)) for _, row in sides) + " |")
    return "\n".join(lines)


def _of(row: dict[str, Any], *kinds: str) -> list[str]:
    return [str(row["faults"].get(kind, 0)) for kind in kinds]


def campaign(
    backend: str, rounds: int, baseline: int, size: Size, *, resume: bool = False, keep: bool = True
) -> dict[str, Any]:
    """All rounds of one back end; the result is kept after each."""
    before = _before(backend) if resume else None
    done: dict[str, list[dict[str, Any]]] = before["rounds"] if before else {"ours": [], "plain": []}
    home = Path(tempfile.mkdtemp(prefix="cvaeopt-faults-"))
    home.chmod(0o755)
    server = SqliteServer(home) if backend == "sqlite" else PostgresServer()
    result: dict[str, Any] = {}
    try:
        processes = Processes(home)
        reference = undisturbed(processes, size, home) if len(done["ours"]) < rounds else {}
        for side, count in (("ours", rounds), ("plain", baseline)):
            for index in range(len(done[side]), count):
                found = play_round(index, side, server, processes, size, reference, home)
                done[side].append(found)
                print(_line(side, backend, found), flush=True)
                result = {
                    "backend": backend,
                    "command": f"python -m bench.faults --backend {backend} --rounds {rounds} "
                    f"--baseline-rounds {baseline}",
                    "machine": machine.facts(),
                    "size": dataclasses.asdict(size),
                    "summary": {side: summary(found, size) for side, found in done.items() if found},
                    "rounds": done,
                }
                if keep:
                    machine.keep(f"faults-{backend}", result)
    finally:
        server.close()
    if not any("passed" in found and not found["passed"] for found in done["ours"]):
        shutil.rmtree(home, ignore_errors=True)
    return result or before or {}


def _before(backend: str) -> dict[str, Any] | None:
    path = machine.RESULTS / f"faults-{backend}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _line(side: str, backend: str, found: dict[str, Any]) -> str:
    verdict = {True: "passed", False: "FAILED"}[found["passed"]] if side == "ours" else "baseline"
    return (
        f"{backend} {side} round {found['round']}: {verdict}, {found['seconds']:.0f} s, finished {found['finished']}, "
        f"stuck {found['stuck']}, duplicates {found['duplicates']}, useful {found['useful']:.1%} "
        f"({found['useful_of_begun']:.1%} of begun), crashed {found['workers_crashed']}, faults {found['faults']}"
    )


def main(words: list[str] | None = None) -> int:
    """0 if every round of ours passed and at least 95 % of its epochs were useful."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--rounds", type=int, help="rounds of ours (12 on SQLite, 8 on PostgreSQL)")
    parser.add_argument("--baseline-rounds", type=int, default=3, help="rounds of plain Optuna, per back end")
    parser.add_argument("--resume", action="store_true", help="add to the kept results instead of starting anew")
    parser.add_argument("--quick", action="store_true", help="one round of each; nothing is kept")
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that disk and server are cleared away
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    size = Size()
    results = []
    for backend in ("sqlite", "postgres") if options.backend == "both" else (options.backend,):
        rounds = {"sqlite": 12, "postgres": 8}[backend] if options.rounds is None else options.rounds
        baseline = options.baseline_rounds
        if options.quick:
            rounds, baseline = 1, min(baseline, 1)
        results.append(campaign(backend, rounds, baseline, size, resume=options.resume, keep=not options.quick))
    print(table(results))
    ours = [result["summary"]["ours"] for result in results if result["rounds"]["ours"]]
    return 0 if all(row["passed"] == row["rounds"] and row["useful"] >= 0.95 for row in ours) else 1


if __name__ == "__main__":
    sys.exit(main())

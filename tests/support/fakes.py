"""A study, and trials made of numbers: the search is tested without torch."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy import select, update

from cvaeopt.errors import Diverged
from cvaeopt.files import RunFolder, write_json
from cvaeopt.run.events import Event
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.store.leases import Lease
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table

EVIL = ["../../x", "'; DROP TABLE cvaeopt_lease; --", "a/b\\c", "%s {0} :name", "Ünïcödé ☃", "line\nbreak", " "]
"""Names that a path, an SQL statement, a format or a terminal could take for something else."""


def make_study(
    storage: Storage,
    name: str = "main",
    *,
    trials: int | None = 3,
    epochs: int = 4,
    total_epochs: int | None = None,
    wall_clock_s: float | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
    rules: dict[str, float] | None = None,
) -> optuna.Study:
    """The study `name` with its budget, made if it is not there."""
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        pruner=pruner or optuna.pruners.NopPruner(),
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
    )

    def enter() -> None:
        with storage.transaction() as connection:
            if connection.execute(select(study_table).where(study_table.c.name == name)).first() is None:
                connection.execute(
                    study_table.insert().values(
                        name=name,
                        study_id=study._study_id,
                        definition=json.dumps({"budget": rules or {}}),
                        digest="0",
                        seed=0,
                        created_at=storage.now(connection),
                        trials=trials,
                        epochs=epochs,
                        total_epochs=total_epochs,
                        wall_clock_s=wall_clock_s,
                        facts="{}",
                    )
                )

    storage.retry(enter)
    return study


def leases(storage: Storage) -> list[Any]:
    """All rows of the lease table, by slot."""
    with storage.reading() as connection:
        return list(connection.execute(select(lease_table).order_by(lease_table.c.slot)).all())


def expire(storage: Storage, slot: int | None = None) -> None:
    """Let leases run out, as if their owners had been silent."""
    with storage.transaction() as connection:
        change = update(lease_table).values(expires_at=0.0)
        connection.execute(change if slot is None else change.where(lease_table.c.slot == slot))


def set_stop(storage: Storage) -> None:
    """Ask every worker to stop."""
    with storage.transaction() as connection:
        connection.execute(update(worker_table).values(stop=1))


@dataclass(frozen=True)
class FakeEpoch:
    """What a fake trial yields."""

    epoch: int
    value: float

    def row(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "value": self.value}


def curve(number: int, epoch: int) -> float:
    """The value of every fake trial: higher numbers are better, and all improve."""
    return number + 1 - 1.0 / (epoch + 1)


@dataclass
class FakeRun:
    """A trial whose epochs are numbers; its checkpoint is a JSON file named after the lease's token."""

    number: int
    epochs: int
    folder: Path
    token: int
    value_at: Callable[[int, int], float] = curve
    before_epoch: Callable[[FakeRun, int], None] = lambda run, epoch: None
    history: list[dict[str, Any]] = field(default_factory=list)
    trained: list[int] = field(default_factory=list)
    finished: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = sorted(self.folder.glob("last.*.json"), key=lambda path: int(path.name.split(".")[1]))
        if found:
            self.history = json.loads(found[-1].read_text())

    @property
    def epoch(self) -> int:
        return len(self.history)

    def value_of(self, row: dict[str, Any]) -> float:
        return float(row["value"])

    def final_value(self) -> float:
        return self.value_of(self.history[-1])

    def run(self) -> Iterator[FakeEpoch]:
        while self.epoch < self.epochs:
            epoch = self.epoch + 1
            self.before_epoch(self, epoch)
            value = self.value_at(self.number, epoch)
            if math.isnan(value):
                raise Diverged("the training loss", value, self.epoch)
            self.history.append({"epoch": epoch, "value": value})
            self.trained.append(epoch)
            yield FakeEpoch(epoch, value)

    def save(self) -> None:
        write_json(self.folder / f"last.{self.token}.json", self.history)

    def settle(self) -> None:
        pass

    def finish(self, state: str, reason: str) -> None:
        self.finished.append((state, reason))


@dataclass
class Fakes:
    """A factory of fake runs that keeps them."""

    artifacts: Path
    value_at: Callable[[int, int], float] = curve
    before_epoch: Callable[[FakeRun, int], None] = lambda run, epoch: None
    runs: list[FakeRun] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, trial: optuna.Trial, lease: Lease) -> FakeRun:
        trial.suggest_float("x", 0.0, 1.0)
        self.params.append(dict(trial.params))
        folder = RunFolder.of_trial(self.artifacts, lease.study, lease.number).root
        run = FakeRun(lease.number, lease.epochs, folder, lease.token, self.value_at, self.before_epoch)
        self.runs.append(run)
        return run


@dataclass
class Events:
    """A listener that keeps what it hears."""

    heard: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.heard.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


def process_main() -> None:
    """A worker process: `python -m tests.support.fakes URL ARTIFACTS EPOCHS LOG`.

    LOG gets one line "number epoch" for every epoch that this process trained. After EPOCHS of them it waits, in the
    next one, until the file LOG.go is there; LOG.held says that it waits, LOG.asked that it was asked to stop.
    A lease lives for an hour: tests let it expire.
    """
    url, artifacts, epochs, log = sys.argv[1:5]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trained = itertools.count()

    def held(run: FakeRun, epoch: int) -> None:
        if next(trained) == int(epochs):
            Path(f"{log}.held").touch()
            while not Path(f"{log}.go").exists():
                time.sleep(0.02)
                if worker.stop_reason():
                    Path(f"{log}.asked").touch()
        with Path(log).open("a") as stream:
            stream.write(f"{run.number} {epoch}\n")

    with open_storage(url) as storage:
        study = make_study(storage)
        factory = Fakes(Path(artifacts), before_epoch=held)
        timing = Timing(ttl_s=3600.0, poll_s=0.05)
        worker = Worker(study, storage, factory, artifacts=Path(artifacts), timing=timing)
        print(worker.run().kind, flush=True)


if __name__ == "__main__":
    process_main()

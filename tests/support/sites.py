"""Databases with trained studies and their files: what `cvaeopt admin` is tested on."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import typer
from optuna.trial import Trial
from optuna_dashboard import get_note
from sqlalchemy import select

from cvaeopt.commands.admin import app
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.tables import lease_table, study_table
from tests.support.fakes import FakeRun, Fakes, curve, leases
from tests.support.s3 import BUCKET, S3


def admin(command: str, arguments: list[str]) -> None:
    """`cvaeopt admin COMMAND ARGUMENTS...` in this process, with its errors raised."""
    typer.main.get_command(app).main([command, *arguments], standalone_mode=False)


@dataclass
class Site:
    """A database and an artifact folder."""

    url: str
    artifacts: Path

    def open(self) -> Storage:
        return open_storage(self.url)

    def options(self) -> list[str]:
        return ["--storage", self.url, "--artifacts", str(self.artifacts)]


def definition(name: str = "main") -> Definition:
    tables = {
        "study": {"seed": 3},
        "budget": {"trials": 5, "epochs": 4},
        "search": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
        "enqueue": [{"lr": 1e-3}, {"lr": 2e-3}, {"lr": 3e-3}, {"lr": 4e-3}],
    }
    return Definition.parse(tables, name, "test")


def awkward(number: int, epoch: int) -> float:
    """Trial 1 diverges; the others have values that a text format would round."""
    return math.nan if (number, epoch) == (1, 3) else curve(number, epoch) / 3


def train(site: Site, epochs: int | None = None, name: str = "main") -> list[FakeRun]:
    """Train the study at `site`: all of it, or until that many epochs are trained, as a stopped worker leaves it."""
    storage = site.open()
    trained = itertools.count(1)

    def before(run: FakeRun, epoch: int) -> None:
        if next(trained) == epochs:
            worker.stop()

    fakes = Fakes(site.artifacts, awkward, before)
    worker = Worker(create_or_open(storage, definition(name)), storage, fakes, artifacts=site.artifacts)
    worker.run()
    storage.close()
    return fakes.runs


def plain_status(storage: Storage, name: str = "main") -> dict[str, Any]:
    """The status, without what differs between any two looks and databases."""
    shown = status(storage, name)
    for worker in shown["workers"]:
        del worker["beat_age_s"]
    del shown["storage"]
    return shown


def assert_same(first: Site, second: Site, name: str = "main") -> None:
    """Everything a user, a sampler or a worker can see of the study is equal in both databases."""
    here, there = first.open(), second.open()
    one, two = (optuna.load_study(study_name=name, storage=storage) for storage in (here, there))
    for mine, theirs in zip(one.get_trials(), two.get_trials(), strict=True):
        for what in (
            "number", "state", "values", "params", "distributions", "intermediate_values", "user_attrs",
            "system_attrs", "datetime_start", "datetime_complete",
        ):  # fmt: skip
            assert getattr(mine, what) == getattr(theirs, what), (what, mine.number)
        if mine.number < 2:
            notes = [get_note(Trial(study, trial._trial_id)) for study, trial in ((one, mine), (two, theirs))]
            assert notes[0] == notes[1]
    assert one.user_attrs == two.user_attrs
    assert one.metric_names == two.metric_names
    assert one.directions == two.directions
    assert plain_status(here, name) == plain_status(there, name)
    ours = []
    for storage in (here, there):
        with storage.reading() as connection:
            rows = [
                *connection.execute(select(study_table).where(study_table.c.name == name)).mappings(),
                *connection.execute(select(lease_table).where(lease_table.c.study == name)).mappings(),
            ]
        ours.append([{key: row[key] for key in row if key not in ("study_id", "trial_id")} for row in rows])
    assert ours[0] == ours[1]
    here.close()
    there.close()


def assert_continues(site: Site) -> None:
    """A worker resumes the trial that was left and meets the budget exactly."""
    first, *later = train(site)
    assert (first.number, first.trained) == (2, [3, 4])
    assert [run.number for run in later] == [3, 4]
    storage = site.open()
    study = optuna.load_study(study_name="main", storage=storage)
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3, 4]
    assert [trial.params.get("x") is not None for trial in study.trials] == [True] * 5
    assert sorted(study.trials[2].intermediate_values) == [1, 2, 3, 4]
    assert status(storage, "main")["trials"] == {"complete": 4, "pruned": 0, "running": 0, "waiting": 0, "failed": 1}
    assert [row.state for row in leases(storage) if row.study == "main"] == ["done"] * 5
    storage.close()


def everything(site: Site) -> list[str]:
    """The names of the studies in a database."""
    storage = site.open()
    found = sorted(study.study_name for study in storage.get_all_studies())
    storage.close()
    return found


STORE = f"s3://{BUCKET}/lab"


@dataclass
class Lab:
    """The study of `half`, whose workers kept their checkpoints in a bucket, and other people's objects there."""

    site: Site
    s3: S3
    main: str
    other: str

    @property
    def mine(self) -> dict[str, bytes]:
        """The objects of the study."""
        return {
            f"lab/{self.main}/00000/last.1.pt": b"of a complete trial",
            f"lab/{self.main}/00002/last.3.pt": b"of one that was left",
        }

    @property
    def others(self) -> dict[str, bytes]:
        """Objects of others, a study of the same name that was deleted among them."""
        return {
            "lab/main/00000/last.1.pt": b"of a study that was deleted",
            f"lab/{self.main}/x/00000/last.1.pt": b"deeper",
            f"lab/{self.main}/readme": b"text",
            f"lab/{self.other}/00000/last.1.pt": b"other",
        }

    def put(self, key: str, body: bytes) -> None:
        self.s3.own.put_object(Bucket=BUCKET, Key=key, Body=body)

    def objects(self, prefix: str) -> dict[str, bytes]:
        there = self.s3.keys()
        read = self.s3.own.get_object
        return {key: read(Bucket=BUCKET, Key=key)["Body"].read() for key in there if key.startswith(prefix)}


def ranking(site: Site) -> dict[str, Any]:
    """What the confirmations of `made-up` say."""
    storage = site.open()
    found = confirmation(storage, "made-up")
    storage.close()
    assert found is not None
    return found.plain()


FAMILY = ["made-up", "made-up.confirm", "made-up.confirm-2"]

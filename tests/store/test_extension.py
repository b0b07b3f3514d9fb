"""A study goes on under a changed definition: in one order, whole or not at all, and workers follow."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from optuna.trial import TrialState

from cvaeopt.errors import CheckpointError, LeaseLost, StorageUnreachable, StudyError
from cvaeopt.run import trial_run
from cvaeopt.run.events import EpochDone, Event, StudyExtended, WorkerEnded
from cvaeopt.run.worker_process import WorkerProcess
from cvaeopt.search.definition import Definition
from cvaeopt.store import extension, versions
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, newest, require, stored_definition
from cvaeopt.vae import checkpoint
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support.fakes import expire, leases
from tests.support.sites import definition

pytestmark = pytest.mark.usefixtures("uncharted_module")


def changed(before: Definition, **tables: dict[str, Any]) -> Definition:
    """The definition with other values in some tables."""
    plain = before.plain()
    return Definition.parse(
        {**plain, **{name: {**plain[name], **new} for name, new in tables.items()}}, before.name, ""
    )


def with_trials(trials: int) -> Definition:
    return changed(definition(), budget={"trials": trials})


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url, busy_s=0.01)) as opened:
        create_or_open(opened, definition())
        yield opened


@pytest.fixture
def lite(tmp_path: Path, template_file: Path) -> Iterator[Storage]:
    """Where the back end cannot matter."""
    (tmp_path / "x.db").write_bytes(template_file.read_bytes())
    with closing(open_storage(f"sqlite:///{tmp_path}/x.db", busy_s=0.01)) as opened:
        yield opened


def chain(storage: Storage) -> list[versions.Version]:
    return versions.read(storage, require(storage, "main"))


def assert_one_order(known: list[versions.Version]) -> None:
    """Every version names the version before, and their numbers have no gap."""
    assert [one.number for one in known] == list(range(1, len(known) + 1))
    assert [one.before for one in known] == [None, *(one.digest for one in known[:-1])]


def test_a_study_with_more_trials_is_the_same_study(storage: Storage) -> None:
    found = extension.extend(storage, "main", with_trials(8), "anna@lab")
    assert found.changes == ["budget.trials: 5 -> 8"] and found.version == 2
    assert stored_definition(storage, "main").digest() == with_trials(8).digest()
    first, second = chain(storage)
    assert (first.digest, second.digest) == (definition().digest(), with_trials(8).digest())
    assert (second.by, second.before) == ("anna@lab", first.digest)
    registry = LeaseRegistry(storage, "main")
    assert [registry.claim(f"w{index}").number for index in range(8)] == list(range(8))  # type: ignore[union-attr]
    assert isinstance(registry.claim("w8"), Idle)
    shown = status(storage, "main")
    assert shown["budget"]["trials"] == 8
    assert [one["changes"] for one in shown["versions"]] == [[], ["budget.trials: 5 -> 8"]]


def test_of_two_extensions_of_the_same_version_the_second_is_refused(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = extension._before

    def overtaken(storage: Storage, name: str, given: Definition) -> Definition:
        before = read(storage, name, given)
        monkeypatch.setattr(extension, "_before", read)
        extension.extend(storage, name, with_trials(7), "ben@lab")
        return before

    monkeypatch.setattr(extension, "_before", overtaken)
    with pytest.raises(StudyError, match=r"extended to version 2 at the same moment, by ben@lab .*trials: 5 -> 7"):
        extension.extend(storage, "main", with_trials(9), "anna@lab")
    assert [one.by for one in chain(storage)] == ["", "ben@lab"]
    assert status(storage, "main")["budget"]["trials"] == 7
    extension.extend(storage, "main", with_trials(9), "anna@lab")
    assert_one_order(chain(storage))


def test_racing_extensions_end_in_one_order(storage: Storage, ready_url: str) -> None:
    together = threading.Barrier(3)
    made: list[int] = []
    refused: list[str] = []

    def race(trials: int) -> None:
        with closing(open_storage(ready_url)) as own:
            together.wait()
            try:
                made.append(extension.extend(own, "main", with_trials(trials), f"{trials}@lab").version)
            except StudyError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=race, args=(trials,)) for trials in (6, 7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = chain(storage)
    assert_one_order(known)
    assert sorted(made) == [one.number for one in known[1:]] and made
    assert len(made) + len(refused) == 3
    assert all("at the same moment" in text for text in refused)
    assert stored_definition(storage, "main").digest() == known[-1].digest


def test_workers_that_race_an_extension_take_every_trial_once_and_in_one_order(
    storage: Storage, ready_url: str
) -> None:
    together = threading.Barrier(3)
    told: list[str] = []

    def take(worker: str) -> None:
        with closing(open_storage(ready_url)) as own:
            registry = LeaseRegistry(own, "main", digest=definition().digest())
            together.wait()
            for number in range(9):
                claimed = registry.claim(f"{worker}-{number}")
                if isinstance(claimed, Idle) and claimed.kind == "extended":
                    told.append(worker)
                    registry.digest = newest(own, definition())[1][-1].digest

    threads = [threading.Thread(target=take, args=(worker,)) for worker in ("one", "two")]
    for thread in threads:
        thread.start()
    together.wait()
    extension.extend(storage, "main", with_trials(8), "anna@lab")
    for thread in threads:
        thread.join()
    registry = LeaseRegistry(storage, "main", digest=with_trials(8).digest())
    while isinstance(registry.claim(f"rest-{len(leases(storage))}"), Lease):
        pass
    rows = leases(storage)
    assert [row.number for row in rows] == list(range(8))
    with storage.reading() as connection:
        begun = [versions.of_trial(connection, row.trial_id) for row in rows]
    assert begun == sorted(begun) and set(begun[5:]) == {2}  # the first version had five trials
    assert len(told) == len(set(told))  # a worker is told once


def hold(path: str) -> sqlite3.Connection:
    """A connection that keeps every other connection away from the database."""
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    return holder


def test_an_extension_waits_for_the_database_or_changes_nothing(lite: Storage, tmp_path: Path) -> None:
    create_or_open(lite, definition())
    lite._sleep = lambda seconds: None
    holder = hold(f"{tmp_path}/x.db")
    with pytest.raises(StorageUnreachable), lite.patience(0.05):
        extension.extend(lite, "main", with_trials(6), "anna@lab")
    holder.close()
    assert len(chain(lite)) == 1

    holder = hold(f"{tmp_path}/x.db")
    lite._sleep = lambda seconds: holder.close()  # the database comes back while the call waits
    assert extension.extend(lite, "main", with_trials(6), "anna@lab").version == 2
    assert_one_order(chain(lite))


def test_an_extension_whose_acknowledgement_is_lost_is_made_once(
    lite: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_or_open(lite, definition())
    write, lost = extension._write, [True]

    def losing(connection: sqlalchemy.Connection, *arguments: Any) -> None:
        write(connection, *arguments)
        connection.commit()
        if lost.pop():
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, OSError("gone"), connection_invalidated=True)

    monkeypatch.setattr(extension, "_write", losing)
    lite._sleep = lambda seconds: None
    assert extension.extend(lite, "main", with_trials(6), "anna@lab").version == 2
    assert_one_order(chain(lite))
    assert len(chain(lite)) == 2


def test_an_old_worker_that_comes_back_has_lost_its_trial_and_takes_the_new_version(storage: Storage) -> None:
    old = LeaseRegistry(storage, "main", digest=definition().digest())
    lease = old.claim("old")
    assert isinstance(lease, Lease)
    longer = changed(definition(), budget={"trials": 8, "total_epochs": 40})
    extension.extend(storage, "main", longer, "anna@lab")
    expire(storage)
    new = LeaseRegistry(storage, "main", digest=longer.digest())
    taken = new.claim("new")
    assert isinstance(taken, Lease)
    assert (taken.number, taken.version, taken.epochs) == (lease.number, 1, 4)
    with pytest.raises(LeaseLost):
        old.report(lease, 1, 20.0)
    assert old.claim("old") == Idle("extended", "the study's definition has a new version")
    old.digest = newest(storage, definition())[1][-1].digest
    following = old.claim("old")
    assert isinstance(following, Lease)
    assert (following.number, following.version) == (1, 2)
    assert len(leases(storage)) == 2


def test_a_definition_of_no_version_is_refused_and_extend_is_advised(lite: Storage) -> None:
    create_or_open(lite, definition())
    extension.extend(lite, "main", with_trials(6), "anna@lab")
    create_or_open(lite, definition())
    with pytest.raises(StudyError, match=r"created from another definition .*cvaeopt extend --study main"):
        create_or_open(lite, with_trials(7))
    with pytest.raises(StudyError, match="has this definition already"):
        extension.extend(lite, "main", with_trials(6), "anna@lab")


def test_a_plan_writes_nothing(lite: Storage) -> None:
    create_or_open(lite, definition())
    assert extension.plan(lite, "main", with_trials(6)).version == 2
    assert len(chain(lite)) == 1


def test_another_pruner_does_not_compare_trials_at_the_rungs_of_the_earlier_one(lite: Storage) -> None:
    study = create_or_open(lite, definition())
    trial = study.ask()
    lite.set_trial_system_attr(trial._trial_id, "completed_rung_0", 20.0)
    extension.extend(lite, "main", with_trials(6), "anna@lab")
    assert lite.get_trial(trial._trial_id).system_attrs["completed_rung_0"] == 20.0
    halving = Definition.parse(
        {**with_trials(6).plain(), "pruner": {"kind": "halving", "warmup_epochs": 2, "reduction_factor": 2}}, "main", ""
    )
    extension.extend(lite, "main", halving, "anna@lab")
    assert "completed_rung_0" not in lite.get_trial(trial._trial_id).system_attrs


# ---- workers


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than the tiny trainings, and nothing here looks at them."""
    monkeypatch.setattr(trial_run, "trial_artifacts", lambda *arguments, **options: [])


def work(storage: Storage, folder: Path, given: Definition, hear: Callable[[Event], None]) -> list[Event]:
    """The events of a process that trains the study until its budget is met."""
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        hear(event)

    WorkerProcess(storage, tiny.DATA, "cpu", folder, listen, reads_study=False).work(given)
    return heard


def test_a_running_worker_ends_its_trial_and_takes_the_new_version(lite: Storage, tmp_path: Path) -> None:
    small = tiny.definition(budget={"trials": 1, "epochs": 2})
    larger = changed(small, budget={"trials": 2})

    def extend_once(event: Event) -> None:
        if isinstance(event, EpochDone) and (event.number, event.epoch) == (0, 1):
            with closing(open_storage(f"sqlite:///{tmp_path}/x.db")) as other:
                extension.extend(other, "tiny", larger, "anna@lab")

    heard = work(lite, tmp_path / "artifacts", small, extend_once)
    told = [event for event in heard if isinstance(event, StudyExtended)]
    assert told == [StudyExtended("tiny", 1, 2, "anna@lab", ["budget.trials: 1 -> 2"])]
    assert [event.number for event in heard if isinstance(event, EpochDone)] == [0, 0, 1, 1]
    assert [event.trials for event in heard if isinstance(event, WorkerEnded)] == [2]
    trials = create_or_open(lite, small).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [trial.system_attrs.get(versions.OF_TRIAL) for trial in trials] == [None, 2]

    # A worker with the older file joins with the newest version, and says so.
    extension.extend(lite, "tiny", changed(small, budget={"trials": 3}), "anna@lab")
    heard = work(lite, tmp_path / "artifacts", larger, lambda event: None)
    assert [event.known for event in heard if isinstance(event, StudyExtended)] == [2]
    assert {event.number for event in heard if isinstance(event, EpochDone)} == {2}


def state(path: Path) -> dict[str, Any]:
    """A checkpoint without what may differ between two runs: times and provenance."""
    payload = checkpoint.read(path)
    own = {key: payload["cvaeopt"][key] for key in ("epoch", "config", "training")}
    history = [{**row, "seconds": 0} for row in payload["cvaeopt"]["history"]]
    return {**payload, "cvaeopt": {**own, "history": history}}


def assert_equal(one: Any, other: Any) -> None:
    """Both are equal, every tensor bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


def test_a_trial_that_continues_is_bit_equal_to_one_trained_in_one_go(lite: Storage, tmp_path: Path) -> None:
    schedules = {"lr_scheduler": "constant", "kl_anneal_type": "none", "tfr": 0.5, "tfr_sde": 1, "ema": 0.9}
    short = tiny.definition(budget={"trials": 1, "epochs": 2}, fixed=schedules)
    whole = changed(short, budget={"epochs": 4})
    work(lite, tmp_path / "extended", short, lambda event: None)
    folder = tmp_path / "extended" / "tiny" / "00000"
    assert checkpoint.read(folder / "last.pt")["cvaeopt"]["epoch"] == 2
    done = extension.extend(lite, "tiny", whole, "anna@lab", lambda number: (folder / "last.pt").exists())
    assert done.continues == [0]
    heard = work(lite, tmp_path / "extended", short, lambda event: None)
    assert [event.epoch for event in heard if isinstance(event, EpochDone)] == [3, 4]

    with closing(open_storage(f"sqlite:///{tmp_path}/y.db")) as other:
        work(other, tmp_path / "whole", whole, lambda event: None)
        values = [create_or_open(one, whole).trials[0] for one in (lite, other)]
    assert_equal(state(folder / "last.pt"), state(tmp_path / "whole" / "tiny" / "00000" / "last.pt"))
    assert values[0].value == values[1].value
    assert values[0].intermediate_values == values[1].intermediate_values


def test_a_checkpoint_of_other_schedules_is_not_continued(tmp_path: Path) -> None:
    trainer = Trainer(tiny.config(lr_scheduler="cosine"), tiny.DATA)
    list(trainer.run(2))
    trainer.save(tmp_path / "last.pt")
    longer = tiny.config(lr_scheduler="cosine", num_epoch=6)
    assert checkpoint.newest([tmp_path / "last.pt"], longer, tiny.DATA.digest, longer=True) is None
    with pytest.raises(CheckpointError, match="num_epoch = 4"):
        Trainer(longer, tiny.DATA).restore(tmp_path / "last.pt", longer=True)

"""Files belong to one study, whatever other studies had, or have, its name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import column, delete, table

from cvaeopt.errors import StudyError, StudyGone
from cvaeopt.outcome.leaders import confirmation, rank
from cvaeopt.run.events import EpochDone
from cvaeopt.run.objective import Objective
from cvaeopt.run.retention import tidy
from cvaeopt.run.worker import Worker
from cvaeopt.store import identity
from cvaeopt.store.confirmation import confirmations, plan, register
from cvaeopt.store.identity import MARKER, Identity
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, identity_of
from cvaeopt.store.tables import lease_table
from cvaeopt.store.workers import Beat, Place
from testbed.tiny import DATA, definition, new_study
from tests.support.fakes import Events, FakeRun, Fakes, leases

pytestmark = pytest.mark.usefixtures("uncharted_module")


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


def delete_study(storage: Storage, name: str = "tiny") -> None:
    """What the dashboard does: Optuna's rows go, ours stay."""
    storage.delete_study(storage.get_study_id_from_name(name))


def forget_identity(storage: Storage, study: optuna.Study) -> None:
    """Make the study one of a version that knew no identities."""
    attributes = table("study_system_attributes", column("study_id"), column("key"))
    with storage.transaction() as connection:
        connection.execute(
            delete(attributes).where(attributes.c.study_id == study._study_id, attributes.c.key == identity.KEY)
        )


def test_a_study_that_was_deleted_and_started_again_is_trained_anew_and_loses_no_file(
    storage: Storage, tmp_path: Path
) -> None:
    first = create_or_open(storage, definition())
    first.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=1)
    kept = {path: path.read_bytes() for path in tmp_path.glob("tiny/**/*") if path.is_file()}
    delete_study(storage)
    second = create_or_open(storage, definition())
    run = Objective(definition(), DATA, artifacts=tmp_path).open(second.ask(), token=1)
    assert run.epoch == 0 and run.resumed_from is None
    second.optimize(Objective(definition(), DATA, artifacts=tmp_path), n_trials=2)
    tidy(second, tmp_path, 0)
    assert {path: path.read_bytes() for path in kept} == kept
    assert run.folder.root.parent == identity.of(second).find(tmp_path) != tmp_path / "tiny"


def test_the_files_of_a_study_of_an_older_version_are_continued(storage: Storage, tmp_path: Path) -> None:
    study = create_or_open(storage, definition())
    forget_identity(storage, study)
    trial = study.ask()
    # Nothing in the folder, nor in the checkpoint, says whose they are.
    run = Objective(definition(), DATA, artifacts=tmp_path).open(trial, token=1)
    run.identity = Identity("tiny")
    next(run.run())
    run.save()
    (tmp_path / "tiny" / MARKER).unlink()
    forget_identity(storage, study)
    again = create_or_open(storage, definition())
    known = identity.of(again)
    assert known.is_old and known.objects == "tiny"
    assert create_or_open(storage, definition()) is not None and identity.of(again) == known
    assert Objective(definition(), DATA, artifacts=tmp_path).open(trial, token=2).epoch == 1
    # Once it is deleted, its files are nobody's.
    delete_study(storage)
    new = create_or_open(storage, definition())
    assert identity.of(new).find(tmp_path) != tmp_path / "tiny"


def test_a_checkpoint_of_another_study_is_not_continued_wherever_it_was_copied(tmp_path: Path) -> None:
    one = Objective(definition(), DATA, artifacts=tmp_path / "a").open(new_study().ask(), token=1)
    next(one.run())
    one.save()
    study = new_study()
    trial = study.ask()
    other = Objective(definition(), DATA, artifacts=tmp_path / "b").open(trial, token=1)
    (other.folder.root / "last.1.pt").write_bytes((one.folder.root / "last.1.pt").read_bytes())
    assert Objective(definition(), DATA, artifacts=tmp_path / "b").open(trial, token=2).epoch == 0


@given(st.permutations(["a" * 12, "b" * 12, "old-" + "c" * 12, "old-" + "d" * 12]), st.booleans(), st.booleans())
def test_every_study_has_a_folder_of_its_own_that_stays(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], unmarked: bool, empty: bool
) -> None:
    artifacts = tmp_path_factory.mktemp("artifacts")
    if unmarked or empty:
        (artifacts / "main").mkdir()
    if unmarked:
        (artifacts / "main" / "00000").mkdir()
    folders = {value: Identity("main", value).claim(artifacts) for value in order}
    new = [value for value in order if not value.startswith("old-")]
    assert len({folders[value] for value in new}) == len(new)
    for value, folder in folders.items():
        assert Identity("main", value).claim(artifacts) == Identity("main", value).find(artifacts) == folder
        assert folder.parent == artifacts
    # A new study never gets files of which nobody knows whose they are.
    assert not unmarked or all(folders[value] != artifacts / "main" for value in new)
    assert not list(artifacts.glob(".*"))


def test_workers_that_start_at_once_agree_on_the_folder(tmp_path: Path) -> None:
    values = ["a" * 12, "b" * 12]
    found: dict[str, set[Path]] = {value: set() for value in values}
    gate = threading.Barrier(8)

    def claim(value: str) -> None:
        gate.wait()
        found[value].add(Identity("main", value).claim(tmp_path))

    threads = [threading.Thread(target=claim, args=(values[index % 2],)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(folders) == 1 for folders in found.values())
    assert found[values[0]] != found[values[1]]


@given(st.one_of(st.text(), st.integers(), st.lists(st.text()), st.just("../../etc/12")))
def test_a_damaged_identity_is_refused_by_name_and_never_becomes_a_path(value: object) -> None:
    with pytest.raises(StudyError, match="Study 'main': its attribute 'cvaeopt:identity' is damaged"):
        identity.stated("main", value)


def test_a_worker_ends_when_its_study_is_deleted_and_leaves_the_files(storage: Storage, tmp_path: Path) -> None:
    study = create_or_open(storage, definition())

    def gone(run: FakeRun, epoch: int) -> None:
        if epoch == 3:
            delete_study(storage)

    heard = Events()
    worker = Worker(study, storage, Fakes(tmp_path, before_epoch=gone), artifacts=tmp_path, listener=heard)
    with pytest.raises(StudyGone, match="'tiny' was deleted") as caught:
        worker.run()
    assert caught.value.exit_code == 2 and "files of its trials stay" in caught.value.todo
    assert max(event.epoch for event in heard.of(EpochDone)) >= 2
    assert list(tmp_path.glob("tiny/00000/last.1.json"))


@pytest.mark.parametrize("name", ["tiny", "other"])
def test_a_worker_never_touches_a_study_that_got_the_numbers_of_its_own(
    storage: Storage, tmp_path: Path, name: str
) -> None:
    """SQLite gives the ids of a deleted study, and of its trials, to the next one."""
    study = create_or_open(storage, definition())
    registry = LeaseRegistry(storage, "tiny")
    lease = registry.claim("old", Place("host", 1, ""))
    delete_study(storage)
    if name == "tiny":
        new = create_or_open(storage, definition())
        LeaseRegistry(storage, "tiny").claim("new", Place("host", 2, ""))
    else:
        new = optuna.create_study(storage=storage, study_name="other", direction="maximize")
        new.ask()
    before = [(one.state, one.intermediate_values) for one in new.get_trials()]
    for call in (
        lambda: registry.report(lease, 1, 20.0),
        lambda: registry.renew(lease),
        lambda: registry.release(lease),
        lambda: registry.finish(lease, "complete", "", 3),
    ):
        with pytest.raises(Exception, match="another worker"):
            call()
    assert not registry.beat("old", Beat("running"), lease).held
    with pytest.raises(StudyGone):
        registry.claim("old", Place("host", 1, ""))
    with pytest.raises(StudyGone):
        registry.check_lost(lease)
    assert [(one.state, one.intermediate_values) for one in new.get_trials()] == before
    assert study._study_id is not None


def test_a_worker_ends_when_the_row_of_its_lease_is_deleted(storage: Storage, tmp_path: Path) -> None:
    study = create_or_open(storage, definition())

    def drop(run: FakeRun, epoch: int) -> None:
        if epoch == 2:
            with storage.transaction() as connection:
                connection.execute(delete(lease_table))

    worker = Worker(study, storage, Fakes(tmp_path, before_epoch=drop), artifacts=tmp_path)
    with pytest.raises(StudyError, match=r"Study 'tiny': the row of trial 0 \(slot 0\) is no longer in cvaeopt_lease"):
        worker.run()
    assert leases(storage) == []


def test_the_confirmations_of_a_deleted_study_are_not_those_of_the_next(storage: Storage) -> None:
    def searched() -> None:
        study = create_or_open(storage, definition())
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)})
        study.tell(trial, 20.0)

    searched()
    register(storage, plan(storage, "tiny", 1, 2))
    assert [one.name for one in confirmations(storage, definition())] == ["tiny.confirm"]
    delete_study(storage)
    searched()
    assert confirmations(storage, definition()) == [] and confirmation(storage, "tiny") is None
    register(storage, plan(storage, "tiny", 1, 2))
    (found,) = confirmations(storage, definition())
    assert found.name == "tiny.confirm-2" and found.confirms == f"tiny@{identity_of(storage, 'tiny').value}"


def test_a_confirmation_without_a_run_is_not_over() -> None:
    assert not rank(["tiny.confirm"], []).over

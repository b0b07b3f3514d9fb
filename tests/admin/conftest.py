"""Studies that are backed up, moved, deleted and upgraded."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.trial import Trial, TrialState
from optuna_dashboard import save_note

from cvaeopt.run.dashboard_notes import DASHBOARD_STORE
from cvaeopt.search.definition import Definition
from cvaeopt.store import confirmation as confirmations
from cvaeopt.store.study import create_or_open, identity_of
from testbed.postgres import Postgres
from tests.support import made_up
from tests.support.s3 import S3
from tests.support.sites import (
    STORE,
    Lab,
    Site,
    everything,
    train,
)

_numbers = itertools.count()


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[Callable[[], str]]:
    """Makes new, empty PostgreSQL databases."""
    made: list[str] = []

    def make() -> str:
        made.append(f"care_{next(_numbers)}")
        return postgres.new_database(made[-1])

    yield make
    for name in made:
        postgres.drop_database(name)


@pytest.fixture
def half(original: Path, tmp_path: Path) -> Site:
    """A study that was stopped in the middle: trials complete, diverged, left at epoch 2, waiting; on SQLite."""
    shutil.copytree(original, tmp_path / "here")
    return Site(f"sqlite:///{tmp_path}/here/cvaeopt.db", tmp_path / "here" / "artifacts")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `half` copies."""
    folder = tmp_path_factory.mktemp("care")
    site = Site(f"sqlite:///{folder}/cvaeopt.db", folder / "artifacts")
    # Another study first, so that ids differ from those of a copy.
    train(site, 3, "other")
    train(site, 4 + 3 + 2)
    storage = site.open()
    study = optuna.load_study(study_name="main", storage=storage)
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.RUNNING,
        TrialState.WAITING,
    ]
    store = FileSystemArtifactStore(site.artifacts / DASHBOARD_STORE)
    store_path = site.artifacts / DASHBOARD_STORE
    store_path.mkdir(parents=True, exist_ok=True)
    for trial in trials[:2]:
        live = Trial(study, trial._trial_id)
        save_note(live, f"the note of trial {trial.number} " + "x" * 3000)
    picture = site.artifacts / "main" / "00002" / "curve.png"
    picture.write_bytes(b"a picture")
    upload_artifact(artifact_store=store, file_path=str(picture), study_or_trial=Trial(study, trials[2]._trial_id))
    study.set_user_attr("remark", {"nested": [1, 2.5, None, "ü"]})
    storage.close()
    return folder


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def confirmed(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    """A searched study, `made-up`, of which one confirmation is over and one is registered, beside another study."""
    url = f"sqlite:///{tmp_path}/here.db"
    if request.param == "postgres":
        url = request.getfixturevalue("databases")()
    site = Site(url, tmp_path / "files")
    storage = site.open()
    for name in ("made-up.confirmed", "made-up"):  # the first one only sounds like a confirmation
        made = made_up.definition()
        create_or_open(storage, Definition.parse(made.plain(), name, "test")).add_trials(made_up.trials(6))
    for seeds in (2, 3):
        registered = confirmations.plan(storage, "made-up", 2, seeds)
        confirmations.register(storage, registered)
        if seeds == 2:
            made_up.run_all(
                storage, "made-up.confirm", lambda params: 30 + 100 * params["lr"] + params["seed"] % 7 / 10
            )
    for name in everything(site):
        path = identity_of(storage, name).claim(site.artifacts) / "00000" / "history.jsonl"
        path.parent.mkdir()
        path.write_text(name)
    storage.close()
    return site


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    made = S3.launch()
    yield made
    made.stop()


@pytest.fixture
def lab(half: Site, server: S3, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.clear()
    storage = half.open()
    made = Lab(half, server, *(identity_of(storage, name).objects for name in ("main", "other")))
    for key, body in {**made.mine, **made.others}.items():
        made.put(key, body)
    study = optuna.load_study(study_name="main", storage=storage)
    storage.set_trial_user_attr(study.trials[2]._trial_id, "checkpoints", f"{STORE}/{made.main}/00002")
    storage.close()
    return made

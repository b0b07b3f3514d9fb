"""Whatever stands in the database, a command works or says which row is damaged; it never ends as an internal error."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvaeopt.errors import CvaeoptError, StudyDamaged
from cvaeopt.outcome.export import export_best
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.outcome.report import report
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store import damage
from cvaeopt.store.confirmation import plan, register
from cvaeopt.store.leases import Idle, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import counts, status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, open_existing, record_facts
from cvaeopt.store.workers import Place
from tests.support.fakes import FakeRun

pytestmark = pytest.mark.usefixtures("uncharted_module")

NOW = datetime(2026, 1, 1, tzinfo=UTC)

DEFINITION = Definition.parse(
    {
        "study": {"seed": 7},
        "budget": {"trials": 12, "epochs": 3, "patience_trials": 20},
        "fixed": {"F_dim": 8},
        "search": {
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "batch_size": {"type": "int", "low": 1, "high": 4},
            "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "none"]},
        },
        "sampler": {"kind": "gp", "n_startup_trials": 2},
        "pruner": {"kind": "forecast", "warmup_epochs": 1, "interval_epochs": 1, "n_startup_trials": 2},
    },
    "main",
    "test",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one study that has trials of every state, facts, leases, a worker and a confirmation."""
    path = tmp_path_factory.mktemp("whole") / "x.db"
    with closing(open_storage(f"sqlite:///{path}")) as storage:
        study = create_or_open(storage, DEFINITION)
        record_facts(storage, "main", "data", lambda: {"copy_first": 20.0, "train_mean": 19.0})
        registry = LeaseRegistry(storage, "main")
        registry.register("worker", Place("host", 1, ""), "cpu")
        for number in range(6):
            lease = registry.claim("worker", Place("host", 1, ""))
            assert not isinstance(lease, Idle)
            trial = optuna.trial.Trial(study, lease.trial_id)
            suggest(DEFINITION, trial)
            for epoch in (1, 2, 3)[: 3 if number < 4 else 2]:
                registry.report(lease, epoch, 20.0 + number + epoch / 10, (epoch, "host"))
            trial.set_user_attr("seed", number)
            trial.set_user_attr("epochs_done", 3)
            trial.set_user_attr("reason", "all epochs trained")
            trial.set_user_attr("seconds", 3.0)
            trial.set_user_attr("versions", {"cvaeopt": "1"})
            for key in ("diverged", "crashed"):
                trial.set_constraint(key, 0.0)
            if number == 5:
                break  # it is running
            study.tell(
                trial, 20.0 + number if number < 4 else None, None if number < 4 else optuna.trial.TrialState.PRUNED
            )
            registry.finish(lease, "complete" if number < 4 else "pruned", "all epochs trained", 3)
        register(storage, plan(storage, "main", 2, 2))
    return path


def work(storage: Storage, folder: Path) -> None:
    """What a worker does, its sampler and pruner included."""
    study, definition = open_existing(storage, "main")

    def make(trial: optuna.Trial, lease: Any) -> FakeRun:
        suggest(definition, trial)
        return FakeRun(lease.number, lease.epochs, folder, lease.token)

    worker = Worker(study, storage, make, artifacts=folder, timing=Timing(poll_s=0.01))

    def heard(event: object) -> None:
        if type(event).__name__ in ("TrialEnded", "TrialLeft", "Waiting"):
            worker.stop()

    worker._listener = heard
    worker.run()


ENTRIES = {
    "status": lambda storage, folder: (status(storage, "main"), confirmation(storage, "main"), counts(storage, "main")),
    "export": lambda storage, folder: export_best(storage, "main", folder / "best.toml", now=NOW),
    "report": lambda storage, folder: report(storage, "main", folder / "report", artifacts=folder, now=NOW),
    "claim": lambda storage, folder: LeaseRegistry(storage, "main").claim("other", Place("host", 2, "")),
    "plan": lambda storage, folder: plan(storage, "main", 3, 3),
    "facts": lambda storage, folder: record_facts(storage, "main", "data", dict),
    "open": lambda storage, folder: create_or_open(storage, DEFINITION),
    "work": work,
}
QUICK = [name for name in ENTRIES if name not in ("report", "export")]

TABLES = [
    "trials",
    "trial_values",
    "trial_intermediate_values",
    "trial_params",
    "trial_user_attributes",
    "trial_system_attributes",
    "study_system_attributes",
    "study_directions",
    "cvaeopt_study",
    "cvaeopt_lease",
    "cvaeopt_worker",
]
KEPT = {"trial_id", "study_id", "study_name", "name", "study", "key", "param_name", "id"}
"""Columns that say whose row it is: with another value it is another study's row, and no damage of this one."""

values = st.one_of(
    st.none(),
    st.sampled_from(["", "text", "{", "[]", "[1, 2]", "{}", '"text"', "null", "NaN", "1e999", "-1", '{"a": [null]}']),
    st.integers(-5, 10**12),
    st.floats(allow_nan=False),
    st.binary(max_size=4),
    st.text(max_size=6),
)


def mutate(path: Path, draw: st.DataObject) -> str:
    """Change, or delete, one row of the database; what was done."""
    with closing(sqlite3.connect(path)) as raw, raw:
        name = draw.draw(st.sampled_from(TABLES), label="table")
        own = [row[1] for row in raw.execute(f"PRAGMA table_info({name})") if row[1] not in KEPT and not row[5]]
        rows = [row[0] for row in raw.execute(f"SELECT rowid FROM {name}")]
        row = draw.draw(st.sampled_from(rows), label="row")
        if name in ("trial_values", "trial_params", "trial_user_attributes") and draw.draw(st.booleans(), label="gone"):
            raw.execute(f"DELETE FROM {name} WHERE rowid = ?", (row,))
            return f"{name} {row} deleted"
        column = draw.draw(st.sampled_from(own), label="column")
        value = draw.draw(values, label="value")
        raw.execute(f"UPDATE OR IGNORE {name} SET {column} = ? WHERE rowid = ?", (value, row))
        return f"{name}.{column} = {value!r}"


def copied(whole: Path, folder: Path) -> Path:
    path = folder / "x.db"
    for ending in ("", "-wal", "-shm"):
        Path(f"{path}{ending}").unlink(missing_ok=True)
        if Path(f"{whole}{ending}").exists():
            shutil.copy(f"{whole}{ending}", f"{path}{ending}")
    return path


def attempt(path: Path, folder: Path, entry: str) -> None:
    with closing(open_storage(f"sqlite:///{path}", limit_s=1.0)) as storage:
        try:
            ENTRIES[entry](storage, folder)
        except CvaeoptError as error:
            assert error.exit_code in (2, 3), error


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data(), entry=st.sampled_from(QUICK))
def test_a_command_on_a_damaged_database_works_or_says_why_not(
    whole: Path, tmp_path: Path, draw: st.DataObject, entry: str
) -> None:
    path = copied(whole, tmp_path)
    mutate(path, draw)
    attempt(path, tmp_path, entry)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(draw=st.data(), entry=st.sampled_from(["report", "export"]))
def test_what_is_written_from_a_damaged_database_is_written_or_refused(
    whole: Path, tmp_path: Path, draw: st.DataObject, entry: str
) -> None:
    path = copied(whole, tmp_path)
    mutate(path, draw)
    attempt(path, tmp_path, entry)


@pytest.fixture
def spoilt(whole: Path, tmp_path: Path) -> Iterator[Any]:
    """Runs one statement on a copy of the database and opens it."""
    opened: list[Storage] = []

    def spoil(statement: str, *values: Any) -> Storage:
        path = copied(whole, tmp_path)
        with closing(sqlite3.connect(path)) as raw, raw:
            assert raw.execute(statement, values).rowcount
        opened.append(open_storage(f"sqlite:///{path}"))
        return opened[-1]

    yield spoil
    for storage in opened:
        storage.close()


DAMAGES = {
    "a definition that is no JSON": (
        "UPDATE cvaeopt_study SET definition = '{' WHERE name = 'main'",
        "Study 'main': a row of cvaeopt_study is damaged (definition = '{')",
        status,
    ),
    "a definition that is a list": (
        "UPDATE cvaeopt_study SET definition = '[]' WHERE name = 'main'",
        "Study 'main': a row of cvaeopt_study is damaged (definition = '[]')",
        status,
    ),
    "facts that are no JSON": (
        "UPDATE cvaeopt_study SET facts = 'x' WHERE name = 'main'",
        "Study 'main': a row of cvaeopt_study is damaged (facts = 'x')",
        status,
    ),
    "a baseline that is text": (
        """UPDATE cvaeopt_study SET facts = '{"baselines": {"copy_first": "high"}}' WHERE name = 'main'""",
        "a row of cvaeopt_study is damaged (facts",
        status,
    ),
    "text where a value belongs": (
        "UPDATE trial_values SET value = 'high' WHERE trial_id = 2",
        "Study 'main', trial 1: a row of trial_values is damaged (value = 'high')",
        status,
    ),
    "a missing value": (
        "DELETE FROM trial_values WHERE trial_id = 2",
        "Study 'main', trial 1: a row of trial_values is damaged (no row)",
        lambda storage, name: plan(storage, name, 3, 3),
    ),
    "an attribute that is no JSON": (
        "UPDATE trial_user_attributes SET value_json = 'x' WHERE trial_id = 2 AND key = 'reason'",
        "Study 'main', trial 1: a row of trial_user_attributes is damaged ('reason': value_json = 'x')",
        status,
    ),
    "an attribute that is a list": (
        "UPDATE trial_user_attributes SET value_json = '[1]' WHERE trial_id = 4 AND key = 'epochs_done'",
        "Study 'main', trial 3: a row of trial_user_attributes is damaged ('epochs_done' = '[1]')",
        lambda storage, name: export_best(storage, name, Path("never.toml"), now=NOW),
    ),
    "constraints of text": (
        """UPDATE trial_system_attributes SET value_json = '"bad"' WHERE trial_id = 2 AND key LIKE 'constraints%'""",
        "Study 'main', trial 1: a row of trial_system_attributes is damaged",
        lambda storage, name: plan(storage, name, 3, 3),
    ),
    "a number of epochs that is text": (
        "UPDATE cvaeopt_study SET trials = 'many' WHERE name = 'main'",
        "a row of cvaeopt_study is damaged (trials = 'many')",
        lambda storage, name: LeaseRegistry(storage, name).claim("w"),
    ),
    "a lease that ends at no time": (
        "UPDATE cvaeopt_lease SET expires_at = 'soon' WHERE state = 'open'",
        "a row of cvaeopt_lease is damaged (expires_at = 'soon')",
        lambda storage, name: LeaseRegistry(storage, name).claim("w"),
    ),
    "a worker that began at no time": (
        "UPDATE cvaeopt_worker SET beat_at = 'now'",
        "a row of cvaeopt_worker is damaged (beat_at = 'now')",
        status,
    ),
    "a range that is none": (
        """UPDATE trial_params SET distribution_json = '{"name": "x"}' WHERE trial_id = 2 AND param_name = 'lr'""",
        "Study 'main', trial 1: a row of trial_params is damaged ('lr': distribution_json",
        lambda storage, name: plan(storage, name, 3, 3),
    ),
    "a choice that is none": (
        "UPDATE trial_params SET param_value = 7 WHERE trial_id = 2 AND param_name = 'kl_anneal_type'",
        "Study 'main', trial 1: a row of trial_params is damaged ('kl_anneal_type' = 7",
        lambda storage, name: plan(storage, name, 3, 3),
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_row_is_named_with_its_study(spoilt: Any, kind: str) -> None:
    statement, said, command = DAMAGES[kind]
    with pytest.raises(StudyDamaged) as caught:
        command(spoilt(statement), "main")
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_nothing_is_damaged_in_a_whole_database(whole: Path) -> None:
    with closing(open_storage(f"sqlite:///{whole}")) as storage:
        assert damage.find(storage, "main") is None and damage.find(storage, "main.confirm") is None

"""Optuna's private parts: where this program expects them, and that one module alone touches them."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import create_trial
from sqlalchemy.sql.expression import TableClause

import cvaeopt
from cvaeopt.store import optuna_private, optuna_rows
from cvaeopt.store.optuna_private import READING, WRITING

PACKAGE = Path(cvaeopt.__file__).parent

METHODS: dict[str, tuple[Any, str]] = {
    "_create_new_trial": (RDBStorage, "self study_id template_trial"),
    "_get_trials": (RDBStorage, "self study_id states included_trial_ids trial_id_greater_than"),
    "_get_best_trial_id": (RDBStorage, "self study_id direction"),
    "_set_trial_param": (
        RDBStorage,
        "self trial_id param_name param_value_internal distribution previous_distribution",
    ),
    "_get_prepared_new_trial": (RDBStorage, "self study_id template_trial session"),
    "_set_trial_intermediate_value_without_commit": (RDBStorage, "self session trial_id step intermediate_value"),
    "_build_frozen_trial_from_trial_model": (RDBStorage, "self trial"),
    "_contains": (BaseDistribution, "self param_value_in_internal_repr"),
}
ATTRIBUTES = ("_study_id", "_storage", "_thread_local", "_trial_id")


@pytest.mark.parametrize("name", METHODS)
def test_a_private_method_of_optuna_takes_what_we_give_it(name: str) -> None:
    owner, arguments = METHODS[name]
    method = getattr(owner, name, None)
    assert method is not None, f"this Optuna has no {owner.__name__}.{name}: change store/optuna_private.py"
    found = " ".join(inspect.signature(method).parameters)
    assert found == arguments, f"{owner.__name__}.{name} takes other arguments: change store/optuna_private.py"


@pytest.mark.parametrize("name", [*READING, *WRITING])
def test_a_method_that_is_repeated_is_one_of_optunas(name: str) -> None:
    assert callable(getattr(RDBStorage, name, None)), f"RDBStorage has no {name}: change store/optuna_private.py"


def test_every_call_of_optuna_to_its_database_is_repeated() -> None:
    """What Optuna adds to its storages must be repeated too, or named here with the reason why it is not."""
    calling_others = {"create_new_trial", "get_all_trials", "get_best_trial", "get_n_trials", "get_trial_params",
                      "get_trial_number_from_id", "get_trial_user_attrs", "check_trial_is_updatable"}  # fmt: skip
    local = {"remove_session"}
    heartbeat = {"record_heartbeat", "get_heartbeat_interval", "get_failed_trial_callback",
                 "get_heartbeat_stale_trial_callback"}  # fmt: skip
    versions = {"upgrade", "get_current_version", "get_head_version", "get_all_versions"}
    public = {name for name, _ in inspect.getmembers(RDBStorage, inspect.isfunction) if not name.startswith("_")}
    ours = {*READING, *WRITING, "set_trial_state_values"}
    assert public - ours - calling_others - local - heartbeat - versions == set()


@pytest.mark.parametrize("table", ["STUDIES", "STUDY_ATTRS", "TRIALS", "PARAMS", "VALUES", "STEPS", "USER_ATTRS",
                                   "SYSTEM_ATTRS"])  # fmt: skip
def test_the_columns_that_we_read_exist(table: str) -> None:
    ours: TableClause = getattr(optuna_rows, table)
    theirs = models.BaseModel.metadata.tables.get(ours.name)
    assert theirs is not None, f"this Optuna has no table {ours.name}: change store/optuna_rows.py"
    missing = set(ours.c.keys()) - set(theirs.c.keys())
    assert not missing, f"the table {ours.name} has no {sorted(missing)}: change store/optuna_rows.py"


def test_the_private_attributes_mean_what_we_read_in_them() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="one", storage=storage)
    assert optuna_private.storage_of(study).get_study_name_from_id(optuna_private.id_of(study)) == "one"
    trial = study.ask()
    assert storage.get_trial(optuna_private.trial_id_of(trial)).number == trial.number
    assert optuna_private.trial_id_of(study.trials[0]) == optuna_private.trial_id_of(trial)
    assert optuna_private.contains(FloatDistribution(0, 1), 1.0)
    assert not optuna_private.contains(FloatDistribution(0, 1), 1.5)


def test_the_trials_that_a_thread_has_read_can_be_forgotten() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="one", storage=storage)

    def known() -> int:
        return len(study._get_trials(deepcopy=False, use_cache=True))

    assert known() == 0
    optuna.load_study(study_name="one", storage=storage).add_trial(create_trial(value=1.0))
    assert known() == 0
    optuna_private.forget_trials(study)
    assert known() == 1


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_touches_a_private_part_of_optuna(path: Path) -> None:
    if path == PACKAGE / "store" / "optuna_private.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna"):
            words = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            assert not any(word.startswith("_") for word in words), f"line {node.lineno}: {words}"
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            assert node.attr not in (*METHODS, *ATTRIBUTES), f"line {node.lineno}: {node.attr}"

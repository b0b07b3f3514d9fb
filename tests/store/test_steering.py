"""A study is steered while it runs: points are enqueued; on every SQL back end."""

from __future__ import annotations

import pytest
from optuna.trial import Trial, TrialState

from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.steering import enqueue
from cvaeopt.store.study import create_or_open
from tests.support.fakes import leases

SEARCH = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "tfr": {"type": "categorical", "choices": [0.0, 0.5, 1.0]},
    "tfr_sde": {"type": "int", "low": 0, "high": 6, "step": 2, "when": {"tfr": [0.5, 1.0]}},
}


@pytest.fixture
def storage(ready_url):
    with open_storage(ready_url) as opened:
        yield opened


def define(name="main", **changes) -> Definition:
    tables = {"study": {"seed": 3}, "budget": {"trials": 4, "epochs": 8}, "search": SEARCH}
    return Definition.parse({**tables, **changes}, name, f"studies/{name}.toml")


def begun(storage, study, definition) -> list[dict[str, object]]:
    """The settings of all trials that workers begin until the budget is met, in their order."""
    registry, found = LeaseRegistry(storage, study.study_name), []
    while isinstance(lease := registry.claim(f"worker-{len(found)}"), Lease):
        study.get_trials()  # as a worker does: Optuna's cache of ids needs them
        trial = Trial(study, lease.trial_id)
        suggest(definition, trial)
        found.append(dict(trial.params))
        study.tell(trial, 20.0)
        registry.finish(lease, "complete", "done", 8)
    assert isinstance(lease, Idle)
    return found


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_enqueued_points_run_first_and_the_sampler_fills_what_they_leave_out(storage, kind):
    definition = define(sampler={"kind": kind}, enqueue=[{"lr": 5e-3}])
    study = create_or_open(storage, definition)
    made = enqueue(storage, "main", [{"lr": 0.001, "tfr": 0}, {"tfr": 1, "tfr_sde": 4}])
    assert made.points == made.added == [{"lr": 0.001, "tfr": 0.0}, {"tfr": 1.0, "tfr_sde": 4}]
    assert (made.waiting, made.free) == (3, 4)
    study.enqueue_trial({"lr": 2e-3, "tfr": 0.5})  # Optuna's own way is taken beside ours
    trained = begun(storage, study, definition)
    assert [one["lr"] for one in trained[:2]] == [5e-3, 1e-3]
    assert trained[1] == {"lr": 1e-3, "tfr": 0.0}
    assert trained[2].items() >= {"tfr": 1.0, "tfr_sde": 4}.items()
    assert 1e-4 <= trained[2]["lr"] <= 1e-2
    assert trained[3].items() >= {"lr": 2e-3, "tfr": 0.5}.items() and trained[3]["tfr_sde"] in (0, 2, 4, 6)
    assert len(trained) == len(leases(storage)) == 4  # every point was one of the budget's trials


def test_a_point_that_waits_already_is_not_added_again(storage):
    study = create_or_open(storage, define())
    assert len(enqueue(storage, "main", [{"lr": 1e-3}, {"tfr": 0.5}]).added) == 2
    again = enqueue(storage, "main", [{"lr": 0.001}, {"lr": 2e-3}])
    assert (again.added, again.waiting) == ([{"lr": 2e-3}], 3)
    assert enqueue(storage, "main", [{"lr": 3e-3}], dry_run=True).added == [{"lr": 3e-3}]
    assert [trial.state for trial in study.get_trials()] == [TrialState.WAITING] * 3


def test_a_point_beyond_the_budget_waits_and_the_answer_says_how_much_room_there_is(storage):
    definition = define(budget={"trials": 1, "epochs": 8})
    study = create_or_open(storage, definition)
    begun(storage, study, definition)
    made = enqueue(storage, "main", [{"lr": 1e-3}])
    assert (made.waiting, made.free) == (1, 0)
    assert isinstance(LeaseRegistry(storage, "main").claim("late"), Idle)
    assert study.get_trials()[-1].state == TrialState.WAITING


def test_a_lost_acknowledgement_adds_no_point_twice(storage, monkeypatch):
    study = create_or_open(storage, define())
    retry = storage.retry
    monkeypatch.setattr(storage, "retry", lambda call: (retry(call), retry(call))[1])
    made = enqueue(storage, "main", [{"lr": 1e-3}])
    assert (made.added, made.waiting) == ([{"lr": 1e-3}], 1)
    assert len(study.get_trials()) == 1


REFUSED = [
    ({"lr": 1.0}, r"point 1: lr = 1\.0\. Expected: 0\.0001 to 0\.01"),
    ({"tfr": 0.7}, r"tfr = 0\.7\. Expected: one of 0\.0, 0\.5, 1\.0"),
    ({"tfr": 0.5, "tfr_sde": 3}, r"Expected: 0 to 6 in steps of 2"),
    ({"tfr": 0.0, "tfr_sde": 2}, r"not searched at this point"),
    ({"lrr": 1.0}, r"Did you mean 'lr'"),
    ({"optim": "SGD"}, r"does not search optim: it is 'Adam' in every trial"),
    ({"num_epoch": 9}, r"does not search num_epoch: it is 8 in every trial"),
    ({}, r"is empty"),
]


def test_a_point_outside_the_space_is_refused_with_the_range(storage):
    study = create_or_open(storage, define())
    for point, said in REFUSED:
        with pytest.raises(SettingsError, match=said):
            enqueue(storage, "main", [point])
    assert study.get_trials() == []


def test_studies_whose_points_are_planned_take_no_others(storage):
    grid = {"tfr": SEARCH["tfr"]}
    create_or_open(storage, define("grid", search=grid, sampler={"kind": "grid"}, budget={"trials": 3, "epochs": 8}))
    with pytest.raises(StudyError, match="is a grid"):
        enqueue(storage, "grid", [{"tfr": 0.5}])
    with pytest.raises(StudyError, match="has no study 'other'"):
        enqueue(storage, "other", [{"tfr": 0.5}])

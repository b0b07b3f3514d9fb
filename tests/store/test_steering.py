"""A study is steered while it runs: points are enqueued and trials stopped; on every SQL back end."""

from __future__ import annotations

import pytest
from optuna.trial import Trial, TrialState

from cvaeopt.errors import LeaseLost, SettingsError, StudyError, UserError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.store.leases import Idle, Lease, LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import counts, status
from cvaeopt.store.steering import STOP, enqueue, stop_trial
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


# ---- single trials


def test_a_waiting_trial_ends_at_once_and_counts_as_one_of_the_studys_trials(storage):
    definition = define()
    study = create_or_open(storage, definition)
    enqueue(storage, "main", [{"lr": 1e-3}, {"lr": 2e-3}])
    assert stop_trial(storage, "main", 0, dry_run=True).ended
    assert counts(storage, "main")["waiting"] == 2
    answer = stop_trial(storage, "main", 0)
    assert (answer.ended, answer.epochs_done, answer.worker) == (True, 0, None)
    assert len(begun(storage, study, definition)) == 3  # of the budget of four
    facts = status(storage, "main")
    assert facts["trials"] == {"complete": 3, "pruned": 1, "running": 0, "waiting": 0, "failed": 0}
    assert facts["stopped_by_hand"] == [0]
    assert [row.epochs_reserved for row in leases(storage)] == [0, 8, 8, 8]


def test_a_trial_that_its_worker_gave_back_ends_at_once_and_frees_its_epochs(storage):
    study = create_or_open(storage, define())
    registry = LeaseRegistry(storage, "main")
    lease = registry.claim("one")
    registry.report(lease, 1, 20.0)
    registry.report(lease, 2, 21.0)
    registry.release(lease)
    assert stop_trial(storage, "main", 0).plain() == {
        "study": "main",
        "trial": 0,
        "ended": True,
        "epochs_done": 2,
        "worker": None,
    }
    trial = study.get_trials()[0]
    assert (trial.state, trial.user_attrs["reason"], trial.user_attrs["epochs_done"]) == (
        TrialState.PRUNED,
        "stopped by hand",
        2,
    )
    assert [(row.state, row.outcome, row.epochs_reserved) for row in leases(storage)] == [("done", "pruned", 2)]
    with pytest.raises(LeaseLost):
        registry.report(lease, 3, 22.0)
    assert registry.claim("two").number == 1


def test_a_trial_in_training_is_asked_through_the_database(storage):
    study = create_or_open(storage, define())
    lease = LeaseRegistry(storage, "main").claim("far-away-1-ab")
    assert stop_trial(storage, "main", 0, dry_run=True).worker == "far-away-1-ab"
    assert STOP not in study.get_trials()[0].system_attrs
    answer = stop_trial(storage, "main", 0)
    assert (answer.ended, answer.worker) == (False, "far-away-1-ab")
    assert STOP in storage.get_trial(lease.trial_id).system_attrs
    assert stop_trial(storage, "main", 0) == answer  # asked again: the same answer


def test_a_trial_that_has_ended_or_is_another_programs_is_answered_clearly(storage, monkeypatch):
    definition = define()
    study = create_or_open(storage, definition)
    begun(storage, study, definition)
    with pytest.raises(UserError, match="Trial 3 of study 'main' has ended already: complete"):
        stop_trial(storage, "main", 3)
    with pytest.raises(StudyError, match=r"has no trial 9\. It has the trials 0 to 3"):
        stop_trial(storage, "main", 9)
    study.ask()
    with pytest.raises(UserError, match="trained by another program"):
        stop_trial(storage, "main", 4)
    enqueue(storage, "main", [{"lr": 1e-3}])
    retry = storage.retry
    monkeypatch.setattr(storage, "retry", lambda call: (retry(call), retry(call))[1])
    assert stop_trial(storage, "main", 5).ended  # the acknowledgement was lost, and the call repeated
    monkeypatch.undo()
    with pytest.raises(UserError, match="pruned \\(stopped by hand\\)"):
        stop_trial(storage, "main", 5)
    assert len(leases(storage)) == 4  # never more than the budget

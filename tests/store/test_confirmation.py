"""Which repeats a confirmation asks for, and that it is a study like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import params_to_config, trial_seed
from cvaeopt.store import confirmation
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, identity_of, names, open_existing, stored_definition
from cvaeopt.store.workers import Place


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as opened:
        yield opened


def parent(**tables: object) -> Definition:
    return Definition.parse(
        {
            "study": {"seed": 7, "window": 2},
            "budget": {"trials": 6, "epochs": 10, "total_epochs": 60, "wall_clock_h": 5.0},
            "fixed": {"F_dim": 8, "tfr_sde": 2},
            "search": {
                "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                "tfr": {"type": "float", "low": 0.0, "high": 1.0},
                "tfr_d_step": {"type": "float", "low": 0.0, "high": 0.5},
            },
            "pruner": {"kind": "median", "n_startup_trials": 1, "warmup_epochs": 2, "interval_epochs": 1},
            **tables,
        },
        "main",
        "test",
    )


def trial(value: float, lr: float, tfr: float = 0.5, tfr_d_step: float = 0.1, failed: str = "") -> FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED if failed else TrialState.COMPLETE,
        value=None if failed else value,
        params={"lr": lr, "tfr": tfr, "tfr_d_step": tfr_d_step},
        distributions={
            "lr": FloatDistribution(1e-4, 1e-2, log=True),
            "tfr": FloatDistribution(0, 1),
            "tfr_d_step": FloatDistribution(0, 0.5),
        },
        user_attrs={"failed": failed} if failed else {},
    )


SEARCHED = [
    trial(28.0, 1e-3),
    trial(30.0, 2e-3),
    trial(29.0, 3e-3),
    trial(0.0, 4e-3, failed="diverged"),
    trial(26.0, 2e-3),  # the same settings as the best one
    trial(27.0, 5e-3),
]


def searched(storage: Storage, definition: Definition | None = None) -> optuna.Study:
    study = create_or_open(storage, definition or parent())
    study.add_trials(SEARCHED)
    return study


def confirmed(storage: Storage, top: int, seeds: int | None) -> confirmation.Plan:
    planned = confirmation.plan(storage, "main", top, seeds)
    confirmation.register(storage, planned)
    return planned


def test_leaders_are_different_settings_and_repeats_sharpen_their_estimate(storage: Storage) -> None:
    found = confirmation.plan(storage, "main", 9, 1).leaders if searched(storage) else ()
    assert [one.trials for one in found] == [(2,), (0,), (1, 4), (5,)]  # 29; 28; (30 + 26) / 2; 27
    assert [one.searched for one in found] == [29.0, 28.0, 28.0, 27.0]


def test_settings_that_differ_in_what_has_no_effect_are_the_same(storage: Storage) -> None:
    definition = parent()
    unforced = [{"lr": 1e-3, "tfr": 0.0, "tfr_d_step": step} for step in (0.1, 0.4)]
    forced = [{**params, "tfr": 0.5} for params in unforced]
    one, other = (space.key_of(definition, params) for params in unforced)
    assert one == other
    one, other = (space.key_of(definition, params) for params in forced)
    assert one != other


def test_a_confirmation_is_a_study_of_the_same_settings_and_fresh_seeds(storage: Storage) -> None:
    definition = parent(fixed={"F_dim": 8, "tfr_sde": 2, "seed": 5})
    searched(storage, definition)
    planned = confirmed(storage, 2, 3)
    found = stored_definition(storage, "main.confirm")
    assert found == planned.definition
    assert (found.budget.trials, found.epochs, found.budget.total_epochs) == (6, 10, None)
    assert found.pruner.kind == "none" and found.window == 2
    assert found.confirms == f"main@{identity_of(storage, 'main').value}"
    points = found.points()
    assert len(points) == 6
    runs = [params_to_config(found, point, number) for number, point in enumerate(points)]
    assert {run.seed for run in runs} == set(planned.seeds) and len(set(planned.seeds)) == 3
    assert not {trial_seed(7, number) for number in range(100)} & set(planned.seeds)
    for leader in planned.leaders:  # the trial's own settings but for the seed, each with every seed
        own = params_to_config(definition, leader.params, leader.trials[0]).plain()
        mine = [run.plain() for run in runs if space.key_of(found, points[runs.index(run)]) == leader.key]
        assert [{**run, "seed": 0} for run in mine] == [{**own, "seed": 0}] * 3
    assert {point["lr"] for point in points[:2]} == {leader.params["lr"] for leader in planned.leaders}


def test_workers_take_every_run_of_a_confirmation_once(storage: Storage) -> None:
    searched(storage)
    planned = confirmed(storage, 2, 2)
    registry = LeaseRegistry(storage, "main.confirm")
    claimed = []
    for worker in ("a", "b", "c", "d"):
        registry.register(worker, Place(worker, 1, ""), "cpu")
        claimed.append(registry.claim(worker))
    assert registry.claim("e").kind == "wait"
    study, found = open_existing(storage, "main.confirm")
    study.get_trials()
    runs = [optuna.trial.Trial(study, lease.trial_id) for lease in claimed]
    assert [{name: found.search[name].suggest(name, run) for name in found.search} for run in runs] == found.points()
    assert [one.name for one in confirmation.unfinished(storage, stored_definition(storage, planned.study))] == [
        "main.confirm"
    ]


def test_repeating_the_command_changes_nothing_and_asking_for_more_adds_only_what_is_missing(storage: Storage) -> None:
    searched(storage)
    confirmed(storage, 2, 2)
    again = confirmed(storage, 2, 2)
    assert again.definition is None and again.registered == ("main.confirm",)
    assert confirmed(storage, 1, 1).definition is None
    more = confirmed(storage, 3, 3)
    assert more.definition is not None and more.definition.name == "main.confirm-2"
    assert more.new_runs == 9 - 4
    assert confirmed(storage, 3, 3).definition is None
    assert names(storage) == ["main", "main.confirm", "main.confirm-2"]
    every = [point for one in confirmation.confirmations(storage, parent()) for point in one.points()]
    assert len(every) == len({(point["lr"], point["seed"]) for point in every}) == 9


def finished(storage: Storage, name: str, values: dict[float, float]) -> None:
    """End every run of a confirmation with the value of its lr; a run without one diverges."""
    study, found = open_existing(storage, name)
    for point in found.points():
        run = study.ask()
        for key, dimension in found.search.items():
            dimension.suggest(key, run)
        value = values.get(point["lr"])
        study.tell(run, value, state=TrialState.COMPLETE if value is not None else TrialState.PRUNED)


def test_a_successive_confirmation_trains_all_once_and_then_the_best_two_again(storage: Storage) -> None:
    searched(storage)
    planned = confirmed(storage, 9, None)
    assert planned.successive and (planned.new_runs, planned.later_runs) == (4, 4)
    definition = stored_definition(storage, "main")
    assert confirmation.later_runs(storage, definition) == 4
    confirmation.advance(storage, definition)
    assert names(storage) == ["main", "main.confirm"], "the first stage is not over"
    again = confirmed(storage, 9, None)
    assert (again.definition, again.later_runs) == (None, 4)
    finished(storage, "main.confirm", {1e-3: 30.0, 2e-3: 31.0, 3e-3: 29.0})  # 5e-3 diverges
    for _ in range(2):  # as two workers do
        confirmation.advance(storage, definition)
    assert names(storage) == ["main", "main.confirm", "main.confirm-2"]
    second = stored_definition(storage, "main.confirm-2").points()
    assert {(point["lr"], point["seed"]) for point in second} == {
        (lr, seed) for lr in (1e-3, 2e-3) for seed in planned.seeds[1:]
    }
    assert confirmation.later_runs(storage, definition) == 0
    finished(storage, "main.confirm-2", {1e-3: 20.0, 2e-3: 20.0})  # their rank after all runs changes nothing
    confirmation.advance(storage, definition)
    assert names(storage) == ["main", "main.confirm", "main.confirm-2"]
    assert confirmed(storage, 9, 3).new_runs == 12 - 8, "the full grid can be asked for afterwards"


def test_workers_that_come_at_the_same_moment_register_the_second_stage_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(storage)
    confirmed(storage, 3, None)
    finished(storage, "main.confirm", {1e-3: 30.0, 2e-3: 31.0, 3e-3: 29.0})
    definition = stored_definition(storage, "main")
    before = confirmation._namesakes(storage, "main")
    confirmation.advance(storage, definition)
    with monkeypatch.context() as late:  # the other worker has read the studies before this one registered any
        late.setattr(confirmation, "_namesakes", lambda *_: before)
        confirmation.advance(storage, definition)
    assert names(storage) == ["main", "main.confirm", "main.confirm-2"]
    assert len(open_existing(storage, "main.confirm-2")[0].get_trials()) == 4


def test_the_second_stage_can_be_asked_for_by_hand(storage: Storage) -> None:
    searched(storage)
    confirmed(storage, 3, None)
    finished(storage, "main.confirm", {1e-3: 30.0, 2e-3: 31.0, 3e-3: 29.0})
    planned = confirmed(storage, 3, None)
    assert (planned.new_runs, planned.later_runs) == (4, 0)


def test_a_first_stage_without_a_value_has_no_second(storage: Storage) -> None:
    searched(storage)
    confirmed(storage, 2, None)
    finished(storage, "main.confirm", {})
    definition = stored_definition(storage, "main")
    confirmation.advance(storage, definition)
    assert confirmation.later_runs(storage, definition) == 0 and names(storage) == ["main", "main.confirm"]


def test_a_full_grid_has_no_second_stage(storage: Storage) -> None:
    searched(storage)
    assert confirmed(storage, 2, 1).later_runs == 0
    finished(storage, "main.confirm", {1e-3: 30.0, 2e-3: 31.0, 3e-3: 29.0})
    confirmation.advance(storage, stored_definition(storage, "main"))
    assert names(storage) == ["main", "main.confirm"]


def test_the_parents_trials_and_sampler_are_not_disturbed(storage: Storage) -> None:
    study = searched(storage)
    before = [(one.number, one.state, one.values) for one in study.get_trials()]
    confirmed(storage, 2, 2)
    assert [(one.number, one.state, one.values) for one in study.get_trials()] == before


def test_a_confirmation_of_an_earlier_study_of_the_same_name_is_passed_over(storage: Storage) -> None:
    searched(storage)
    confirmed(storage, 1, 1)
    storage.delete_study(storage.get_study_id_from_name("main"))
    other = parent(fixed={"F_dim": 16, "tfr_sde": 2})
    searched(storage, other)
    assert confirmation.confirmations(storage, other) == []
    planned = confirmed(storage, 1, 1)
    assert planned.definition is not None and planned.definition.name == "main.confirm-2"


def test_what_cannot_be_confirmed_says_why(storage: Storage) -> None:
    with pytest.raises(StudyError, match="no study 'main'"):
        confirmation.plan(storage, "main", 1, 1)
    create_or_open(storage, parent())
    with pytest.raises(StudyError, match="has no complete trial"):
        confirmation.plan(storage, "main", 1, 1)
    open_existing(storage, "main")[0].add_trials(SEARCHED)
    confirmed(storage, 1, 1)
    with pytest.raises(StudyError, match=r"is a confirmation itself.*cvaeopt confirm --study main"):
        confirmation.plan(storage, "main.confirm", 1, 1)
    with pytest.raises(SettingsError, match=r"--seeds 0"):
        confirmation.plan(storage, "main", 1, 0)


def test_two_that_register_at_once_register_the_same_runs_once(storage: Storage) -> None:
    searched(storage)
    one, other = (confirmation.plan(storage, "main", 2, 2) for _ in range(2))
    wider = confirmation.plan(storage, "main", 3, 2)
    confirmation.register(storage, one)
    confirmation.register(storage, other)
    assert len(open_existing(storage, "main.confirm")[0].get_trials()) == 4
    with pytest.raises(StudyError, match="Run the same command again"):
        confirmation.register(storage, wider)


def test_only_a_confirmation_may_search_the_seed() -> None:
    search = {"seed": {"type": "int", "low": 0, "high": 9}}
    with pytest.raises(SettingsError, match="'seed' cannot be searched"):
        parent(search=search)
    found = parent(search=search, study={"confirms": "main@0123456789ab"})
    assert Definition.parse(found.plain(), "main", "again") == found
    with pytest.raises(SettingsError, match="confirms"):
        parent(study={"confirms": "main"})


def test_an_ordinary_definition_keeps_its_digest() -> None:
    assert "confirms" not in parent().plain()["study"]

"""Search space: conditions, grids, corners, and the way from a trial to a Config."""

from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition


def define(search, **tables):
    budget = tables.pop("budget", {"trials": 5, "epochs": 30})
    return Definition.parse({"budget": budget, "search": search, **tables}, "test", "studies/test.toml")


LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
KIND = {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]}
CYCLE = {"type": "int", "low": 2, "high": 8, "when": {"kl_anneal_type": ["cyclical"]}}


def test_a_fixed_trial_becomes_the_settings_it_names():
    definition = define({"lr": LR, "batch_size": {"type": "int", "low": 1, "high": 4}}, fixed={"tfr": 0.5})
    config = space.suggest(definition, FixedTrial({"lr": 2e-3, "batch_size": 3}, number=7))
    assert (config.lr, config.batch_size, config.tfr, config.num_epoch) == (2e-3, 3, 0.5, 30)
    assert config.seed == space.trial_seed(0, 7)
    assert config == space.params_to_config(definition, {"lr": 2e-3, "batch_size": 3}, 7)


def test_a_running_trial_stores_exactly_what_is_searched():
    definition = define({"lr": LR, "kl_anneal_cycle": CYCLE, "kl_anneal_type": KIND})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    kinds = set()
    for _ in range(20):
        trial = study.ask()
        config = space.suggest(definition, trial)
        kinds.add(config.kl_anneal_type)
        expected = {"lr", "kl_anneal_type"}
        if config.kl_anneal_type == "cyclical":
            expected.add("kl_anneal_cycle")
        else:
            assert config.kl_anneal_cycle == Config.model_fields["kl_anneal_cycle"].default
        assert set(trial.params) == expected
        assert config == space.params_to_config(definition, trial.params, trial.number)
        study.tell(trial, 0.0)
    assert kinds == {"cyclical", "monotonic", "none"}


def test_conditions_nest_and_a_hidden_parent_hides_its_children():
    definition = define(
        {
            "momentum": {"type": "float", "low": 0.1, "high": 0.9, "when": {"optim": ["SGD"]}},
            "optim": {"type": "categorical", "choices": ["Adam", "SGD"], "when": {"output": ["linear"]}},
            "output": {"type": "categorical", "choices": ["linear", "sigmoid"]},
        }
    )
    assert space.order(definition.search) == ["output", "optim", "momentum"]
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(30):
        trial = asked.ask()
        space.suggest(definition, trial)
        seen.add(tuple(sorted(trial.params)))
        asked.tell(trial, 0.0)
    assert seen == {("output",), ("optim", "output"), ("momentum", "optim", "output")}


def test_a_condition_may_read_a_fixed_setting():
    definition = define(
        {"lr": LR, "gamma": {"type": "float", "low": 0.5, "high": 0.9, "when": {"optim": ["SGD"]}}},
        fixed={"optim": "SGD"},
    )
    trial = optuna.create_study().ask()
    space.suggest(definition, trial)
    assert set(trial.params) == {"lr", "gamma"}


def test_the_grid_holds_every_point_once_in_a_stated_order():
    search = {
        "tfr": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.5},
        "batch_size": {"type": "int", "low": 2, "high": 6, "step": 4},
    }
    definition = define(search, sampler={"kind": "grid"}, budget={"trials": 6, "epochs": 2})
    assert [tuple(point.values()) for point in definition.points()] == [
        (0.0, 2), (0.0, 6), (0.5, 2), (0.5, 6), (1.0, 2), (1.0, 6),
    ]  # fmt: skip


def test_a_conditional_grid_has_no_doubled_points():
    search = {"kl_anneal_type": KIND, "kl_anneal_cycle": CYCLE | {"low": 5, "high": 6}}
    definition = define(search, sampler={"kind": "grid"}, budget={"trials": 4, "epochs": 30})
    assert definition.points() == [
        {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 5},
        {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 6},
        {"kl_anneal_type": "monotonic"},
        {"kl_anneal_type": "none"},
    ]


@given(st.integers(1, 5000), st.integers(0, 40), st.integers(-3000, 3000))
def test_every_value_of_a_stepped_range_is_one_that_optuna_knows(thousandths, count, low):
    low, high, step = low / 1000, (low + thousandths * count) / 1000, thousandths / 1000
    dimension = space.FloatDimension(type="float", low=low, high=high, step=step)
    values = dimension.every()
    assert len(values) == count + 1
    assert (values[0], values[-1]) == (low, high)
    distribution = optuna.distributions.FloatDistribution(low, high, step=step)  # warns if step does not fit
    assert all(dimension.contains(value) and distribution._contains(value) for value in values)


def test_corners_are_the_ends_of_ranges_and_all_choices():
    definition = define({"lr": LR, "kl_anneal_type": KIND, "kl_anneal_cycle": CYCLE})
    points = list(space.corners(definition.search, definition.fixed))
    assert len(points) == 2 * (2 + 1 + 1)
    assert {point["lr"] for point in points} == {1e-4, 1e-2}


def test_many_corners_are_sampled_the_same_way_each_time():
    search = {
        name: space.CategoricalDimension(type="categorical", choices=list(range(8)))
        for name in ("batch_size", "tfr_sde", "kl_anneal_cycle", "F_dim", "N_dim")
    }
    points = list(space.corners(search, {}))
    assert len(points) == space.MAX_CORNERS
    assert points == list(space.corners(search, {}))
    assert {point["F_dim"] for point in points} == set(range(8))


def test_trials_of_a_study_have_seeds_of_their_own_on_every_machine():
    seeds = {space.trial_seed(study, number) for study in range(20) for number in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert space.trial_seed(1, 42) == 1539610402  # hashed, so the same in every process and version


def test_a_common_seed_is_the_first_one_of_every_trial():
    definition = define({"lr": LR}, study={"seeds": "common", "seed": 5})
    seeds = {space.params_to_config(definition, {"lr": 1e-3}, number).seed for number in range(20)}
    assert seeds == {space.trial_seed(5, 0)}
    assert space.params_to_config(definition, {"lr": 1e-3}, 3, seed=17).seed == 17


def test_a_fixed_seed_is_every_trial_s_seed():
    definition = define({"lr": LR}, fixed={"seed": 100})
    assert space.params_to_config(definition, {"lr": 1e-3}, 3).seed == 100


def test_parameters_of_another_study_are_refused():
    definition = define({"lr": LR})
    with pytest.raises(SettingsError, match="does not search 'tfr'"):
        space.params_to_config(definition, {"lr": 1e-3, "tfr": 0.5}, 3)


def test_every_condition_of_effect_is_explained():
    values = space.settled({}, {})
    without = {
        name
        for name in Config.model_fields
        if not all(
            space.has_effect(name, values | change)
            for change in (
                {"kl_anneal_type": "none"},
                {"tfr": 0.0},
                {"batch_size": 1},
                {"tfr_d_step": 0.0},
                {"lr_scheduler": "constant"},
                {"optim": "Adam"},
                {"val_noise": "zero"},
            )
        )
    }
    assert without == set(space.NEEDS)
    assert set(space.NOT_SEARCHED) <= set(Config.model_fields)


def test_a_setting_without_effect_is_one_that_changes_no_run_of_the_study() -> None:
    assert {"kl_formula", "kl_anneal_cycle", "gamma", "momentum"} <= space.without_effect(
        {}, {"kl_anneal_type": "none", "lr_scheduler": "constant", "optim": "Adam"}
    )
    definition = define({"kl_anneal_type": KIND, "lr": LR})
    assert "kl_anneal_cycle" not in space.without_effect(definition.search, definition.fixed)
    assert "momentum" not in space.without_effect({}, {"optim": "SGD"})

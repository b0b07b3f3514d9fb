"""What mattered, and whether the space was wide enough: simulated studies whose truth is known."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.outcome.bounds import at_bounds
from cvaeopt.outcome.importance import MIN_CERTAINTY, importances
from cvaeopt.search.definition import Definition
from cvaeopt.suggest.sampler import cube_of
from tests.support.made_up import definition, trials

RATIO = {"type": "float", "low": 0.0, "high": 1.0}
SIX = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "tfr": RATIO,
    "tfr_d_step": RATIO | {"low": 0.01},
    "tfr_sde": {"type": "int", "low": 5, "high": 20},
    "kl_anneal_ratio": RATIO | {"low": 0.1},
    "kl_anneal_cycle": {"type": "int", "low": 2, "high": 12},
}


def six_settings() -> Definition:
    tables = {"study": {"window": 5}, "budget": {"trials": 60, "epochs": 60}, "search": SIX}
    return Definition.parse(tables, "six", "test")


def searched(chosen: Definition, seed: int, gain: float, best_at: float = 0.65) -> list[FrozenTrial]:
    """Forty trials of a search that concentrates near its best one and stops what stands low; lr alone matters.

    gain   how much lr can lose, about, dB
    """
    draw, cube = np.random.default_rng(seed), cube_of(chosen)
    made: list[FrozenTrial] = []
    best, leader = -np.inf, np.zeros(cube.width)
    for number in range(40):
        far = number < 12 or draw.random() < 0.2
        point = draw.random(cube.width) if far else np.clip(leader + draw.normal(0, 0.12, cube.width), 0, 1)
        point = cube.settled(point[None])[0]
        level = 30 - gain * (2 * (point[0] - best_at)) ** 2 + draw.normal(0, 0.5)
        curve = level - 5 * np.exp(-np.arange(1, 61) / 12) + draw.normal(0, 0.3, 60)
        stopped = number >= 8 and level < best - 1
        value = None if stopped else float(curve[-5:].mean())
        trial = create_trial(
            state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
            value=value,
            params=cube.values(point),
            distributions=cube.space,
            intermediate_values=dict(enumerate(curve[: 25 if stopped else 60].tolist(), 1)),
        )
        trial.number = number
        made.append(trial)
        if value is not None and value > best:
            best, leader = value, point
    return made


def first_by_ped_anova(made: list[FrozenTrial]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is experimental
        study = optuna.create_study(direction="maximize")
        study.add_trials([trial for trial in made if trial.state == TrialState.COMPLETE])
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return max(shares, key=lambda name: shares[name])


def test_the_one_setting_that_matters_ranks_first_where_ped_anova_does_not_see_it() -> None:
    chosen, ours, others = six_settings(), 0, 0
    for seed in range(8):
        made = searched(chosen, seed, gain=2.0)
        ours += importances(chosen, made)[0].name == "lr"
        others += first_by_ped_anova(made) == "lr"
    assert ours >= 7 and others <= 4


def test_where_nothing_matters_the_trials_cannot_tell() -> None:
    chosen = six_settings()
    certain = [importances(chosen, searched(chosen, seed, gain=0.0))[0].certainty for seed in range(8)]
    assert sum(one >= MIN_CERTAINTY for one in certain) <= 2


def test_the_curve_of_a_setting_lies_within_its_band_where_trials_were_complete() -> None:
    chosen, inside = six_settings(), []
    for seed in range(8):
        (effect,) = (one for one in importances(chosen, searched(chosen, seed, gain=3.0)) if one.name == "lr")
        places = np.log(np.array(effect.values) / 1e-4) / np.log(100)
        miss = np.abs(effect.effect - 30 + 3 * (2 * (places - 0.65)) ** 2)
        inside.append(np.mean((miss < 2 * effect.error)[places > 0.25]))
    assert np.mean(inside) > 0.8


def test_importance_is_a_share_with_its_interval_and_needs_ten_trials() -> None:
    shown = trials(60)
    found = importances(definition(), shown)
    assert found[0].name == "tfr"
    assert sum(one.share for one in found) == pytest.approx(1)
    assert sum(one.certainty for one in found) == pytest.approx(1)
    assert all(0 <= one.low <= one.share <= one.high <= 1 for one in found)
    assert found == sorted(found, key=lambda one: -one.share)
    assert importances(definition(), shown[:9]) == []


def test_a_setting_that_is_searched_under_a_condition_has_an_effect_there() -> None:
    search = {
        "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "none"]},
        "kl_anneal_ratio": RATIO | {"low": 0.1, "when": {"kl_anneal_type": ["cyclical"]}},
        "lr": SIX["lr"],
    }
    chosen = Definition.parse({"budget": {"trials": 60, "epochs": 30}, "search": search}, "when", "test")
    cube, draw, made = cube_of(chosen), np.random.default_rng(0), []
    for number, point in enumerate(cube.settled(cube.random(draw, 50))):
        params = {name: value for name, value in cube.values(point).items() if cube.searches(name, point)}
        value = 25 + 4 * params.get("kl_anneal_ratio", 0.5) + draw.normal(0, 0.1)
        distributions = {name: cube.space[name] for name in params}
        made.append(create_trial(value=value, params=params, distributions=distributions))
        made[-1].number = number
    first = importances(chosen, made)[0]
    assert first.name == "kl_anneal_ratio"
    assert first.effect[-1] - first.effect[0] == pytest.approx(4 * 0.9, abs=1.0)


def test_a_bound_that_the_best_trials_lie_at_is_named_and_a_limit_of_the_setting_is_not() -> None:
    chosen = six_settings()
    low, high = (at_bounds(chosen, searched(chosen, 1, 8.0, best_at=place)) for place in (-0.2, 1.2))
    assert "lr: 10 of the best 10 trials lie within 5% of its upper end, 0.01; raise it." in high
    assert "lr: 10 of the best 10 trials lie within 5% of its lower end, 0.0001; lower it." in low
    assert not [one for one in at_bounds(chosen, searched(chosen, 1, 8.0)) if one.startswith("lr")]
    made = searched(chosen, 1, 8.0)
    for trial in made:
        trial.params["tfr"] = 0.0  # a ratio: nothing lies below
    assert not [one for one in at_bounds(chosen, made) if one.startswith("tfr:")]

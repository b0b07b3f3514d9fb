"""Trials read with plain queries are those that Optuna reads, on both back ends."""

from __future__ import annotations

import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.store import optuna_rows
from cvaeopt.store.opening import open_storage

DISTRIBUTIONS = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "kind": CategoricalDistribution(["a", 2, 3.5, True, "ü"]),
    "cycles": IntDistribution(1, 9, step=2),
    "tfr": FloatDistribution(0.0, 1.0, step=0.25),
}


def drawn(draw: random.Random) -> FrozenTrial:
    state = draw.choice(list(TrialState))
    values = {"lr": 2e-3, "kind": draw.choice(["a", 2, 3.5, True, "ü"]), "cycles": draw.choice([1, 5, 9]), "tfr": 0.25}
    names = draw.sample(list(values), draw.randint(0, len(values)))
    numbers = (30.0, -1.5, math.inf, -math.inf)
    return create_trial(
        state=state,
        value=draw.choice(numbers) if state == TrialState.COMPLETE else None,
        params={name: values[name] for name in names},
        distributions={name: DISTRIBUTIONS[name] for name in names},
        intermediate_values={step: draw.choice((*numbers, math.nan)) for step in draw.sample(range(300), 6)},
        user_attrs=draw.choice([{}, {"host": "ü", "list": [1, {"a": None}]}]),
        system_attrs=draw.choice([{}, {"constraints:diverged": 1.0}]),
    )


def texts(trials: list[FrozenTrial]) -> list[str]:
    """Trials in words, the epochs in order: NaN is not equal to itself."""
    for trial in trials:
        trial.intermediate_values = dict(sorted(trial.intermediate_values.items()))
    return [repr(trial) for trial in trials]


def test_the_trials_are_those_that_optuna_reads(ready_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_rows, "_MAX_IDS", 7)  # so that several queries are needed
    draw = random.Random(0)
    with open_storage(ready_url) as storage:
        optuna.create_study(study_name="other", storage=storage).add_trials([drawn(draw) for _ in range(5)])
        study = optuna.create_study(study_name="one", storage=storage)
        study.add_trials([drawn(draw) for _ in range(40)])
        ids = [trial._trial_id for trial in study.trials]
        for states in (None, (TrialState.COMPLETE, TrialState.PRUNED), (TrialState.RUNNING,)):
            for included, newer_than in ((set(), -1), (set(ids[:20]), ids[25]), (set(ids), ids[3]), (set(), ids[-1])):
                found = storage._get_trials(study._study_id, states, included, newer_than)
                expected = RDBStorage._get_trials(storage, study._study_id, states, included, newer_than)
                assert texts(found) == texts(expected)
        assert len(storage._get_trials(study._study_id, None, set(), -1)) == 40


def test_a_study_that_is_not_there_is_a_key_error_and_an_empty_one_is_not(ready_url: str) -> None:
    with open_storage(ready_url) as storage:
        study = optuna.create_study(study_name="one", storage=storage)
        assert storage._get_trials(study._study_id, None, set(), -1) == []
        with pytest.raises(KeyError):
            storage._get_trials(study._study_id + 1, None, set(), -1)

"""Methods of other packages for `bench/replay.py`: one worker each, on their own ask-and-tell interfaces."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.worlds import World
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import CategoricalDimension, FloatDimension, Values

WINDOW = 1  # epochs of a value: these methods take the last one
LEAST_EPOCHS = 60 / 27  # Hyperband's smallest share of a training: three rungs below it

Read = Callable[[int, float, float], None]
"""Takes the epochs spent, the truth of the recommendation and the value that is reported for it."""


def skopt(world: World, definition: Definition, budget: int, seed: int, read: Read) -> int:
    """`gp_minimize` as seed report 001 used it: full trainings, its moving average; how many were begun.

    Asked and told by hand, so that it learns the setting that was trained. Its defaults but for two that only cost
    time: 10,000 candidates and 5 restarts of its inner optimiser.
    """
    from skopt import Optimizer

    optimizer = Optimizer(
        [_skopt_dimension(one) for one in definition.search.values()],
        "GP",
        n_initial_points=10,
        acq_func="gp_hedge",
        acq_optimizer_kwargs={"n_points": 2000, "n_restarts_optimizer": 2},
        random_state=seed,
    )
    spent, begun, best = 0, 0, -math.inf
    while spent < budget:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = optimizer.ask()
            proposal = {name: _plain(value) for name, value in zip(definition.search, asked, strict=True)}
            proposal["tfr"] = round(proposal["tfr"], 1)
            met = world.meet(proposal)
            if met is None:
                break
            begun += 1
            score = moving_average(met.curve)
            told = {**proposal, **met.params}
            optimizer.tell([told[name] for name in definition.search], -score)
        spent += _epochs(met.curve)
        if score > best and spent <= budget:
            best = score
            read(spent, met.truth, score)
    return begun


def smac(world: World, definition: Definition, budget: int, seed: int, read: Read) -> int:
    """SMAC3's Hyperband facade: random settings, promoted between rungs; how many were begun.

    A promoted training goes on where it was, so only the epochs beyond its last rung are spent.
    """
    from smac import HyperbandFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    begun: dict[Any, Any] = {}
    trained: dict[Any, int] = {}
    spent, best, lost = 0, -math.inf, 1000.0
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            _smac_space(definition, seed),
            name=str(seed),
            output_directory=folder,
            deterministic=True,
            n_trials=100_000,
            min_budget=LEAST_EPOCHS,
            max_budget=definition.epochs,
            seed=seed,
        )
        facade = HyperbandFacade(scenario, lambda config, seed, budget: 0.0, logging_level=False, overwrite=True)
        while spent < budget:
            asked = facade.ask()
            if asked.config not in begun:
                proposal = {name: _plain(value) for name, value in dict(asked.config).items()}
                begun[asked.config] = world.meet({**proposal, "tfr": round(proposal["tfr"], 1)})
            met = begun[asked.config]
            if met is None:
                break
            until = min(max(1, round(asked.budget)), _epochs(met.curve))
            spent += max(0, until - trained.get(asked.config, 0))
            trained[asked.config] = max(until, trained.get(asked.config, 0))
            value = float(met.curve[until - 1])
            facade.tell(asked, TrialValue(cost=-value if math.isfinite(value) else lost))
            if until == definition.epochs and math.isfinite(value) and value > best and spent <= budget:
                best = value
                read(spent, met.truth, value)
    return len(begun)


def moving_average(curve: np.ndarray) -> float:
    """Seed report 001's score: 0.99 of the last score and 0.01 of the epoch, from 0; it ends before a NaN."""
    score = 0.0
    for value in curve:
        if not math.isfinite(value):
            break
        score = 0.99 * score + 0.01 * float(value)
    return score


def _epochs(curve: np.ndarray) -> int:
    """Epochs that the training has, the one in which it diverges included."""
    bad = np.flatnonzero(~np.isfinite(curve))
    return int(bad[0]) + 1 if len(bad) else len(curve)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _skopt_dimension(one: Any) -> Any:
    from skopt.space import Categorical, Integer, Real

    if isinstance(one, CategoricalDimension):
        return Categorical(one.choices)
    kind = Real if isinstance(one, FloatDimension) else Integer
    return kind(one.low, one.high, prior="log-uniform" if one.log else "uniform")


def _smac_space(definition: Definition, seed: int) -> Any:
    from ConfigSpace import Categorical, ConfigurationSpace, Float, InCondition, Integer

    space = ConfigurationSpace(seed=seed)
    made: Values = {}
    for name, one in definition.search.items():
        if isinstance(one, CategoricalDimension):
            made[name] = Categorical(name, one.choices)
        else:
            kind = Float if isinstance(one, FloatDimension) else Integer
            made[name] = kind(name, (one.low, one.high), log=one.log)
        space.add(made[name])
    for name, one in definition.search.items():
        for other, values in one.when.items():
            space.add(InCondition(made[name], made[other], values))
    return space

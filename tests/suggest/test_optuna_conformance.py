"""Optuna's own tests of a sampler, for those of a study that model its trials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase

from cvaeopt.search.definition import Definition
from cvaeopt.suggest.bayesian import GaussianProcessSampler
from cvaeopt.suggest.sampler import sampler_for


def sampler_of(kind: str, **settings: int) -> Callable[[], BaseSampler]:
    tables = {
        "budget": {"trials": 40, "epochs": 30},
        "search": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2}},
        "sampler": {"kind": kind, **settings},
    }
    definition = Definition.parse(tables, "test", "studies/test.toml")
    return lambda: sampler_for(definition)


class TestTpe(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return sampler_of("tpe", n_startup_trials=0)  # before that it draws each parameter by itself


class TestGp(BasicSamplerTestCase, RelativeSamplerTestCase):
    @pytest.fixture
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        """The sampler of a definition or, where a test samples a space as a whole, one that is made for that space.

        By design the space is given when the sampler is made, and not learnt from the trials.
        """
        if not request.node.originalname.startswith("test_sample_relative"):
            return sampler_of("gp")
        given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
        space = {
            "x": given.get("x_distribution", CategoricalDistribution([1, 10, 100])),
            "y": given.get("y_distribution", CategoricalDistribution([-1, -10, -100])),
        }
        return lambda: GaussianProcessSampler(space, seed=0, n_startup_trials=1)


class TestRandom(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return sampler_of("random")

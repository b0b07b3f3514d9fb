"""The stacked network of the benchmark is the mathematics of lone runs."""

from __future__ import annotations

import pytest
import torch

from bench.stacked import Stack
from cvaeopt.vae.trainer import Trainer
from tests.vae import tiny

MEMBERS = [
    {"seed": 0, "lr": 1e-3, "tfr": 1.0, "kl_anneal_cycle": 1},
    {"seed": 1, "lr": 3e-4, "tfr": 0.0, "kl_anneal_type": "none"},
    {"seed": 2, "lr": 2e-3, "tfr": 0.5, "grad_clip": 0.1},
]

WITHOUT_EFFECT = ("label_transformation.1.", "label_transformation.2.running_mean")
"""The convolution in front of a BatchNorm has directions without effect, its bias for one: their gradient is zero but
for rounding, which Adam makes into steps of full length. Their gradients are compared, their weights are not."""


@pytest.mark.parametrize("label_bn", ["clip", "frame"])
def test_a_member_of_a_stack_learns_what_it_learns_alone(label_bn: str) -> None:
    shared = {"label_bn": label_bn, "shuffle": True, "tfr_coin": "step", "kl_norm": "element"}
    configs = [tiny.config(**shared, **member) for member in MEMBERS]
    data = tiny.dataset()
    stack = Stack(configs, data)
    found = [stack.train_epoch() for _ in range(2)]
    forced = set()
    for member, config in enumerate(configs):
        alone = Trainer(config, data)
        for epoch, result in enumerate(alone.run(2)):
            mse, kl = found[epoch][member].tolist()
            assert mse == pytest.approx(result.train_mse, rel=1e-4)
            assert kl == pytest.approx(result.train_kl, rel=1e-4, abs=1e-7)
            forced.add(result.teacher_forced)
        weights = stack.state(member)
        assert weights.keys() == alone.model.state_dict().keys()
        for name, value in alone.model.state_dict().items():
            if not name.startswith(WITHOUT_EFFECT):
                torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-5, msg=f"member {member}, {name}")
        moments = [alone.optimizer.state[one]["exp_avg"] for one in alone.model.parameters()]
        for name, theirs, shape in zip(stack.names, moments, stack.shapes, strict=True):
            ours = stack._views(stack.mean)[name][member]
            assert ours.shape == shape
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6, msg=f"member {member}, {name}")
    assert {0.0, 1.0} < forced  # forced, free and mixed members were in it


def test_runs_that_are_computed_differently_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="kl_norm"):
        Stack([tiny.config(kl_norm="batch"), tiny.config(kl_norm="element")], tiny.dataset())

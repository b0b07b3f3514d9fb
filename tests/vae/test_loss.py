"""The batched loss is the template's loop, in value and in every gradient."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cvaeopt.vae.loss import LossSettings, clip_loss
from cvaeopt.vae.model import CVAE
from tests.support import plain

PRINTED = st.fixed_dictionaries(
    {
        "posterior": st.sampled_from(["current", "previous"]),
        "detach": st.booleans(),
        "forced_loss": st.sampled_from(["prediction", "truth"]),
    }
)
"""The settings in which the training steps that the reports print differ."""


def network(*widths: int) -> CVAE:
    torch.manual_seed(5)
    return CVAE(*widths)


def worst_gradient(one: CVAE, other: CVAE) -> float:
    """Largest difference of any parameter's gradient, relative to its norm.

    The bias of the convolution before a BatchNorm has a gradient of zero; what is computed for it is rounding, so
    a norm below 1e-4 of the whole gradient's counts as that.
    """
    pairs = [(p.grad, q.grad) for p, q in zip(one.parameters(), other.parameters(), strict=True)]
    whole = sum(float(q.square().sum()) for _, q in pairs if q is not None) ** 0.5
    worst = 0.0
    for mine, theirs in pairs:
        assert (mine is None) == (theirs is None)  # Adam leaves a parameter alone only if it has no gradient at all
        if mine is not None and theirs is not None:
            worst = max(worst, float((mine - theirs).norm()) / max(float(theirs.norm()), 1e-4 * whole, 1e-30))
    return worst


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(2, 6),
    height=st.sampled_from([8, 12]),
    width=st.sampled_from([8, 20]),
    widths=st.sampled_from([(8, 4, 4, 8), (16, 8, 8, 16)]),
    forced=st.booleans(),
    sigmoid=st.booleans(),
    per_element=st.booleans(),
    free_step=st.sampled_from(["replay", "sequential"]),
    beta=st.sampled_from([0.0, 0.3, 1.0]),
    template_statistics=st.booleans(),
    printed=PRINTED,
)
def test_the_batched_loss_and_its_gradients_equal_the_frame_by_frame_loop(
    batch: int,
    length: int,
    height: int,
    width: int,
    widths: tuple[int, int, int, int],
    forced: bool,
    sigmoid: bool,
    per_element: bool,
    free_step: Literal["replay", "sequential"],
    beta: float,
    template_statistics: bool,
    printed: dict[str, Any],
) -> None:
    # In double precision the two agree to rounding; see the next test for what is left of that in single.
    model = network(*widths).double()
    reference = copy.deepcopy(model)
    draws = torch.Generator().manual_seed(batch * 100 + length)
    wide = {"generator": draws, "dtype": torch.float64}
    frames = torch.rand(batch, length, 3, height, width, **wide)
    labels = torch.rand(batch, length, 3, height, width, **wide)
    eps = torch.randn(batch, length - 1, widths[2], height, width, **wide)

    expected = plain.training_loss(
        reference,
        frames,
        labels,
        eps,
        forced=forced,
        sigmoid=sigmoid,
        per_element=per_element,
        beta=beta,
        training=template_statistics,
        **printed,
    )
    expected.backward()
    loss = clip_loss(
        model,
        frames,
        labels,
        eps,
        LossSettings(
            forced,
            "sigmoid" if sigmoid else "linear",
            "element" if per_element else "batch",
            "frame" if template_statistics else "stored",
            free_step,
            **printed,
        ),
    ).total(beta)
    loss.backward()

    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-11)
    assert worst_gradient(model, reference) < 1e-9
    for (name, mine), theirs in zip(model.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("free_step", ["replay", "sequential"])
def test_in_single_precision_loss_agrees_to_1e_5_and_gradients_to_1e_4(
    forced: bool, free_step: Literal["replay", "sequential"]
) -> None:
    model = network(32, 16, 4, 48).to(memory_format=torch.channels_last)
    reference = network(32, 16, 4, 48)
    frames, labels, eps = (
        torch.rand(2, 6, 3, 16, 32),
        torch.rand(2, 6, 3, 16, 32),
        torch.randn(2, 5, 4, 16, 32),
    )
    expected = plain.training_loss(
        reference, frames, labels, eps, forced=forced, sigmoid=True, per_element=True, beta=0.5, training=True
    )
    expected.backward()
    settings = LossSettings(forced, "sigmoid", "element", "frame", free_step)
    loss = clip_loss(model, frames, labels, eps, settings).total(0.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert worst_gradient(model, reference) < 1e-4


def test_statistics_over_the_clip_normalise_all_its_labels_together() -> None:
    model = network(8, 4, 4, 8)
    labels = torch.rand(2, 5, 3, 8, 8)
    encoder = model.label_transformation
    features = encoder.encode(labels, "batch")
    with torch.no_grad():
        together = plain.label_features(copy.deepcopy(model), labels.flatten(0, 1), training=True)
    torch.testing.assert_close(features.detach().flatten(0, 1), together)


def test_own_statistics_are_those_of_a_batch_of_one_in_training_mode() -> None:
    model = network(8, 4, 4, 8)
    labels = torch.rand(1, 4, 3, 8, 8)
    with torch.no_grad():
        features = model.label_transformation.encode(labels, "own")[0]
        singly = [plain.label_features(copy.deepcopy(model), label[None], training=True) for label in labels[0]]
    torch.testing.assert_close(features, torch.cat(singly), rtol=1e-4, atol=1e-5)


def test_a_forced_clip_ignores_predictions_and_a_free_one_does_not() -> None:
    model = network(8, 4, 4, 8)
    frames, labels = torch.rand(1, 4, 3, 8, 8), torch.rand(1, 4, 3, 8, 8)
    eps = torch.randn(1, 3, 4, 8, 8)
    one = clip_loss(model, frames, labels, eps, LossSettings(True, "linear", "element", "stored"))
    two = clip_loss(model, frames, labels, eps, LossSettings(False, "linear", "element", "stored"))
    assert float(one.kl.detach()) == pytest.approx(float(two.kl.detach()), rel=1e-6)
    assert abs(float((one.mse - two.mse).detach())) > 1e-6


def test_the_gradient_goes_through_earlier_predictions_only_where_they_are_not_detached() -> None:
    """Detaching changes no value, so the gradients are what tells the two apart."""
    wide = torch.float64
    frames, labels = torch.rand(1, 4, 3, 8, 8, dtype=wide), torch.rand(1, 4, 3, 8, 8, dtype=wide)
    eps = torch.randn(1, 3, 4, 8, 8, dtype=wide)
    losses, models = [], []
    for detach in (True, False):
        models.append(network(8, 4, 4, 8).double())
        settings = LossSettings(False, "linear", "element", "stored", detach=detach)
        loss = clip_loss(models[-1], frames, labels, eps, settings)
        loss.total(0.1).backward()
        losses.append(float(loss.mse.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert worst_gradient(*models) > 1e-6


def test_a_forced_step_whose_prediction_is_replaced_trains_the_kl_term_alone() -> None:
    model = network(8, 4, 4, 8)
    frames, labels, eps = torch.rand(2, 4, 3, 8, 8), torch.rand(2, 4, 3, 8, 8), torch.randn(2, 3, 4, 8, 8)
    loss = clip_loss(model, frames, labels, eps, LossSettings(True, "linear", "batch", forced_loss="truth"))
    loss.total(1.0).backward()
    assert float(loss.mse) == 0.0
    assert all(
        parameter.grad is None for parameter in (*model.Decoder_Fusion.parameters(), *model.Generator.parameters())
    )
    assert float(model.Gaussian_Predictor[6].weight.grad.norm()) > 0

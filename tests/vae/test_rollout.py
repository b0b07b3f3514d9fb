from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.vae import rollout
from cvaeopt.vae.model import CVAE
from tests.support import plain


def network() -> CVAE:
    torch.manual_seed(2)
    model = CVAE(8, 4, 4, 8).eval()
    rollout.recalibrate(model, torch.randint(0, 256, (9, 3, 8, 12), dtype=torch.uint8))
    return model


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 9), chunk=st.integers(1, 10), output=st.sampled_from(["linear", "sigmoid", "clamp"]))
def test_a_roll_out_in_pieces_is_the_frame_by_frame_loop(
    length: int, chunk: int, output: Literal["linear", "sigmoid", "clamp"]
) -> None:
    model = network()
    first = torch.rand(1, 3, 8, 12)
    labels = torch.randint(0, 256, (1, length, 3, 8, 12), dtype=torch.uint8)
    z = rollout.noise("prior", 1.0, 7, length, 4, 8, 12)
    whole, rollout.CHUNK_FRAMES = rollout.CHUNK_FRAMES, chunk
    try:
        rolled = torch.cat(list(rollout.roll_chunks(model, first, labels, z[None], output)), 1)[0]
    finally:
        rollout.CHUNK_FRAMES = whole
    expected = plain.roll_out(model, first, labels[0].float() / 255, z, output)
    torch.testing.assert_close(rolled, expected, rtol=1e-4, atol=1e-5)


def test_sequences_rolled_out_together_do_not_touch_each_other() -> None:
    model = network()
    first, labels = torch.rand(3, 3, 8, 12), torch.rand(3, 5, 3, 8, 12)
    z = torch.randn(3, 5, 4, 8, 12)
    together = torch.cat(list(rollout.roll_chunks(model, first, labels, z, "linear")), 1)
    for one in range(3):
        alone = torch.cat(
            list(rollout.roll_chunks(model, first[one : one + 1], labels[one : one + 1], z[one : one + 1], "linear")), 1
        )
        torch.testing.assert_close(together[one], alone[0], rtol=1e-4, atol=1e-5)


def test_recalibration_gives_the_exact_mean_and_variance_of_what_the_norm_sees() -> None:
    model = network()
    labels = torch.randint(0, 256, (600, 3, 8, 12), dtype=torch.uint8)
    rollout.recalibrate(model, labels)
    norm = model.label_transformation.norm
    with torch.no_grad():
        seen = model.label_transformation.before_norm(labels.float() / 255)
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3), unbiased=False), rtol=1e-4, atol=1e-7)


def test_noise_is_equal_for_equal_seeds_and_scaled_as_asked() -> None:
    one = rollout.noise("prior", 1.0, 3, 40, 4, 8, 8)
    assert torch.equal(one, rollout.noise("prior", 1.0, 3, 40, 4, 8, 8))
    assert not torch.equal(one, rollout.noise("prior", 1.0, 4, 40, 4, 8, 8))
    assert torch.equal(rollout.noise("scaled", 0.5, 3, 40, 4, 8, 8), one * 0.5)
    assert not rollout.noise("zero", 1.0, 3, 40, 4, 8, 8).any()
    assert float(one.std()) == pytest.approx(1, abs=0.03)


def test_pixels_are_clipped_and_rounded_and_never_wrap_around() -> None:
    values = torch.tensor([-5.0, -0.001, 0.0, 0.0019, 0.002, 0.5, 0.999, 1.0, 1.003, 300.0])
    assert rollout.to_pixels(values).tolist() == [0, 0, 0, 0, 1, 128, 255, 255, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(rollout.to_pixels(rollout.to_float(every)), every)


def test_random_streams_depend_on_all_their_parts() -> None:
    streams = [
        torch.rand(3, generator=rollout.generator("cpu", *parts)).tolist()
        for parts in [("a", 1, 2), ("a", 1, 3), ("a", 2, 2), ("b", 1, 2), ("a", 12)]
    ]
    assert len({tuple(stream) for stream in streams}) == 5

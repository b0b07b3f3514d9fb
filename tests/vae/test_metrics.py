from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.vae import metrics
from cvaeopt.vae.metrics import baselines, kl_divergence, late_mean, psnr, psnr_per_frame, public_score


@dataclass(frozen=True)
class Video:
    frames: np.ndarray
    labels: np.ndarray


def video(values: list[int], labels: list[int] | None = None) -> Video:
    """Flat grey frames and labels of 4 x 6 pixels."""
    shape = (len(values), 3, 4, 6)
    column = (slice(None), None, None, None)
    grey = np.array(values, np.uint8)[column]
    pose = np.array(labels if labels is not None else values, np.uint8)[column]
    return Video(np.broadcast_to(grey, shape).copy(), np.broadcast_to(pose, shape).copy())


@pytest.mark.parametrize("length", [1, 2, 16, 629, 630])
def test_a_constant_error_of_a_tenth_is_20_db_at_any_length(length: int) -> None:
    truth = torch.full((length, 3, 4, 6), 0.5, dtype=torch.float64)
    per_frame = psnr_per_frame(truth + 0.1, truth)
    assert per_frame.shape == (length,)
    assert per_frame.mean().item() == pytest.approx(20, abs=1e-12)


def test_psnr_is_taken_per_frame_and_then_averaged() -> None:
    truth = torch.zeros(2, 3, 4, 6)
    prediction = torch.stack([torch.full((3, 4, 6), 0.1), torch.full((3, 4, 6), 0.01)])
    assert psnr_per_frame(prediction, truth).tolist() == pytest.approx([20, 40], abs=1e-5)
    of_the_batch = psnr((prediction - truth).square().mean()).item()
    assert of_the_batch == pytest.approx(10 * math.log10(2 / 0.0101), abs=1e-5)  # 22.97, not 30


def test_an_exact_frame_counts_100_db_and_nan_stays_nan() -> None:
    assert psnr(torch.tensor([0.0, 1e-10, 1.0])).tolist() == pytest.approx([100, 100, 0])
    assert psnr(torch.tensor(float("nan"))).isnan()


@pytest.mark.parametrize(("count", "late"), [(1, 1), (2, 1), (3, 1), (4, 2), (629, 210)])
def test_the_late_mean_covers_the_last_third(count: int, late: int) -> None:
    values = np.zeros(count)
    values[-late:] = 30.0
    assert late_mean(torch.from_numpy(values)) == 30.0
    assert late_mean(values) == 30.0
    values[-late] = 0.0
    assert late_mean(values) == pytest.approx(30 * (late - 1) / late)


def test_kl_equals_torch_distributions_in_both_norms() -> None:
    generator = torch.Generator().manual_seed(1)
    mu = torch.randn(5, 4, 3, 2, generator=generator, dtype=torch.float64)
    logvar = torch.randn(5, 4, 3, 2, generator=generator, dtype=torch.float64)
    truth = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, (logvar / 2).exp()),
        torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu)),
    )
    assert kl_divergence(mu, logvar, "batch").item() == pytest.approx(truth.sum().item() / 5)
    assert kl_divergence(mu, logvar, "element").item() == pytest.approx(truth.mean().item())


def test_kl_is_zero_at_the_prior_and_half_the_squared_mean_beside_it() -> None:
    zero = torch.zeros(2, 4, 3, 2)
    assert kl_divergence(zero, zero, "batch").item() == 0
    assert kl_divergence(zero + 3, zero, "element").item() == pytest.approx(4.5)
    assert kl_divergence(zero + 3, zero, "batch").item() == pytest.approx(4.5 * 24)


def test_baselines_of_flat_frames_have_closed_forms() -> None:
    # Training: values 100 and 200 with labels 0 and 255. Validation: 51, then 102 and 204 with the labels near these.
    found = baselines(video([100, 200], [0, 255]), video([51, 102, 204], [90, 10, 250]))

    def db(*errors: float) -> float:
        return float(np.mean([-20 * math.log10(error / 255) for error in errors]))

    assert found.copy_first == pytest.approx(db(51, 153))
    assert found.train_mean == pytest.approx(db(48, 54))
    assert found.nearest_pose == pytest.approx(db(2, 4))
    assert found.plain() == {
        "copy_first": found.copy_first,
        "train_mean": found.train_mean,
        "nearest_pose": found.nearest_pose,
    }


def test_the_nearest_pose_is_the_nearest_picture_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    known = generator.integers(0, 256, (50, 3, 4, 6), dtype=np.uint8)
    wanted = generator.integers(0, 256, (9, 3, 4, 6), dtype=np.uint8)
    wanted[4] = known[31]
    distance = np.square(known[:, None].astype(int) - wanted[None]).sum(axis=(2, 3, 4))
    monkeypatch.setattr(metrics, "_CHUNK", 7)
    assert metrics.nearest_labels(known, wanted).tolist() == distance.argmin(axis=0).tolist()
    assert metrics.nearest_labels(known, wanted)[4] == 31


def test_baselines_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    train, val = (Video(*generator.integers(0, 256, (2, count, 3, 4, 6), dtype=np.uint8)) for count in (20, 11))
    whole = baselines(train, val)
    monkeypatch.setattr(metrics, "_CHUNK", 3)
    assert baselines(train, val).plain() == pytest.approx(whole.plain(), abs=1e-9)


def test_the_public_score_covers_frames_1_to_600() -> None:
    truth = video([100] * 630).frames
    prediction = truth.copy()
    prediction[0] = 0  # the given frame does not count
    prediction[601:] = 0  # nor does what follows frame 600
    prediction[1:601] += 51
    assert public_score(prediction, truth) == pytest.approx(-20 * math.log10(0.2))
    assert public_score(prediction[:5], truth[:5]) == pytest.approx(-20 * math.log10(0.2))


def test_the_public_score_refuses_videos_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        public_score(video([1, 2]).frames, video([1, 2, 3]).frames)


@given(st.lists(st.integers(0, 255), min_size=2, max_size=8), st.integers(0, 255))
def test_the_public_score_equals_psnr_on_the_unit_scale(values: list[int], other: int) -> None:
    truth, prediction = video(values).frames, video([other] * len(values)).frames
    expected = psnr_per_frame(torch.from_numpy(prediction) / 255, torch.from_numpy(truth) / 255)[1:].mean()
    assert public_score(prediction, truth) == pytest.approx(expected.item(), abs=1e-3)

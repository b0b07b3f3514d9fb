from __future__ import annotations

import numpy as np
import pytest
import torch

from cvaeopt.outcome import dips
from cvaeopt.outcome.dips import Explanation, explained, explanations
from cvaeopt.pictures.dips_chart import Strip, dips_chart
from cvaeopt.vae.dataset import Split
from cvaeopt.vae.metrics import psnr_per_frame
from cvaeopt.vae.rollout import to_float
from tests.support.planted import Video, video

FRAMES = 160


@pytest.fixture(scope="module")
def train() -> Split:
    """Training labels of a figure that stays inside."""
    return video(1, 120).split


@pytest.fixture(scope="module")
def still() -> Video:
    return video(5, FRAMES)


@pytest.fixture(scope="module")
def fast() -> Video:
    return video(5, FRAMES, fast=slice(60, 90))


@pytest.fixture(scope="module")
def leaving() -> Video:
    return video(5, FRAMES, exit_at=slice(90, 115))


def found(shown: Video, train: Split, error: np.ndarray, drift: np.ndarray | float = 0.0) -> dict[str, Explanation]:
    """The explanations of a prediction whose frames have Gaussian errors of the size `error` (N,), levels of 255.

    drift   (N,), levels that every pixel is darker than it should be
    """
    draw = np.random.default_rng(3)
    noise = draw.normal(size=shown.split.frames.shape) * error[:, None, None, None]
    exact = shown.split.frames + noise - np.reshape(drift, (-1, 1, 1, 1))
    frames = np.clip(np.round(exact), 0, 255).astype(np.uint8)[1:]
    psnr = psnr_per_frame(to_float(torch.tensor(frames)), to_float(torch.tensor(shown.split.frames[1:])))
    return {one.name: one for one in explanations(psnr.numpy(), frames, shown.split, train)}


def wandering(seed: int) -> np.ndarray:
    """Errors of about 12 levels that change slowly and know nothing of the pose."""
    draw = np.random.default_rng(seed)
    walk = np.zeros(FRAMES)
    for index in range(1, FRAMES):
        walk[index] = 0.9 * walk[index - 1] + draw.normal()
    return 12 * np.exp(0.1 * walk)


def test_the_measured_speed_follows_the_true_speed(fast: Video):
    measured = dips.speed(dips._ink(fast.split.labels))
    assert np.corrcoef(measured, fast.speed[1:])[0, 1] > 0.8


def test_the_measured_share_outside_follows_the_true_share(leaving: Video, still: Video, train: Split):
    known = dips._ink(train.labels)
    measured = dips.outside(dips._ink(leaving.split.labels), known)
    assert np.corrcoef(measured, leaving.outside)[0, 1] > 0.9
    assert np.all(measured[leaving.outside == 1] == 1)
    assert np.all(measured[:80] == dips.outside(dips._ink(still.split.labels), known)[:80])


def test_a_planted_fast_stretch_is_found_and_nothing_is_found_without_it(fast: Video, train: Split):
    planted = found(fast, train, 8 + 6 * fast.speed)
    assert planted["speed"].verdict == "lower"
    assert planted["outside"].verdict == "unknown"
    not_planted = found(fast, train, wandering(1))
    assert not_planted["speed"].verdict == "unknown"
    assert not_planted["outside"].verdict == "unknown"
    assert not_planted["distance"].verdict == "unknown"


def test_a_planted_exit_is_found_and_nothing_is_found_without_it(leaving: Video, train: Split):
    planted = found(leaving, train, wandering(2) * (1 + 2 * leaving.outside))
    assert planted["outside"].verdict == "lower"
    assert planted["speed"].verdict == "unknown"
    not_planted = found(leaving, train, wandering(1))
    assert [not_planted[name].verdict for name in ("speed", "outside", "distance")] == ["unknown"] * 3


def test_a_planted_drift_is_found_and_nothing_is_found_without_it(still: Video, train: Split):
    draw = np.random.default_rng(7)
    slow = np.repeat(draw.uniform(0, 40, FRAMES // 8), 8)  # a drift that comes and goes
    assert found(still, train, wandering(1), slow)["drift"].verdict == "lower"
    assert found(still, train, wandering(1))["drift"].verdict == "unknown"


def test_a_drift_of_the_background_is_measured_in_levels(still: Video):
    frames = np.repeat(np.minimum(still.split.frames[:1], 235), 41, axis=0)  # so that no offset is cut off
    offsets = np.linspace(0, 20, 40).round()
    predicted = np.clip(frames[1:] + offsets[:, None, None, None], 0, 255).astype(np.uint8)
    measured = dips.drift(predicted, frames[0], dips._ink(still.split.labels[:41]))
    assert measured == pytest.approx([0, *offsets[:-1]])


def test_the_distance_is_0_for_a_known_pose_and_root_2_for_one_without_a_common_pixel():
    known = np.full((1, 3, 8, 8), 255, np.uint8)
    known[0, :, 2, 1:5] = 0
    other = np.full((1, 3, 8, 8), 255, np.uint8)
    other[0, :, 5, 1:5] = 0
    assert dips.pose_distance(np.concatenate([known, other]), known) == pytest.approx([0, 2**0.5])


def test_empty_labels_have_no_speed_and_are_outside():
    labels = np.full((6, 3, 8, 16), 255, np.uint8)
    labels[:3, :, 4, 4:9] = 0
    ink = dips._ink(labels)
    assert np.isnan(dips.speed(ink)).tolist() == [False, False, True, True, True]
    assert dips.outside(ink, ink).tolist() == [0, 0, 0, 1, 1, 1]
    nobody = dips._ink(np.full((4, 3, 8, 16), 255, np.uint8))
    assert dips.outside(nobody, nobody).tolist() == [1] * 4


# ---- the interval


@pytest.mark.parametrize("memory", [0.0, 0.8, 0.95])
def test_series_that_have_nothing_in_common_are_rarely_called_related(memory: float):
    draw = np.random.default_rng(11)
    series = draw.normal(size=(2, 300, 200))
    for moment in range(1, 200):
        series[:, :, moment] += memory * series[:, :, moment - 1]
    wrong = sum(explained("speed", one, other).verdict != "unknown" for one, other in zip(*series, strict=True))
    # 5 % of 300 are 15; above 30 lies less than one in 1,000 draws of a test with this rate.
    assert wrong <= 30
    if memory == 0.95:  # An interval that took the frames as independent would be wrong far more often.
        naive = [abs(np.corrcoef(one, other)[0, 1]) > 1.96 / 200**0.5 for one, other in zip(*series, strict=True)]
        assert sum(naive) > 100


def test_the_correlation_is_spearmans_and_its_interval_contains_it():
    draw = np.random.default_rng(4)
    one = draw.normal(size=400)
    other = -np.exp(one + 0.5 * draw.normal(size=400))
    made = explained("speed", one, other)
    ranks = [values.argsort().argsort() for values in (one, other)]
    assert made.correlation == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert made.low is not None and made.high is not None and made.correlation is not None
    assert -1 <= made.low < made.correlation < made.high < 0
    assert explained("speed", one**3, other).correlation == pytest.approx(made.correlation)
    family = explained("speed", one, other, 4)
    assert family.low is not None and family.high is not None
    assert family.low < made.low and family.high > made.high


@pytest.mark.parametrize(
    "values", [np.ones(50), np.full(50, np.nan), np.arange(50.0), np.r_[np.full(47, np.nan), 1, 2, 3]]
)
def test_what_cannot_be_told_is_not_told(values: np.ndarray):
    made = explained("drift", values, np.linspace(30, 20, 50))
    assert made.verdict == "unknown"
    assert made.plain()["low"] is None
    assert dips.verdict_text(made) == "no relation can be told"


def test_the_chart_is_drawn_for_any_values():
    strips = [Strip(values, "a measure", "r = 0", True) for values in (np.zeros(9), np.full(9, np.nan))]
    assert dips_chart(np.full(9, 30.0), strips, [3, 5]).startswith(b"\x89PNG")

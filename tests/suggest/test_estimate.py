"""What a trial is worth: closed forms of the estimator, and that its standard error is true."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.suggest.estimate import MIN_NOISE_EPOCHS, curve_until, epoch_noise, estimate, line

DECIBELS = st.floats(-50, 50, allow_nan=False)
CURVES = st.lists(DECIBELS, min_size=1, max_size=30)


@given(CURVES, st.integers(1, 12))
def test_the_value_is_the_mean_of_the_last_epochs(curve: list[float], window: int) -> None:
    found = estimate(curve, window)
    assert found.value == pytest.approx(statistics.fmean(curve[-window:]), abs=1e-9)
    assert found.epochs == min(window, len(curve))


@given(CURVES)
def test_a_window_of_one_is_the_last_epoch_itself(curve: list[float]) -> None:
    assert estimate(curve, 1).value == curve[-1]


@given(st.lists(DECIBELS, min_size=3, max_size=30), st.integers(1, 12), DECIBELS, st.floats(-3, 3))
def test_a_level_and_a_trend_change_no_error(curve: list[float], window: int, level: float, slope: float) -> None:
    moved = [value + level + slope * epoch for epoch, value in enumerate(curve)]
    one, other = estimate(curve, window).error, estimate(moved, window).error
    assert one is not None and other == pytest.approx(one, abs=1e-6)


@given(st.lists(DECIBELS, min_size=2, max_size=30))
def test_the_line_is_that_of_least_squares(curve: list[float]) -> None:
    values, middle = [Fraction(value) for value in curve], Fraction(len(curve) - 1, 2)
    offsets = [epoch - middle for epoch in range(len(curve))]
    # In exact arithmetic: the slope of least squares is the ratio of these two sums.
    slope = sum(x * y for x, y in zip(offsets, values, strict=True)) / sum(x * x for x in offsets)
    level, found = line(curve)
    assert level == pytest.approx(float(sum(values) / len(values)), abs=1e-12)
    assert found == pytest.approx(float(slope), abs=1e-12)


def test_the_two_parts_of_the_error_add_in_squares() -> None:
    curve = [30.0, 31.0, 30.0, 31.0, 30.0]
    alone = estimate(curve, 5).error
    assert alone is not None and alone == pytest.approx(
        math.sqrt(1.2 / 3 / 5)
    )  # squared residuals 1.2, 3 free, 5 epochs
    assert estimate(curve, 5, 0.4).error == pytest.approx(math.hypot(alone, 0.4))
    assert estimate([28.0] * 5, 5, 0.4).error == pytest.approx(0.4)


def test_too_short_a_curve_has_no_error() -> None:
    assert estimate([30.0, 31.0], 5, 0.4).error is None
    assert epoch_noise([1.0, 2.0]) is None


def test_a_short_window_reads_its_noise_from_more_epochs() -> None:
    curve = [27.0, 30.2, 29.8, 30.1, 29.9, 30.3, 29.7]
    noise = epoch_noise(curve[-MIN_NOISE_EPOCHS:])
    assert noise is not None and estimate(curve, 1).error == pytest.approx(noise)


def test_the_error_is_the_scatter_of_repeated_trainings() -> None:
    generator = np.random.default_rng(4)
    trend = 25 + 0.05 * np.arange(30)
    found = [
        estimate(list(trend + generator.normal(0, 0.3) + generator.normal(0, 0.6, 30)), 6, 0.3) for _ in range(3000)
    ]
    scatter = statistics.stdev(one.value for one in found)
    stated = math.sqrt(statistics.fmean((one.error or 0.0) ** 2 for one in found))
    assert stated == pytest.approx(scatter, rel=0.05)


def test_a_curve_is_read_in_the_order_of_its_epochs_without_what_is_not_finite() -> None:
    reported = {3: 3.0, 1: 1.0, 2: math.nan, 5: 5.0, 4: math.inf}
    assert curve_until(reported, 4) == [1.0, 3.0]
    assert curve_until(reported, 5) == [1.0, 3.0, 5.0]

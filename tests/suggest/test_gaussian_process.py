"""The Gaussian process: its gradient, its posterior in closed form, and what errors and repeats do to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.suggest import gaussian_process
from cvaeopt.suggest.gaussian_process import fit, log_expected_improvement, log_news, matern


def drawn(seed: int, count: int, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    inputs = generator.random((count, dimensions))
    values = 25 + 2 * np.sin(4 * inputs[:, 0]) + generator.normal(0, 0.3, count)
    return inputs, values, generator.uniform(0.2, 0.6, count)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 5))
def test_the_gradient_is_that_of_finite_differences(seed: int, count: int, dimensions: int) -> None:
    inputs, values, errors = drawn(seed, count, dimensions)
    y = (values - np.median(values)) / (values.std() or 1.0)
    theta = np.random.default_rng(seed).normal(0, 0.5, dimensions + 2)
    differences = (inputs[:, None, :] - inputs[None, :, :]) ** 2
    _, gradient = gaussian_process._objective(theta, differences, y, errors)
    for index in range(len(theta)):
        step = np.zeros_like(theta)
        step[index] = 1e-5
        above, below = (gaussian_process._objective(theta + sign * step, differences, y, errors)[0] for sign in (1, -1))
        assert gradient[index] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-5)


def test_the_posterior_is_the_conditional_of_the_joint_normal_distribution() -> None:
    inputs, values, errors = drawn(3, 9, 2)
    process = fit(inputs, values, errors)
    points = np.random.default_rng(4).random((5, 2))
    everything = np.vstack([points, inputs])
    joint = process.signal * matern(everything, everything, process.lengths)
    joint[5:, 5:] += np.diag(process.noise)
    inverse = np.linalg.inv(joint)  # precision: the conditional of its first block
    covariance = np.linalg.inv(inverse[:5, :5])
    mean = process.mean - covariance @ inverse[:5, 5:] @ (values - process.mean)
    found, deviation = process.at(points)
    np.testing.assert_allclose(found, mean, atol=1e-3)
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(covariance)), rtol=1e-3)


def test_one_observation_more_is_the_same_as_conditioning_on_all_at_once() -> None:
    inputs, values, errors = drawn(5, 8, 2)
    process = fit(inputs, values, errors)
    new, error = np.random.default_rng(6).random((2, 2)), np.array([0.3, 0.4])
    expected = process.at(new)[0]
    together = gaussian_process._posterior(
        np.vstack([inputs, new]),
        np.concatenate([values, expected]),
        np.concatenate([process.noise, error**2]),
        process.lengths,
        process.signal,
        process.mean,
    )
    points = np.random.default_rng(7).random((6, 2))
    believing = process.believing(new, error)
    for one, other in zip(believing.at(points), together.at(points), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    # What a process believes of itself moves no mean and makes it surer.
    np.testing.assert_allclose(believing.at(points)[0], process.at(points)[0], rtol=1e-5)
    assert (believing.at(new)[1] < process.at(new)[1]).all()


def test_lengths_are_learned_from_some_observations_and_the_posterior_uses_all() -> None:
    inputs, values, errors = drawn(9, 30, 2)
    every, some = fit(inputs, values, errors), np.arange(20)
    np.testing.assert_array_equal(fit(inputs, values, errors, np.arange(30)).lengths, every.lengths)
    values[20:] += 2
    inputs[20:] += 5  # far away: what is seen there says nothing about the others
    part, far = fit(inputs, values, errors, some), np.array([[5.5, 5.5]])
    assert part.at(far)[0][0] > part.at(inputs[:20])[0].mean() + 1
    assert part.at(inputs[:20])[0] == pytest.approx(
        fit(inputs[:20], values[:20], errors[:20]).at(inputs[:20])[0], abs=0.2
    )


def test_a_value_with_a_large_error_counts_for_little() -> None:
    inputs = np.linspace(0, 1, 8)[:, None]
    values = 25 + inputs[:, 0]
    values[4] += 6
    sure = fit(inputs, values, np.full(8, 0.2)).at(inputs[4:5])[0][0]
    errors = np.full(8, 0.2)
    errors[4] = 5.0
    unsure = fit(inputs, values, errors).at(inputs[4:5])[0][0]
    truth = 25 + inputs[4, 0]
    assert abs(unsure - truth) < 1.0 < abs(sure - truth)


def test_repeats_of_a_point_make_it_surer_and_draw_it_to_their_mean() -> None:
    generator = np.random.default_rng(8)
    inputs = np.vstack([generator.random((10, 2)), np.full((6, 2), 0.5)])
    values = np.concatenate([25 + generator.normal(0, 1, 10), 28 + generator.normal(0, 0.4, 6)])
    repeated = fit(inputs, values, np.full(16, 0.4))
    once = fit(inputs[:11], values[:11], np.full(11, 0.4))
    here = np.array([[0.5, 0.5]])
    assert repeated.at(here)[1][0] < once.at(here)[1][0]
    assert repeated.at(here)[0][0] == pytest.approx(values[10:].mean(), abs=0.4)


@pytest.mark.parametrize("values", [[25.0, 25.0, 25.0], [25.0, 25.0 + 1e-13, 25.0], [1e6, -1e6, 0.0]])
def test_values_that_say_nothing_or_are_huge_have_a_posterior_all_the_same(values: list[float]) -> None:
    process = fit(np.array([[0.1], [0.1], [0.9]]), np.array(values), np.full(3, 0.3))
    mean, deviation = process.at(np.array([[0.5]]))
    assert np.isfinite(mean).all() and np.isfinite(deviation).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(-30, 5), st.floats(0.01, 3))
def test_expected_improvement_is_the_integral_it_stands_for(z: float, deviation: float) -> None:
    found = float(log_expected_improvement(np.array([z * deviation]), np.array([deviation]), 0.0)[0])
    # max(0, x) under N(z s, s): the integral over u = (x - z s) / s from -z on, scaled so that it never underflows.
    u = np.linspace(max(-z, -12.0), max(-z, -12.0) + 14, 400_001)
    exponent = -0.5 * u * u - 0.5 * math.log(2 * math.pi)
    top = exponent.max()
    integral = float(np.trapezoid((u + z) * np.exp(exponent - top), u))
    assert found == pytest.approx(math.log(deviation) + top + math.log(integral), abs=1e-4)


def test_expected_improvement_is_smooth_where_its_formula_changes() -> None:
    for z in (-1.0, -1e5):
        beside = z + abs(z) * np.array([-1e-7, 1e-7])
        below, above = log_expected_improvement(beside, np.ones(2), 0.0)
        # The derivative of log(density + z ndtr(z)) is ndtr / (density + z ndtr), which tends to -z far below 0.
        slope = 0.158655 / 0.083315 if z == -1 else -z
        assert above - below == pytest.approx(slope * (beside[1] - beside[0]), rel=1e-3)


@given(st.floats(1e-3, 50), st.floats(1e-3, 10))
def test_news_is_what_an_observation_takes_away_of_a_deviation(deviation: float, noise: float) -> None:
    after = 1 / math.sqrt(1 / deviation**2 + 1 / noise**2)  # precisions of independent observations add
    found = math.exp(float(log_news(np.array([deviation]), noise)[0]))
    assert found == pytest.approx(1 - after / deviation, abs=1e-9)


def test_news_of_a_place_that_is_known_is_small_and_not_none() -> None:
    # 1 - n / sqrt(d^2 + n^2) is d^2 / 2 n^2 for small d, where the plain formula gives 0.
    assert log_news(np.array([1e-9]), 0.5)[0] == pytest.approx(math.log(0.5 * (1e-9 / 0.5) ** 2), rel=1e-9)

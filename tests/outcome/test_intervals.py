from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.outcome.intervals import interval, pooled_spread, t_interval, t_quantile


@pytest.mark.parametrize(
    ("freedom", "tabled"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)],
)
def test_quantiles_are_those_of_the_printed_tables(freedom: int, tabled: float) -> None:
    assert t_quantile(freedom) == pytest.approx(tabled, abs=6e-4)


@given(st.floats(0.5, 200))
def test_degrees_of_freedom_may_lie_between_whole_numbers(freedom: float) -> None:
    assert t_quantile(freedom * 1.01) < t_quantile(freedom)


def test_with_many_repeats_the_interval_is_the_normal_one() -> None:
    assert t_quantile(5000) == pytest.approx(1.960, abs=2e-3)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9), st.floats(-20, 20))
def test_an_interval_moves_with_its_values_and_holds_their_mean(values: list[float], by: float) -> None:
    here, there = interval(values), interval([value + by for value in values])
    assert here.low is not None and here.high is not None and here.standard_error is not None
    assert here.low <= here.mean + 1e-9 and here.mean <= here.high + 1e-9
    assert here.standard_error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-9)
    assert there.mean == pytest.approx(here.mean + by, abs=1e-9)
    assert there.standard_error == pytest.approx(here.standard_error, abs=1e-6)


def test_one_value_has_no_interval() -> None:
    assert interval([28.0]).mean == 28.0
    assert interval([28.0]).low is interval([28.0]).standard_error is None


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        found = interval(draw.normal(30.0, 0.4, 3).tolist())
        held += found.low <= 30.0 <= found.high  # type: ignore[operator]
    assert 0.93 < held / 2000 < 0.97


def test_scatter_is_pooled_over_groups_of_any_level() -> None:
    groups = [[28.0, 28.4], [25.0, 25.2, 25.4], [30.0]]
    spread, freedom = pooled_spread(groups)
    assert freedom == 3
    assert spread == pytest.approx(math.sqrt((2 * 0.2**2 + 2 * 0.2**2) / 3))
    assert pooled_spread([[1.0], [2.0], []]) == (0.0, 0)
    alone = pooled_spread([[28.0, 28.4, 29.0]])
    assert t_interval(interval([28.0, 28.4, 29.0]).mean, alone[0] / math.sqrt(3), alone[1]) == interval(
        [28.0, 28.4, 29.0]
    )

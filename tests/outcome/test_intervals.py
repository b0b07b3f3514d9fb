from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cvaeopt.outcome.intervals import around, interval, paired, pooled_spread, t_quantile


@pytest.mark.parametrize(
    ("freedom", "confidence", "tabled"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.99, 5.841), (4, 0.9, 2.132), (9, 0.95, 2.262), (30, 0.95, 2.042)],
)
def test_quantiles_are_those_of_the_printed_tables(freedom: int, confidence: float, tabled: float) -> None:
    assert t_quantile(freedom, confidence) == pytest.approx(tabled, abs=6e-4)


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
    assert around(interval([28.0, 28.4, 29.0]).mean, alone[0], 3, alone[1]) == interval([28.0, 28.4, 29.0])


tables = st.integers(2, 5).flatmap(
    lambda blocks: st.lists(st.lists(st.floats(-20, 40), min_size=blocks, max_size=blocks), min_size=2, max_size=4)
)


@given(tables)
def test_whole_tables_are_compared_by_their_means_and_what_rows_and_columns_leave(rows: list[list[float]]) -> None:
    table = np.array(rows)
    found = paired([dict(enumerate(row)) for row in rows])
    groups, blocks = table.shape
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    freedom = (groups - 1) * (blocks - 1)
    spread = math.sqrt((rest**2).sum() / freedom)
    assert found.freedom == freedom and found.spread == pytest.approx(spread, abs=1e-6)
    apart = found.difference(0, 1)
    assert apart is not None
    assert apart[0] == pytest.approx(table[0].mean() - table[1].mean(), abs=1e-6)
    assert apart[1] == pytest.approx(spread * math.sqrt(2 / blocks), abs=1e-6)


@given(
    st.lists(st.dictionaries(st.integers(0, 4), st.floats(-20, 40), min_size=1), min_size=2, max_size=4),
    st.lists(st.floats(-30, 30), min_size=5, max_size=5),
)
def test_what_a_block_does_to_all_its_groups_is_no_difference(
    groups: list[dict[int, float]], shifts: list[float]
) -> None:
    here = paired(groups)
    there = paired([{block: value + shifts[block] for block, value in one.items()} for one in groups])
    assert here.freedom == there.freedom
    assert here.spread == pytest.approx(there.spread, abs=1e-6)
    one, other = here.difference(0, 1), there.difference(0, 1)
    assert (one is None) == (other is None)
    assume(one is not None)
    assert one == pytest.approx(other, abs=1e-6)
    back = here.difference(1, 0)
    assert back is not None and one is not None and back[0] == pytest.approx(-one[0], abs=1e-6)


def test_groups_that_no_block_connects_cannot_be_compared() -> None:
    found = paired([{0: 28.0, 1: 28.5}, {2: 30.0, 3: 30.1}, {0: 27.0}])
    assert found.difference(0, 1) is None and found.difference(1, 2) is None
    assert found.difference(0, 2) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))


def test_pairing_tells_apart_what_seeds_hide_and_is_wrong_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    wrong, shorter = 0, 0
    for _ in range(500):
        table = draw.normal(0, 1.2, 4) + draw.normal(0, 0.5, (3, 4))
        found = paired([dict(enumerate(row)) for row in table])
        apart = found.difference(0, 1)
        assert apart is not None
        half = t_quantile(found.freedom) * apart[1]
        spread, freedom = pooled_spread(table.tolist())
        wrong += abs(apart[0]) > half
        shorter += half < t_quantile(freedom) * spread * math.sqrt(2 / 4)
    assert 0.03 < wrong / 500 < 0.07 and shorter > 450

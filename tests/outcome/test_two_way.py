"""What runs with common seeds say: closed forms, invariances, and by simulation whether statements are true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cvaeopt.outcome.intervals import pooled_spread, t_quantile
from cvaeopt.outcome.leaders import RankedLeader, rank
from cvaeopt.outcome.two_way import LEAST_FREEDOM, two_way
from cvaeopt.store.confirmation import FINALISTS, SEEDS, Leader

LEADERS = 5


def rows(table: np.ndarray) -> list[dict[int, float]]:
    return [dict(enumerate(row)) for row in table.tolist()]


tables = st.tuples(st.integers(3, 5), st.integers(2, 4)).flatmap(
    lambda shape: st.lists(
        st.lists(st.floats(-20, 40), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(tables)
def test_whole_tables_follow_the_textbook(values: list[list[float]]) -> None:
    table = np.array(values)
    settings, seeds = table.shape
    freedom = (settings - 1) * (seeds - 1)
    found = two_way(rows(table))
    assert found is not None and found.freedom == freedom
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    spread = math.sqrt((rest**2).sum() / freedom)
    assert found.spread == pytest.approx(spread, abs=2e-3)  # never quite 0
    assume(spread > 1e-2)
    apart = found.difference(0, 1)
    assert apart is not None and apart.standard_error is not None
    assert apart.mean == pytest.approx(table[0].mean() - table[1].mean(), abs=1e-6)
    assert apart.standard_error == pytest.approx(found.spread * math.sqrt(2 / seeds), abs=1e-6)
    # The best linear prediction of a balanced table draws each mean towards the grand mean by the same fraction.
    among_settings = seeds * table.mean(1).var(ddof=1)
    variance = max(0.02 * spread**2, (among_settings - spread**2) / seeds)
    kept = variance / (variance + spread**2 / seeds)
    for estimate, mean in zip(found.values, table.mean(1), strict=True):
        assert estimate.mean == pytest.approx(table.mean() + kept * (mean - table.mean()), abs=1e-5)
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low <= estimate.mean <= estimate.high


def test_the_error_of_a_balanced_tables_value_is_that_of_its_mean_squares() -> None:
    draw = np.random.default_rng(3)
    table = draw.normal(0, 5, (5, 1)) + draw.normal(0, 1, 3) + draw.normal(0, 0.3, (5, 3))
    found = two_way(rows(table))
    assert found is not None
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    square, among_seeds = (rest**2).sum() / 8, 5 * table.mean(0).var(ddof=1)
    # Settings this far apart are hardly shrunk: the variance of a mean is (seeds + rest) / 3.
    expected = (among_seeds + 4 * square) / 5 / 3
    for estimate in found.values:
        assert estimate.standard_error == pytest.approx(math.sqrt(expected), rel=0.01)


gaps = st.lists(st.dictionaries(st.integers(0, 4), st.floats(-20, 40), min_size=1), min_size=2, max_size=4)


@given(gaps, st.lists(st.floats(-30, 30), min_size=5, max_size=5), st.floats(-50, 50))
def test_what_a_seed_does_to_all_settings_is_no_difference(
    groups: list[dict[int, float]], shifts: list[float], by: float
) -> None:
    here = two_way(groups)
    assume(here is not None)
    assert here is not None
    there = two_way([{seed: value + shifts[seed] for seed, value in one.items()} for one in groups])
    moved = two_way([{seed: value + by for seed, value in one.items()} for one in groups])
    assert there is not None and moved is not None
    assert here.freedom == there.freedom
    assert here.spread == pytest.approx(there.spread, abs=0.01)  # never quite 0
    one, other, back = here.difference(0, 1), there.difference(0, 1), here.difference(1, 0)
    assert (one is None) == (other is None) == (back is None)
    if one is not None and other is not None and back is not None:
        assert one.mean == pytest.approx(other.mean, abs=1e-6) and back.mean == pytest.approx(-one.mean, abs=1e-6)
    for before, after in zip(here.values, moved.values, strict=True):
        assert after.mean == pytest.approx(before.mean + by, abs=1e-3)


def test_settings_that_no_seed_connects_cannot_be_compared() -> None:
    found = two_way([{0: 28.0, 1: 28.5, 4: 28.1}, {2: 30.0, 3: 30.1}, {0: 27.0, 1: 27.2, 4: 27.1}])
    assert found is not None
    assert found.difference(0, 1) is None and found.difference(1, 2) is None and found.difference(0, 2) is not None


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [{0: 28.0}, {0: 27.0}],  # one seed
        [{0: 28.0, 1: 28.5, 2: 29.0}],  # one setting: what is the seeds' and what the rest cannot be told apart
        [{0: 28.0, 1: 28.5}, {0: 27.0, 1: 27.5}],  # one degree of freedom
        [{0: 28.0, 1: 28.5}, {2: 27.0, 3: 27.5}],  # no common seed
    ],
)
def test_too_few_runs_are_no_table(groups: list[dict[int, float]]) -> None:
    assert LEAST_FREEDOM == 2 and two_way(groups) is None


def test_pairing_tells_apart_what_seeds_hide_and_is_wrong_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    wrong, shorter = 0, 0
    for _ in range(500):
        table = draw.normal(0, 1.2, 4) + draw.normal(0, 0.5, (3, 4))
        found = two_way(rows(table))
        assert found is not None
        apart = found.difference(0, 1)
        assert apart is not None and apart.high is not None
        half = apart.high - apart.mean
        spread, freedom = pooled_spread(table.tolist())
        wrong += abs(apart.mean) > half
        shorter += half < t_quantile(freedom) * spread * math.sqrt(2 / 4)
    assert 0.03 < wrong / 500 < 0.07 and shorter > 450


NOISES = [(1.3, 0.7), (0.7, 0.4), (0.43, 0.11)]
"""Standard deviations, dB: what a seed does to all settings alike, and the rest. The first as measured on trainings
that stopped early, the last on trainings that had settled."""


@pytest.mark.parametrize(("seed_db", "rest_db"), NOISES)
@pytest.mark.parametrize("successive", [False, True], ids=["full grid", "successive"])
def test_a_confirmed_value_is_what_it_says(seed_db: float, rest_db: float, successive: bool) -> None:
    draw = np.random.default_rng(16)
    held, optimism, count = 0, 0.0, 800
    for repeat in range(count):
        true = 30 + draw.normal(0, (0.3, 1.0)[repeat % 2], LEADERS)
        luck = draw.normal(0, seed_db, SEEDS)
        values = true[:, None] + luck + draw.normal(0, rest_db, (LEADERS, SEEDS))
        finalists = np.argsort(-values[:, 0])[:FINALISTS]
        ran = {number: SEEDS if not successive or number in finalists else 1 for number in range(LEADERS)}
        best = rank(
            ["x.confirm"],
            [
                RankedLeader(
                    Leader(str(number), (number,), 30.0, {}),
                    tuple(values[number, :runs].tolist()),
                    seeds=tuple(range(runs)),
                )
                for number, runs in ran.items()
            ],
        ).best
        assert best is not None and best.estimate is not None and best.low is not None and best.high is not None
        truth = true[best.leader.trials[0]]
        held += best.low <= truth <= best.high
        # The seeds' own mean is no optimism, as it favours no setting; without it fewer repeats are needed.
        optimism += best.estimate - truth - luck.mean()
    assert 0.93 <= held / count <= 0.97
    assert abs(optimism / count) < 0.15

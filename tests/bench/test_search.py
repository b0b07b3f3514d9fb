"""The search benchmark: its truths are true, its statistics are right, and a campaign goes on where it was cut."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path

import numpy as np
import optuna
import pytest

from bench import search, search_figures
from bench.machine import rows_of
from bench.problems import EPOCHS, FIT, PROBLEMS, Noise, hartmann, problem
from bench.simulation import Reading

OPTIMUM = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_the_landscape_is_hartmanns() -> None:
    assert hartmann(OPTIMUM) == pytest.approx(3.32237, abs=1e-4)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_a_point_is_worth_is_the_mean_of_its_last_epoch(name: str) -> None:
    made = problem(name)
    point = [0.3, 0.4, 0.5, 0.6, 0.3, 0.5]
    generator = np.random.default_rng(0)
    ends = [made.run(point, generator)[-1] for _ in range(4000)]
    assert statistics.fmean(ends) == pytest.approx(made.true(point), abs=5 * statistics.stdev(ends) / math.sqrt(4000))


def test_settings_do_not_matter_in_the_null_problem_and_early_curves_mislead_in_the_crossing_one() -> None:
    null, cross = problem("null"), problem("cross")
    assert len({null.true(list(point)) for point in itertools.product([0.1, 0.9], repeat=6)}) == 1
    poor = [0.9, 0.9, 0.1, 0.9, 0.9, 0.1]
    assert cross.clean(OPTIMUM)[14] < cross.clean(poor)[14]
    assert cross.true(OPTIMUM) > cross.true(poor) + 4
    assert cross.true([0.95, *OPTIMUM[1:]]) == -math.inf


def test_the_noise_has_the_deviations_that_it_says() -> None:
    generator = np.random.default_rng(1)
    made = Noise(seed_db=0.4, epoch_db=0.8, memory=0.5)
    drawn = np.array([made.draw(generator) for _ in range(3000)])
    assert drawn.std() == pytest.approx(math.hypot(0.4, 0.8), rel=0.03)
    correlation = np.corrcoef(
        (drawn - drawn.mean(1, keepdims=True))[:, 50:-1].ravel(), (drawn - drawn.mean(1, keepdims=True))[:, 51:].ravel()
    )
    assert correlation[0, 1] == pytest.approx(0.5, abs=0.03)


def test_the_fitted_parameters_are_kept_with_their_source() -> None:
    kept = json.loads(FIT.read_text())
    assert "public logs" in kept["source"] and len(kept["psnr"]) == 4 and len(kept["loss"]) == 5


def test_a_shorter_budget_is_a_reading_of_the_longer_one() -> None:
    short = search.one_run("cross", "random", 2, 5, (1000,))
    long = search.one_run("cross", "random", 2, 5, (1000, 2000))
    assert long["ends"]["1000"] == short["ends"]["1000"]
    assert long["trace"][:10] == short["trace"] and len(long["trace"]) == 20


def test_confirmation_is_paid_for_and_takes_a_fifth_of_the_budget_at_most() -> None:
    for budget in (500, 1000, 2000, 3000, 10_000):
        leaders, seeds = search.confirmation(budget)
        assert leaders >= 1 and seeds >= 1
        assert leaders * seeds * EPOCHS <= max(EPOCHS, budget / 5)
    unconfirmed = search.one_run("null", "tpe", 1, 2, (1000,))["ends"]["1000"]
    confirmed = search.one_run("null", "ours, unpruned", 1, 2, (1000,))["ends"]["1000"]
    leaders, seeds = search.confirmation(1000)
    assert confirmed["complete"] == unconfirmed["complete"] - leaders * seeds
    assert confirmed["error"] > 0 and unconfirmed["error"] is None


@pytest.mark.parametrize("method", ["ours", "hyperband"])
def test_no_epoch_beyond_the_budget_is_read(method: str) -> None:
    made, readings = problem("benign"), {}
    study = search.Simulated(made, search.METHODS[method], 3, 1)
    study.go(1000, readings.__setitem__)
    assert sorted(readings) == list(range(100, 1001, 100))
    assert 1000 <= study.spent < 1000 + EPOCHS
    assert len(study.complete) == len({run.number for run in study.complete}) <= 10
    assert all(run.epoch == EPOCHS for run in study.complete)


@pytest.mark.parametrize("workers", [1, 8])
def test_how_often_a_method_decides_does_not_change_what_its_epochs_buy(workers: int) -> None:
    found = []
    for block in (1, 7, 10):
        readings: dict[int, Reading] = {}
        method = dataclasses.replace(search.METHODS["random"], block=block)
        search.Simulated(problem("benign"), method, workers, 3).go(1000, readings.__setitem__)
        found.append({mark: sorted(run.number for run in one.complete) for mark, one in readings.items()})
    assert found[0] == found[1] == found[2]


def test_a_campaign_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    wanted = [(name, "random", 1, seed) for name in ("null", "cross") for seed in range(2)]
    assert search.campaign(wanted[:3], path, (1000,)) == 3
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:2], whole[2][:40]]) + "\n")  # cut short in the third
    assert search.campaign(wanted, path, (1000,)) == 2
    again = {search._key(row): row["ends"] for row in rows_of(path)}
    assert list(again) == wanted
    assert again[wanted[2]] == json.loads(whole[2])["ends"]
    assert search.campaign(wanted, path, (1000,)) == 0
    packed = {search._key(row): row["ends"] for row in search.pack(path)}
    assert packed == again and not path.exists()
    assert search.campaign(wanted, path, (1000,)) == 0
    assert {search._key(row): row["ends"] for row in rows_of(path)} == again


def test_the_tables_show_every_method_and_the_differences_are_paired() -> None:
    def row(method: str, seed: int, true: float | None) -> dict:
        end = {"true": true, "reported": 0 if true is None else true + 1, "error": None, "top3": True}
        return {"problem": "cross", "method": method, "workers": 1, "seed": seed, "ends": {"1000": end}, "trace": []}

    rows = [row("ours", 0, 28.0), row("ours", 1, 27.0), row("tpe", 0, 27.5), row("tpe", 1, None), row("tpe", 2, 90.0)]
    ours, tpe = (next(one for one in search_figures.summary(rows) if one["method"] == name) for name in ("ours", "tpe"))
    assert ours["1000"]["true"][0] == 27.5 and ours["1000"]["optimism"][0] == pytest.approx(1.0)
    # Seed 2 has no partner; no recommendation is worth an untrained network.
    assert tpe["1000"]["ours_minus"]["difference"][0] == pytest.approx((0.5 + 27.0 - 15.0) / 2)
    text = search_figures.table(search_figures.summary(rows))
    assert "| cross | 1 | ours | 2" in text and "| cross | 1 | tpe | 3" in text


def test_a_difference_is_compared_with_chance_and_none_at_all_is_chance() -> None:
    assert search_figures.signed_rank_p([1, 2, 3, 4, 5, 6]) == pytest.approx(2 / 64)
    assert search_figures.signed_rank_p([0, 0]) == 1.0

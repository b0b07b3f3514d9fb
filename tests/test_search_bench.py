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
from optuna.trial import TrialState

from bench import noise, search, search_figures
from bench.problems import EPOCHS, FIT, PROBLEMS, Noise, fit_curve, hartmann, problem

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


def test_the_fit_finds_the_curve_that_it_is_given() -> None:
    epochs = np.arange(1, 51)
    found = fit_curve(33.0 - 12.0 * np.exp(-epochs / 15.0))
    assert (found["end_db"], found["start_db"]) == (pytest.approx(33.0, abs=0.05), pytest.approx(21.0, abs=0.1))
    assert found["time_epochs"] == pytest.approx(15.0, rel=0.03)
    assert found["dips"] == 0


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


@pytest.mark.parametrize("method", ["ours", "ours, paused", "hyperband"])
def test_no_epoch_beyond_the_budget_is_read(method: str) -> None:
    made, readings = problem("benign"), {}
    study = search.Study(made, search.METHODS[method], 3, 1)
    study.go(1000, readings.__setitem__)
    assert sorted(readings) == list(range(100, 1001, 100))
    assert 1000 <= study.spent < 1000 + EPOCHS
    assert len(study.complete) == len({run.number for run in study.complete}) <= 10
    assert all(run.epoch == EPOCHS for run in study.complete)


def test_foresight_ends_at_epoch_25_what_does_not_become_the_best() -> None:
    made = problem("benign")
    study = search.Study(made, search.METHODS["ours, foreseeing"], 1, 2)
    study.go(2000, lambda mark, reading: None)
    ended = [one for one in study.study.get_trials(deepcopy=False) if one.state.is_finished()]
    best = -math.inf
    for one in sorted(ended, key=lambda one: one.number):
        if any(value > 0 for value in one.constraints.values()):
            continue
        true = made.true(search._point_of(one))
        assert (one.last_step, one.state) == ((100, TrialState.COMPLETE) if true >= best else (25, TrialState.PRUNED))
        best = max(best, true)
    assert {one.last_step for one in ended} >= {25, 100}


@pytest.mark.parametrize("workers", [1, 8])
def test_how_often_a_method_decides_does_not_change_what_its_epochs_buy(workers: int) -> None:
    found = []
    for block in (1, 7, 10):
        readings: dict[int, search.Reading] = {}
        method = dataclasses.replace(search.METHODS["random"], block=block)
        search.Study(problem("benign"), method, workers, 3).go(1000, readings.__setitem__)
        found.append({mark: sorted(run.number for run in one.complete) for mark, one in readings.items()})
    assert found[0] == found[1] == found[2]


def test_a_paused_trial_goes_on_once_it_is_among_the_best() -> None:
    study = search.Study(problem("benign"), search.METHODS["ours, paused"], 1, 0)
    first, second, third = (study._new() for _ in range(3))
    for run, value in ((first, 20.0), (second, 10.0), (third, 15.0)):
        run.epoch = 25
        run.curve = np.full(EPOCHS, value)
    assert study._pauses(first, 25, 2) and study._pauses(second, 25, 2)  # of one, nobody is in the better half
    assert study._promoted() is first
    assert study._pauses(third, 25, 2)
    assert study._promoted() is None


def test_a_campaign_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "search.jsonl"
    wanted = [(name, "random", 1, seed) for name in ("null", "cross") for seed in range(2)]
    assert search.campaign(wanted[:3], path, (1000,)) == 3
    whole = path.read_text().splitlines()
    path.write_text("\n".join([*whole[:2], whole[2][:40]]) + "\n")  # cut short in the third
    assert search.campaign(wanted, path, (1000,)) == 2
    again = {search._key(row): row["ends"] for row in search.rows_of(path)}
    assert list(again) == wanted
    assert again[wanted[2]] == json.loads(whole[2])["ends"]
    assert search.campaign(wanted, path, (1000,)) == 0
    packed = {search._key(row): row["ends"] for row in search.pack(path)}
    assert packed == again and not path.exists()
    assert search.campaign(wanted, path, (1000,)) == 0
    assert {search._key(row): row["ends"] for row in search.rows_of(path)} == again


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


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1, 2, 3, 4, 5, 6], 2 / 64), ([1, -1], 1.0), ([0, 0], 1.0), ([1, 2, 3, 4, -5], 2 * 10 / 32)],
)
def test_small_signed_rank_tests_are_exact(differences: list[float], p: float) -> None:
    assert search_figures.wilcoxon(differences) == pytest.approx(p)


def test_the_approximate_signed_rank_test_is_level() -> None:
    generator = np.random.default_rng(2)
    found = [search_figures.wilcoxon(list(generator.normal(size=20))) for _ in range(600)]
    assert np.mean([p < 0.1 for p in found]) == pytest.approx(0.1, abs=0.04)
    assert search_figures.wilcoxon(list(generator.normal(2, 1, 30))) < 1e-4


def test_the_noise_between_epochs_is_told_from_a_trend_and_that_between_seeds_from_settings() -> None:
    generator = np.random.default_rng(3)
    curves = 20 + 0.4 * np.arange(20) + generator.normal(0, 0.5, (400, 20))
    assert noise.pooled([noise.between_epochs(curve) for curve in curves]) == pytest.approx(0.5, rel=0.05)
    assert noise.between_epochs([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0, abs=1e-12)
    finals = [list(generator.normal(level, 0.3, 3)) for level in np.linspace(20, 30, 400)]
    assert noise.seeds_deviation(finals) == pytest.approx(0.3, rel=0.06)
    low, high = noise.interval(noise.pooled, list(np.abs(generator.normal(1.0, 0.1, 50))))
    assert low < 1.0 < high

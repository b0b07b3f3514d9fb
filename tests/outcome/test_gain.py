"""What more trainings may gain: simulated searches against the process's formulas, and what the commands say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvaeopt.outcome import gain
from cvaeopt.outcome.gain import expected_gain
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from cvaeopt.suggest.bayesian import Learned
from cvaeopt.suggest.gaussian_process import Posterior, fit, log_expected_improvement
from tests.support.command import Shop
from tests.support.made_up import definition, fill, trials


def process(draw: np.random.Generator, count: int = 6) -> Posterior:
    inputs = draw.random((count, 2))
    return fit(inputs, 30 + 3 * np.sin(4 * inputs[:, 0]), np.full(count, 0.1))


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_a_search_learns_as_the_process_does_that_sees_the_same_values(seed: int) -> None:
    draw = np.random.default_rng(seed)
    before, points, noise = process(draw), draw.random((30, 2)), 0.3
    mean, covariance = before.averages(points[:, None, :])
    found = Learned([], before.inputs, before.at(before.inputs)[0], before, noise, np.empty((0, 2)))
    searches = gain._Searches(found, mean, covariance, np.zeros(30), 0)
    simulations = len(searches._mean)
    after = before
    for place in draw.permutation(30)[:5]:
        # `believing` is told the process's own mean, so the mean must stay and the deviation must fall.
        searches.observe(np.full(simulations, place), searches._mean[:, place])
        after = after.believing(points[[place]], np.array([noise]))
    expected = after.at(points)
    assert searches._mean[0] == pytest.approx(expected[0], abs=1e-3)
    assert np.sqrt(searches._variance[0]) == pytest.approx(expected[1], abs=1e-3)


def test_the_gain_of_one_training_is_the_expected_improvement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gain, "_SIMULATIONS", 4000)
    study, made = definition(), [one for one in trials(40, seed=3) if one.value is not None]
    kept = gain.learn

    def exact(*arguments: object) -> Learned:
        """The study's knowledge, as if a training's value had no noise."""
        found = kept(*arguments)  # type: ignore[arg-type]
        assert found is not None
        process = fit(found.points, np.array([one.value for one in found.known]), np.full(len(found.known), 1e-3))
        return Learned(found.known, found.points, process.at(found.points)[0], process, 1e-4, found.lost)

    monkeypatch.setattr(gain, "learn", exact)
    (one,) = expected_gain(study, made, [1])
    cube = gain.cube_of(study)
    found = exact(cube, _forecaster(made), made, 0.35, 10)
    best = max(made, key=lambda trial: trial.value or 0.0)
    points = gain._points(found, cube, best, np.random.default_rng(0))
    mean, deviation = found.process.at(points)
    worth = found.worth(mean, deviation, float(mean[: 1 + min(64, len(made))].max()))
    chosen = int(np.argmax(worth + found.chances(points)))
    improvement = float(np.exp(log_expected_improvement(mean[[chosen]], deviation[[chosen]], best.value or 0.0)[0]))
    assert improvement > 0.01
    assert one.mean == pytest.approx(improvement, abs=5 * deviation[chosen] / np.sqrt(4000) + 0.01)


def _forecaster(made: list) -> gain.Forecaster:  # type: ignore[type-arg]
    forecaster = gain.Forecaster(2, gain.MIN_COMPLETE, 0.35)
    forecaster.learn("made-up", made)
    return forecaster


@pytest.mark.parametrize("kind", ["gp", "tpe", "random"])
def test_more_trainings_gain_more_and_cost_more(kind: str) -> None:
    found = expected_gain(definition(sampler={"kind": kind}), trials(32), [1, 5, 20], seed=1)
    assert [one.trials for one in found] == [1, 5, 20]
    assert found[0].mean < found[2].mean
    for one in found:
        assert one.low <= one.sure <= one.high
        assert one.hours == pytest.approx(one.trials * (found[0].hours or 0.0))
    assert found == expected_gain(definition(sampler={"kind": kind}), trials(32), [1, 5, 20], seed=1)


def test_trials_that_tell_nothing_say_nothing() -> None:
    assert expected_gain(definition(), trials(8), [5]) == []
    grid = {"search": {"tfr": {"type": "categorical", "choices": [0.0, 1.0]}}, "sampler": {"kind": "grid"}}
    assert expected_gain(definition(trials=2, **grid), trials(32), [5]) == []


def test_status_and_the_report_say_what_another_night_may_gain(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path)
    url = f"sqlite:///{tmp_path}/x.db"
    with open_storage(url) as storage:
        study = create_or_open(storage, definition(trials=40))
        made = trials(32)
        for one in made:
            if one.value is not None:
                one.params["lr"] = min(0.01, 0.009 + one.number / 10_000)
        fill(storage, study, made)
    asked = ("status", "--study", "made-up", "--storage", url)
    facts = json.loads(shop.run(*asked, "--json").out)
    assert not facts["over"] and "gain" not in facts
    assert facts["bounds"] == ["lr: 10 of the best 10 trials lie within 5% of its upper end, 0.01; raise it."]
    facts = json.loads(shop.run(*asked, "--json", "--more", "7", "--price", "3").out)["gain"]
    assert (facts["trials"], facts["cost"]) == (7, pytest.approx(facts["hours"] * 3, abs=0.01))
    said = shop.run(*asked, "--more", "7")
    assert "7 more trials may be expected to gain" in said.text and "upper end, 0.01; raise it" in said.text
    refused = shop.run(*asked, "--more", "7", "--watch")
    assert refused.code == 2 and "one of them" in refused.text
    assert shop.run("report", "--study", "made-up", "--storage", url, "--out", "page", "--price", "2").code == 0
    page = (tmp_path / "page" / "report.html").read_text()
    assert "16 more trials may be expected to gain" in page and "of one device, which cost" in page
    assert "upper end, 0.01; raise it" in page


def test_a_study_that_has_ended_says_by_itself_what_more_trials_may_gain(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path)
    url = f"sqlite:///{tmp_path}/x.db"
    with open_storage(url) as storage:
        fill(storage, create_or_open(storage, definition(trials=16)), trials(16))
    facts = json.loads(shop.run("status", "--study", "made-up", "--storage", url, "--json").out)
    assert facts["over"] and facts["gain"]["trials"] == 8

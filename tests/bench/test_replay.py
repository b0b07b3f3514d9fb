"""The replay on a table: what is told is what was trained, epochs are counted, and figures are those of the plan."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from pathlib import Path

import numpy as np
import optuna
import pytest

from bench import replay, replay_figures, table, tabled, worlds
from cvaeopt.search.definition import load_definition
from cvaeopt.search.space import key_of
from tests.bench.made_tables import DEFINITION, filled

CUBE = tabled.Cube(DEFINITION)
needs_skopt = pytest.mark.skipif(importlib.util.find_spec("skopt") is None, reason="scikit-optimize is not installed")


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> list[tabled.Entry]:
    """A table of sixty settings, some of which diverge."""
    return tabled.entries(filled(tmp_path_factory.mktemp("table"), 60).rows(), DEFINITION.window)


def nearest(of: list[tabled.Entry]) -> worlds.Nearest:
    return worlds.Nearest(of, CUBE, table.SEEDS[0])


def spent_by(study: replay.Replayed) -> int:
    """Epochs of the trials of a study: reported ones, and one more where a training diverged."""
    total = 0
    for trial in study.study.trials:
        total += max([0, *trial.intermediate_values])
    return total


def test_the_halves_are_decided_by_the_key_and_hold_every_setting_once(of: list[tabled.Entry]) -> None:
    halves = [replay.half_of(of, half) for half in (0, 1)]
    assert sorted(entry.index for half in halves for entry in half) == [entry.index for entry in of]
    assert all(int(entry.key, 16) % 2 == half for half in (0, 1) for entry in halves[half])


def test_a_setting_proposed_itself_is_met_and_never_twice(of: list[tabled.Entry]) -> None:
    world = nearest(of)
    for entry, truth in zip(of, tabled.truths(of), strict=True):
        met = world.meet(entry.params)
        assert met is not None and key_of(DEFINITION, met.params) == entry.key
        assert met.truth == truth
        curve = entry.curves[table.SEEDS[0]]
        assert list(met.curve[: len(curve)]) == curve and np.isnan(met.curve[len(curve) :]).all()
    assert world.meet(of[0].params) is None


def test_distance_counts_only_what_both_sides_search() -> None:
    one = {"lr": 1e-4, "lr_scheduler": "cosine"}
    assert CUBE.distance(one, {"lr": 2e-2, "lr_scheduler": "cosine", "gamma": 0.9}) == pytest.approx(1)
    assert CUBE.distance(one, {"lr": 1e-4, "lr_scheduler": "constant"}) == 1
    assert CUBE.active({"lr_scheduler": "cosine", "gamma": 0.95}) == {"lr_scheduler": "cosine"}


def test_the_surrogate_repeats_the_table_where_it_was_fitted_and_scatters_by_the_repeat(
    of: list[tabled.Entry],
) -> None:
    fitted = worlds.Fitted(of, CUBE)
    steady = next(entry for entry in of if entry.steady)
    met = [worlds.Surrogate(fitted, repeat).meet(steady.params) for repeat in range(30)]
    again = worlds.Surrogate(fitted, 3).meet(steady.params)
    assert [one.truth for one in met] == pytest.approx([steady.mean] * 30)
    assert (again.curve == met[3].curve).all()
    ends = [float(one.curve[-3:].mean()) for one in met]
    assert 0 < statistics.stdev(ends) < 0.4
    lost = next(entry for entry in of if not entry.steady)
    assert np.isnan(worlds.Surrogate(fitted, 0).meet(lost.params).curve[-1])


@pytest.mark.parametrize("name", list(replay.methods()))
@pytest.mark.parametrize("workers", [1, 4])
def test_a_study_is_told_what_was_trained_and_spends_its_budget(
    of: list[tabled.Entry], name: str, workers: int
) -> None:
    method, points = replay.methods()[name]
    study = replay.Replayed(nearest(of), method, points, workers, 5)
    readings = {}
    study.go(6 * 60, readings.__setitem__)
    assert sorted(readings) == list(range(10, 361, 10))
    known = {entry.key: truth for entry, truth in zip(of, tabled.truths(of), strict=True)}
    keys = []
    for trial in study.study.trials:
        keys.append(key_of(DEFINITION, trial.params))
        assert study.truths[trial.number] == known[keys[-1]]
        assert trial.distributions.keys() == trial.params.keys()
    assert len(set(keys)) == len(keys)
    if method.learns:
        assert spent_by(study) <= 360 + workers * 60


def test_equal_repeats_replay_alike_and_a_used_up_table_ends_a_study(of: list[tabled.Entry]) -> None:
    some = of[:12]
    rows = [replay.one_run(nearest(some), "random", 4, 20, 3) for _ in range(2)]
    assert rows[0]["steps"] == rows[1]["steps"]
    assert rows[0]["trials"] == 12
    assert rows[0]["steps"][-1][1] <= round(tabled.best_of(some), 3)


@needs_skopt
def test_skopt_spends_full_trainings_and_recommends_its_best_score(of: list[tabled.Entry]) -> None:
    row = replay.one_run(nearest(of), "skopt", 1, 12, 0)
    assert row["trials"] >= 12
    assert all(spent <= 12 * 60 for spent, _, _ in row["steps"])
    reported = [score for _, _, score in row["steps"]]
    assert reported == sorted(reported)


def test_ours_is_the_shipped_study_in_the_space_of_the_table() -> None:
    main, ours = load_definition("main", replay.STUDIES), replay.shipped()
    assert ours.sampler == main.sampler
    assert ours.pruner.warmup_epochs / ours.epochs == pytest.approx(main.pruner.warmup_epochs / main.epochs, abs=0.01)
    assert ours.search == DEFINITION.search and ours.fixed == DEFINITION.fixed
    assert 0 < len(ours.enqueue) <= len(main.enqueue)
    assert all(point["lr_scheduler"] == main.fixed["lr_scheduler"] for point in ours.enqueue)


def test_a_campaign_goes_on_where_it_was_cut_and_forgets_another_table(of: list[tabled.Entry], tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    wanted = [("nearest", "random", 1, 3, repeat) for repeat in range(3)]
    assert replay.campaign(of, 1, wanted[:2], path, math.inf) == 2
    path.write_text(path.read_text()[:-20])
    assert replay.campaign(of, 1, wanted, path, math.inf) == 2
    rows = replay.pack(path, replay.state_of(of))
    assert sorted(row["repeat"] for row in rows) == [0, 1, 2] and not path.exists()
    assert replay.campaign(of, 1, wanted, path, math.inf) == 0
    assert replay.campaign(of[:-1], 1, wanted[:1], path, math.inf) == 1
    text = replay_figures.report(rows, of, CUBE)
    assert "PRELIMINARY" in text and "| random | 3 |" in text


# ---- the figures


def row_of(repeat: int, method: str, steps: list[list[float]]) -> replay_figures.Row:
    where = {"half": 1, "way": "nearest", "workers": 1, "trainings": 20}
    return {**where, "method": method, "repeat": repeat, "steps": steps}


def test_epochs_to_a_target_and_the_truth_at_a_mark_are_read_off_the_steps() -> None:
    row = row_of(0, "ours", [[60, 35.0, 35.5], [130, 37.9, 38.0], [300, 37.0, 38.3]])
    assert replay_figures.epochs_to(row, 37.8) == 130
    assert replay_figures.epochs_to(row, 38.1) == math.inf
    assert [replay_figures.truth_at(row, epochs, 20.0) for epochs in (50, 60, 299, 300, 900)] == [20, 35, 37.9, 37, 37]
    assert replay_figures.optimism(row) == pytest.approx(1.3)
    assert replay_figures.optimism(row_of(0, "ours", [])) is None


def test_a_repeat_that_never_gets_there_counts_as_infinite() -> None:
    assert replay_figures.interval([60.0, 120.0, math.inf, math.inf, math.inf], np.median)[0] == math.inf
    middle, low, high = replay_figures.interval([60.0] * 30 + [math.inf], np.median)
    assert (middle, low, high) == (60, 60, 60)
    assert replay_figures.ratio([60.0] * 9, [math.inf] * 9)[0] == 0
    assert math.isnan(replay_figures.ratio([math.inf] * 9, [math.inf] * 9)[0])


def test_twice_as_fast_as_optuna_meets_the_goal_and_less_does_not(of: list[tabled.Entry]) -> None:
    best = tabled.best_of(of)
    for epochs, verdict in ((100, "met"), (110, "missed")):
        rows = [row_of(repeat, "ours", [[epochs, best, best]]) for repeat in range(20)]
        rows += [row_of(repeat, "optuna", [[200, best, best]]) for repeat in range(20)]
        lines = replay_figures.report(rows, of, CUBE).splitlines()
        line = next(one for one in reversed(lines) if one.startswith("| optuna |"))
        assert line.split("|")[4].strip() == verdict


def test_every_run_is_one_line_of_json(of: list[tabled.Entry], tmp_path: Path) -> None:
    path = tmp_path / "replay.jsonl"
    replay.campaign(of, 1, [("surrogate", "optuna", 1, 3, 0)], path, math.inf)
    (line,) = path.read_text().splitlines()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert row["state"] == replay.state_of(of) and row["trials"] >= 3

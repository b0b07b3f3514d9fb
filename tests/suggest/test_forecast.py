"""Forecasts: exact where gains are linear, as wide as they err, and cautious while nothing is known."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.suggest.estimate import curve_until, epoch_noise
from cvaeopt.suggest.forecast import Forecast, Forecaster, Gains, standing


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-0.4, 0.4), st.floats(0, 0.8), st.floats(-5, 5))
def test_a_gain_that_is_linear_in_standing_and_climbing_is_foretold(
    seed: int, level: float, climb: float, constant: float
) -> None:
    generator = np.random.default_rng(seed)
    standings = np.column_stack([generator.uniform(15, 30, 200), generator.uniform(0, 0.5, 200)])
    ends = standings[:, 0] + constant + level * (standings[:, 0] - 22) + climb * 30 * standings[:, 1]
    mean, error = (float(part[0]) for part in Gains.learn(standings, ends, 30).forecast(np.array([[24.0, 0.2]])))
    assert mean == pytest.approx(24 + constant + 2 * level + climb * 6, abs=0.02)
    assert error < 0.3


@pytest.mark.parametrize("count", [3, 6, 12, 30])
def test_the_error_is_what_it_says(count: int) -> None:
    generator = np.random.default_rng(count)
    misses = []
    for _ in range(600):
        standings = np.column_stack([generator.normal(25, 2, count + 1), generator.normal(0.1, 0.05, count + 1)])
        gains = 3 - 0.2 * (standings[:, 0] - 25) + 12 * standings[:, 1] + generator.normal(0, 0.8, count + 1)
        ends = standings[:, 0] + gains
        mean, error = Gains.learn(standings[1:], ends[1:], 40).forecast(standings[:1])
        misses.append((ends[0] - mean[0]) / error[0])
    assert np.sqrt(np.mean(np.square(misses))) == pytest.approx(1.0, abs=0.25)


def test_more_complete_trials_make_a_forecast_surer() -> None:
    generator = np.random.default_rng(0)
    standings = np.column_stack([generator.normal(25, 1, 40), generator.normal(0.1, 0.02, 40)])
    ends = standings[:, 0] + 2 + generator.normal(0, 0.3, 40)
    here = np.array([[25.0, 0.1]])
    errors = [float(Gains.learn(standings[:count], ends[:count], 40).forecast(here)[1][0]) for count in (2, 4, 10, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == pytest.approx(0.35, abs=0.1)


def test_standing_is_the_windows_mean_and_the_later_halfs_slope() -> None:
    level, slope = standing(np.array([0.0] * 10 + [float(step) for step in range(10)]), 4)
    assert level == pytest.approx((6 + 7 + 8 + 9) / 4)
    assert slope == pytest.approx(1.0)


def study_of(curves: list[list[float]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for curve in curves:
        study.add_trial(create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve, 1))))
    return study


def test_a_forecaster_waits_for_its_trials_and_leaves_out_what_has_no_values() -> None:
    curves = [[10.0 + end, 20.0 + end, 22.0 + end] for end in (0, 1, 2, 3)]
    study = study_of(curves)
    study.add_trial(create_trial(value=99.0))
    study.add_trial(create_trial(value=99.0, intermediate_values={1: float("nan"), 2: float("nan")}))
    early = create_trial(state=TrialState.PRUNED, intermediate_values={1: 11.5, 2: 21.5})
    early.number = 50
    assert forecast_of(Forecaster(1, 5, 0.35), study, early) is None
    found = forecast_of(Forecaster(1, 4, 0.35), study, early)
    assert found is not None and found.mean == pytest.approx(23.5, abs=0.1)
    assert forecast_of(Forecaster(1, 4, 0.35), study, create_trial(state=TrialState.RUNNING)) is None


@pytest.mark.parametrize("seed_noise_db", [0.0, 0.35, 1.0])
def test_a_forecast_s_interval_covers_the_value_of_the_settings(seed_noise_db: float) -> None:
    """Curves that differ in settings, seeds, climbing and epochs; what a lucky seed gives, it gives from early on."""
    generator, hits, runs_alone, count = np.random.default_rng(5), [], [], 0
    for _ in range(60):
        levels = generator.normal(28, 1.5, 54)  # the mean over all seeds of what the settings end at
        runs = levels + generator.normal(0, seed_noise_db, 54)
        climbs = generator.uniform(8, 25, 54)
        epochs = np.arange(1, 61)
        curves = runs[:, None] - 6 * np.exp(-epochs / climbs[:, None]) + 6 * np.exp(-60 / climbs[:, None])
        curves += generator.normal(0, 0.3, curves.shape)
        study = study_of(curves[:40].tolist())
        for curve in curves[40:, :25].tolist():
            study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=dict(enumerate(curve, 1))))
        forecaster = Forecaster(5, 3, seed_noise_db)
        trials = forecaster.trials(study)
        for number, found in forecaster.forecasts(trials[40:]).items():
            hits.append(abs(found.mean - levels[number]) < 1.96 * found.error)
            run_error = np.sqrt(found.error**2 - seed_noise_db**2)
            runs_alone.append(abs(found.mean - levels[number]) < 1.96 * run_error)
            count += 1

    assert count == 840
    assert 0.91 < np.mean(hits) < 0.99, np.mean(hits)
    if seed_noise_db == 1.0:
        assert np.mean(runs_alone) < 0.85, np.mean(runs_alone)  # without the noise of the seeds


def forecast_of(forecaster: Forecaster, study: optuna.Study, trial: FrozenTrial) -> Forecast | None:
    forecaster.trials(study)
    return forecaster.forecast(trial)


def plainly(study: optuna.Study, trial: FrozenTrial, window: int, seed_noise_db: float) -> Forecast | None:
    """The forecast computed from nothing but the stored curves, trial by trial."""
    epoch = trial.last_step
    curve = [] if epoch is None else curve_until(trial.intermediate_values, epoch)
    if not curve:
        return None
    standings, ends, noises, last = [], [], [], epoch
    for other in study.get_trials(states=(TrialState.COMPLETE,)):
        whole = curve_until(other.intermediate_values, 10**6)
        before = curve_until(other.intermediate_values, epoch)
        if before and other.last_step > epoch:
            standings.append(standing(np.array(before), window))
            ends.append(np.mean(whole[-window:]))
            noises.append(epoch_noise(whole[len(whole) // 2 :]) or 0.0)
            last = max(last, other.last_step)
    if len(ends) < 3:
        return None
    noise = np.hypot(np.median(noises) / np.sqrt(window), seed_noise_db)
    gains = Gains.learn(np.array(standings), np.array(ends), last - epoch, noise)
    mean, error = gains.forecast(standing(np.array(curve), window)[None])
    return Forecast(float(mean[0]), float(np.hypot(error[0], seed_noise_db)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_what_is_kept_between_readings_changes_no_forecast(seed: int, window: int) -> None:
    generator = np.random.default_rng(seed)
    study, forecaster = optuna.create_study(direction="maximize"), Forecaster(window, 3, 0.35)
    for _ in range(14):
        epochs = int(generator.integers(1, 20))
        curve = dict(enumerate((25 + generator.normal(0, 1, epochs).cumsum()).tolist(), 1))
        for epoch in generator.integers(1, epochs + 1, 2).tolist():  # some trials miss epochs, or have no number there
            if epoch < epochs and generator.random() < 0.2:
                curve[epoch] = float("nan")
            elif epoch < epochs and generator.random() < 0.2:
                curve.pop(epoch, None)
        state = TrialState.COMPLETE if generator.random() < 0.6 else TrialState.PRUNED
        value = curve[epochs] if state == TrialState.COMPLETE else None
        study.add_trial(create_trial(state=state, value=value, intermediate_values=curve))
        for trial in forecaster.trials(study):
            if trial.state == TrialState.PRUNED:
                known, expected = forecaster.forecast(trial), plainly(study, trial, window, 0.35)
                assert (known is None) == (expected is None)
                if known is not None and expected is not None:
                    assert known.mean == pytest.approx(expected.mean, abs=1e-9)
                    assert known.error == pytest.approx(expected.error, abs=1e-9)

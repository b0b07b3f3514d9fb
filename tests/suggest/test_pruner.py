"""The forecast pruner: it stops what cannot come back, and nothing that it cannot foretell."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from cvaeopt.config import Config
from cvaeopt.suggest.pruner import ForecastPruner, shows_at

EPOCHS = 60


def saturating(end: float, time: float = 15.0) -> list[float]:
    return [end - (end - 15) * math.exp(-epoch / time) for epoch in range(1, EPOCHS + 1)]


def study_of(curves: list[list[float]]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for curve in curves:
        study.add_trial(create_trial(value=curve[-1], intermediate_values=dict(enumerate(curve, 1))))
    return study


def running(curve: list[float], epoch: int, number: int = 99) -> FrozenTrial:
    trial = create_trial(
        state=TrialState.RUNNING, intermediate_values={step: curve[step - 1] for step in range(1, epoch + 1)}
    )
    trial.number = number
    return trial


def pruner(**options):
    return ForecastPruner(**{"window": 3, "warmup_epochs": 20, **options})


KNOWN = [saturating(end) for end in (20, 22, 24, 25, 26, 27, 28, 29)]


def test_what_follows_the_others_and_stands_below_them_is_stopped_and_a_leader_goes_on() -> None:
    study = study_of(KNOWN)
    assert pruner().prune(study, running(saturating(19.0), 30))
    assert not pruner().prune(study, running(saturating(30.0), 30))


def test_a_slow_learner_that_will_win_goes_on_while_a_quick_one_below_it_is_stopped() -> None:
    # What goes to `end` takes 5 + 5 (end - 20) epochs for it: the early curves rank the two the wrong way round.
    ends = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
    known = [saturating(end, 5 + 5 * (end - 20)) for end in ends]
    study = study_of(known)
    slow, quick = saturating(30.0, 45.0), saturating(21.0, 7.5)
    assert slow[19] < quick[19] and slow[-1] > quick[-1] + 4
    assert not pruner().prune(study, running(slow, 20))
    assert pruner().prune(study, running(quick, 20))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 50))
def test_a_trial_that_stands_best_and_climbs_fastest_is_never_stopped_where_gains_are_equal(
    seed: int, epoch: int
) -> None:
    generator = np.random.default_rng(seed)
    known = [saturating(end) for end in generator.uniform(20, 30, 8)]
    best = max(known, key=lambda curve: curve[epoch - 1])
    assert not pruner().prune(study_of(known), running([value + 0.5 for value in best], epoch))


def test_where_early_epochs_say_nothing_of_late_ones_few_are_stopped_and_never_all() -> None:
    # Sequential studies: what is stopped is missing among those that the next forecast is learned from.
    stopped = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        study, rule = study_of([]), pruner(interval_epochs=5)
        for number in range(30):
            curve = [*generator.normal(20, 1, 30), *np.linspace(20, generator.normal(25, 2), 30)]
            ends = [epoch for epoch in (20, 25, 30) if rule.prune(study, running(curve, epoch, number))][:1]
            values = dict(enumerate(curve[: ends[0] if ends else EPOCHS], 1))
            study.add_trial(
                create_trial(state=TrialState.PRUNED, intermediate_values=values)
                if ends
                else create_trial(value=curve[-1], intermediate_values=values)
            )
        stopped.append(sum(trial.state == TrialState.PRUNED for trial in study.trials))
    assert max(stopped) <= 24  # a fifth always runs to its end
    assert np.median(stopped) <= 15


def test_some_trials_run_to_their_end_whatever_is_foretold() -> None:
    study, poor = study_of(KNOWN), running(saturating(16.0), 20)

    def stop_one() -> None:
        values = dict(enumerate(saturating(27.0)[:20], 1))
        study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=values))

    for _ in range(4 * len(KNOWN)):
        assert pruner().prune(study, poor)
        stop_one()
    assert pruner().prune(study, poor)
    stop_one()
    assert not pruner().prune(study, poor)


def test_what_is_better_than_the_last_ones_goes_on_though_it_will_hardly_lead() -> None:
    study = study_of([saturating(29.0), *(saturating(end) for end in (24.0, 24.5, 25.0, 25.5, 26.0) * 3)])
    assert pruner().prune(study, running(saturating(25.0), 30))
    assert not pruner().prune(study, running(saturating(26.5), 30))


@pytest.mark.parametrize("epoch", [5, 19, 21, 24])
def test_nothing_is_stopped_before_the_first_rung_or_between_two(epoch: int) -> None:
    study = study_of(KNOWN)
    assert not pruner(interval_epochs=5).prune(study, running(saturating(15.0), epoch))
    assert pruner(interval_epochs=5).prune(study, running(saturating(15.0), 25))


def test_a_trial_whose_schedule_has_not_shown_itself_goes_on() -> None:
    study, poor = study_of(KNOWN), saturating(16.0)
    late = pruner(shows_at=lambda trial: 35)
    assert not late.prune(study, running(poor, 34))
    assert late.prune(study, running(poor, 35))


def test_nothing_is_stopped_until_enough_trials_are_complete() -> None:
    poor = running(saturating(15.0), 40)
    assert not pruner(n_startup_trials=9).prune(study_of(KNOWN), poor)
    assert pruner(n_startup_trials=8).prune(study_of(KNOWN), poor)


def test_values_that_are_not_finite_and_trials_without_epochs_are_passed_over() -> None:
    study = study_of(KNOWN)
    study.add_trial(create_trial(value=99.0))
    study.add_trial(create_trial(value=99.0, intermediate_values=dict.fromkeys(range(1, EPOCHS + 1), math.nan)))
    assert pruner().prune(study, running(saturating(15.0), 40))
    assert not pruner().prune(study, create_trial(state=TrialState.RUNNING))


@pytest.mark.parametrize(
    ("changes", "epoch"),
    [
        ({"tfr": 0.0, "kl_anneal_type": "none"}, 0),
        ({"tfr": 0.8, "tfr_sde": 10, "kl_anneal_type": "none"}, 12),  # 0.8 in epochs 1 to 11, 0.7 in the 12th
        ({"tfr": 0.8, "tfr_sde": 10, "tfr_d_step": 0.0, "kl_anneal_type": "none"}, 0),
        ({"tfr": 0.8, "tfr_sde": 10, "tfr_formula": "seed003", "kl_anneal_type": "none"}, 11),
        ({"tfr": 0.0, "kl_anneal_cycle": 5, "kl_anneal_ratio": 0.5}, 11),  # cycles of 20 epochs, at 1 after 10
        ({"tfr": 0.0, "kl_anneal_cycle": 5, "kl_anneal_ratio": 1.0}, 20),  # the top is the cycle's last epoch
        ({"tfr": 0.0, "kl_anneal_type": "monotonic", "kl_anneal_ratio": 0.25}, 26),
        ({"tfr": 0.0, "kl_anneal_cycle": 10, "kl_formula": "seed004"}, 6),  # epochs of one cycle, at 1 after half
        ({"tfr": 0.5, "tfr_sde": 30, "kl_anneal_cycle": 5, "kl_anneal_ratio": 0.5}, 32),  # the later of the two
    ],
)
def test_a_schedule_has_shown_itself_once_forcing_falls_and_the_first_kl_cycle_is_at_its_top(changes, epoch) -> None:
    assert shows_at(Config(num_epoch=100, **changes)) == epoch


def test_impossible_options_are_refused() -> None:
    for wrong in ({"n_startup_trials": 1}, {"keep": 1.1}, {"odds": 0.0}):
        with pytest.raises(ValueError, match=r"expected|needed"):
            pruner(**wrong)


def test_it_is_a_pruner_that_any_study_can_use() -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner(), sampler=optuna.samplers.RandomSampler(seed=0))

    def objective(trial: optuna.Trial) -> float:
        curve = saturating(trial.suggest_float("end", 20, 30))
        for epoch, value in enumerate(curve, 1):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return curve[-1]

    study.optimize(objective, n_trials=30)
    pruned = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert len(pruned) >= 10
    assert all(trial.last_step is not None and trial.last_step >= 20 for trial in pruned)
    assert study.best_value == pytest.approx(
        max(saturating(trial.params["end"])[-1] for trial in study.trials), abs=0.5
    )


def test_contenders_below_a_lucky_leader_go_on_and_hopeless_ones_stop_at_the_first_rung() -> None:
    # Real curves of `bench.real`: a search of `wide` whose pruner of that day stopped what stood at 31.5 dB in epoch 7
    # of 12, below a leader of 32.8 dB that was worth 29.9 from fresh seeds.
    kept = Path(__file__).parents[2] / "bench" / "results" / "real.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(kept.read_bytes()).decode().splitlines()]
    (row,) = [
        row for row in rows if (row.get("method"), row.get("space"), row.get("repeat")) == ("earlier pruner", "wide", 1)
    ]
    study, rule = study_of([]), ForecastPruner(window=2, warmup_epochs=4)
    ends: dict[int, int | None] = {}
    for trial in row["trials"]:
        curve, number = trial["curve"], trial["number"]
        stopped = (
            epoch for epoch in range(4, min(len(curve), 11) + 1) if rule.prune(study, running(curve, epoch, number))
        )
        ends[number] = next(stopped, None)
        values = dict(enumerate(curve, 1))
        if trial["state"] == "complete":
            study.add_trial(create_trial(value=sum(curve[-2:]) / 2, intermediate_values=values))
        elif trial["state"] == "pruned":
            study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values=values))
    pruned = {trial["number"]: trial["curve"] for trial in row["trials"] if trial["state"] == "pruned"}
    contenders = {number for number, curve in pruned.items() if curve[-1] > 30}
    assert len(contenders) == 7 and all(ends[number] is None for number in contenders)
    hopeless = {number for number, curve in pruned.items() if curve[-1] < 25}
    assert len(hopeless) == 12 and all(ends[number] == 4 for number in hopeless)

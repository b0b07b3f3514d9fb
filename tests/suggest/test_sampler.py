"""Samplers and pruners: the same suggestion whoever asks, no holes, no point twice, no silent defaults."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from cvaeopt.errors import StudyError
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import suggest
from cvaeopt.suggest import bayesian
from cvaeopt.suggest.quasirandom import radical_inverse, value_at
from cvaeopt.suggest.sampler import AlternatingSampler, pruner_for, sampler_for

SEARCH = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "tfr": {"type": "float", "low": 0.0, "high": 1.0},
    "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]},
    "kl_anneal_cycle": {"type": "int", "low": 2, "high": 9, "when": {"kl_anneal_type": ["cyclical"]}},
}


def define(sampler, seed=0, pruner=None, search=SEARCH, budget=None):
    tables = {
        "study": {"seed": seed},
        "budget": budget or {"trials": 40, "epochs": 30},
        "search": search,
        "sampler": sampler,
        "pruner": pruner or {"kind": "none"},
    }
    return Definition.parse(tables, "test", "studies/test.toml")


def value_of(config):
    return -abs(config.lr - 3e-3) * 100 - config.tfr - (config.kl_anneal_type == "none")


def run(definition, trials, workers=1):
    """The configurations of a study whose `workers` take turns, each with a sampler of its own."""
    storage = optuna.storages.InMemoryStorage()
    studies = [
        optuna.create_study(
            study_name="test",
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler_for(definition),
            pruner=pruner_for(definition),
        )
        for _ in range(workers)
    ]
    configs = []
    for number in range(trials):
        trial = studies[number % workers].ask()
        configs.append(suggest(definition, trial))
        studies[number % workers].tell(trial, value_of(configs[-1]))
    return configs


KINDS = [
    {"kind": "tpe", "n_startup_trials": 6},
    {"kind": "tpe", "n_startup_trials": 6, "constant_liar": False},
    {"kind": "random"},
    {"kind": "qmc"},
    {"kind": "gp", "n_startup_trials": 6},
    {"kind": "gp", "n_startup_trials": 6, "tpe_every": 0},
]


@pytest.mark.parametrize("sampler", KINDS)
def test_it_does_not_matter_which_worker_asks(sampler):
    definition = define(sampler)
    trials = 12 if sampler["kind"] == "gp" else 20
    alone = run(definition, trials)
    assert run(definition, trials, workers=3) == alone
    assert len({config.digest() for config in alone}) == trials


@pytest.mark.parametrize("sampler", KINDS)
def test_another_study_seed_is_another_search(sampler):
    first, second = run(define(sampler, seed=1), 8), run(define(sampler, seed=2), 8)
    assert not {config.lr for config in first} & {config.lr for config in second}


@pytest.mark.parametrize("sampler", KINDS)
def test_a_trial_broken_off_between_two_parameters_is_continued_with_the_same_values(sampler):
    definition = define(sampler)
    whole = run(definition, 10)[-1]
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize", sampler=sampler_for(definition))
    for _ in range(9):
        trial = study.ask()
        study.tell(trial, value_of(suggest(definition, trial)))
    broken = study.ask()
    assert definition.search["lr"].suggest("lr", broken) == whole.lr
    other = optuna.load_study(study_name=study.study_name, storage=storage, sampler=sampler_for(definition))
    assert suggest(definition, optuna.trial.Trial(other, broken._trial_id)) == whole


def test_halton_points_cover_settings_that_the_study_does_not_name():
    study = optuna.create_study(sampler=sampler_for(define({"kind": "qmc"})))
    study.optimize(lambda trial: trial.suggest_float("one", 0, 1) + trial.suggest_float("two", 0, 1), n_trials=8)
    for name in ("one", "two"):
        places = sorted(trial.params[name] for trial in study.trials)
        assert len(set(places)) == 8 and places[0] < 0.25 and places[-1] > 0.75


@pytest.mark.parametrize("kind", ["tpe", "gp"])
def test_running_trials_are_not_repeated(kind):
    definition = define({"kind": kind, "n_startup_trials": 5})
    study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
    for _ in range(8):
        trial = study.ask()
        study.tell(trial, value_of(suggest(definition, trial)))
    together = [suggest(definition, study.ask()) for _ in range(6)]
    assert len({config.lr for config in together}) == 6


def test_tpe_finds_a_good_corner_sooner_than_chance():
    better = 0
    for seed in range(5):
        tpe = run(define({"kind": "tpe", "n_startup_trials": 8}, seed), 30)[15:]
        chance = run(define({"kind": "random"}, seed), 30)[15:]
        better += sum(map(value_of, tpe)) > sum(map(value_of, chance))
    assert better >= 4


def test_halton_points_leave_no_holes():
    for base in (2, 3, 5, 7):
        for seed in (0, 1):
            bins = sorted(int(radical_inverse(index, base, seed) * base**2) for index in range(base**2))
            assert bins == list(range(base**2))


def test_every_step_and_choice_is_equally_wide():
    fractions = [(index + 0.5) / 1200 for index in range(1200)]

    def shares(distribution):
        values = [value_at(distribution, fraction) for fraction in fractions]
        assert all(distribution._contains(distribution.to_internal_repr(value)) for value in values)
        return {value: values.count(value) for value in values}

    assert shares(CategoricalDistribution(["a", "b", "c"])) == {"a": 400, "b": 400, "c": 400}
    assert shares(IntDistribution(2, 8, step=2)) == {2: 300, 4: 300, 6: 300, 8: 300}
    assert shares(FloatDistribution(0.0, 1.0, step=0.5)) == {0.0: 400, 0.5: 400, 1.0: 400}
    assert set(shares(IntDistribution(1, 8, log=True))) == set(range(1, 9))
    logs = list(shares(FloatDistribution(1e-4, 1e-2, log=True)))
    assert sum(value < 1e-3 for value in logs) == 600
    assert max(shares(FloatDistribution(-1.0, 1.0))) < 1.0


def test_a_grid_s_sampler_says_that_the_grid_is_done():
    search = {"tfr": {"type": "categorical", "choices": [0.0, 1.0]}}
    definition = define({"kind": "grid"}, search=search, budget={"trials": 2, "epochs": 3})
    study = optuna.create_study(sampler=sampler_for(definition))
    with pytest.raises(StudyError, match="every point of its grid was taken"):
        suggest(definition, study.ask())


def test_a_gaussian_process_finds_a_good_corner_sooner_than_chance():
    for seed in range(2):
        process = run(define({"kind": "gp"}, seed), 16)[8:]
        chance = run(define({"kind": "random"}, seed), 16)[8:]
        assert sum(map(value_of, process)) > sum(map(value_of, chance))


def test_settings_that_diverged_are_kept_away_from():
    search = {"lr": {"type": "float", "low": 0.0, "high": 1.0}, "tfr": SEARCH["tfr"]}
    search["lr"]["low"] = 1e-3
    definition = define({"kind": "gp", "n_startup_trials": 5, "tpe_every": 0}, search=search)
    study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
    lost = 0
    for number in range(30):
        trial = study.ask()
        config = suggest(definition, trial)
        bad = config.lr > 0.6
        trial.set_constraint("diverged", float(bad))
        lost += bad and number >= 10
        if bad:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, 20 - 4 * (config.lr - 0.4) ** 2 - config.tfr)
    assert lost <= 3  # 40 % of the range: 8 of 20 by chance
    assert study.best_value > 19.9


def test_one_divergence_closes_nothing_and_two_close_their_place_unless_most_trials_trained_there():
    grid, lengths = np.linspace(0, 1, 101)[:, None], np.ones(1)

    def survival(trained, lost):
        points = (np.array(one, dtype=float).reshape(-1, 1) for one in (trained, lost))
        return bayesian.log_survival(grid, *points, lengths)

    trained = [0.1, 0.3, 0.5]
    assert (survival(trained, []) == 0).all()
    alone = survival(trained, [0.8])
    assert (alone > -10).all() and alone.argmin() == 80
    two = survival(trained, [0.8, 0.85])
    assert two[80:].max() < -bayesian.CLOSED / 2 and (two[:60] > -1).all()
    assert (survival([*trained, *[0.8] * 12], [0.8, 0.81]) > -3).all()


def test_local_search_starts_from_the_highest_means_and_not_from_the_luckiest_values(monkeypatch):
    search = {"tfr": SEARCH["tfr"]}
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0}, search=search)
    study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
    values = {0.1: [24.0] * 6, 0.2: [24.0] * 6, 0.3: [24.0] * 6, 0.9: [20.0] * 6 + [25.0]}  # 25 is luck
    for tfr, found in values.items():
        for value in found:
            study.add_trial(
                optuna.trial.create_trial(
                    params={"tfr": tfr}, distributions={"tfr": FloatDistribution(0.0, 1.0)}, value=value
                )
            )
    leaders = []
    best = bayesian.GaussianProcessSampler._best

    def seen(self, worth, starts, draw):
        leaders.append(starts[:, 0])
        return best(self, worth, starts, draw)

    monkeypatch.setattr(bayesian.GaussianProcessSampler, "_best", seen)
    suggest(definition, study.ask())
    assert leaders[0].max() < 0.5


def test_a_further_training_is_as_noisy_as_a_complete_one_and_not_as_a_forecast(monkeypatch):
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0}, search={"tfr": SEARCH["tfr"]})
    definition = definition.model_copy(update={"seed_noise_db": 0.0})
    study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
    generator, dimension = np.random.default_rng(0), {"tfr": FloatDistribution(0.0, 1.0)}
    for number in range(12):  # complete trials that are noisy at their end; their forecasts know them better
        epochs = 30 if number < 6 else 15
        noise = generator.normal(0, 4.0, 30) * (np.arange(30) >= 25)
        curve = dict(enumerate((25 + number / 10 + noise)[:epochs].tolist(), 1))
        state = TrialState.COMPLETE if number < 6 else TrialState.PRUNED
        value = curve[30] if number < 6 else None
        params = {"tfr": number / 12}
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=dimension, value=value, intermediate_values=curve
            )
        )
    processes, noises = [], []
    fit, news = bayesian.fit, bayesian.log_news
    monkeypatch.setattr(bayesian, "fit", lambda *parts: processes.append(fit(*parts)) or processes[-1])
    monkeypatch.setattr(bayesian, "log_news", lambda deviation, noise: noises.append(noise) or news(deviation, noise))
    suggest(definition, study.ask())
    assert noises[0] == pytest.approx(np.sqrt(np.median(processes[0].noise[:6])))


def test_two_samplers_take_turns_after_the_first_trials():
    asked = []

    class Named(optuna.samplers.RandomSampler):
        def __init__(self, name):
            super().__init__(seed=0)
            self.name = name

        def sample_independent(self, study, trial, param_name, param_distribution):
            asked.append((trial.number, self.name))
            return super().sample_independent(study, trial, param_name, param_distribution)

    both = AlternatingSampler(Named("one"), Named("other"), 3, 5)
    study = optuna.create_study(direction="maximize", sampler=both)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=12)
    assert [number for number, name in asked if name == "other"] == [5, 8, 11]
    assert len(asked) == 12


def test_of_a_large_study_the_best_and_the_latest_are_looked_at():
    values = np.random.default_rng(0).normal(size=1000)
    kept = values[bayesian.best_and_latest(values, 300)]
    assert len(kept) == 300
    assert (kept[-150:] == values[-150:]).all()
    assert sorted(kept[:-150]) == sorted(values[:-150])[-150:]
    assert (bayesian.best_and_latest(values[:300], 300) == np.arange(300)).all()


def test_the_limits_on_observations_change_no_suggestion_of_a_study_below_them(monkeypatch):
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0})
    study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
    grow(study, definition, 18)
    trials = study.get_trials()

    def suggested():
        again = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
        again.add_trials(trials)
        return suggest(definition, again.ask())

    limited = suggested()
    monkeypatch.setattr(bayesian, "MAX_OBSERVATIONS", 10**9)
    monkeypatch.setattr(bayesian, "MAX_LEARNED_FROM", 10**9)
    assert suggested() == limited
    monkeypatch.setattr(bayesian, "MAX_OBSERVATIONS", 6)
    assert suggested() != limited


class Counting(optuna.storages.InMemoryStorage):
    """A storage that counts how often all trials are read."""

    reads = 0

    def get_all_trials(self, *args, **kwargs):
        self.reads += 1
        return super().get_all_trials(*args, **kwargs)


def grow(study, definition, trials, seed=0):
    """Trials with curves: complete, pruned, diverged and running ones in turn; their settings."""
    generator, configs = np.random.default_rng(seed), []
    for number in range(trials):
        trial = study.ask()
        configs.append(suggest(definition, trial))
        kind = ("complete", "complete", "pruned", "complete", "diverged", "pruned", "running")[number % 7]
        epochs = 30 if kind == "complete" else int(generator.integers(3, 25))
        level = 30 + value_of(configs[-1])
        for epoch in range(1, epochs + 1):
            trial.report(level - 5 / epoch + generator.normal(0, 0.1), epoch)
        trial.set_constraint("diverged", float(kind == "diverged"))
        if kind == "complete":
            study.tell(trial, level)
        elif kind != "running":
            study.tell(trial, state=TrialState.PRUNED)
    return configs


def test_what_a_sampler_keeps_changes_none_of_its_suggestions():
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0})
    kept = optuna.create_study(study_name="kept", direction="maximize", sampler=sampler_for(definition))
    grow(kept, definition, 18)
    fresh = optuna.create_study(study_name="fresh", direction="maximize")
    for trial in kept.get_trials():
        fresh.add_trial(trial)
    fresh.sampler = sampler_for(definition)
    assert suggest(definition, kept.ask()) == suggest(definition, fresh.ask())


def test_a_suggestion_reads_the_trials_once_however_many_there_are():
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0})
    storage = Counting()
    study = optuna.create_study(storage=storage, direction="maximize", sampler=sampler_for(definition))
    reads = []
    for _ in range(3):
        grow(study, definition, 7)
        trial = study.ask()
        storage.reads = 0
        suggest(definition, trial)
        reads.append(storage.reads)
    assert reads == [1, 1, 1]


@pytest.mark.parametrize("state", [TrialState.PRUNED, TrialState.RUNNING])
def test_a_trial_without_an_end_teaches_by_its_forecast(state):
    search = {"tfr": SEARCH["tfr"]}
    definition = define({"kind": "gp", "n_startup_trials": 4, "tpe_every": 0}, search=search)

    def next_one(level_so_far, epochs=10):
        study = optuna.create_study(direction="maximize", sampler=sampler_for(definition))
        dimension = {"tfr": FloatDistribution(0.0, 1.0)}
        for tfr, level in ((0.1, 22.0), (0.3, 23.0), (0.5, 24.0), (0.7, 24.5)):
            curve = {epoch: level - 3 / epoch for epoch in range(1, 31)}
            study.add_trial(
                optuna.trial.create_trial(
                    params={"tfr": tfr}, distributions=dimension, value=curve[30], intermediate_values=curve
                )
            )
        if level_so_far is not None:
            curve = {epoch: level_so_far - 3 / epoch for epoch in range(1, epochs + 1)}
            for tfr in (0.85, 0.95):
                study.add_trial(
                    optuna.trial.create_trial(
                        state=state, params={"tfr": tfr}, distributions=dimension, intermediate_values=curve
                    )
                )
        return suggest(definition, study.ask()).tfr

    assert next_one(None) > 0.75
    assert next_one(18.0) < 0.8
    assert next_one(26.0) > 0.8
    if state == TrialState.RUNNING:  # before a quarter of its epochs it is only known to be there
        assert next_one(18.0, epochs=7) == next_one(26.0, epochs=7)


def pruned_at(pruner, curves):
    """The epoch at which each curve is pruned (None: never), the trials run one after the other."""
    definition = define({"kind": "random"}, pruner=pruner)
    study = optuna.create_study(study_name="test", direction="maximize", pruner=pruner_for(definition))
    ends = []
    for curve in curves:
        trial = study.ask()
        for epoch, value in enumerate(curve, start=1):
            trial.report(value, epoch)
            if trial.should_prune():
                ends.append(epoch)
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            ends.append(None)
            study.tell(trial, curve[-1])
    return ends


def flat(value):
    return [float(value)] * 30


def test_nothing_is_pruned_without_a_pruner():
    assert pruned_at({"kind": "none"}, [flat(9), flat(1), flat(0)]) == [None] * 3


def test_the_median_pruner_waits_for_startup_warmup_and_interval():
    pruner = {"kind": "median", "n_startup_trials": 2, "warmup_epochs": 10, "interval_epochs": 4}
    late = [9.0] * 10 + [0.0] * 20
    assert pruned_at(pruner, [flat(5), flat(6), flat(1), flat(7), late]) == [None, None, 10, None, None]
    slow = [float(epoch) for epoch in range(1, 31)]  # passes the others after the warm-up
    assert pruned_at(pruner, [flat(5), flat(6), slow]) == [None, None, None]
    not_yet = pruner | {"n_min_trials": 3}
    assert pruned_at(not_yet, [flat(5), flat(6), flat(1), flat(1)]) == [None, None, None, 10]


def test_the_percentile_pruner_keeps_its_share():
    options = {"n_startup_trials": 4, "warmup_epochs": 5, "interval_epochs": 1}
    curves = [flat(value) for value in (1, 2, 3, 4)]
    assert pruned_at({"kind": "percentile", "percentile": 75.0, **options}, [*curves, flat(2.5)])[-1] is None
    assert pruned_at({"kind": "percentile", "percentile": 25.0, **options}, [*curves, flat(2.5)])[-1] == 5


def test_halving_compares_at_its_rungs_only():
    pruner = {"kind": "halving", "warmup_epochs": 7, "reduction_factor": 2}
    assert pruned_at(pruner, [flat(5), flat(1), flat(9), flat(4)]) == [None, 7, None, 7]
    later = [9.0] * 7 + [0.0] * 23  # good at the first rung (epoch 7), not at the second (epoch 14)
    assert pruned_at(pruner, [flat(5), flat(6), later])[-1] == 14


def test_hyperband_ends_at_the_trial_s_epochs():
    pruner = pruner_for(
        define({"kind": "random"}, pruner={"kind": "hyperband", "warmup_epochs": 5, "reduction_factor": 2})
    )
    assert isinstance(pruner, optuna.pruners.HyperbandPruner)
    assert (pruner._min_resource, pruner._max_resource, pruner._reduction_factor) == (5, 30, 2)


def test_the_forecast_pruner_waits_until_a_trial_s_own_schedule_has_shown_itself():
    search = {"tfr": {"type": "float", "low": 0.0, "high": 1.0}, "tfr_sde": {"type": "int", "low": 5, "high": 20}}
    options = {"kind": "forecast", "warmup_epochs": 10, "interval_epochs": 1}
    definition = define({"kind": "random"}, pruner=options, search=search)
    definition = definition.model_copy(update={"fixed": {"kl_anneal_type": "none"}})
    study = optuna.create_study(study_name="test", direction="maximize", pruner=pruner_for(definition))
    for value in range(20, 28):
        study.add_trial(
            optuna.trial.create_trial(value=value, intermediate_values=dict.fromkeys(range(1, 31), float(value)))
        )
    ends = {}
    for name, point in {"free": {"tfr": 0.0, "tfr_sde": 18}, "forced": {"tfr": 0.5, "tfr_sde": 18}}.items():
        study.enqueue_trial(point)
        trial = study.ask()
        suggest(definition, trial)
        for epoch in range(1, 31):
            trial.report(10.0, epoch)
            if trial.should_prune():
                ends[name] = epoch
                break
        study.tell(trial, state=TrialState.PRUNED)
    assert ends == {"free": 10, "forced": 20}  # 0.5 in epochs 1 to 19, 0.4 in the 20th

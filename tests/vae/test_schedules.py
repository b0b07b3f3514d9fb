"""The schedules against tables worked out by hand from the reports, and against torch."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.config import Config, KlFormula
from cvaeopt.vae.schedules import (
    beta_at,
    first_differences,
    kl_beta,
    learning_rate,
    lr_at,
    teacher_forcing_ratio,
    tfr_at,
)

FORMULAS = get_args(KlFormula)

# (tfr, tfr_sde, tfr_d_step), {epoch: rate}
STARTS_AFTER_SDE = [
    ((1.0, 10, 0.1), {0: 1.0, 9: 1.0, 10: 1.0, 11: 0.9, 15: 0.5, 19: 0.1, 20: 0.0, 21: 0.0, 99: 0.0}),
    ((0.8, 10, 0.1), {0: 0.8, 10: 0.8, 11: 0.7, 17: 0.1, 18: 0.0, 19: 0.0}),
    ((0.5, 10, 0.1), {10: 0.5, 12: 0.3, 15: 0.0}),
    ((1.0, 8, 0.1), {8: 1.0, 9: 0.9, 18: 0.0}),  # report 004
    ((1.0, 0, 0.25), {0: 1.0, 1: 0.75, 4: 0.0, 5: 0.0}),
    ((0.8, 3, 0.3), {3: 0.8, 4: 0.5, 5: 0.2, 6: 0.0}),  # the last step would go below 0
    ((0.6, 0, 0.0), {0: 0.6, 500: 0.6}),
    ((0.0, 10, 0.1), {0: 0.0, 11: 0.0, 99: 0.0}),
]
STARTS_AT_SDE = [
    ((1.0, 10, 0.1), {0: 1.0, 9: 1.0, 10: 0.9, 11: 0.8, 18: 0.1, 19: 0.0, 20: 0.0, 49: 0.0}),
    ((0.8, 1, 0.2), {0: 0.8, 1: 0.6, 2: 0.4, 4: 0.0}),
    ((1.0, 0, 0.25), {0: 1.0, 1: 0.75, 4: 0.0}),  # the rate is first changed after epoch 0
]

# (formula, kind, epochs, cycle, ratio), {epoch: beta}
BETAS = [
    # Report 000: `cycle` is the length of a cycle in epochs, `ratio` a slope.
    (("seed000", "cyclical", 100, 10, 1.0), {0: 0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 0, 11: 0.1, 95: 0.5, 99: 0.9}),
    (("seed000", "cyclical", 500, 50, 1.0), {0: 0, 1: 0.02, 25: 0.5, 49: 0.98, 50: 0, 499: 0.98}),
    (("seed000", "cyclical", 100, 10, 2.0), {1: 0.2, 4: 0.8, 5: 1, 6: 1, 9: 1, 10: 0}),
    (("seed000", "cyclical", 100, 10, 0.5), {5: 0.25, 9: 0.45, 10: 0}),
    # beta <- beta + ratio * t / cycle: 0.1, 0.1 + 0.2, 0.3 + 0.3, 0.6 + 0.4, ...
    (("seed000", "monotonic", 100, 10, 1.0), {0: 0, 1: 0.1, 2: 0.3, 3: 0.6, 4: 1, 5: 1, 99: 1}),
    (("seed000", "monotonic", 100, 10, 0.1), {1: 0.01, 2: 0.03, 10: 0.55, 13: 0.91, 14: 1, 15: 1}),
    # Report 001: M cycles over T, tau / R while tau <= R.
    (("seed001", "cyclical", 100, 10, 1.0), {0: 0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 0, 99: 0.9}),
    (("seed001", "cyclical", 100, 10, 0.5), {0: 0, 1: 0.2, 4: 0.8, 5: 1, 6: 1, 9: 1, 10: 0, 12: 0.4}),
    (("seed001", "cyclical", 500, 50, 1.0), {0: 0, 9: 0.9, 10: 0, 495: 0.5}),
    # T/M = 2.5 is rounded up to a period of 3, but divided by unrounded: 0, 0.4, 0.8, 0, ...
    (("seed001", "cyclical", 50, 20, 1.0), {0: 0, 1: 0.4, 2: 0.8, 3: 0, 4: 0.4, 49: 0.4}),
    (("seed001", "cyclical", 50, 20, 0.5), {1: 0.8, 2: 1, 3: 0}),
    (("seed001", "monotonic", 100, 10, 1.0), {0: 0, 1: 0.1, 5: 0.5, 9: 0.9, 10: 1, 11: 1, 99: 1}),
    (("seed001", "monotonic", 100, 10, 0.5), {1: 0.2, 4: 0.8, 5: 1, 99: 1}),
    (("seed001", "monotonic", 100, 5, 1.0), {10: 0.5, 20: 1}),
    # Report 003: the fraction of the period times 1 / (period * R), which stays far below 1 in long periods. Its class
    # starts at 0 and updates after an epoch, before it counts it: one epoch later than the formula.
    (("seed003", "cyclical", 50, 10, 1.0), {0: 0, 1: 0, 2: 0.04, 3: 0.08, 5: 0.16, 6: 0, 49: 0.12}),
    (("seed003", "cyclical", 50, 5, 0.5), {0: 0, 2: 0.02, 6: 0.1, 10: 0.18, 11: 0, 12: 0.02}),
    (("seed003", "cyclical", 20, 10, 0.25), {0: 0, 1: 0, 2: 1, 3: 0, 4: 1}),  # 0.5 * 1 / (2 * 0.25)
    (("seed003", "cyclical", 20, 10, 0.125), {2: 1, 3: 0}),  # 2, held at 1
    (("seed003", "monotonic", 50, 10, 1.0), {0: 0, 1: 0, 2: 1, 49: 1}),
    (("seed003", "monotonic", 50, 10, 0.1), {0: 0, 6: 0.5, 10: 0.9, 11: 1, 12: 1}),
    (("seed003", "none", 100, 10, 1.0), {0: 0, 1: 1, 50: 1, 99: 1}),
    # Report 004: a cycle is `cycle` epochs, climbs for its first half and holds; no ratio.
    (("seed004", "cyclical", 30, 10, 1.0), {0: 0, 1: 0.2, 4: 0.8, 5: 1, 9: 1, 10: 0, 11: 0.2, 29: 1}),
    (("seed004", "cyclical", 30, 10, 0.3), {1: 0.2, 5: 1}),
    (("seed004", "cyclical", 30, 5, 1.0), {1: 0.4, 2: 0.8, 3: 1, 4: 1, 5: 0}),
    (("seed004", "monotonic", 30, 10, 1.0), {0: 0, 5: 0.5, 9: 0.9, 10: 1, 29: 1}),
    # Fu et al.: M cycles over T, a ramp over the first R of each, then 1; monotonic is one cycle.
    (("fu", "cyclical", 100, 10, 1.0), {0: 0, 1: 0.1, 9: 0.9, 10: 0, 99: 0.9}),
    (("fu", "cyclical", 100, 4, 0.5), {0: 0, 5: 0.4, 10: 0.8, 12: 0.96, 13: 1, 24: 1, 25: 0, 30: 0.4, 99: 1}),
    (("fu", "cyclical", 10, 4, 1.0), {0: 0, 1: 0.4, 2: 0.8, 3: 0.2, 4: 0.6, 5: 0}),  # a period of 2.5 epochs
    (("fu", "monotonic", 100, 10, 0.5), {0: 0, 25: 0.5, 49: 0.98, 50: 1, 51: 1, 99: 1}),
    (("fu", "monotonic", 100, 3, 1.0), {50: 0.5, 99: 0.99}),  # `cycle` is not used
    *(((formula, "none", 100, 10, 1.0), {0: 1, 1: 1, 50: 1, 99: 1}) for formula in FORMULAS if formula != "seed003"),
]


@pytest.mark.parametrize("formula", ["linear", "seed000", "seed001"])
@pytest.mark.parametrize(("settings", "rates"), STARTS_AFTER_SDE)
def test_forcing_falls_from_the_epoch_after_sde_on(formula, settings, rates):
    for epoch, rate in rates.items():
        assert teacher_forcing_ratio(epoch, *settings, formula) == pytest.approx(rate, abs=1e-12), epoch


@pytest.mark.parametrize(("settings", "rates"), STARTS_AT_SDE)
def test_forcing_of_report_003_falls_one_epoch_earlier(settings, rates):
    for epoch, rate in rates.items():
        assert teacher_forcing_ratio(epoch, *settings, "seed003") == pytest.approx(rate, abs=1e-12), epoch


@pytest.mark.parametrize("after", [True, False])
def test_forcing_equals_the_template_s_loop(after):
    """The template counts the finished epoch, compares it with tfr_sde, and subtracts."""
    for tfr, sde, step in [(1.0, 10, 0.1), (0.8, 0, 0.3), (0.7, 1, 0.05)]:
        rate = tfr
        formula = "linear" if after else "seed003"
        for epoch in range(40):
            assert teacher_forcing_ratio(epoch, tfr, sde, step, formula) == pytest.approx(rate, abs=1e-12)
            current = epoch + 1
            if current > sde or (not after and current >= sde):
                rate = max(0.0, rate - step)


@pytest.mark.parametrize(("settings", "betas"), BETAS)
def test_beta_has_the_values_of_its_report(settings, betas):
    formula, kind, epochs, cycle, ratio = settings
    for epoch, beta in betas.items():
        assert kl_beta(epoch, epochs, kind, cycle, ratio, formula) == pytest.approx(beta, abs=1e-12), epoch


def test_monotonic_beta_of_report_000_equals_its_accumulating_loop():
    for cycle, ratio in [(10, 1.0), (7, 0.3), (1, 0.01)]:
        beta = 0.0
        for epoch in range(60):
            assert kl_beta(epoch, 60, "monotonic", cycle, ratio, "seed000") == pytest.approx(beta)
            beta = min(1.0, beta + ratio * (epoch + 1) / cycle)


@pytest.mark.parametrize(("kind", "ratio"), [("Cyclical", 1.0), ("Cyclical", 0.5), ("Monotonic", 0.1), ("None", 1.0)])
def test_beta_of_report_003_equals_its_class_in_the_template_s_order(kind, ratio):
    """The template reads beta while it trains, and updates it after the epoch; the class counts after evaluating."""
    epochs, cycles = 50, 10

    def evaluated(counted: int) -> float:
        if kind == "None":
            return 1.0
        if kind == "Monotonic":
            return min(counted * ratio, 1.0)
        period = epochs / cycles
        return min(counted % period / period * (1.0 / (period * ratio)), 1.0)

    beta = 0.0
    for epoch in range(epochs):
        assert kl_beta(epoch, epochs, kind.lower(), cycles, ratio, "seed003") == pytest.approx(beta, abs=1e-12)
        beta = evaluated(epoch)  # the class has counted `epoch` updates before this one


settings = st.tuples(st.integers(1, 300), st.integers(1, 60), st.floats(0.01, 1.0), st.sampled_from(FORMULAS))


@given(settings, st.sampled_from(["cyclical", "monotonic", "none"]))
def test_beta_stays_between_0_and_1_and_starts_at_0_when_annealed(given_settings, kind):
    epochs, cycle, ratio, formula = given_settings
    betas = [kl_beta(epoch, epochs, kind, cycle, ratio, formula) for epoch in range(epochs)]
    assert all(0.0 <= beta <= 1.0 for beta in betas)
    assert betas[0] == (1.0 if kind == "none" and formula != "seed003" else 0.0)


@given(settings)
def test_monotonic_beta_never_falls(given_settings):
    epochs, cycle, ratio, formula = given_settings
    betas = [kl_beta(epoch, epochs, "monotonic", cycle, ratio, formula) for epoch in range(epochs)]
    assert betas == sorted(betas)


@given(st.integers(1, 20), st.integers(1, 15), st.floats(0.01, 1.0), st.sampled_from(FORMULAS))
def test_cyclical_beta_repeats_itself(length, cycles, ratio, formula):
    """With `cycles` cycles of `length` whole epochs, whichever of the two `kl_anneal_cycle` means."""
    cycle = length if formula in ("seed000", "seed004") else cycles
    epochs = length * cycles
    late = 1 if formula == "seed003" else 0
    betas = [kl_beta(epoch + late, epochs, "cyclical", cycle, ratio, formula) for epoch in range(epochs)]
    for start in range(0, epochs, length):
        assert betas[start : start + length] == pytest.approx(betas[:length], abs=1e-9)
        assert betas[start] == 0.0


@given(
    st.integers(0, 300),
    st.floats(0, 1),
    st.integers(0, 100),
    st.floats(0, 1),
    st.sampled_from(["linear", "seed000", "seed001", "seed003"]),
)
def test_forcing_is_a_probability_that_never_rises(epoch, tfr, sde, step, formula):
    rate = teacher_forcing_ratio(epoch, tfr, sde, step, formula)
    assert 0.0 <= rate <= tfr
    assert teacher_forcing_ratio(epoch + 1, tfr, sde, step, formula) <= rate
    assert teacher_forcing_ratio(0, tfr, sde, step, formula) == tfr


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("MultiStepLR", lambda optim: torch.optim.lr_scheduler.MultiStepLR(optim, [2, 5], 0.1)),
        ("ExponentialLR", lambda optim: torch.optim.lr_scheduler.ExponentialLR(optim, 0.1)),
        ("cosine", lambda optim: torch.optim.lr_scheduler.CosineAnnealingLR(optim, 12, eta_min=1e-5)),
        ("constant", lambda optim: torch.optim.lr_scheduler.ConstantLR(optim, factor=1.0)),
    ],
)
def test_learning_rates_are_those_of_torch(kind, scheduler):
    optim = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = scheduler(optim)
    for epoch in range(12):
        expected = optim.param_groups[0]["lr"]
        found = learning_rate(epoch, 12, kind, 1e-3, (2, 5), 0.1, 1e-5)
        assert found == pytest.approx(expected, rel=1e-9), epoch
        optim.step()
        schedule.step()


def test_the_final_run_of_report_000_has_its_learning_rates():
    table = {0: 1e-3, 1: 1e-3, 2: 1.5e-4, 99: 1.5e-4, 100: 2.25e-5, 499: 2.25e-5}
    for epoch, lr in table.items():
        assert learning_rate(epoch, 500, "MultiStepLR", 1e-3, (2, 100), 0.15, 0.0) == pytest.approx(lr)


@given(st.integers(1, 500), st.floats(1e-6, 1e-1))
def test_cosine_falls_from_lr_towards_its_end(epochs, lr):
    rates = [learning_rate(epoch, epochs, "cosine", lr, (), 1.0, lr / 100) for epoch in range(epochs)]
    assert rates[0] == pytest.approx(lr)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > lr / 100


def test_a_run_s_settings_reach_the_formulas():
    config = Config.parse(
        {
            "num_epoch": 50,
            "tfr": 0.8,
            "tfr_sde": 3,
            "tfr_d_step": 0.2,
            "tfr_formula": "seed003",
            "kl_anneal_type": "cyclical",
            "kl_anneal_cycle": 5,
            "kl_anneal_ratio": 0.5,
            "kl_formula": "seed003",
            "lr": 0.01,
            "lr_scheduler": "cosine",
            "lr_min": 0.002,
        },
        "test",
    )
    assert tfr_at(config, 3) == pytest.approx(0.6)
    assert beta_at(config, 10) == pytest.approx(0.18)
    assert lr_at(config, 25) == pytest.approx(0.006)
    assert lr_at(config, 0) == pytest.approx(0.01)
    assert math.isclose(lr_at(Config.parse({"num_epoch": 9}, "test"), 5), 1e-5)


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"lr_scheduler": "constant", "kl_anneal_type": "none"}, {}),
        ({"lr_scheduler": "MultiStepLR", "milestones": [2, 130], "kl_anneal_type": "none"}, {}),
        ({"lr_scheduler": "ExponentialLR", "gamma": 0.9, "kl_anneal_type": "none"}, {}),
        ({"lr_scheduler": "cosine", "kl_anneal_type": "none"}, {"lr": 2}),
        ({"lr_scheduler": "constant", "kl_anneal_type": "cyclical", "kl_anneal_cycle": 4}, {"beta": 2}),
        ({"lr_scheduler": "constant", "kl_anneal_type": "monotonic", "kl_anneal_ratio": 0.5}, {"beta": 2}),
        ({"lr_scheduler": "constant", "kl_formula": "seed000", "kl_anneal_cycle": 10}, {}),  # a cycle in epochs
        ({"lr_scheduler": "constant", "kl_formula": "seed004", "kl_anneal_cycle": 10}, {}),
        ({"lr_scheduler": "constant", "kl_formula": "seed003", "kl_anneal_type": "monotonic"}, {}),
    ],
)
def test_schedules_of_a_longer_run_agree_where_no_value_depends_on_its_length(
    settings: dict[str, Any], differs: dict[str, int]
) -> None:
    shorter, longer = (Config.parse({**settings, "num_epoch": epochs}, "test") for epochs in (100, 150))
    assert first_differences(shorter, longer, 100) == differs
    assert first_differences(shorter, longer, 1) == {}

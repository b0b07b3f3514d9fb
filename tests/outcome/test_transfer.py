from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.config import Config, KlFormula
from cvaeopt.errors import SettingsError
from cvaeopt.outcome.transfer import landmarks, transfer
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at


def settings(**changes: object) -> Config:
    return Config.parse({"num_epoch": 100, "tfr": 0.8, **changes}, "test")


# (formula, kind, cycle, ratio) at 100 epochs -> at 500: (first epoch with beta 1, length of the first cycle)
# as searched, proportional, absolute. None: never.
KL = [
    ("fu", "cyclical", 10, 0.5, (5, 10), (25, 50), (5, 10)),
    ("fu", "cyclical", 10, 1.0, (None, 10), (None, 50), (None, 10)),
    ("fu", "monotonic", 10, 0.5, (50, None), (250, None), (50, None)),
    ("seed000", "cyclical", 10, 2.0, (5, 10), (25, 50), (5, 10)),
    ("seed000", "monotonic", 21, 1.0, (6, None), (30, None), (6, None)),
    ("seed001", "cyclical", 10, 0.5, (5, 10), (25, 50), (5, 10)),
    ("seed001", "monotonic", 4, 1.0, (25, None), (125, None), (25, None)),
    ("seed003", "cyclical", 10, 0.05, (6, 11), (26, 51), (6, 11)),  # one epoch later, whatever the length
    ("seed003", "monotonic", 10, 0.02, (51, None), (251, None), (51, None)),
    ("seed004", "cyclical", 20, 1.0, (10, 20), (50, 100), (10, 20)),
    ("seed004", "monotonic", 20, 1.0, (20, None), (100, None), (20, None)),
]


@pytest.mark.parametrize(("formula", "kind", "cycle", "ratio", "searched", "stretched", "kept"), KL)
def test_the_kl_schedule_turns_at_these_epochs(formula, kind, cycle, ratio, searched, stretched, kept):
    short = settings(kl_formula=formula, kl_anneal_type=kind, kl_anneal_cycle=cycle, kl_anneal_ratio=ratio)
    for run, expected in [
        (short, searched),
        (transfer(short, 500, "proportional"), stretched),
        (transfer(short, 500, "absolute"), kept),
    ]:
        marks = landmarks(run)
        assert (marks.beta_full, marks.cycle) == expected


@pytest.mark.parametrize(
    ("formula", "searched", "stretched", "kept"),
    [
        ("linear", (11, 18), (51, 90), (11, 18)),
        ("seed000", (11, 18), (51, 90), (11, 18)),
        ("seed001", (11, 18), (51, 90), (11, 18)),
        ("seed003", (10, 17), (46, 85), (10, 17)),
    ],
)
def test_the_forcing_decay_starts_and_ends_at_these_epochs(formula, searched, stretched, kept):
    short = settings(tfr=0.8, tfr_sde=10, tfr_d_step=0.1, tfr_formula=formula)
    for run, expected in [
        (short, searched),
        (transfer(short, 500, "proportional"), stretched),
        (transfer(short, 500, "absolute"), kept),
    ]:
        marks = landmarks(run)
        assert (marks.decay_starts, marks.decay_ends) == expected


def test_milestones_and_factors_follow_the_mode():
    short = settings(milestones=[2, 5], gamma=0.1)
    assert transfer(short, 500, "proportional").milestones == (10, 25)
    assert transfer(short, 500, "absolute").milestones == (2, 5)
    assert transfer(short, 10, "proportional").milestones == (1, 2)  # rounded together, kept apart
    falling = settings(lr_scheduler="ExponentialLR", gamma=0.9)
    assert lr_at(transfer(falling, 500, "proportional"), 250) == pytest.approx(lr_at(falling, 50))
    assert lr_at(transfer(falling, 500, "absolute"), 50) == lr_at(falling, 50)
    assert transfer(settings(gamma=0.1), 500, "proportional").gamma == 0.1  # MultiStepLR: a factor, not a rate


def test_a_run_of_the_same_length_is_untouched():
    short = settings(tfr_d_step=0.123, kl_formula="seed003")
    assert transfer(short, 100, "proportional") is short
    assert transfer(short, 100, "absolute") is short


def test_what_does_not_fit_a_shorter_run_ends_at_its_limit():
    short = settings(kl_anneal_type="monotonic", kl_anneal_ratio=0.5, tfr_d_step=0.5, kl_anneal_cycle=3)
    assert transfer(short, 20, "absolute").kl_anneal_ratio == 1.0
    assert transfer(short, 20, "proportional").tfr_d_step == 1.0
    cyclical = settings(kl_anneal_type="cyclical", kl_anneal_cycle=3)
    assert transfer(cyclical, 10, "absolute").kl_anneal_cycle == 1


def test_an_unknown_mode_and_an_empty_run_are_refused():
    with pytest.raises(SettingsError, match="'proportional' or 'absolute'"):
        transfer(settings(), 500, "stretch")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 1"):
        transfer(settings(), 0)


exact = st.sampled_from(
    [
        ("fu", "cyclical"),
        ("fu", "monotonic"),
        ("seed000", "cyclical"),
        ("seed001", "cyclical"),
        ("seed001", "monotonic"),
        ("seed003", "cyclical"),
        ("seed003", "monotonic"),
        ("seed004", "cyclical"),
        ("seed004", "monotonic"),
    ]
)


@given(
    kind=exact,
    cycle=st.integers(1, 12),
    length=st.integers(1, 12),
    ratio=st.floats(0.05, 1),
    times=st.integers(2, 9),
)
def test_a_stretched_kl_weight_is_the_short_one_at_every_fraction(kind, cycle, length, ratio, times):
    short = settings(
        num_epoch=cycle * length,
        kl_formula=kind[0],
        kl_anneal_type=kind[1],
        kl_anneal_cycle=cycle,
        kl_anneal_ratio=ratio,
    )
    long = transfer(short, short.num_epoch * times, "proportional")
    late = 1 if kind[0] == "seed003" else 0  # its schedule begins one epoch late in a run of any length
    for epoch in range(late, short.num_epoch):
        assert beta_at(long, (epoch - late) * times + late) == pytest.approx(beta_at(short, epoch), abs=1e-9)


@given(
    formula=st.sampled_from(["linear", "seed000", "seed001", "seed003"]),
    tfr=st.floats(0, 1),
    sde=st.integers(0, 30),
    step=st.floats(0, 0.5),
    times=st.integers(1, 9),
)
def test_a_stretched_decay_is_the_short_one_at_every_fraction(formula, tfr, sde, step, times):
    short = settings(num_epoch=30, tfr=tfr, tfr_sde=sde, tfr_d_step=step, tfr_formula=formula)
    long = transfer(short, 30 * times, "proportional")
    for epoch in range(30):
        assert tfr_at(long, epoch * times) == pytest.approx(tfr_at(short, epoch), abs=1e-9)


@given(
    formula=st.sampled_from(get_args(KlFormula)),
    kind=st.sampled_from(["cyclical", "monotonic", "none"]),
    cycle=st.integers(1, 10),
    length=st.integers(1, 10),
    ratio=st.floats(0.05, 1),
    times=st.integers(2, 6),
)
def test_an_absolute_kl_weight_begins_as_the_short_one_did(formula, kind, cycle, length, ratio, times):
    short = settings(
        num_epoch=cycle * length,
        kl_formula=formula,
        kl_anneal_type=kind,
        kl_anneal_cycle=cycle,
        kl_anneal_ratio=ratio,
    )
    long = transfer(short, short.num_epoch * times, "absolute")
    for epoch in range(short.num_epoch):
        assert beta_at(long, epoch) == pytest.approx(beta_at(short, epoch), abs=1e-9)


@pytest.mark.parametrize("formula", get_args(KlFormula))
@pytest.mark.parametrize("mode", ["proportional", "absolute"])
@pytest.mark.parametrize("kind", ["cyclical", "monotonic", "none"])
def test_every_formula_has_a_longer_run(formula, mode, kind):
    longer = transfer(settings(kl_formula=formula, kl_anneal_type=kind), 500, mode)
    assert (longer.num_epoch, longer.kl_formula, longer.kl_anneal_type) == (500, formula, kind)

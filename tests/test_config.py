"""Settings: the lab's defaults, strict in, plain out, one digest for one meaning."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cvaeopt.config import ADDED, Config
from cvaeopt.errors import SettingsError


def parse(**settings):
    return Config.parse(settings, "test.toml: [fixed]")


def test_the_defaults_are_the_lab_template_s():
    lab = {
        "F_dim": 128,
        "L_dim": 32,
        "N_dim": 12,
        "D_out_dim": 192,
        "frame_H": 32,
        "frame_W": 64,
        "train_vi_len": 16,
        "partial": 1.0,
        "batch_size": 2,
        "num_epoch": 70,
        "lr": 0.001,
        "optim": "Adam",
        "lr_scheduler": "MultiStepLR",
        "milestones": [2, 5],
        "gamma": 0.1,
        "tfr": 1.0,
        "tfr_sde": 10,
        "tfr_d_step": 0.1,
        "kl_anneal_type": "cyclical",
        "kl_anneal_cycle": 10,
        "kl_anneal_ratio": 1.0,
        "kl_norm": "batch",
        "output": "linear",
        "grad_clip": 1.0,
        "skip_steps": 0,
    }
    plain = parse().plain()
    assert {name: plain[name] for name in lab} == lab
    assert plain["val_statistics"] == "recalibrated"  # the one exception


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Config.model_fields.values())


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("kl_aneal_cycle", "kl_anneal_cycle"), ("tfr_std", "tfr_sde"), ("learn_rate_scheduler", "lr_scheduler")],
)
def test_a_misspelt_setting_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(SettingsError) as caught:
        parse(**{wrong: 1})
    assert f"test.toml: [fixed] has no setting '{wrong}'" in str(caught.value)
    assert f"Did you mean '{meant}'?" in str(caught.value)


def test_an_unknown_setting_is_answered_with_all():
    with pytest.raises(SettingsError, match="Known: F_dim, L_dim"):
        parse(zzzz=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1e-3),
        ("lr", "0.001"),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", True),
        ("tfr", 1.01),
        ("tfr", -0.01),
        ("tfr_sde", 1.5),
        ("tfr_sde", -1),
        ("tfr_d_step", 1.5),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("num_epoch", 0),
        ("partial", 0.0),
        ("partial", 1.1),
        ("momentum", 1.0),
        ("gamma", 0.0),
        ("ema", 1.0),
        ("F_dim", 12),
        ("L_dim", 5),
        ("N_dim", 6),
        ("optim", "adamm"),
        ("kl_anneal_type", "Cyclicall"),
        ("kl_anneal_cycle", 0),
        ("kl_anneal_ratio", 0.0),
        ("shuffle", 1),
        ("seed", -1),
        ("milestones", [2, "5"]),
        ("milestones", 2),
    ],
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(SettingsError) as caught:
        parse(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"test.toml: [fixed]: {name}")
    assert "Expected:" in message
    assert repr(value) in message or isinstance(value, list)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kl_anneal_ratio": 1.5}, "kl_anneal_ratio"),
        ({"kl_anneal_ratio": 1.5, "kl_formula": "seed001"}, "seed001"),
        ({"milestones": [5, 2]}, "milestones must rise"),
        ({"milestones": [2, 2]}, "milestones must rise"),
        ({"lr_min": 0.01, "lr": 0.001}, "lr_min is above lr"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, says):
    with pytest.raises(SettingsError, match=says):
        parse(**settings)


def test_a_slope_above_1_is_allowed_where_the_ratio_is_a_slope():
    assert parse(kl_anneal_ratio=2.0, kl_formula="seed000").kl_anneal_ratio == 2.0


def test_the_words_of_every_setting_stand_in_its_row_of_the_documentation():
    page = (Path(__file__).parents[1] / "studies" / "README.md").read_text()
    rows = dict(reversed(re.findall(r"(?m)^\| `(\w+)` \|(.*)$", page)))  # the first row of each name
    words = {
        name: [word for word in get_args(field.annotation) if isinstance(word, str)]
        for name, field in Config.model_fields.items()
    }
    assert sum(map(bool, words.values())) > 8
    for name, kinds in words.items():
        for word in kinds:
            assert f"`{word}`" in rows[name], (name, word)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        parse().lr = 1.0


def test_a_whole_number_is_a_real_one():
    assert parse(tfr=1).digest() == parse(tfr=1.0).digest()
    assert isinstance(parse(tfr=1).tfr, float)


def test_the_plain_form_parses_to_the_same_settings():
    config = parse(lr=3e-4, milestones=[1, 7], optim="SGD", shuffle=True)
    again = Config.parse(json.loads(json.dumps(config.plain())), "again")
    assert again == config
    assert again.digest() == config.digest()
    assert list(config.plain()) == list(Config.model_fields)


def test_the_digest_names_the_settings_and_not_how_they_were_written():
    assert parse(lr=1e-3, tfr=1.0).digest() == parse().digest()
    assert parse(tfr=0.5, lr=2e-3).digest() == parse(lr=2e-3, tfr=0.5).digest()
    assert len(parse().digest()) == 12


def test_the_digest_of_older_settings_stays_what_it_was():
    """Computed before the settings of `ADDED` existed; recipes and the folders of retrain hold such digests."""
    assert parse().digest() == "0107794b0251", "a new setting must be named in `ADDED` of cvaeopt/config.py"
    assert parse(lr=2e-3, tfr=0.5, batch_size=4).digest() == "86b53a50784a"
    for name in ADDED:
        field = Config.model_fields[name]
        number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
        for value in (field.default, field.default + 1) if number else get_args(field.annotation) or (True, False):
            same = parse(**{name: value}).digest() == parse().digest()
            assert same == (value == field.default), (name, value)


@given(st.sampled_from(["lr", "tfr_d_step", "weight_decay"]), st.floats(1e-6, 0.9))
def test_settings_that_differ_have_different_digests(name, value):
    default = parse()
    changed = parse(**{name: value})
    assert (changed.digest() == default.digest()) == (getattr(default, name) == value)

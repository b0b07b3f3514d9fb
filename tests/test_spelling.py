"""Words as users spell them: accepted where one of ours must be meant, kept in our spelling, else answered with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.outcome.recipe import parse as parse_recipe
from cvaeopt.search.definition import Definition
from cvaeopt.spelling import meant, words_of

WORDS = [(name, word) for name in Config.model_fields for word in words_of(Config, name)]


def test_every_word_of_a_setting_is_known() -> None:
    assert {name for name, _ in WORDS} >= {"optim", "lr_scheduler", "kl_anneal_type", "kl_formula", "precision"}
    assert words_of(Config, "lr") == () == words_of(Config, "no such setting")


@given(st.sampled_from(WORDS), st.data())
def test_capitals_and_joints_of_a_word_do_not_count(setting: tuple[str, str], data: st.DataObject) -> None:
    name, word = setting
    letters = [data.draw(st.sampled_from([letter.lower(), letter.upper()])) for letter in word]
    spelt = data.draw(st.sampled_from(["", "torch.", " "])) + data.draw(st.sampled_from(["", "_", "-"])).join(letters)
    config = Config.parse({name: spelt}, "here")
    assert getattr(config, name) == word
    assert config.digest() == Config.parse({name: word}, "here").digest()


@pytest.mark.parametrize(
    ("name", "spelt", "word"),
    [
        ("kl_anneal_type", "Cyclical", "cyclical"),
        ("kl_anneal_type", "Monotonic", "monotonic"),
        ("kl_anneal_type", "None", "none"),
        ("lr_scheduler", "multi_step_lr", "MultiStepLR"),
        ("lr_scheduler", "CosineAnnealingLR", "cosine"),
        ("lr_scheduler", "torch.optim.lr_scheduler.ExponentialLR", "ExponentialLR"),
        ("lr_scheduler", "none", "constant"),
        ("optim", "ADAM", "Adam"),
        ("optim", "adamw", "AdamW"),
        ("optim", "sgd", "SGD"),
        ("precision", "bfloat16", "bf16"),
    ],
)
def test_the_words_of_the_lab_and_of_torch_are_taken(name: str, spelt: str, word: str) -> None:
    assert getattr(Config.parse({name: spelt}, "here"), name) == word
    changed = Config().plain() | {name: spelt}
    assert getattr(parse_recipe({"settings": changed}, "r.toml").settings, name) == word


@pytest.mark.parametrize(
    ("name", "spelt", "word"),
    [("lr_scheduler", "StepLR", "MultiStepLR"), ("optim", "Adamm", "Adam"), ("kl_anneal_type", "Ciclical", "cyclical")],
)
def test_a_word_that_could_mean_something_else_is_answered_with_the_nearest(name: str, spelt: str, word: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Config.parse({name: spelt}, "here")
    assert f"{name} = '{spelt}'" in str(caught.value)
    assert caught.value.todo == f"Did you mean '{word}'?"


def test_a_study_is_the_same_in_every_spelling() -> None:
    def study(kind: str, none: str, cyclical: str, adam: str, scheduler: str, tpe: str, pruner: str) -> Definition:
        tables = {
            "budget": {"trials": 5, "epochs": 30},
            "fixed": {"lr_scheduler": scheduler},
            "search": {
                "kl_anneal_type": {"type": kind, "choices": [cyclical, none]},
                "kl_anneal_cycle": {"type": "int", "low": 2, "high": 8, "when": {"kl_anneal_type": [cyclical]}},
                "optim": {"type": kind, "choices": [adam, "SGD"]},
            },
            "sampler": {"kind": tpe},
            "pruner": {"kind": pruner},
            "enqueue": [{"kl_anneal_type": cyclical, "kl_anneal_cycle": 3}],
        }
        return Definition.parse(tables, "test", "test.toml")

    ours = study("categorical", "none", "cyclical", "Adam", "cosine", "tpe", "none")
    theirs = study("Categorical", "None", "Cyclical", "adam", "CosineAnnealingLR", "TPESampler", "NopPruner")
    assert theirs.plain() == ours.plain()
    assert theirs.digest() == ours.digest()


def test_what_two_words_may_mean_and_what_is_no_word_stays_as_it_is() -> None:
    assert meant("a_b", ["ab", "a-b"]) == "a_b"
    for value in (None, 3, ["adam"], {"adam": 1}, "", "."):
        assert meant(value, ["Adam"]) == value


@pytest.mark.parametrize("option", ["val_vi_len", "test_vi_len", "fast_train", "num_workers", "ckpt_path", "DR"])
def test_an_option_of_the_lab_that_is_no_setting_is_answered_with_what_is_there_instead(option: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Config.parse({option: 630}, "here")
    assert f"no setting '{option}'" in caught.value.found
    assert "Did you mean" not in caught.value.todo and "Known:" not in caught.value.todo


def test_validation_is_always_of_the_whole_video() -> None:
    with pytest.raises(SettingsError, match="always predicts the whole validation video"):
        Config.parse({"val_vi_len": 630}, "here")

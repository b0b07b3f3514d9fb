"""TOML as editors write it, and what is no TOML named as what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli_w

from cvaeopt import tomlfile
from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, StudyError, UserError
from cvaeopt.outcome import recipe
from cvaeopt.search.definition import load_definition

STUDY = {
    "budget": {"trials": 5, "epochs": 30},
    "search": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2}},
}
RECIPE = {"settings": Config().plain()}


def test_a_byte_order_mark_before_a_study_or_a_recipe_is_passed_over(tmp_path: Path) -> None:
    study, chosen = tmp_path / "marked.toml", tmp_path / "chosen.toml"
    study.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(STUDY).encode())
    chosen.write_bytes(b"\xef\xbb\xbf" + tomli_w.dumps(RECIPE).replace("\n", "\r\n").encode())
    assert load_definition(str(study)).budget.trials == 5
    assert recipe.read(chosen).settings == Config()


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("utf-16", "it is UTF-16 text"),
        ("utf-16-le", "it is UTF-16 text"),
        ("utf-16-be", "it is UTF-16 text"),
        ("utf-32", "it is UTF-32 text"),
    ],
)
def test_another_encoding_is_named(tmp_path: Path, encoding: str, says: str) -> None:
    path = tmp_path / "wide.toml"
    path.write_bytes(tomli_w.dumps(STUDY).encode(encoding))
    for read in (lambda: load_definition(str(path)), lambda: recipe.read(path)):
        with pytest.raises(SettingsError, match=says) as caught:
            read()
        assert "Save the file as UTF-8." in caught.value.todo


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bytes.toml"
    path.write_bytes(b"a = 1\n" * 10 + b"\0")
    with pytest.raises(SettingsError, match="not text"):
        tomlfile.read(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(SettingsError, match="byte 5 is not UTF-8"):
        tomlfile.read(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("# a study\n\nbudget:\n  trials: 5\n", "YAML"),
        ("---\nbudget: {trials: 5}\n", "YAML"),
        ("- lr: 0.1\n", "YAML"),
        (json.dumps(STUDY, indent=1), "JSON"),
        (json.dumps([STUDY]), "JSON"),
        ('{"budget": ', "JSON"),
    ],
)
def test_yaml_and_json_are_named_whatever_the_file_is_called(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    for read in (lambda: load_definition(str(path)), lambda: recipe.read(path)):
        with pytest.raises(SettingsError, match=f"is {kind}, not TOML"):
            read()


@pytest.mark.parametrize("text", ["a = [", "[a\n", "a = " + "[" * 5000, "a = " + "9" * 5000, "lr = 1\nlr = 2\n"])
def test_a_line_that_is_no_toml_is_the_users_mistake(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"study\.toml"):
        tomlfile.read(path)


@pytest.mark.parametrize("name", ["main.yaml", "studies/main.yml", "main.JSON", "/x/main.ini"])
def test_a_file_of_another_kind_is_no_study(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as caught:
        load_definition(name)
    assert caught.value.found == f"{name} is not a .toml file."
    assert "TOML" in caught.value.todo


def test_the_toml_file_beside_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "main.toml").write_text(tomli_w.dumps(STUDY))
    with pytest.raises(UserError, match=r"Did you mean \S*main\.toml\?"):
        load_definition(str(tmp_path / "main.yaml"))


def test_a_study_may_have_a_name_that_looks_like_a_file(tmp_path: Path) -> None:
    (tmp_path / "old.json.toml").write_text(tomli_w.dumps(STUDY))
    assert load_definition("old.json", tmp_path).name == "old.json"
    (tmp_path / "LOUD.TOML").write_text(tomli_w.dumps(STUDY))
    assert load_definition(str(tmp_path / "LOUD.TOML")).name == "LOUD"

from __future__ import annotations

from pathlib import Path

import pytest

from cvaeopt.config import ADDED, Config
from cvaeopt.errors import SettingsError
from cvaeopt.outcome import recipe
from cvaeopt.outcome.recipe import Recipe

SETTINGS = Config.parse({"num_epoch": 100, "lr": 0.0012, "tfr": 0.0, "milestones": [2, 50]}, "test")
PROVENANCE = {
    "study": "main",
    "trial": 17,
    "value": 33.125,
    "standard_error": None,
    "baselines": {"copy_first": 24.1},
    "runners_up": [{"trial": 3, "value": 33.0, "params": {"lr": 0.001}}],
}


def written(tmp_path: Path) -> Path:
    path = tmp_path / "best" / "main.toml"
    recipe.write(path, Recipe(SETTINGS, PROVENANCE))
    return path


def test_a_recipe_comes_back_as_it_was_written(tmp_path: Path):
    found = recipe.read(written(tmp_path))
    assert found.settings == SETTINGS
    assert found.provenance["runners_up"] == PROVENANCE["runners_up"]
    assert found.provenance["settings_digest"] == SETTINGS.digest()
    assert "standard_error" not in found.provenance  # unknown is left out, never invented
    assert not found.edited
    assert found.origin == {
        "study": "main",
        "trial": 17,
        "value": 33.125,
        "searched_settings_digest": SETTINGS.digest(),
    }


def test_a_recipe_names_every_setting_and_shows_both_schedules(tmp_path: Path):
    text = written(tmp_path).read_text()
    for name in Config.model_fields:
        assert f"\n{name} = " in text
    for line in ("as searched", "proportional", "absolute"):
        assert f"#   {line}" in text


def test_settings_changed_by_hand_are_noticed(tmp_path: Path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("lr = 0.0012", "lr = 0.002", 1))
    assert recipe.read(path).edited


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tfr_sde = ", "tfr_sd = ", "Did you mean 'tfr_sde'"),
        ("lr = 0.0012\n", "", "lacks lr"),
        ("lr = 0.0012", "lr = 'high'", "lr = 'high'"),
        ("[settings]", "[setings]", "Did you mean 'settings'"),
        ("[settings]", "[settings", "is not TOML"),
        ("[provenance]", "[search]\n[provenance]", "definition of a study"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(tmp_path: Path, old: str, new: str, message: str):
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(SettingsError, match=message):
        recipe.read(path)


def test_a_recipe_without_the_settings_that_were_added_later_has_their_defaults(tmp_path: Path):
    path = written(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if line.split(" = ")[0] not in ADDED))
    assert "clip_order" not in path.read_text()
    assert recipe.read(path).settings == SETTINGS
    assert not recipe.read(path).edited


def test_a_missing_recipe_names_those_that_are_there(tmp_path: Path):
    written(tmp_path)
    with pytest.raises(SettingsError, match="There: main"):
        recipe.read(tmp_path / "best" / "mian.toml")

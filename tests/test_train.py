"""`cvaeopt train`: one run without a search, with the template's settings or a recipe of a few keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cvaeopt.config import Config
from tests.support.command import Shop

pytestmark = pytest.mark.usefixtures("uncharted_module")

TINY = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "frame_H": 8, "frame_W": 16, "train_vi_len": 4}
SHORT = "[settings]\n" + "".join(f"{name} = {value}\n" for name, value in TINY.items())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    shop = Shop.new(tmp_path_factory.mktemp("train") / "here")
    (shop.root / "short.toml").write_text(SHORT)
    return shop


def settings(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "config.json").read_text()))


def test_a_short_recipe_trains_with_the_template_s_values_for_all_that_it_lacks(shop: Shop) -> None:
    done = shop.run(
        "train",
        "short.toml",
        "--epochs",
        "2",
        "--set",
        "lr=0.002",
        "--set",
        "milestones=[1]",
        "--json",
        "--snapshots",
        "1",
    )
    assert done.code == 0, done.text
    (folder,) = (shop.root / "storage" / "train").glob("short-2-*")
    expected = Config.parse({**TINY, "lr": 0.002, "milestones": [1], "num_epoch": 2}, "here")
    assert settings(folder) == expected.plain()
    assert folder.name.endswith(expected.digest()[:6])
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.002, pytest.approx(0.0002)]  # the milestone as it was given
    assert {"best.pt", "last.pt", "score.json", "snapshot.00001.pt", "snapshots.png"} <= {
        path.name for path in folder.iterdir()
    }

    before = shop.files()
    again = shop.run("train", "short.toml", "--epochs", "2", "--set", "lr=0.002", "--set", "milestones=[1]")
    assert (again.code, "nothing to train" in again.text) == (0, True)
    assert shop.files().keys() == before.keys()


def test_without_a_recipe_the_settings_are_the_template_s(shop: Shop) -> None:
    shown = shop.run("train", "--set", "lr=0.005", "--dry-run")
    assert shown.code == 0
    assert "storage/train/template-70-" in shown.text
    assert "lr = 0.005" in shown.out and "F_dim = 128" in shown.out
    for spelling in ("False", "false"):
        shown = shop.run("train", "--set", f"detach={spelling}", "--dry-run")
        assert (shown.code, "detach = false" in shown.out) == (0, True), shown.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "lrr=1"], "lrr"),
        (["--epochs", "2", "--set", "num_epoch=3"], "num_epoch = 3 is set beside --epochs 2"),
        (["missing.toml"], "There is no recipe missing.toml"),
        (["studies/tiny.toml"], "is the definition of a study"),
        (["short.toml", "--from", "none.pt"], "none.pt does not exist"),
        (["short.toml", "--epochs", "9", "--snapshots", "5,10"], "--snapshots: 10. Expected: 1 to 9"),
    ],
)
def test_wrong_input_is_one_message(shop: Shop, arguments: list[str], said: str) -> None:
    before = shop.files()
    for data in (str(shop.data), ""):  # what is wrong is named without a data folder, too
        refused = shop.run("train", *arguments, DATA=data)
        assert (refused.code, said in refused.text) == (2, True), refused.text
    assert shop.files() == before


def test_retrain_still_wants_every_setting_and_names_the_command_that_does_not(shop: Shop) -> None:
    refused = shop.run("retrain", "short.toml")
    assert (refused.code, "cvaeopt train" in refused.text) == (2, True)


def test_a_study_that_the_data_cannot_fill_is_refused_before_it_exists(shop: Shop) -> None:
    """Otherwise the corrected file would be another definition under a name that is taken."""
    text = (shop.root / "studies/tiny.toml").read_text()
    large = text.replace("[fixed]\n", "[fixed]\nbatch_size = 3\n")
    (shop.root / "studies/large.toml").write_text(large)
    refused = shop.run("worker", "--study", "large")
    assert (refused.code, "at least one batch of 3" in refused.text) == (2, True), refused.text
    (shop.root / "studies/large.toml").write_text(large.replace("batch_size = 3", "batch_size = 1"))
    done = shop.run("worker", "--study", "large")
    assert done.code == 0, done.text


def test_weights_of_another_width_are_refused_by_a_dry_run_too(shop: Shop) -> None:
    assert shop.run("train", "short.toml", "--epochs", "1", "--out", "first").code == 0
    for switch in ([], ["--dry-run"]):
        refused = shop.run(
            "train",
            "short.toml",
            "--epochs",
            "1",
            "--set",
            "F_dim=16",
            "--from",
            "first/best.pt",
            "--out",
            "x",
            *switch,
        )
        assert refused.code == 2
        assert "first/best.pt has F_dim = 8" in refused.text and "--set F_dim=8" in refused.text


def test_a_trial_of_a_study_goes_on_beyond_its_budget(shop: Shop) -> None:
    assert shop.run("worker", "--study", "tiny").code == 0
    words = ("retrain", "--study", "tiny", "--trial", "1")
    shown = shop.run(*words, "--epochs", "3", "--dry-run")
    assert shown.code == 0 and "storage/retrain/tiny-1-3" in shown.text and "carried over (absolute)" in shown.text
    assert not (shop.root / "storage/retrain").exists()
    done = shop.run(*words, "--epochs", "3", "--json")
    assert done.code == 0, done.text
    facts = json.loads((shop.root / "storage/retrain/tiny-1-3/retrain.json").read_text())
    assert (facts["study"], facts["trial"], facts["continued_after"]) == ("tiny", 1, 1)
    again = shop.run(*words, "--epochs", "3")
    assert (again.code, "nothing to train" in again.text) == (0, True)
    for arguments, said in [
        ([*words, "--epochs", "1"], "--epochs is the number of all epochs"),
        ([*words], "A trial is continued with --study, --trial and --epochs"),
        (["retrain"], "No recipe was given"),
        ([*words, "--epochs", "3", "--from", "x.pt"], "beside a recipe, --from or --output"),
        ([*words, "--epochs", "9", "--out", "storage/retrain/tiny-1-3", "--set", "lr=0.1"], "other settings"),
        (["retrain", "--study", "tiny", "--trial", "7", "--epochs", "3"], "no trial 7 that is complete"),
    ]:
        refused = shop.run(*arguments)
        assert (refused.code, said in refused.text) == (2, True), refused.text


def test_a_trial_without_a_kept_checkpoint_is_answered_with_the_command_that_trains_it_again(shop: Shop) -> None:
    worst = json.loads(shop.run("status", "--study", "tiny", "--json").out)["best"]["number"] == 0
    refused = shop.run("retrain", "--study", "tiny", "--trial", str(int(worst)), "--epochs", "3")  # keep_best = 1
    assert refused.code == 2
    assert "left no checkpoint" in refused.text
    command = refused.text.partition("cvaeopt train ")[2]
    assert "--set lr=" in command and "F_dim=8" in command

"""The page of one run folder or of one checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cvaeopt.commands.report import _target
from cvaeopt.errors import UserError
from cvaeopt.files import RunFolder, write_json
from cvaeopt.outcome import run_summary
from cvaeopt.outcome.predict import file_digest
from cvaeopt.outcome.run_report import run_report, verdict
from cvaeopt.pictures import curves
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support.command import Shop
from tests.support.made_up import BASELINES, NOON, history, retrained_folder, trials
from tests.support.pages import Page

CURVE = {1: 20.0, 2: 27.5, 3: 26.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two epochs."""
    trainer = Trainer(tiny.config(num_epoch=2, seed=5), tiny.DATA, "cpu")
    list(trainer.run())
    path = tmp_path_factory.mktemp("trained") / "best.pt"
    trainer.save(path, {"study": "main", "trial": 3})
    return path


def run_in(root: Path, curve: dict[int, float] = CURVE, **settings: Any) -> Path:
    """A run folder without pictures, as a run has before its end."""
    root.mkdir(parents=True)
    RunFolder(root).write_history(history(curve))
    write_json(root / "config.json", tiny.config(**settings).plain())
    return root


def test_the_charts_of_a_run_with_snapshots_are_files_of_every_kind(tmp_path: Path) -> None:
    root = run_in(tmp_path / "a")
    write_json(root / "snapshots.json", {"1": [20.0, 19.0, 21.0], "3": [27.0, 25.0, 26.0]})
    with curves.copies_as(["pdf", "svg"]):
        made = run_report(run_summary.of_folder(root), tmp_path / "out", now=NOON)
    names = {f"run_{chart}.{kind}" for chart in ("curves", "snapshots") for kind in ("png", "pdf", "svg")}
    assert {path.name for path in made.pictures} == names
    for path in made.pictures:
        magic = {".png": b"\x89PNG", ".pdf": b"%PDF-1", ".svg": b"<?xml"}[path.suffix]
        assert path.read_bytes().startswith(magic)
    assert len([one for one in Page(made.page).all("img") if "after the epochs 1, 3" in one["alt"]]) == 1
    plain = run_report(run_summary.of_folder(root), tmp_path / "plain", now=NOON)
    assert {path.suffix for path in plain.pictures} == {".png"}


def test_a_run_is_as_good_as_its_best_epoch(tmp_path: Path) -> None:
    run = run_summary.of_folder(run_in(tmp_path / "a", seed=4))
    assert (run.value, run.epoch, run.late) == (27.5, 2, 26.5)
    assert run.values == {4: 27.5}
    assert run.hours == [1.5 / 3600 * n for n in (1, 2, 3)]
    assert run.levels == {}


def test_the_page_of_a_run_shows_its_curves_its_worst_frames_and_its_strip(tmp_path: Path) -> None:
    folder = retrained_folder(tmp_path / "main-500", trials(1)[0])
    score = json.loads((folder.root / "score.json").read_text())
    write_json(folder.root / "score.json", {**score, "baselines": BASELINES})
    write_json(folder.root / "retrain.json", {"kind": "retrain", "study": "<b>main</b>", "data_digest": "0123"})
    run = run_summary.of_folder(folder.root)
    made = run_report(run, tmp_path / "out", now=NOON)
    page = Page(made.page)
    assert "Run main-500" in page.text
    assert verdict(run) in " ".join(page.text.split())
    assert "<b>main</b>" in page.text and not page.all("b") and not page.all("script")
    sources = [picture["src"] for picture in page.all("img")]
    assert len(sources) >= 4 + 9 and all(source.startswith("data:image/") for source in sources)
    assert {path.name for path in made.pictures} == {
        f"run_{name}" for name in ("curves.png", "psnr_per_frame.png", "worst_frames.png", "prediction.gif")
    }
    assert "worst:" in page.text and "Data 0123" in page.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["report.html", *(path.name for path in made.pictures)]
    )


@pytest.mark.parametrize(("level", "said"), [(20.0, "7.50 dB above"), (30.0, "does NOT beat")])
def test_the_verdict_compares_with_the_hardest_baseline(tmp_path: Path, level: float, said: str) -> None:
    folder = run_in(tmp_path / "a")
    write_json(folder / "score.json", {"baselines": {"copy_first": level, "train_mean": 1.0}})
    assert said in verdict(run_summary.of_folder(folder))


def test_a_run_that_has_not_ended_has_a_page_that_names_what_is_missing(tmp_path: Path) -> None:
    made = run_report(run_summary.of_folder(run_in(tmp_path / "a")), tmp_path / "out", now=NOON)
    text = " ".join(Page(made.page).text.split())
    assert "not shown: psnr_per_frame.json, worst_frames.png, prediction.gif" in text


def test_a_checkpoint_has_its_own_epochs_value_and_takes_only_its_own_score(trained: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(trained, tmp_path / "best.pt"))
    run = run_summary.of_checkpoint(path)
    assert (run.epoch, run.value) == (2, run.rows[-1]["val_psnr"])
    assert (run.files.psnr, run.values) == ((), {5: run.value})
    assert run.facts["trial"] == 3
    assert run.data == tiny.DATA.digest
    sheet = {"checkpoint_digest": file_digest(path), "val_psnr": 9.0, "psnr_frames": [8.0, 10.0]}
    write_json(tmp_path / "score.json", sheet)
    assert run_summary.of_checkpoint(path).files.psnr == (8.0, 10.0)
    assert run_summary.of_checkpoint(path).value == 9.0
    write_json(tmp_path / "score.json", {**sheet, "checkpoint_digest": "of another one"})
    assert run_summary.of_checkpoint(path).value == run.value


def test_names_are_short_and_tell_the_paths_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/run", "b/run", "c/other", "main/00042")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert run_summary.unique_names(folders) == ["a/run", "b/run", "other", "main/00042"]
    with pytest.raises(UserError, match="twice"):
        run_summary.unique_names([folders[0], folders[0] / ".." / "run"])


def test_the_command_writes_into_the_run_folder_and_says_what_is_wrong(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path / "shop", Path("none"))
    run_in(shop.root / "storage" / "train" / "mine")
    said = shop.run("report", "storage/train/mine")
    assert (said.code, said.out) == (0, "storage/train/mine/report/report.html\n"), said.err
    for words, message in (
        ([], "No study and no run was named"),
        (["--study", "tiny", "--study", "other"], "No folder was named"),
        (["nowhere"], "nowhere does not exist"),
        (["storage", "--out", "page"], "storage has no history of a run"),
        (["studies/tiny.toml", "--out", "page"], "tiny.toml"),
    ):
        said = shop.run("report", *words, DATA="")
        assert (said.code, message in said.text) == (2, True), said.text
        assert not (shop.root / "page").exists()
    assert _target([], ["studies/tiny.toml"], None) == Path("report/tiny")

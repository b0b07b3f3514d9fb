"""Several studies, run folders and checkpoints on one page, and the differences between them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.files import RunFolder, write_json
from cvaeopt.outcome import report
from cvaeopt.outcome.comparison_charts import Line, lines_over
from cvaeopt.outcome.differences import Arm, arms, difference
from cvaeopt.outcome.run_files import RunFiles
from cvaeopt.outcome.run_summary import RunSummary
from cvaeopt.outcome.study_summary import study_summary
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from cvaeopt.vae.trainer import Trainer
from testbed import tiny
from tests.support.command import Shop
from tests.support.made_up import BASELINES, NOON, definition, fill, history, registered, run_all, trials
from tests.support.pages import Page

T_2 = 4.302653  # Student's t quantile for 95 % and two degrees of freedom


def arm(values: dict[int, float], name: str = "a", **changes: Any) -> Arm:
    value = sum(values.values()) / len(values) if values else None
    return Arm(
        **{"name": name, "members": (name,), "values": values, "value": value, "measure": "m", "data": "d"} | changes
    )


def run_in(root: Path, seed: int, top: float, data: str = "0123", **settings: Any) -> Path:
    """A folder of a run that has ended, with a PSNR per frame and baselines."""
    root.mkdir(parents=True)
    RunFolder(root).write_history(history({1: top - 2, 2: top, 3: top - 1}))
    write_json(root / "config.json", tiny.config(seed=seed, **settings).plain())
    write_json(root / "retrain.json", {"kind": "retrain", "data_digest": data, "start": None})
    write_json(root / "psnr_per_frame.json", {"psnr_db": [top - 1, top + 1]})
    write_json(root / "score.json", {"kind": "score", "baselines": BASELINES})
    return root


def test_a_difference_is_paired_by_seed_with_students_interval() -> None:
    found = difference(arm({1: 31.0, 2: 22.0, 3: 13.0, 9: 99.0}), arm({1: 30.0, 2: 20.0, 3: 10.0, 8: 0.0}))
    assert found.seeds == (1, 2, 3)
    assert found.value is not None and found.value.low is not None
    assert found.value.mean == pytest.approx(2)
    assert found.value.mean - found.value.low == pytest.approx(T_2 / math.sqrt(3), rel=1e-5)
    assert found.verdict == "within noise"
    sure = difference(arm({1: 2.0, 2: 2.1, 3: 2.2}), arm({1: 1.0, 2: 1.1, 3: 1.3}))
    assert sure.verdict == "better"
    assert difference(sure.other, sure.arm).verdict == "worse"


@given(st.lists(st.tuples(*[st.floats(-40, 40)] * 3), min_size=2, max_size=6))
def test_what_a_seed_does_to_both_is_no_difference(rows: list[tuple[float, float, float]]) -> None:
    first = {seed: value for seed, (value, _, _) in enumerate(rows)}
    second = {seed: value for seed, (_, value, _) in enumerate(rows)}
    effect = {seed: value for seed, (_, _, value) in enumerate(rows)}
    plain = difference(arm(first), arm(second)).value
    moved = difference(
        arm({seed: value + effect[seed] for seed, value in first.items()}),
        arm({seed: value + effect[seed] for seed, value in second.items()}),
    ).value
    turned = difference(arm(second), arm(first)).value
    assert plain is not None and moved is not None and turned is not None
    for one, other, sign in ((plain, moved, 1), (plain, turned, -1)):
        assert one.mean == pytest.approx(sign * other.mean, abs=1e-9)
        assert one.standard_error == pytest.approx(other.standard_error, abs=1e-9)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (arm({3: 1.0, 4: 1.0}), "no seed is common"),
        (arm({1: 1.0, 4: 1.0}), "only one seed is common"),
        (arm({1: 1.0, 2: 1.0}, data="e"), "other data"),
        (arm({1: 1.0, 2: 1.0}, data=""), "not known"),
        (arm({1: 1.0, 2: 1.0}, measure="n"), "one value is the m, the other the n"),
        (arm({}), "a value is not known"),
    ],
)
def test_a_difference_that_cannot_be_told_says_why(other: Arm, why: str) -> None:
    found = difference(arm({1: 2.0, 2: 2.5}), other)
    assert (found.verdict, why in found.unknown) == ("cannot be told", True)
    assert found.value is None or found.value.low is None
    assert why in found.sentence


def test_runs_that_differ_in_their_seeds_alone_are_one_arm() -> None:
    nothing = RunFiles(RunFolder(Path("none")), (), ())

    def run(name: str, seed: int, value: float, **settings: Any) -> RunSummary:
        values, stated = {seed: value}, {"seed": seed, "lr": 1e-3, **settings}
        return RunSummary(name, "run", value, "m", None, 1, nothing, values, stated, data="d")

    runs = [run("a-1", 1, 10.0), run("b", 1, 30.0, lr=1e-2), run("a-2", 2, 20.0)]
    found = arms([*runs, replace(runs[0], name="c", start="weights"), replace(runs[0], name="d", kind="study")])
    assert [one.members for one in found] == [("a-1", "a-2"), ("b",), ("c",), ("d",)]
    assert (found[0].name, found[0].value, found[0].values) == ("a-* (2 seeds)", 15.0, {1: 10.0, 2: 20.0})


def test_the_axis_of_hours_leaves_out_runs_without_a_time_and_nothing_is_no_error() -> None:
    line = Line("a", (1, 2), (0.5, 1.0), (20.0, math.nan))
    for lines in ([], [line, replace(line, hours=())]):
        for axis in ("epochs", "hours"):
            drawn = lines_over(lines, axis, what="PSNR", levels={})  # type: ignore[arg-type]
            assert drawn.startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A folder with two studies in its database, one of which is confirmed, and six runs: two settings, three seeds."""
    shop = Shop.new(tmp_path_factory.mktemp("shop") / "shop", Path("none"))
    (shop.root / "storage").mkdir()
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as storage:
        fill(storage, create_or_open(storage, definition(trials=8)), trials(8))
        registered(storage, top=2, seeds=2)
        run_all(storage, "made-up.confirm", lambda params: 20.0 + params["seed"] % 7)
        create_or_open(storage, tiny.definition())
    for seed, effect in ((1, 0.0), (2, 3.0), (3, -2.0)):
        for tfr, gain in ((0.0, 2.0 + 0.1 * seed), (1.0, 0.0)):
            run_in(shop.root / "storage" / "train" / f"tfr{tfr:.0f}-{seed}", seed, 27 + effect + gain, tfr=tfr)
    return shop


def test_a_study_has_its_fresh_runs_values_and_a_search_that_only_improves(shop: Shop, tmp_path: Path) -> None:
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as storage:
        facts = report.read(storage, "made-up")
    summary, search = study_summary(*facts, artifacts=tmp_path, now=NOON)
    assert len(summary.values) == 2
    assert all(value == 20.0 + seed % 7 for seed, value in summary.values.items())
    assert {row["epoch"]: row["val_psnr"] for row in summary.rows} in [trial.intermediate_values for trial in trials(8)]
    assert search.epochs[-1] == sum(trial.user_attrs["epochs_done"] for trial in trials(8))
    assert search.hours[-1] == pytest.approx(search.epochs[-1] * 60 / 3600)
    known = [value for value in search.best if math.isfinite(value)]
    assert known == sorted(known)
    assert known[-1] == max(trial.value for trial in trials(8) if trial.value is not None)


def test_several_are_one_table_and_one_page(shop: Shop) -> None:
    folders = sorted(str(path) for path in (shop.root / "storage" / "train").iterdir())
    said = shop.run("report", "--study", "made-up", "--study", "tiny", *folders, "--out", "page", "--json", DATA="")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert [row["name"] for row in answer["runs"][:3]] == ["made-up", "tiny", "tfr0-1"]
    assert answer["runs"][2]["gpu_hours"] == pytest.approx(3 * 1.5 / 3600, abs=1e-4)
    assert {one["verdict"] for one in answer["differences"]} == {"cannot be told"}
    page = Page(shop.root / "page" / "report.html")
    pictures = page.all("img")
    assert len(pictures) == 5
    assert all(picture["src"].startswith("data:image/png;base64,") and len(picture["alt"]) > 10 for picture in pictures)
    assert not page.all("script") and all(link["href"] == "data:," for link in page.all("link"))
    text = " ".join(page.text.split())
    for words in (
        "cannot be told: a value is not known",
        "tfr0-* (3 seeds)",
        "Best value so far",
        "first frame repeated",
        answer["verdict"],
    ):
        assert words in text or any(words in picture["alt"] for picture in pictures), words


def test_common_seeds_tell_runs_apart_that_scatter_more_than_they_differ(shop: Shop) -> None:
    folders = [f"storage/train/tfr{tfr}-{seed}" for tfr in (1, 0) for seed in (1, 2, 3)]
    answer = json.loads(shop.run("report", *folders, "--out", "pair", "--json", DATA="").out)
    (one,) = answer["differences"]
    assert (one["seeds"], one["verdict"]) == ([1, 2, 3], "better")
    assert one["value"] == pytest.approx(2.2)
    assert one["value"] - one["low"] == pytest.approx(T_2 * 0.1 / math.sqrt(3), rel=1e-5)
    text = " ".join(Page(shop.root / "pair" / "report.html").text.split())
    assert "It is better than tfr1-* (3 seeds) by 2.20 dB" in text


def test_checkpoints_without_a_score_are_rolled_out_on_the_data(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path / "shop")
    for seed in (1, 2):
        config = tiny.config(seed=seed, frame_H=32, frame_W=64, num_epoch=1)
        Trainer(config, tiny.DATA, "cpu").save(shop.root / f"{seed}.pt", {})
    words = ("report", "1.pt", "2.pt", "--out", "page", "--gpu", "cpu", "--json")
    without = shop.run(*words, DATA="")
    assert (without.code, "needs --data DIR" in without.err) == (0, True)
    assert [row["value"] for row in json.loads(without.out)["runs"]] == [None, None]
    said = shop.run(*words)
    assert said.code == 0, said.err
    values = [row["value"] for row in json.loads(said.out)["runs"]]
    for name, value in zip(("1.pt", "2.pt"), values, strict=True):
        assert value == json.loads(shop.run("score", name, "--json").out)["val_psnr"]


def test_a_dry_run_names_what_it_would_compare_and_writes_nothing(shop: Shop) -> None:
    before = shop.files()
    said = shop.run("report", "storage/train/tfr1-1", "--study", "made-up", "--out", "dry", "--dry-run", DATA="")
    assert (said.code, said.out) == (0, "Would write dry/report.html about study made-up, storage/train/tfr1-1.\n")
    assert shop.run("report", "--study", "nobody", "--out", "dry", "--dry-run", DATA="").code == 2
    assert shop.files() == before


def test_what_is_given_twice_or_is_not_there_is_one_message(shop: Shop) -> None:
    for words, message in (
        (["storage/train/tfr1-1", "storage/train/../train/tfr1-1"], "given twice"),
        (["--study", "made-up", "--study", "made-up"], "given twice"),
        (["--study", "made-up", "--study", "nobody"], "nobody"),
        (["storage/train/tfr1-1", "nowhere"], "nowhere does not exist"),
    ):
        said = shop.run("report", *words, "--out", "wrong", DATA="")
        assert (said.code, message in said.text) == (2, True), said.text
        assert not (shop.root / "wrong").exists()

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, create_trial

from cvaeopt.files import RunFolder
from cvaeopt.outcome import comparison_charts, contour_chart, report, settings_charts, study_charts
from cvaeopt.outcome.trials import axes, best_of, facts
from cvaeopt.pictures import curves, training_chart
from cvaeopt.pictures.run_pictures import PSNR_VALUES
from cvaeopt.pictures.training_chart import run_curves
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import status
from cvaeopt.store.study import create_or_open
from tests.support.made_up import (
    BASELINES,
    NOON,
    ablation,
    definition,
    fill,
    history,
    retrained_folder,
    run_folder,
    trials,
)
from tests.support.pages import Page

OVERVIEW = {"storage": "sqlite:///x.db", "baselines": BASELINES, "stopped": None}


def page(
    tmp_path: Path,
    shown: Sequence[FrozenTrial],
    study: Definition | None = None,
    artifacts: Path | None = None,
    **overview: Any,
) -> Page:
    made = report.write(
        study or definition(),
        shown,
        {**OVERVIEW, **overview},
        tmp_path / "out",
        artifacts=artifacts or tmp_path / "none",
        now=NOON,
    )
    assert made.page == tmp_path / "out" / "report.html"
    for picture in made.pictures:
        assert picture.stat().st_size > 0
    return Page(made.page)


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_page_needs_nothing_but_itself_and_describes_its_pictures(tmp_path: Path, count: int):
    found = page(tmp_path, trials(count))
    pictures = found.all("img")
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture["src"].startswith("data:image/png;base64,")
        assert len(picture["alt"]) > 10
        assert int(picture["width"]) > 0
    assert not found.all("script")
    assert all(link["href"] == "data:," for link in found.all("link"))
    assert not re.search(r"https?://|url\(", found.source)
    assert found.all("html")[0]["lang"] == "en"
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    assert all(header.get("scope") in ("col", "row") for header in found.all("th"))
    identifiers = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.usefixtures("uncharted")
def test_names_and_reasons_are_text_and_never_markup(tmp_path: Path):
    shown = trials(8)
    shown[6].set_user_attr("reason", '<script>alert(1)</script> & "quotes"')
    study = definition(study={"description": "<img src=x onerror=alert(2)>"})
    found = page(tmp_path, shown, study)
    assert not found.all("script")
    assert '<script>alert(1)</script> & "quotes"' in found.text
    assert "<img src=x onerror=alert(2)>" in found.text


@pytest.mark.parametrize("count", [0, 1, 5, 2000])
def test_a_study_of_any_size_renders_and_says_what_status_says(tmp_path: Path, count: int):
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as storage:
        opened = create_or_open(storage, definition(trials=2000))
        fill(storage, opened, trials(count))
        made = report.report(storage, "made-up", tmp_path / "out", artifacts=tmp_path / "none", now=NOON)
        facts_of_it = status(storage, "made-up")
    found = Page(made.page)
    text = " ".join(found.text.split())
    counted = ", ".join(f"{number} {state}" for state, number in facts_of_it["trials"].items() if number)
    assert f"trials of 2000{count} {counted or 'none yet'}" in text
    assert f"epochs trained{facts_of_it['epochs_spent']:,} " in text
    best = facts_of_it["best"]
    assert (f"{best['value']:.2f} dBtrial {best['number']}, mean" if best else "none yetmean of") in text
    assert len(found.all("img")) == len(made.pictures) >= 6
    assert found.source.count("<tr") < 300
    assert ("200 of 2000 trials" in text) == (count == 2000)


@pytest.mark.usefixtures("uncharted")
def test_the_summary_compares_with_the_baselines(tmp_path: Path):
    good = page(tmp_path / "good", trials(16))
    assert "above the hardest baseline (nearest pose)" in good.text
    assert "NOT" not in good.text
    poor = page(tmp_path / "poor", trials(16, level=20))
    assert "does NOT beat" in poor.text
    unknown = page(tmp_path / "unknown", trials(16), baselines={})
    assert "knows no baselines" in unknown.text


@pytest.mark.usefixtures("uncharted")
def test_the_best_run_is_shown_and_what_is_missing_is_named(tmp_path: Path):
    shown = trials(16)
    best = max((t for t in shown if t.value is not None), key=lambda t: t.value or 0.0)
    folder = run_folder(tmp_path / "artifacts", best)
    found = page(tmp_path, shown, artifacts=tmp_path / "artifacts")
    assert any(picture["src"].startswith("data:image/gif;base64,") for picture in found.all("img"))
    assert "not shown here" not in found.text
    (folder.root / "prediction.gif").unlink()
    folder.history.write_text("{torn")
    again = page(tmp_path, shown, artifacts=tmp_path / "artifacts")
    assert "history.jsonl, prediction.gif" in again.text


@pytest.mark.usefixtures("uncharted")
def test_the_retrained_run_is_shown_beside_the_searchs_best(tmp_path: Path):
    shown = trials(16)
    best = max((t for t in shown if t.value is not None), key=lambda t: t.value or 0.0)
    run_folder(tmp_path / "artifacts", best)
    retrained_folder(tmp_path / "retrain/other-500", best, study="other")
    assert "The retrained run" not in page(tmp_path, shown, artifacts=tmp_path / "artifacts").text
    folder = retrained_folder(tmp_path / "retrain/made-up-500", best)
    found = page(tmp_path, shown, artifacts=tmp_path / "artifacts")
    assert "The retrained run: made-up-500" in found.text
    assert f"The settings of trial {best.number}, trained for 10 epochs. Its best epoch, 8, has\n31.25 dB" in found.text
    assert (tmp_path / "out/retrained_curves.png").exists()
    (folder.root / "score.json").write_text("{torn")
    assert "The retrained run" not in page(tmp_path, shown, artifacts=tmp_path / "artifacts").text


@pytest.mark.usefixtures("uncharted")
def test_the_retrained_run_shows_what_goes_with_its_psnr(tmp_path: Path):
    folder = retrained_folder(tmp_path / "retrain/made-up-500", trials(6)[0])
    assert "What may explain a low PSNR" not in page(tmp_path, trials(6), artifacts=tmp_path / "artifacts").text
    (folder.root / "psnr_explained.png").write_bytes((folder.root / "psnr_per_frame.png").read_bytes())
    assert "What may explain a low PSNR" in page(tmp_path, trials(6), artifacts=tmp_path / "artifacts").text
    assert (tmp_path / "out/retrained_psnr_explained.png").exists()


@pytest.mark.usefixtures("uncharted")
def test_the_filmstrip_leads_to_the_best_median_and_worst_frame_without_a_script(tmp_path: Path):
    shown = trials(16)
    assert "frame by frame" not in page(tmp_path, shown).text
    run_folder(tmp_path / "artifacts", max((t for t in shown if t.value is not None), key=lambda t: t.value or 0.0))
    found = page(tmp_path, shown, artifacts=tmp_path / "artifacts")
    assert not found.all("script")
    links = [link["href"] for link in found.all("a")]
    assert links == ["#frame-1", "#frame-5", "#frame-9"]  # 9 frames, from 30 dB falling to 25 dB
    identifiers = {attributes.get("id") for _, attributes in found.tags}
    assert {link.removeprefix("#") for link in links} <= identifiers
    assert found.text.count("frame 5, 27.5 dB") == 1


@pytest.mark.usefixtures("uncharted")
def test_the_contour_shows_the_two_numbers_that_mattered_most(tmp_path: Path):
    def contours(found: Page) -> list[str]:
        return [picture["alt"] for picture in found.all("img") if "smoothed" in picture["alt"]]

    assert contours(page(tmp_path / "few", trials(9))) == []
    (text,) = contours(page(tmp_path / "many", trials(40)))
    assert "tfr" in text and "lr" in text and "kl_anneal_type" not in text


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(-50, 50)), min_size=1, max_size=30))
def test_the_smoothed_plane_stays_within_the_values(points: list[tuple[float, float, float]]):
    at, values = np.array([point[:2] for point in points]), np.array([point[2] for point in points])
    plane = contour_chart.smoothed(at, values)
    assert plane.count() > 0
    assert values.min() - 1e-9 <= plane.min() and plane.max() <= values.max() + 1e-9


@pytest.mark.usefixtures("uncharted")
def test_failures_are_listed_with_their_reasons_and_cost_is_counted(tmp_path: Path):
    found = page(tmp_path, trials(16))
    assert found.text.count("The training loss became nan in epoch 2.") == 3  # once for both trials, and once for each
    assert "6, 14" in found.text
    assert "Pruning ended 2 trials early and saved 12 epochs" in " ".join(found.text.split())


def test_a_grid_over_the_kl_weight_becomes_the_seeds_comparison(tmp_path: Path):
    study, shown = ablation(tmp_path / "artifacts")
    found = page(tmp_path, shown, study, tmp_path / "artifacts")
    names = {path.name for path in (tmp_path / "out").glob("compare_*.png")}
    assert names == {"compare_loss.png", "compare_mse.png", "compare_psnr.png", "compare_frames.png"}
    assert "The comparison" in found.text
    for number, trial in enumerate(shown):  # in numbers, too
        kind = ["cyclical", "monotonic", "none"][number]
        row = rf'<th scope="row">KL {kind}</th><td class="number">{number}</td>\s*<td class="number">{trial.value:.2f}<'
        assert re.search(row, found.source)


@pytest.mark.parametrize("name", ["seed000-tfr", "seed003-kl", "seed004-kl"])  # the others differ in their numbers
def test_every_kind_of_ablation_that_is_shipped_has_its_comparison(tmp_path: Path, name: str):
    study = load_definition(str(Path("studies") / f"{name}.toml"))
    kinds = {"categorical": CategoricalDistribution}
    shown = []
    for number, point in enumerate(study.points()):
        chosen = {key: kinds[study.search[key].type](tuple(study.search[key].choices)) for key in point}
        curve = {epoch: 20.0 + number + epoch / 9 for epoch in (1, 2, 3)}
        trial = create_trial(params=point, distributions=chosen, value=curve[3], intermediate_values=curve)
        trial.number = number
        shown.append(trial)
        folder = RunFolder.of_trial(tmp_path / "artifacts", name, number)
        folder.root.mkdir(parents=True)
        folder.write_history(history(curve))
        (folder.root / PSNR_VALUES).write_text(json.dumps({"psnr_db": [20.0, 21.0, 19.0]}))
    found = page(tmp_path, shown, study, tmp_path / "artifacts")
    texts = " ".join(picture["alt"] for picture in found.all("img"))
    assert "KL weight" in texts if "kl_anneal_type" in study.search else "forcing ratio" in texts
    assert "No run of this comparison" not in found.text
    assert len(re.findall(r"<tr[^>]*><th scope=\"row\">(?:KL|forcing) ", found.source)) == len(shown)


@pytest.mark.usefixtures("uncharted")
def test_a_report_is_made_from_the_storage(tmp_path: Path):
    with open_storage(f"sqlite:///{tmp_path}/studies.db") as storage:
        create_or_open(storage, definition()).add_trials(trials(6))
        made = report.report(storage, "made-up", tmp_path / "out", artifacts=tmp_path / "none", now=NOON)
    assert "made up" in Page(made.page).text
    assert (tmp_path / "out" / "history.png") in made.pictures


def test_facts_take_a_diverged_trial_as_failed_and_the_first_of_equals_as_best():
    known = facts(trials(16))
    assert [trial.state for trial in known[4:8]] == ["complete", "complete", "failed", "complete"]
    assert known[2].level == known[2].curve[-1][1]
    best = best_of(known)
    assert best is not None
    assert best.value == max(trial.value for trial in known if trial.value is not None)
    assert best_of([]) is None


def test_a_setting_that_never_varied_has_its_place_among_the_slices_only():
    shown = trials(6)
    for trial in shown:
        trial.params["tfr"] = 0.5
    assert [axis.name for axis in axes(shown)] == ["lr", "kl_anneal_type"]
    assert [axis.name for axis in axes(shown, constant=True)] == ["lr", "tfr", "kl_anneal_type"]


# ---- no word over another, or over what was measured

Drawn = Callable[[], Figure]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """The figure that was drawn last."""
    kept: list[Figure] = []

    def keep(drawing: Figure) -> bytes:
        FigureCanvasAgg(drawing).draw()
        kept.append(drawing)
        return b""

    for module in (curves, training_chart, study_charts, settings_charts):
        monkeypatch.setattr(module, "encoded", keep)
    return lambda: kept[-1]


def assert_apart(words: Sequence[Text]) -> None:
    for one, other in itertools.combinations(words, 2):
        assert not one.get_window_extent().overlaps(other.get_window_extent()), (one.get_text(), other.get_text())


def marks(axis: Axis) -> list[Text]:
    """What is written at the marks of an axis that are in view."""
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return [tick.label1 for tick in ticks if tick.label1.get_text() and low <= tick.get_loc() <= high]


@pytest.mark.parametrize("fall", [10.5, 12, 20, 99, 1e4, 1e7])
@pytest.mark.parametrize("top", [1e-3, 2.5e-3, 3.3e-4])
def test_the_marks_of_a_learning_rate_do_not_overlap(drawn: Drawn, fall: float, top: float):
    rows = history({epoch: 25.0 + epoch for epoch in range(1, 11)})
    run_curves([{**row, "lr": top * fall ** (-index / 9)} for index, row in enumerate(rows)])
    written = marks(drawn().axes[-1].yaxis)
    assert len(written) >= 2
    assert_apart(written)


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1.08e-4), (8e-4, 1.6e-3), (2e-4, 8e-4), (1.1e-5, 9e-4), (1e-7, 1.0)])
def test_the_marks_of_a_searched_rate_do_not_overlap(drawn: Drawn, low: float, high: float):
    shown = trials(12)
    for place, trial in enumerate(shown):
        trial.params["lr"] = low * (high / low) ** (place / 11)
    settings_charts.slices(facts(shown), axes(shown), "val_psnr")
    first, second = drawn().axes[:2]
    assert marks(first.xaxis)
    assert_apart([*marks(first.xaxis), *marks(second.xaxis)])


CLOSE = {"copy_first": 25.9, "train_mean": 26.0, "nearest_pose": 26.1}


@pytest.mark.parametrize("baselines", [BASELINES, CLOSE, {"nearest_pose": 40.0, "train_mean": 39.9}])
@pytest.mark.parametrize("level", [22.0, 30.0])
@pytest.mark.parametrize("count", [1, 4, 30])
def test_names_of_lines_stand_beside_what_was_measured(
    drawn: Drawn, baselines: dict[str, float], level: float, count: int
):
    shown = facts(trials(count, level=level))
    for draw, more in (
        (lambda: study_charts.curves(shown, baselines, "val_psnr"), 1),
        (lambda: study_charts.history(shown, baselines, "val_psnr"), 0),
        (lambda: comparison_charts.lines_per_frame({"a": [level, level - 1.0]}, baselines), 0),
        (lambda: curves.psnr_per_frame(np.linspace(level, level - 3, 20), baselines), 0),
    ):
        draw()
        figure = drawn()
        (panel,) = figure.axes
        names = [one for one in panel.texts if not one.get_text().startswith("worst")]
        assert len(names) == len(baselines) + more
        assert_apart(names)
        for one in names:
            extent = one.get_window_extent()
            assert extent.x0 >= panel.bbox.x1 and extent.x1 <= figure.bbox.x1 and extent.y1 <= figure.bbox.y1


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.002, 0.05, 0.3], [0.01, 0.1]),
        ([1e-8, 1.0], [1e-8, 1e-5, 1e-2]),
        ([2e-4, 8e-4], [2e-4, 4e-4, 8e-4]),
        ([3.0, 3.0], [3.0]),
        ([], []),
    ],
)
def test_a_logarithmic_axis_has_few_marks(values: list[float], ticks: list[float]):
    assert curves.log_ticks(values) == pytest.approx(ticks)


def test_a_mark_is_as_short_as_its_two_digits():
    numbers = (1e-7, 1.23e-5, 1e-3, 2.5e-3, 0.01, 0.3, 1.0, 512.0)
    assert [curves.tick_text(number) for number in numbers] == [
        "1e-7", "1.2e-5", "1e-3", "2.5e-3", "0.01", "0.3", "1", "512",
    ]  # fmt: skip

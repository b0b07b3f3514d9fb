from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cvaeopt.pictures import curves, run_pictures, training_chart
from cvaeopt.pictures.training_chart import run_curves
from tests.support.gifs import gif_frames
from tests.support.made_up import BASELINES, frames, history


def test_a_gif_shows_the_frames_endlessly_at_20_ms(tmp_path: Path):
    moving = frames(12, height=32, width=64)
    moving[:, 0, 0, 0] = np.arange(12)  # no two frames are equal
    run_pictures.write_gif(tmp_path / "a.gif", iter(moving))
    shown, durations, loop = gif_frames(tmp_path / "a.gif")
    assert np.array_equal(shown, moving)
    assert durations == [20] * 12
    assert loop == 0


def test_a_gif_of_a_standing_picture_still_lasts_20_ms_a_frame(tmp_path: Path):
    still = np.repeat(frames(1, height=32, width=64), 7, axis=0)
    run_pictures.write_gif(tmp_path / "a.gif", iter(still))
    shown, durations, _ = gif_frames(tmp_path / "a.gif")
    assert sum(durations) == 7 * 20
    assert np.array_equal(shown[-1], still[-1])


def test_a_gif_of_many_colours_stays_within_a_few_levels(tmp_path: Path):
    y, x = np.mgrid[:32, :64]
    gradient = np.stack([np.stack([x * 3, y * 7, (x + y) * 2 + t]) for t in range(4)]).astype(np.uint8)
    assert len(np.unique(gradient[0].reshape(3, -1), axis=1).T) > 256
    run_pictures.write_gif(tmp_path / "a.gif", iter(gradient))
    shown, _, _ = gif_frames(tmp_path / "a.gif")
    error = np.abs(shown.astype(int) - gradient)
    assert error.mean() < 6
    assert error.max() < 40


def test_frames_that_are_not_bytes_are_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="uint8"):
        run_pictures.write_gif(tmp_path / "a.gif", iter(frames(2).astype(float)))
    assert not list(tmp_path.iterdir())  # nor is a part left behind


def test_the_worst_frames_come_from_different_stretches():
    psnr = np.full(90, 30.0)
    psnr[40:45] = [20, 19, 18, 19, 20]
    psnr[80] = 25
    assert run_pictures.worst_indices(psnr, 3)[:2] == [42, 80]
    assert run_pictures.worst_indices(psnr[:2], 3) == [0, 1]


def test_thinning_keeps_both_ends():
    assert run_pictures.thinned(3, 5) == [0, 1, 2]
    assert run_pictures.thinned(629, 4) == [0, 209, 419, 628]
    assert run_pictures.thinned(9, 1) == [0]
    assert run_pictures.thinned(0, 4) == []


def test_a_run_leaves_its_pictures(tmp_path: Path):
    truth = frames(150)
    made = run_pictures.trial_artifacts(
        tmp_path,
        history({1: 20.0, 2: 24.0}),
        psnr_frames=np.linspace(30, 20, 150),
        prediction=truth,
        truth=truth,
        labels=255 - truth,
        baselines=BASELINES,
        title="main / trial 3",
    )
    assert [path.name for path in made] == [
        "curves.png",
        "psnr_per_frame.png",
        "worst_frames.png",
        "prediction.gif",
    ]
    for path in made:
        with Image.open(path) as picture:
            picture.load()
    shown, _, _ = gif_frames(tmp_path / "prediction.gif")
    assert len(shown) <= 120
    assert shown.shape[3] == (3 * 16 + 2 * 2) * 4  # three pictures beside each other, enlarged four times
    below = shown[0][:, -32:]  # without the band of names
    assert np.array_equal(below[:, ::4, : 16 * 4 : 4], truth[0])


def test_a_failed_run_leaves_its_curves_alone(tmp_path: Path):
    made = run_pictures.trial_artifacts(tmp_path, history({1: 20.0}), title="main / trial 3")
    assert [path.name for path in made] == ["curves.png"]


def test_charts_leave_matplotlib_as_it_was_and_are_equal_for_equal_data():
    import matplotlib

    before = dict(matplotlib.rcParams)
    rows = history({1: 20.0, 2: 24.0})
    assert run_curves(rows) == run_curves(rows)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF-1"), ("svg", b"<?xml")])
def test_charts_are_drawn_as_every_kind_of_file_without_a_date(kind: curves.Kind, magic: bytes):
    values = np.linspace(30, 25, 9)
    with curves.charts_as(kind):
        first, again = (curves.psnr_per_frame(values, BASELINES, name="run") for _ in range(2))
    assert first == again
    assert first.startswith(magic)
    assert not re.search(rb"CreationDate|dc:date|[mM]atplotlib v|matplotlib\.org", first)
    assert curves.psnr_per_frame(values, BASELINES, name="run").startswith(b"\x89PNG")


def drawn(rows: list[dict[str, Any]]) -> dict[str, Axes]:
    """The charts of `run_curves` by the first line of their y axis' name."""
    seen: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        seen.append(figure)
        return b""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_chart, "encoded", keep)
        run_curves(rows)
    return {axes.get_ylabel().split("\n")[0]: axes for axes in seen[0].axes}


def test_the_loss_chart_has_the_error_of_training_and_validation_and_the_forced_epochs():
    rows = history({epoch: 20.0 + epoch for epoch in range(1, 7)})
    for row, share in zip(rows, [1.0, 1.0, 0.0, 0.5, 0.0, 0.0], strict=True):
        row.update(teacher_forced=share, val_mse=0.01 / row["epoch"])
    charts = drawn(rows)
    assert list(charts) == ["validation", "loss", "schedules", "learning"]
    lines = {line.get_label(): list(line.get_ydata()) for line in charts["loss"].lines}
    assert lines["validation squared error"] == [row["val_mse"] for row in rows]
    assert lines["squared error"] == [row["train_mse"] for row in rows]
    grounds = [(box.get_x(), box.get_x() + box.get_width(), box.get_facecolor()) for box in charts["loss"].patches]
    assert [ground[:2] for ground in grounds] == [(0, 2), (2, 3), (3, 4), (4, 6)]
    forced, free, half, again = (ground[2] for ground in grounds)
    assert forced[:3] == half[:3] and forced[3] > half[3]  # the same colour, lighter
    assert free == again and free[:3] != forced[:3]
    assert [line.get_label() for line in charts["schedules"].lines] == ["forcing ratio", "KL weight"]


def test_a_history_of_an_older_version_is_drawn_without_the_validation_error():
    rows = history({1: 20.0, 2: 21.0})
    assert all("val_mse" not in row for row in rows)
    assert {line.get_label() for line in drawn(rows)["loss"].lines} == {"total", "squared error", "KL"}


def test_a_run_whose_steps_are_all_forced_by_the_truth_has_a_chart():
    """Report 003's forced steps have a squared error of 0, which a logarithmic axis cannot show."""
    rows = [{**row, "train_mse": 0.0, "teacher_forced": 1.0} for row in history({1: 20.0, 2: 21.0, 3: 22.0})]
    assert run_curves(rows).startswith(b"\x89PNG")
    assert run_curves([*rows, {**rows[-1], "epoch": 4, "train_mse": 0.01}]).startswith(b"\x89PNG")


def test_a_picture_of_frames_keeps_its_pixels_in_every_kind_of_file():
    picture = run_pictures.film_strip({"truth": frames(9)})
    assert curves.page_of(picture) == picture
    with curves.charts_as("pdf"):
        assert curves.page_of(picture).startswith(b"%PDF")
    with curves.charts_as("svg"):
        (inside,) = re.findall(rb"data:image/png;base64,([A-Za-z0-9+/=\s]+)", curves.page_of(picture))
    shown, whole = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (base64.b64decode(inside), picture)
    )
    assert any(np.array_equal(turned, whole) for turned in (shown, shown[::-1]))


def test_a_name_is_never_read_as_mathematics():
    data = curves.psnr_per_frame(np.array([20.0, 30.0]), BASELINES, name=r"a$b_{\frac$ c")
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"


def test_charts_of_nothing_say_so():
    for data in (run_curves([]), curves.psnr_per_frame(np.array([]))):
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.width > 800

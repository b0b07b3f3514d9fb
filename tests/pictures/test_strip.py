"""The frames of an animation one by one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvaeopt.pictures.run_pictures import MOST_FRAMES, thinned, write_comparison_gif
from cvaeopt.pictures.strip import strip_frames
from tests.support.made_up import frames


@pytest.mark.parametrize("count", [1, 9, 40, 300])
def test_best_median_and_worst_are_among_the_frames_and_show_what_the_animation_shows(
    tmp_path: Path, count: int
) -> None:
    truth = frames(count)
    truth[1:3] = truth[0]  # frames that do not move share a page of the GIF
    psnr = np.random.default_rng(count).normal(28, 2, count)
    write_comparison_gif(tmp_path / "x.gif", {"truth": truth, "prediction": truth})
    shown = strip_frames(tmp_path / "x.gif", psnr.tolist())
    numbers = [one.number for one in shown]
    assert numbers == sorted(set(numbers)) and len(numbers) <= 27
    kept = psnr[thinned(count, MOST_FRAMES)]
    marked = {one.mark: one.psnr for one in shown if one.mark}
    assert marked["worst"] == kept.min()
    if count > 2:
        assert marked["best"] == kept.max() and marked["median"] == np.sort(kept)[len(kept) // 2]
    for one in shown:
        assert one.psnr == psnr[one.number - 1]
        pixels = np.asarray(Image.open(io.BytesIO(one.data)).convert("RGB"))
        red = (pixels[40:, :, 0] > 180) & (pixels[40:, :, 1] < 100)  # the square, below the band with the names
        assert red.any(0).argmax() == 4 * (truth[one.number - 1, 0, 3] > 180).argmax()


def test_what_does_not_fit_is_no_strip(tmp_path: Path) -> None:
    assert strip_frames(tmp_path / "none.gif", [30.0]) == []
    (tmp_path / "torn.gif").write_bytes(b"GIF89a")
    assert strip_frames(tmp_path / "torn.gif", [30.0]) == []
    write_comparison_gif(tmp_path / "x.gif", {"truth": frames(4)})
    assert strip_frames(tmp_path / "x.gif", [30.0] * 5) == strip_frames(tmp_path / "x.gif", []) == []

"""The studies of the reports at reduced widths: what is changed, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reduced_claims import CLIPS, LENGTH, SHIPPED, SMALL, STUDIES, frames_of, reduced, write_data
from cvaeopt.search.definition import load_definition


@pytest.mark.parametrize("name", STUDIES)
def test_a_reduced_study_has_the_arms_claims_and_schedules_of_the_shipped_one(name: str, tmp_path: Path) -> None:
    shipped = load_definition(str(SHIPPED / f"{name}.toml"))
    (tmp_path / f"{name}-small.toml").write_text(reduced((SHIPPED / f"{name}.toml").read_text()))
    small = load_definition(str(tmp_path / f"{name}-small.toml"))
    assert (small.points(), small.claims, small.epochs) == (shipped.points(), shipped.claims, shipped.epochs)
    changed = {key for key in small.fixed if small.fixed[key] != shipped.fixed.get(key)}
    assert changed <= {*SMALL, "milestones"}
    assert shipped.fixed.keys() <= small.fixed.keys()
    assert (small.fixed["batch_size"] > 1) == (small.fixed.get("clip_order") == "strided")


def test_the_clips_are_whole_spread_and_never_outside_the_video() -> None:
    for count in (CLIPS * LENGTH, 100, 2304):
        numbers = frames_of(count)
        starts = numbers[::LENGTH]
        assert numbers == [start + step for start in starts for step in range(LENGTH)]
        assert len(set(starts)) == CLIPS
        assert min(numbers) >= 0 and max(numbers) < count
        assert all(start % LENGTH == 0 for start in starts)


def test_the_data_folder_has_the_chosen_frames_with_their_labels(tmp_path: Path) -> None:
    for part, count in (("train", 60), ("val", 40)):
        for folder in (f"{part}/{part}_img", f"{part}/{part}_label"):
            (tmp_path / "data" / folder).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "data" / folder / f"{number}.png").write_text(f"{folder} {number}")
    write_data(tmp_path / "data", tmp_path / "out")
    numbers = frames_of(60)
    for folder in ("train/train_img", "train/train_label"):
        found = [(tmp_path / "out" / folder / f"{place}.png").read_text() for place in range(len(numbers))]
        assert found == [f"{folder} {number}" for number in numbers]
    assert (tmp_path / "out/val/val_label/0.png").read_text() == "val/val_label 16"
    assert len(list((tmp_path / "out/val/val_img").iterdir())) == 17

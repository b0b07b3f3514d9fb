from __future__ import annotations

import hashlib
import json
import resource
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvaeopt.demo_data import choreography, drawing, skeleton, writer
from cvaeopt.errors import DataError
from cvaeopt.vae import dataset, sequences
from cvaeopt.vae.data_check import check
from cvaeopt.vae.metrics import baselines

SMALL = {"clips": 2, "val_frames": 6, "sequences": 2, "sequence_frames": 5}


@dataclass(frozen=True)
class Video:
    frames: np.ndarray
    labels: np.ndarray


def video(seed: int, number: int, frames: int) -> Video:
    drawn = list(writer.draw(np.random.default_rng([seed, number]), frames))
    pictures, labels = (np.stack(arrays).transpose(0, 3, 1, 2) for arrays in zip(*drawn, strict=True))
    return Video(pictures, labels)


@pytest.fixture(scope="module", params=[0, 1])
def videos(request: pytest.FixtureRequest) -> tuple[Video, Video]:
    """The training and the validation video of the default set."""
    return video(request.param, 0, 48 * 16), video(request.param, 1, 160)


def contents(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


# Files


def test_a_set_has_the_labs_layout_and_loads(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    seen: list[tuple[str, int, int]] = []
    writer.write(root, **SMALL, progress=lambda *what: seen.append(what))
    assert seen[0] == ("drawing frames", 1, 48) and seen[-1] == ("drawing frames", 48, 48)
    data = dataset.load(root)
    assert data.train.frames.shape == data.train.labels.shape == (32, 3, 32, 64)
    assert data.val.frames.shape == data.val.labels.shape == (6, 3, 32, 64)
    with Image.open(root / "train/train_img/31.png") as image:
        assert image.size == (64, 32) and image.mode == "RGB"
    found = list(sequences.test_sequences(root))
    assert [sequence.name for sequence in found] == ["0", "1"]
    for sequence in found:
        assert [path.name for path in (root / "test/test_img" / sequence.name).iterdir()] == ["0.png"]
        assert sequence.labels.shape == (5, 3, 32, 64)
        assert sequence.truth is not None and (sequence.truth[0] == sequence.first).all()
    assert check(root).ok
    assert not [path for path in tmp_path.iterdir() if path != root]


def test_one_seed_gives_one_set_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        writer.write(tmp_path / name, seed=seed, **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_the_videos_of_a_set_differ_from_each_other() -> None:
    frames = [video(0, number, 8).frames for number in range(4)]
    assert len({array.tobytes() for array in frames}) == 4


def test_an_existing_set_of_the_same_parameters_is_left_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    writer.write(root, **SMALL)
    (root / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    writer.write(root, **SMALL, progress=lambda *_: pytest.fail("drawn again"))
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_set_of_other_parameters_is_not_overwritten(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    writer.write(root, **SMALL)
    before = contents(root)
    with pytest.raises(DataError, match=r"demo holds a demonstration set with other parameters.*\"seed\": 1"):
        writer.write(root, seed=1, **SMALL)
    assert contents(root) == before


@pytest.mark.parametrize("name", ["holiday.jpg", writer.MARKER, ".hidden"])
def test_a_folder_with_anything_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match="is not empty, and not a demonstration set"):
        writer.write(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="is a file"):
        writer.write(tmp_path / "file", **SMALL)


def test_an_empty_folder_is_filled_also_after_a_killed_attempt(tmp_path: Path) -> None:
    root = tmp_path / "mounted"
    (root / ".mounted-0123abcd.part" / "train").mkdir(parents=True)
    inode = root.stat().st_ino
    writer.write(root, **SMALL)
    assert root.stat().st_ino == inode  # a mount point could not have been replaced
    assert json.loads((root / writer.MARKER).read_text())["clips"] == 2
    assert len(dataset.load(root).train) == 32


@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    root = tmp_path / "parent" / "demo"
    (root if exists else root.parent).mkdir(parents=True)

    def interrupt(what: str, done: int, total: int) -> None:
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(root, **SMALL, progress=interrupt)
    assert root.exists() == exists and not list((root if exists else root.parent).iterdir())


def test_a_set_that_another_process_wrote_meanwhile_is_kept(tmp_path: Path) -> None:
    root = tmp_path / "demo"

    def other(what: str, done: int, total: int) -> None:
        if done == total:
            writer.write(root, **SMALL)

    writer.write(root, **SMALL, progress=other)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"] and len(dataset.load(root).val) == 6


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(DataError, match=r"could not be written to .*demo: .*20 MB of room"):
            writer.write(tmp_path / "demo", **SMALL)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clips", "val_frames", "sequence_frames", "seed"])
def test_a_number_of_no_use_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name} = -1\. Expected at least"):
        writer.write(tmp_path / "demo", **{**SMALL, name: -1})
    assert not list(tmp_path.iterdir())


def test_a_set_without_test_sequences_is_sound(tmp_path: Path) -> None:
    writer.write(tmp_path / "demo", **{**SMALL, "sequences": 0})
    assert check(tmp_path / "demo").ok and sequences.count_test_sequences(tmp_path / "demo") == 0


# Motion


@pytest.mark.parametrize("seed", range(8))
def test_motion_is_smooth(seed: int) -> None:
    points, _ = skeleton.project(skeleton.joints(choreography.choreography(np.random.default_rng([seed, 0]), 768)))
    step = np.linalg.norm(np.diff(points, axis=0), axis=-1)  # (767, J) pixels a frame
    assert step.max() < 5.5  # a foot that swings past; the figure is 25 pixels tall
    trunk = [skeleton.JOINTS.index(name) for name in ("pelvis", "neck", "head")]
    assert step[:, trunk].max() < 3
    assert 0.3 < step.mean() < 1.5


def test_limbs_keep_their_lengths_in_space_and_are_foreshortened_in_the_picture() -> None:
    space = skeleton.joints(choreography.choreography(np.random.default_rng(5), 400))
    points, scale = skeleton.project(space)
    for a, b, *_ in drawing._LIMBS:
        i, j = skeleton.JOINTS.index(a), skeleton.JOINTS.index(b)
        length = np.linalg.norm(space[:, i] - space[:, j], axis=-1)
        assert np.ptp(length) < 1e-9
        seen = np.linalg.norm(points[:, i] - points[:, j], axis=-1) / (length * scale[:, i])
        assert seen.max() < 1.1
    assert seen.min() < 0.7


def test_the_lowest_joint_stands_on_the_floor_unless_the_figure_jumps() -> None:
    motion = choreography.choreography(np.random.default_rng(6), 600)
    lift = motion.angles[:, choreography.ANGLES.index("lift")]
    lowest = skeleton.joints(motion)[..., 1].min(axis=1)
    assert (np.abs(lowest - lift - 0.03) < 0.02).all()
    assert lift.max() > 0.05


@pytest.mark.parametrize("seed", range(4))
def test_every_motion_occurs_and_the_figure_moves_across_the_stage_and_turns(seed: int) -> None:
    rng = np.random.default_rng([seed, 0])
    names = {segment.motion for segment in choreography._programme(rng, 768)}
    assert names == {choreography._walk} | {motion for motion, _ in choreography._ACTS.values()}
    motion = choreography.choreography(np.random.default_rng([seed, 0]), 768)
    assert motion.x.min() < -0.6 and motion.x.max() > 0.6
    assert np.ptp(motion.yaw) > 2 * np.pi


def test_a_mirrored_pose_mirrors_back() -> None:
    pose = choreography._wave(np.arange(5.0))
    mirrored = pose[:, choreography._MIRRORED] * choreography._MIRROR_SIGN
    assert not np.allclose(mirrored, pose)
    assert np.allclose(mirrored[:, choreography._MIRRORED] * choreography._MIRROR_SIGN, pose)


# Pictures


def test_the_pose_matters(videos: tuple[Video, Video]) -> None:
    train, val = videos
    found = baselines(train, val)
    assert found.nearest_pose > found.copy_first + 2
    assert found.nearest_pose > found.train_mean + 1
    for value in (found.copy_first, found.train_mean):
        assert 15 < value < 24
    # The same without the empty frames, which nearest-pose meets almost exactly.
    shown = np.flatnonzero((val.labels != 255).any(axis=(1, 2, 3)) | (np.arange(len(val.labels)) == 0))
    found = baselines(train, Video(val.frames[shown], val.labels[shown]))
    assert found.nearest_pose > found.copy_first + 2


def test_the_figure_now_and_then_leaves_the_picture(videos: tuple[Video, Video]) -> None:
    for part in videos:
        empty = (part.labels == 255).all(axis=(1, 2, 3))
        assert 0 < empty.mean() < 0.15
        # Without a skeleton hardly anything of the figure is left: at most the tip of a shoe.
        studio = part.frames[empty].astype(float)
        mse = np.square((studio - np.median(studio, axis=0)) / 255).mean(axis=(1, 2, 3))
        assert mse.max() < 10**-3.5  # 35 dB


def test_neighbouring_frames_are_alike_but_not_equal(videos: tuple[Video, Video]) -> None:
    frames = videos[0].frames.astype(np.float64) / 255
    mse = np.square(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    assert -10 * np.log10(np.maximum(mse, 1e-10)).mean() > 27
    assert mse.max() < 10**-2.0


def test_labels_are_thin_coloured_lines_on_white(videos: tuple[Video, Video]) -> None:
    labels = videos[0].labels
    ink = (labels < 250).any(axis=1).mean(axis=(1, 2))  # part of the picture that is not white
    assert ink.max() < 0.08 and ink.mean() > 0.02
    assert (labels[:, :, 0] == 255).mean() > 0.95
    colors = labels[::5].transpose(0, 2, 3, 1).reshape(-1, 3)
    pure = {tuple(color) for color in np.unique(colors, axis=0)}
    drawn = [color for _, _, color in drawing._BONES if any(np.abs(np.subtract(color, c)).max() < 12 for c in pure)]
    assert len(drawn) == len(drawing._BONES)


def test_the_skeleton_lies_on_the_figure(videos: tuple[Video, Video]) -> None:
    train = videos[0]
    empty = (train.labels == 255).all(axis=(1, 2, 3))
    studio = train.frames[empty].astype(float).mean(axis=0)
    figure = np.abs(train.frames - studio).max(axis=1) > 12
    bones = (train.labels < 128).any(axis=1)
    assert (figure & bones).sum() / bones.sum() > 0.97

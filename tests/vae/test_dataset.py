from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import stat
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvaeopt.errors import DataError
from cvaeopt.vae import frame_cache, sequences
from cvaeopt.vae.data_check import check
from cvaeopt.vae.dataset import clip_starts, load, require_clips
from cvaeopt.vae.png_folder import list_folder, stop
from tests.support.processes import context
from tests.support.waiting import LONG_S

FRAMES, LABELS = "train/train_img", "train/train_label"


@pytest.fixture(autouse=True)
def _caches_stay_in_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CVAEOPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def pixels(seed: int, height: int = 8, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make(root: Path, train: int = 18, val: int = 3, name: str = "{}.png", first: int = 0) -> Path:
    """A data set of noise in the lab's layout, 16 x 8 pixels, with two test sequences."""
    for folder, count in ((FRAMES, train), (LABELS, train), ("val/val_img", val), ("val/val_label", val)):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(pixels(1000 * len(folder) + index))
            picture.save(root / folder / name.format(index + first))
    for sequence in ("2", "10"):
        (root / "test/test_img" / sequence).mkdir(parents=True)
        (root / "test/test_label" / sequence).mkdir(parents=True)
        Image.fromarray(pixels(7)).save(root / "test/test_img" / sequence / name.format(first))
        for index in range(4):
            Image.fromarray(pixels(index)).save(root / "test/test_label" / sequence / name.format(index + first))
    return root


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1)


# What is loaded


@pytest.mark.parametrize("name", ["{}.png", "frame{:06d}.png", "{:03d}.PNG"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_loaded_video_is_its_pngs_in_the_order_of_their_numbers(tmp_path: Path, name: str, first: int) -> None:
    root = make(tmp_path / "set", name=name, first=first)
    data = load(root, 8, 16)
    assert len(data.train) == 18 and len(data.val) == 3
    for split, folder in ((data.train, "train"), (data.val, "val")):
        for kind, array in (("img", split.frames), ("label", split.labels)):
            assert array.dtype == np.uint8 and array.shape[1:] == (3, 8, 16)
            for index in range(len(split)):
                path = root / folder / f"{folder}_{kind}" / name.format(index + first)
                assert (array[index] == read(path)).all()


def test_loaded_frames_are_memory_mapped_and_cannot_be_written(root: Path) -> None:
    data = load(root, 8, 16)
    assert not data.train.frames.flags.writeable and not data.val.labels.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        data.train.frames[0] = 0


def test_frames_are_resized_as_pil_resizes_them(root: Path) -> None:
    data = load(root, 5, 7)
    with Image.open(root / FRAMES / "4.png") as image:
        expected = np.asarray(image.resize((7, 5), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert (data.train.frames[4] == expected).all()


def chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    """A chunk of a PNG file; `wrong` changes its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)


def saved(picture: Image.Image, kind: str = "PNG", **extra: Any) -> bytes:
    with BytesIO() as stream:
        picture.save(stream, kind, **extra)
        return stream.getvalue()


def interlaced() -> bytes:
    """A PNG file with Adam7 interlacing, 16 x 8 pixels of grey, which PIL reads and does not write."""
    grey = pixels(5)[..., 0]
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for top, left, down, right in passes for row in grey[top::down, left::right] if len(row)]
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 16, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


RGB = Image.fromarray(pixels(5))
WHOLE = saved(RGB)
PICTURES: dict[str, bytes] = {
    **{mode: saved(RGB.convert(mode)) for mode in ("L", "LA", "1", "RGBA")},
    "palette": saved(RGB.quantize(16)),
    "palette with a transparent colour": saved(RGB.quantize(16), transparency=3),
    "palette with transparencies": saved(RGB.quantize(16), transparency=bytes([0, 128])),
    "RGB with a transparent colour": saved(RGB, transparency=(0, 0, 0)),
    "grey with a transparent grey": saved(RGB.convert("L"), transparency=7),
    "16 bit": saved(Image.fromarray(pixels(5)[..., 0].astype(np.uint16) * 2)),
    "interlaced": interlaced(),
    "JPEG": saved(RGB, "JPEG"),
    "JPEG, four inks": saved(RGB.convert("CMYK"), "JPEG"),
    "GIF": saved(RGB, "GIF"),
    "BMP": saved(RGB, "BMP"),
    "TIFF": saved(RGB, "TIFF"),
    "a text with a wrong checksum behind the pixels": WHOLE[:-12]
    + chunk(b"tEXt", b"Comment\0x", wrong=1)
    + WHOLE[-12:],
    "pixels with a wrong checksum": WHOLE[:-16] + bytes(4) + WHOLE[-12:],
    "without its end": WHOLE[:-12],
    "cut in its last checksum": WHOLE[:-14],
    "more behind its end": WHOLE + b"more",
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_is_what_the_labs_loader_makes_of_the_file(root: Path, kind: str) -> None:
    path = root / FRAMES / "3.png"
    path.write_bytes(PICTURES[kind])
    with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert (load(root, 8, 16).train.frames[3] == expected).all()
    assert check(root, 8, 16).ok


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is empty"),
        (bytes(300), "it holds nothing but zeros"),
        (WHOLE[:8], "cannot be decoded"),
        (WHOLE[:33] + chunk(b"tEXt", b"Comment\0x", wrong=1) + WHOLE[33:], "bad header checksum in b'tEXt'"),
        (WHOLE[: len(WHOLE) // 2], "image file is truncated"),
        (b"\n<!DOCTYPE html><p>404", "a page of HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 8\n", "PostScript"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "a HEIC picture"),
        (b"\0\0\0\x18ftypisom" + bytes(20), "of the kind 'isom'"),
        (b"PK\x03\x04" + bytes(20), "a zip archive"),
        (b"no picture at all", "it is no picture"),
    ],
)
def test_what_pil_cannot_read_is_named_as_what_it_is(root: Path, content: bytes, says: str) -> None:
    (root / FRAMES / "3.png").write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(root, 8, 16)
    assert "train_img/3.png cannot be decoded" in caught.value.found and says in caught.value.found


def test_hidden_and_foreign_files_are_passed_over(root: Path) -> None:
    before = load(root, 8, 16).digest
    for name in ("._3.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (root / FRAMES / name).write_text("not a frame")
    assert load(root, 8, 16).digest == before


@given(st.sets(st.integers(0, 10**12), min_size=1, max_size=12), st.data())
def test_names_sort_by_their_number_whatever_its_padding(numbers: set[int], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in data.draw(st.permutations(sorted(numbers))):
            word = data.draw(st.sampled_from(["", "frame", "x-"]))
            (Path(folder) / f"{word}{number:0{data.draw(st.integers(1, 15))}d}.png").touch()
        assert [png.number for png in list_folder(Path(folder), stop)] == sorted(numbers)


# Clips


@pytest.mark.parametrize(
    ("frames", "partial", "clips"),
    [(23410, 1.0, 1463), (23410, 0.4, 585), (23410, 0.5, 731), (768, 1.0, 48), (16, 1.0, 1), (15, 1.0, 0), (31, 1, 1)],
)
def test_clip_counts_of_known_videos(frames: int, partial: float, clips: int) -> None:
    assert len(clip_starts(frames, 16, partial)) == clips


def test_partial_counts_as_the_decimal_number_that_was_written() -> None:
    assert int(100 * 0.29) == 28
    assert clip_starts(100, 29, 0.29) == [0]


@given(st.integers(0, 5000), st.integers(1, 40), st.floats(1e-6, 1))
def test_clips_are_disjoint_windows_of_the_prefix_and_leave_no_room_for_another(
    frames: int, length: int, partial: float
) -> None:
    starts = clip_starts(frames, length, partial)
    assert starts == [length * index for index in range(len(starts))]
    assert len(starts) * length <= frames * partial + 1e-6
    assert (len(starts) + 1) * length > frames * partial - 1


def test_too_few_frames_for_one_clip_is_an_error_that_names_the_folder(root: Path) -> None:
    data = load(root, 8, 16)
    assert require_clips(data, 9, 1.0) == [0, 9]
    with pytest.raises(DataError, match=r"train_img holds 18 frames; partial = 0\.5 .*at least 16") as caught:
        require_clips(data, 16, 0.5)
    assert caught.value.exit_code == 2


# The cache


def test_pngs_are_decoded_once_and_mapped_from_then_on(root: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    first = load(root, 8, 16, progress=lambda *what: seen.append(what))
    assert seen and seen[-1] == ("decoding frames", 42, 42)
    seen.clear()
    second = load(root, 8, 16, progress=lambda *what: seen.append(what))
    assert not seen
    assert first.digest == second.digest and (first.train.frames == second.train.frames).all()


def test_a_changed_file_is_decoded_anew_and_the_old_generation_removed(root: Path) -> None:
    before = load(root, 8, 16)
    Image.fromarray(pixels(99)).save(root / FRAMES / "3.png")
    after = load(root, 8, 16)
    assert after.digest != before.digest
    assert (after.train.frames[3] == pixels(99).transpose(2, 0, 1)).all()
    assert len(folders(root / frame_cache.CACHE_FOLDER)) == 1


def test_two_sizes_of_one_folder_are_kept_side_by_side(root: Path) -> None:
    load(root, 8, 16)
    load(root, 4, 8)
    assert len(folders(root / frame_cache.CACHE_FOLDER)) == 2


def test_the_digest_is_of_the_content_and_not_of_names_dates_or_compression(tmp_path: Path) -> None:
    one = load(make(tmp_path / "one"), 8, 16)
    other_root = make(tmp_path / "other", name="frame{:06d}.png", first=1)
    for path in other_root.rglob("*.png"):
        with Image.open(path) as image:
            image.save(path, compress_level=0)
        os.utime(path, (1, 1))
    other = load(other_root, 8, 16)
    assert len(one.digest) == 12 and one.digest == other.digest
    assert load(tmp_path / "one", 4, 8).digest != one.digest


def test_a_moved_data_folder_keeps_its_cache(root: Path) -> None:
    load(root, 8, 16)
    moved = root.rename(root.parent / "moved")
    load(moved, 8, 16, progress=fail)


@pytest.mark.parametrize("damage", ["truncate", "flip", "header", "meta", "no meta", "list", "missing", "empty"])
def test_a_damaged_cache_is_rebuilt(root: Path, damage: str) -> None:
    expected = load(root, 8, 16).digest
    folder = folders(root / frame_cache.CACHE_FOLDER)[0]
    array, meta = folder / "train_img.npy", folder / "meta.json"
    content = bytearray(array.read_bytes())
    if damage == "truncate":
        array.write_bytes(content[:-1])
    elif damage == "flip":
        content[-100] ^= 1
        array.write_bytes(content)
    elif damage == "header":
        content[20:40] = b"(" * 20
        array.write_bytes(content)
    elif damage == "meta":
        meta.write_text('{"digest": ')
    elif damage == "list":
        meta.write_text("[]")
    elif damage == "no meta":
        meta.unlink()
    elif damage == "missing":
        array.unlink()
    else:
        array.write_bytes(b"")
    seen: list[int] = []
    again = load(root, 8, 16, progress=lambda what, done, total: seen.append(done))
    assert seen and again.digest == expected
    load(root, 8, 16, progress=fail)
    assert [path.suffix for path in (root / frame_cache.CACHE_FOLDER).iterdir() if path.name[0] == "."] == []


def test_the_cache_can_be_put_elsewhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(root, 8, 16, cache=tmp_path / "given")
    assert folders(tmp_path / "given")
    monkeypatch.setenv("CVAEOPT_CACHE", str(tmp_path / "named"))
    load(root, 8, 16)
    assert folders(tmp_path / "named") and not (root / frame_cache.CACHE_FOLDER).exists()


def test_two_data_folders_share_one_cache_place(tmp_path: Path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", train=20)
    for _ in range(2):
        assert len(load(one, 8, 16, cache=tmp_path / "cache").train) == 18
        assert len(load(two, 8, 16, cache=tmp_path / "cache").train) == 20
    assert len(folders(tmp_path / "cache")) == 2


def test_a_read_only_data_folder_is_cached_with_the_user(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(public / "set")
    monkeypatch.setenv("XDG_CACHE_HOME", str(public / "home"))
    with unprivileged(root):
        first = load(root, 8, 16)
        load(root, 8, 16, progress=fail)
    assert folders(public / "home" / "cvaeopt") and not (root / frame_cache.CACHE_FOLDER).exists()
    assert first.digest == load(root, 8, 16).digest


def test_a_cache_inside_a_read_only_data_folder_is_used(public: Path) -> None:
    root = make(public / "set")
    load(root, 8, 16)
    with unprivileged(root):
        load(root, 8, 16, progress=fail)


def test_no_place_for_the_cache_says_how_much_room_is_needed(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(public / "set")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "home"))
    with unprivileged(root), pytest.raises(DataError, match=r"2 MB of room\. Set CVAEOPT_CACHE") as caught:
        load(root, 8, 16)
    assert str(root / frame_cache.CACHE_FOLDER) in str(caught.value)


def test_a_full_disk_says_how_much_room_is_needed_and_leaves_nothing(root: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # a write beyond it fails, as on a full disk
    try:
        with pytest.raises(DataError, match=r"cannot hold them: .*2 MB of room\. Set CVAEOPT_CACHE"):
            load(root, 8, 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.suffix for path in (root / frame_cache.CACHE_FOLDER).iterdir()] == [".lock"]
    load(root, 8, 16)


@pytest.mark.slow
def test_four_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    root = make(tmp_path / "set", train=300)
    barrier, answers = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_load_with_others, args=(root, barrier, answers)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=LONG_S) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(decoded for decoded, _ in found) == [0, 0, 0, 606]
    assert len({digest for _, digest in found}) == 1
    assert len(folders(root / frame_cache.CACHE_FOLDER)) == 1


@pytest.mark.slow
def test_a_process_killed_while_it_decodes_leaves_no_lock_and_no_half_cache(tmp_path: Path) -> None:
    root = make(tmp_path / "set")
    worker = context.Process(target=_die_while_decoding, args=(root,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    place = root / frame_cache.CACHE_FOLDER
    assert [path for path in place.iterdir() if path.suffix == ".part"] and not folders(place)
    assert len(load(root, 8, 16).train) == 18
    assert not [path for path in place.iterdir() if path.suffix == ".part"]


# What cannot be loaded


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def cut(root: Path) -> None:
        content = (root / name).read_bytes()
        (root / name).write_bytes(content[: int(len(content) * keep)])

    return cut


def _empty(folder: str) -> Callable[[Path], None]:
    def empty(root: Path) -> None:
        for path in (root / folder).iterdir():
            path.unlink()

    return empty


def _gap(root: Path) -> None:
    for folder in (FRAMES, LABELS):
        (root / folder / "7.png").unlink()


def _late_start(root: Path) -> None:
    for folder in (FRAMES, LABELS):
        for number in range(3):
            (root / folder / f"{number}.png").unlink()


def _odd_size(root: Path) -> None:
    Image.fromarray(pixels(1, 8, 15)).save(root / FRAMES / "5.png")


def _flipped(root: Path) -> None:
    content = bytearray((root / FRAMES / "5.png").read_bytes())
    content[len(content) // 2] ^= 1
    (root / FRAMES / "5.png").write_bytes(content)


def _short_validation(root: Path) -> None:
    for folder in ("val/val_img", "val/val_label"):
        for number in (1, 2):
            (root / folder / f"{number}.png").unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "frame without label": (_remove(f"{LABELS}/7.png"), r"train_img/7\.png has no partner in \S*train_label\."),
    "label without frame": (_remove("val/val_img/1.png"), r"val_label/1\.png has no partner in \S*val_img\."),
    "gap": (_gap, r"train_img has a gap in its numbers: 7\.png is missing"),
    "late start": (_late_start, r"train_img starts at number 3: 2\.png is missing"),
    "duplicate": (
        lambda root: shutil.copy(root / FRAMES / "7.png", root / FRAMES / "007.png"),
        r"train_img/7\.png has the same number as 007\.png",
    ),
    "no number": (lambda root: (root / FRAMES / "cover.png").touch(), r"train_img/cover\.png does not have one number"),
    "two numbers": (lambda root: (root / FRAMES / "1-2.png").touch(), r"train_img/1-2\.png does not have one number"),
    "empty file": (_cut(f"{FRAMES}/5.png", 0), r"train_img/5\.png cannot be decoded: it is empty"),
    "half a file": (_cut(f"{LABELS}/5.png", 0.5), r"train_label/5\.png cannot be decoded"),
    "most of a file": (_cut(f"{LABELS}/5.png", 0.9), r"train_label/5\.png cannot be decoded"),
    "flipped bit": (_flipped, r"train_img/5\.png cannot be decoded"),
    "odd size": (_odd_size, r"train_img/5\.png is 15x8 pixels\. Expected 16x8"),
    "empty folder": (_empty(LABELS), r"train_label holds no PNG file"),
    "missing folder": (lambda root: shutil.rmtree(root / LABELS), r"train/train_label does not exist\. Expected"),
    "short validation": (_short_validation, r"val_img holds a single frame, 0\.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_by_name_and_leaves_nothing(root: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        load(root, 8, 16)
    assert caught.value.exit_code == 2 and str(root) in str(caught.value)
    place = root / frame_cache.CACHE_FOLDER
    assert not place.exists() or [path.suffix for path in place.iterdir()] == [".lock"]


@pytest.mark.parametrize("case", BAD)
def test_a_check_reports_what_a_load_refuses(root: Path, case: str) -> None:
    spoil, message = BAD[case]
    spoil(root)
    report = check(root, 8, 16)
    assert not report.ok and report.baselines is None and report.problem_count == 1
    assert re.search(message, report.problems[0])


def test_a_missing_root_suggests_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist\. Expected .*cvaeopt demo-data"):
        load(tmp_path / "nowhere")
    make(tmp_path / "outer" / "set")
    with pytest.raises(DataError, match=r"Did you mean \S*outer/set\?"):
        load(tmp_path / "outer")
    for inside in ("train", "train/train_img"):
        report = check(tmp_path / "outer/set" / inside)
        assert report.problem_count == 1 and report.problems[0].endswith("outer/set?")
    with pytest.raises(DataError, match=r"Did you mean \S*/outer\?"):
        load(tmp_path / "outter")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file is not a folder"):
        load(tmp_path / "file")


# Test sequences


def test_sequences_come_in_natural_order_with_their_first_frame(root: Path) -> None:
    found = list(sequences.test_sequences(root, 8, 16))
    assert [sequence.name for sequence in found] == ["2", "10"] and sequences.count_test_sequences(root) == 2
    for sequence in found:
        assert sequence.truth is None and sequence.labels.shape == (4, 3, 8, 16)
        assert (sequence.first == pixels(7).transpose(2, 0, 1)).all()
        assert (sequence.labels[3] == pixels(3).transpose(2, 0, 1)).all()


@pytest.mark.parametrize("folder", ["test_img", "test_truth"])
def test_as_many_frames_as_labels_are_the_truth(root: Path, folder: str) -> None:
    target = root / "test" / folder / "10"
    target.mkdir(parents=True, exist_ok=True)
    for index in range(4):
        Image.fromarray(pixels(7 + index)).save(target / f"{index}.png")
    two, ten = sequences.test_sequences(root, 8, 16)
    assert two.truth is None and ten.truth is not None and ten.truth.shape == (4, 3, 8, 16)
    assert (ten.truth[0] == ten.first).all() and (ten.truth[3] == pixels(10).transpose(2, 0, 1)).all()


def test_a_set_without_test_folders_has_no_sequences_and_is_sound(root: Path) -> None:
    shutil.rmtree(root / "test")
    assert sequences.count_test_sequences(root) == 0
    assert check(root, 8, 16).ok
    with pytest.raises(DataError, match="test/test_img is not a folder that can be read"):
        next(sequences.test_sequences(root, 8, 16))


def _truth_without_end(root: Path) -> None:
    (root / "test/test_truth/10").mkdir(parents=True)
    shutil.copy(root / "test/test_img/10/0.png", root / "test/test_truth/10/0.png")


def _few_labels(root: Path) -> None:
    for number in (1, 2, 3):
        (root / f"test/test_label/10/{number}.png").unlink()


BAD_SEQUENCES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no first frame": (_remove("test/test_img/10/0.png"), r"test_img/10 holds no PNG file"),
    "no frames": (
        lambda root: shutil.rmtree(root / "test/test_img/10"),
        r"test_label/10 has no partner \S*test_img/10",
    ),
    "no labels": (
        lambda root: shutil.rmtree(root / "test/test_label/10"),
        r"test_img/10 has no partner \S*test_label/10",
    ),
    "label gap": (_remove("test/test_label/10/2.png"), r"test_label/10 has a gap in its numbers: 2\.png"),
    "one label": (_few_labels, r"test_label/10 holds a single label, 0\.png"),
    "bad label": (_cut("test/test_label/10/2.png", 0.5), r"test_label/10/2\.png cannot be decoded"),
    "some frames": (
        lambda root: shutil.copy(root / "test/test_img/10/0.png", root / "test/test_img/10/1.png"),
        r"test_img/10 holds 2 frames and \S*test_label/10 4 labels",
    ),
    "some truth": (_truth_without_end, r"test_label/10/1\.png has no partner in \S*test_truth/10"),
}


@pytest.mark.parametrize("case", BAD_SEQUENCES)
def test_a_bad_sequence_is_refused_by_name(root: Path, case: str) -> None:
    spoil, message = BAD_SEQUENCES[case]
    spoil(root)
    with pytest.raises(DataError, match=message):
        list(sequences.test_sequences(root, 8, 16))
    report = check(root, 8, 16)
    assert not report.ok and any(re.search(message, problem) for problem in report.problems)
    assert report.baselines is not None  # the videos are sound


# Checks


def test_a_check_of_a_sound_folder_counts_everything(root: Path) -> None:
    report = check(root, 8, 16)
    assert report.ok and not report.problems
    assert report.counts == {FRAMES: 18, LABELS: 18, "val/val_img": 3, "val/val_label": 3}
    assert set(map(tuple, report.sizes.values())) == {("16x8",)}
    assert report.sequences == [
        {"name": "2", "labels": 4, "truth": False},
        {"name": "10", "labels": 4, "truth": False},
    ]
    assert report.clips == 1
    assert report.baselines is not None and report.digest == load(root, 8, 16, progress=fail).digest
    plain = json.loads(json.dumps(report.plain(), allow_nan=False))
    assert plain["ok"] is True and plain["baselines"]["copy_first"] == report.baselines.copy_first


def test_a_check_collects_problems_of_every_folder_and_bounds_the_list(root: Path) -> None:
    _cut(f"{FRAMES}/5.png", 0.5)(root)
    Image.fromarray(pixels(1, 9, 16)).save(root / LABELS / "6.png")
    _remove("val/val_img/1.png")(root)
    _remove("test/test_label/2/0.png")(root)
    _cut("test/test_img/2/0.png", 0.3)(root)
    report = check(root, 8, 16)
    text = "\n".join(report.problems)
    for named in (f"{FRAMES}/5.png", f"{LABELS}/6.png", "val/val_label/1.png", "test/test_img/2/0.png"):
        assert str(root / named) in text
    assert report.problem_count == len(report.problems) == 4
    for number in range(18):
        (root / LABELS / f"{number}.png").write_bytes(b"")
    report = check(root, 8, 16)
    assert len(report.problems) == 20 < report.problem_count


def test_a_check_of_a_missing_folder_reports_it(tmp_path: Path) -> None:
    report = check(tmp_path / "nowhere")
    assert not report.ok and report.problem_count == 1 and "does not exist" in report.problems[0]


def test_a_check_finds_too_few_frames_for_the_usual_clip(tmp_path: Path) -> None:
    report = check(make(tmp_path / "set", train=15), 8, 16)
    assert report.clips == 0 and "holds 15 frames" in report.problems[0]


def test_a_check_without_room_for_the_cache_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").touch()
    monkeypatch.setenv("CVAEOPT_CACHE", str(root / "file"))
    report = check(root, 8, 16)
    assert report.problem_count == 1 and "MB of room" in report.problems[0]


def folders(place: Path) -> list[Path]:
    """The caches that are complete under `place`."""
    return [path for path in place.iterdir() if path.is_dir() and path.name[0] != "."]


def fail(*_: object) -> None:
    pytest.fail("decoded again")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach (those of pytest are its user's own)."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        yield Path(name)


@contextmanager
def unprivileged(read_only: Path) -> Iterator[None]:
    """Nobody's rights, to whom `read_only` cannot be written (permissions do not bind the superuser)."""
    mode = stat.S_IMODE(read_only.stat().st_mode)
    read_only.chmod(0o555)
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)
        read_only.chmod(mode)


def _load_with_others(root: Path, barrier: Any, answers: Any) -> None:
    decoded: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        if what == "decoding frames":
            decoded.append(done)

    barrier.wait()
    data = load(root, 8, 16, progress=progress)
    answers.put((decoded[-1] if decoded else 0, data.digest))


def _die_while_decoding(root: Path) -> None:
    load(root, 8, 16, progress=lambda *what: os.kill(os.getpid(), signal.SIGKILL))

"""Files are whole or absent, and names from a database stay inside their folder."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.files import RunFolder, digest, inside, whole, whole_folder, write_bytes, write_json, write_text


class Crash(BaseException):
    """What a kill looks like from within."""


@pytest.mark.parametrize("crash", [Crash, OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, crash: type[BaseException]) -> None:
    target = tmp_path / "folder" / "file"
    write_text(target, "old")
    with pytest.raises(crash), whole(target) as stream:
        stream.write(b"half of the new")
        raise crash
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_scratch_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for name in (".out.killed.part", ".out.v2.other.part"):
        (tmp_path / name / "new").mkdir(parents=True)
    with whole_folder(target) as living:
        (living / "first").touch()
        with whole_folder(target) as second:
            (second / "second").touch()
        assert (living / "first").exists()
        assert not (tmp_path / ".out.killed.part").exists()
    assert [path.name for path in target.iterdir()] == ["first"]
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.v2.other.part"}


def test_the_only_copy_of_a_folder_is_never_removed(tmp_path: Path) -> None:
    between = tmp_path / ".out.killed.part"  # killed after the old folder was moved away
    for name in ("old", "new"):
        (between / name).mkdir(parents=True)
    for kept in (True, False):
        with whole_folder(tmp_path / "out"):
            assert between.exists() == kept


def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with whole(target) as stream:
        stream.write(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_has_the_permissions_of_any_other_new_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "any").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "any")]
    assert modes[0] == modes[1]


def test_not_a_number_is_no_json_and_spoils_nothing(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": float("nan")})
    assert json.loads(target.read_text()) == {"a": 1}


def test_a_digest_depends_on_values_and_not_on_their_order() -> None:
    assert digest({"a": 1, "b": [2.5]}) == digest({"b": [2.5], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert len(digest({}, 6)) == 6


NAMES = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["..", ".", "", "a", "/", "~", "\\", "a b", "é", "\n", "%2e%2e", "'; drop table x"])).map(
        "/".join
    ),
)


@given(NAMES)
def test_a_hostile_name_stays_inside_or_is_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp()
    try:
        path = inside(root, name)
    except (ValueError, OSError):  # OSError: longer than a file name can be
        return
    assert path != root
    assert root.resolve() in path.parents


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", "", ".", "a/../..", "link/x"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="is not inside"):
        inside(root, name)


def test_the_folder_of_a_trial_is_named_after_its_number(tmp_path: Path) -> None:
    assert RunFolder.of_trial(tmp_path, "main", 42).root == tmp_path.resolve() / "main" / "00042"
    with pytest.raises(ValueError, match="is not inside"):
        RunFolder.of_trial(tmp_path, "../main", 42)


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_history() == []
    rows = [{"epoch": 1, "val_psnr": 20.5}, {"epoch": 2, "val_psnr": 21.0}]
    folder.write_history(rows)
    assert folder.read_history() == rows
    assert len(folder.history.read_text().splitlines()) == 2
    folder.write_history(rows[:1])
    assert folder.read_history() == rows[:1]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="is no file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]

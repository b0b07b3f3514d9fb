from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cvaeopt.errors import DataError
from cvaeopt.outcome import submission
from cvaeopt.outcome.submission import Expected, check
from tests.support.made_up import frames, sequence_folder

PIXELS = 3 * 8 * 16
HEADER = ",".join(["id", *map(str, range(PIXELS))])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """Two sequences of four frames of 8 x 16."""
    return Expected.of(sequence_folder(tmp_path_factory.mktemp("data"), 2, 4), 8, 16)


def rows() -> list[list[str]]:
    """The rows of a right submission: the true frames of both sequences."""
    shown = np.concatenate([frames(4, seed=number) for number in range(2)]).reshape(8, -1)
    return [[str(index), *map(str, row)] for index, row in enumerate(shown)]


def written(folder: Path, made: list[list[str]], header: str = HEADER, end: str = "\n") -> Path:
    path = folder / "submission.csv"
    path.write_text(end.join([header, *(",".join(row) for row in made)]) + end, newline="")
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_right_submission_has_no_fault(tmp_path: Path, expected: Expected, end: str):
    result = check(written(tmp_path, rows(), end=end), expected)
    assert (result.ok, result.rows, result.sequences, result.firsts) == (True, 8, 2, True)
    quoted = [[f'"{value}"' for value in row] for row in rows()]
    assert check(written(tmp_path, quoted), expected).ok
    lines = written(tmp_path, rows())
    lines.write_text(lines.read_text().rstrip("\n") + "\n\n")  # an empty line at the end, as some editors add it
    assert check(lines, expected).ok


@pytest.mark.parametrize("value", ["256", "-1", "12.0", "", "nan", "1e2", " 7", "0x1", "٣"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 17), (7, PIXELS - 1)])
def test_a_wrong_value_is_named_by_row_and_column(
    tmp_path: Path, expected: Expected, value: str, row: int, column: int
):
    made = rows()
    made[row][column + 1] = value
    result = check(written(tmp_path, made), expected)
    assert [(fault.row, fault.line, fault.column) for fault in result.faults] == [(row, row + 2, str(column))]
    assert f"row {row} (line {row + 2}), column {column}: " in result.faults[0].text


def test_the_first_row_of_a_sequence_must_be_its_given_frame(tmp_path: Path, expected: Expected):
    made = rows()
    made[4][1 + 100] = str((int(made[4][1 + 100]) + 3) % 256)
    made[5][1 + 100] = "0"  # a predicted frame may be anything
    (fault,) = check(written(tmp_path, made), expected).faults
    assert (fault.row, fault.column) == (4, "100")
    assert "sequence 1" in fault.text
    made[4][1 + 100] = str(int(rows()[4][1 + 100]) + 2)  # another rounding
    assert check(written(tmp_path, made), expected).ok


def test_wrong_rows_ids_and_columns_are_named(tmp_path: Path, expected: Expected):
    shuffled = rows()
    shuffled[2][0], shuffled[3][0] = "3", "2"
    found = check(written(tmp_path, shuffled), expected).faults
    assert [(fault.row, fault.column, fault.found, fault.expected) for fault in found] == [
        (2, "id", "'3'", "2"),
        (3, "id", "'2'", "3"),
    ]
    short = rows()
    short[6].pop()
    (fault,) = check(written(tmp_path, short), expected).faults
    assert (fault.row, fault.column, fault.found) == (6, None, f"{PIXELS} columns")
    (fault,) = check(written(tmp_path, rows()[:-1]), expected).faults
    assert "has 7 rows. Expected: 8 (4 of sequence 0, 4 of sequence 1)." in fault.text
    holes = rows()
    holes.insert(3, [])
    (fault,) = check(written(tmp_path, holes), expected).faults
    assert (fault.row, fault.line) == (3, 5)


@given(gone=st.integers(0, 6), size=st.integers(1, 3))
def test_missing_rows_are_named_once_with_the_number_of_shifted_rows(gone: int, size: int):
    expected = Expected(PIXELS, (8,), ("0",), (np.full((3, 8, 16), 7, np.uint8),))
    made = [[str(index), *["7"] * PIXELS] for index in range(8)]
    left = [*made[:gone], *made[gone + size :]]
    with tempfile.TemporaryDirectory() as folder:
        result = check(written(Path(folder), left), expected)
    named = [fault for fault in result.faults if fault.column == "id"]
    assert [(fault.row, fault.expected) for fault in named] == ([(gone, str(gone))] if gone + size < 8 else [])
    if named:
        lost = f"row {gone} is missing" if size == 1 else f"rows {gone} to {gone + size - 1} are missing"
        later = 8 - gone - size - 1
        assert named[0].found == f"{lost}, and {later} later row{'' if later == 1 else 's'} shifted"
    assert f"has {8 - min(size, 8 - gone)} rows" in result.faults[-1].text
    assert result.fault_count == len(named) + 1


def test_the_given_frames_are_found_behind_a_missing_row_and_ids_that_begin_again_are_named_once(
    tmp_path: Path, expected: Expected
):
    lost = rows()
    del lost[2]
    first, last = check(written(tmp_path, lost), expected).faults
    assert (first.found, last.line) == ("row 2 is missing, and 4 later rows shifted", None)
    again = rows()
    for index in range(4):
        again[4 + index][0] = str(index)
    named = [fault for fault in check(written(tmp_path, again), expected).faults if fault.column == "id"]
    assert [fault.found for fault in named] == ["the ids begin again at 0, in this row and 3 later rows"]


@pytest.mark.parametrize(
    ("header", "where"),
    [
        (HEADER.replace("id", "ID"), "header, column number 0"),
        (HEADER.replace(",7,", ",pixel7,"), "header, column number 8"),
        ("\ufeff" + HEADER, "header: the file begins with a byte order mark"),
        (HEADER[:-4], f"header: {PIXELS} columns"),
        (",".join(rows()[0][:-1]), f"header: {PIXELS} columns"),
        ("", "the first line is empty"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, expected: Expected, header: str, where: str):
    result = check(written(tmp_path, rows(), header), expected)
    assert [where in fault.text for fault in result.faults] == [True]


def test_all_faults_are_counted_and_the_first_are_shown(tmp_path: Path, expected: Expected):
    made = [[row[0], *["300"] * PIXELS] for row in rows()]
    result = check(written(tmp_path, made), expected)
    assert (result.fault_count, len(result.faults)) == (8 * PIXELS, submission.MAX_FAULTS)
    assert [(fault.row, fault.column) for fault in result.faults[:2]] == [(0, "0"), (0, "1")]


@pytest.mark.parametrize(
    ("content", "kind", "todo"),
    [
        (gzip.compress(HEADER.encode()), "a gzip archive", "gunzip"),
        (b"PK\x03\x04 a zip file", "a ZIP archive", "unzip"),
        (HEADER.encode("utf-16"), "text in UTF-16", "UTF-8"),
        (b"\xfe\xff" + HEADER.encode("utf-16-be"), "text in UTF-16", "UTF-8"),
    ],
)
def test_archives_and_utf_16_are_named(tmp_path: Path, content: bytes, kind: str, todo: str):
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"is {kind}.*{todo}"):
        check(path)


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is no regular file"):
        check(tmp_path / "pipe")


@pytest.mark.parametrize("content", [b"", b"\x00" * 3_000_000, b"\xff" * 80])
def test_a_file_of_another_kind_is_refused_and_never_crashes(tmp_path: Path, content: bytes):
    path = tmp_path / "submission.csv"
    path.write_bytes(content)
    assert not check(path).ok


@given(st.binary(max_size=300))
@example(b'id,"' + b"x" * 200_000)
@example(b'id,"0"\r1,2\n')
def test_no_content_crashes_the_check(content: bytes):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "submission.csv"
        for text in (content, HEADER.encode() + b"\n0," + content):
            path.write_bytes(text)
            try:
                result = check(path, Expected(PIXELS))
            except DataError:  # an archive, or UTF-16
                continue
            assert not result.ok
            assert 0 < len(result.faults) <= result.fault_count
            assert all(fault.text for fault in result.faults)


def test_a_line_without_an_end_stops_the_check(tmp_path: Path, expected: Expected):
    path = written(tmp_path, rows()[:2])
    path.write_bytes(path.read_bytes() + b"7" * 3_000_000)
    (fault,) = check(path, expected).faults
    assert (fault.row, fault.line) == (2, 4)


@pytest.mark.parametrize(("sequences", "ok"), [(4, False), (5, True), (6, True), (7, False)])
def test_without_data_the_labs_number_of_rows_is_expected(
    tmp_path: Path, sequences: int, ok: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submission, "LAB_FRAMES", 3)
    row = ",".join(["7"] * PIXELS)
    path = tmp_path / "submission.csv"
    path.write_text(HEADER + "\n" + "".join(f"{index},{row}\n" for index in range(3 * sequences)))
    result = check(path, Expected(PIXELS))
    assert (result.ok, result.sequences) == (ok, sequences if ok else None)
    assert not result.firsts


def test_without_data_the_labs_format_has_6144_pixels_and_630_rows_a_sequence():
    assert Expected.of(None).pixels == 6144
    assert Expected.of(None).rows == (3150, 3780)


def test_a_missing_file_is_the_users_error(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read"):
        check(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        check(tmp_path)

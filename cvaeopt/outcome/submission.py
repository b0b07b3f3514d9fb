"""The check of a submission.csv against the format that is graded.

    id,0,1,...,6143         the header: one column for each pixel of a frame, in C, H, W order
    0,97,97,96,...          a row for each frame of each sequence; id numbers all rows from 0

Every pixel is an integer 0-255. The first row of a sequence is its given frame. The file is read line by line, so its
size does not matter.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from cvaeopt.errors import DataError
from cvaeopt.outcome.rolling import LAB_HEIGHT, LAB_WIDTH
from cvaeopt.pictures.run_pictures import Frames
from cvaeopt.text import count
from cvaeopt.vae.png_folder import blocks, stop
from cvaeopt.vae.sequences import count_test_sequences, sequence_files, sequence_names

LAB_FRAMES: Final = 630
LAB_SEQUENCES: Final = (5, 6)
"""The number of test sequences in the lab's editions: 6 in 2023, 5 in the others."""

MAX_DIFFERENCE: Final = 2
"""A row counts as the given frame if no pixel differs by more. Other programs round and resize slightly differently."""

MAX_FAULTS: Final = 10
_MAX_LINE: Final = 1 << 20  # bytes; a row of the lab's format has at most 25,000
_KINDS: Final = (
    (b"\x1f\x8b", "a gzip archive", "Unpack it with `gunzip`, and check the file in it."),
    (b"PK\x03\x04", "a ZIP archive", "Unpack it with `unzip`, and check the submission.csv in it."),
    (b"\xff\xfe", "text in UTF-16", "Save it as UTF-8 without a byte order mark."),
    (b"\xfe\xff", "text in UTF-16", "Save it as UTF-8 without a byte order mark."),
)
"""The first bytes of files that are no plain CSV, what they are, and what to do."""
_PIXELS: Final = frozenset(str(value).encode() for value in range(256))


@dataclass(frozen=True)
class Expected:
    """The properties that a submission must have.

    pixels     number of pixels of a frame
    lengths    number of rows of each sequence; empty: the lab's, LAB_SEQUENCES of LAB_FRAMES rows
    names      the name of each sequence in `lengths`
    firsts     the given frame of each sequence in `lengths`, (3, H, W) uint8
    """

    pixels: int = 3 * LAB_HEIGHT * LAB_WIDTH
    lengths: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    firsts: tuple[Frames, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, root: Path | None, height: int = LAB_HEIGHT, width: int = LAB_WIDTH) -> Expected:
        """The properties that follow from the test sequences under `root`, or the lab's if there is no sequence.

        DataError if a test sequence cannot be read.
        """
        pixels = 3 * height * width
        if root is None or not count_test_sequences(root):
            return cls(pixels)
        found = [sequence_files(root, name, stop) for name in sequence_names(root, stop)]
        firsts = [np.concatenate(list(blocks(files.first, height, width, stop)))[0] for files in found]
        return cls(pixels, tuple(len(files.labels) for files in found), tuple(one.name for one in found), tuple(firsts))

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of rows that the submission may have."""
        return (sum(self.lengths),) if self.lengths else tuple(number * LAB_FRAMES for number in LAB_SEQUENCES)


@dataclass(frozen=True)
class Fault:
    """One difference from the format.

    line      the line of the file, counted from 1; None for the file as a whole
    row       the row of data, counted from 0 as `id` is; None for the header and for the file
    column    the name of the column; None if the whole line is meant
    """

    line: int | None
    row: int | None
    column: str | None
    found: str
    expected: str

    @property
    def text(self) -> str:
        """The fault as a sentence."""
        where = []
        if self.line is not None:
            where.append("header" if self.row is None else f"row {self.row} (line {self.line})")
        if self.column is not None:
            where.append(f"column {self.column}")
        return f"{', '.join(where)}{': ' if where else ''}{self.found}. Expected: {self.expected}."


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    rows          number of rows without the header
    sequences     number of sequences, if the number of rows is right; otherwise None
    faults        the first MAX_FAULTS faults
    fault_count   number of all faults; after a wrong header or a line without an end, later lines are not checked
    firsts        whether the first rows of the sequences were compared with given frames
    """

    path: Path
    rows: int
    sequences: int | None
    faults: tuple[Fault, ...]
    fault_count: int
    firsts: bool

    @property
    def ok(self) -> bool:
        """Whether the submission has the format."""
        return not self.faults

    def plain(self) -> dict[str, Any]:
        return {
            "file": self.path.name,
            "ok": self.ok,
            "rows": self.rows,
            "sequences": self.sequences,
            "first_frames_compared": self.firsts,
            "fault_count": self.fault_count,
            "faults": [{**asdict(fault), "text": fault.text} for fault in self.faults],
        }


def check(path: Path, expected: Expected | None = None) -> Checked:
    """Check the submission `path`. `expected` is the lab's format by default.

    DataError if the path is no regular file, if the file cannot be read, or if it is an archive or no UTF-8 text.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # opening a pipe would wait for its writer
            raise DataError(f"{path} is no regular file.", "Expected: a submission.csv.", "Name another file.")
        with path.open("rb") as stream:
            start = stream.read(4)
            for begins, kind, todo in _KINDS:
                if start.startswith(begins):
                    raise DataError(f"{path} is {kind}.", "Expected: a submission.csv in plain UTF-8 text.", todo)
            stream.seek(0)
            return _Check(path, expected or Expected()).run(stream)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror or error}.", "Expected: a submission.csv.", "Name another file."
        ) from None


class _Check:
    """One check of one file, line by line."""

    def __init__(self, path: Path, expected: Expected) -> None:
        self.path = path
        self.expected = expected
        self.rows = 0
        self._ahead = 0  # how much higher the ids are than the number of rows, because of missing or repeated rows
        self._odd: tuple[int, int, bytes] | None = None  # line, row and id of the last row, if its id was unexpected
        self._jumps: list[tuple[int, int, int, int]] = []  # place in `faults`, row, expected id, id
        self.faults: list[Fault] = []
        self.fault_count = 0
        starts = itertools.accumulate(expected.lengths, initial=0)
        self._first_at = dict(zip(starts, zip(expected.names, expected.firsts, strict=True), strict=False))

    def run(self, stream: IO[bytes]) -> Checked:
        """Check all lines of `stream`."""
        lines = _lines(stream)
        if self._check_header(next(lines, b"")):
            empty_line: int | None = None
            for number, line in enumerate(lines, 2):
                if not line.strip():
                    empty_line = empty_line or number
                    continue
                if empty_line is not None:  # Empty lines are allowed at the end of the file only.
                    self._report(empty_line, self.rows, None, "the line is empty", f"the row with id {self.rows}")
                    empty_line = None
                if len(line) >= _MAX_LINE:
                    self._report(number, self.rows, None, f"the line has more than {_MAX_LINE} bytes", "a row of a CSV")
                    break
                self._check_row(number, line)
                self.rows += 1
            else:
                self._settle_id(None)
                self._check_count()
        self._count_shifted()
        known = self.expected.rows
        sequences = None
        if self.rows in known:
            sequences = len(self.expected.lengths) or LAB_SEQUENCES[known.index(self.rows)]
        shown = tuple(self.faults)
        return Checked(self.path, self.rows, sequences, shown, self.fault_count, bool(self.expected.firsts))

    def _check_header(self, line: bytes) -> bool:
        """Check the header. The result is False if the columns are so wrong that rows cannot be checked."""
        wanted = [b"id", *(str(pixel).encode() for pixel in range(self.expected.pixels))]
        what = f"id,0,...,{self.expected.pixels - 1}"
        if not line.strip():
            self._report(None, None, None, "the file is empty" if not line else "the first line is empty", what)
            return False
        if line.startswith(b"\xef\xbb\xbf"):
            self._report(1, None, None, "the file begins with a byte order mark", "the letters id")
            line = line[3:]
        fields = _fields(line)
        if fields == wanted:
            return True
        if len(fields) != len(wanted):
            self._report(1, None, None, count(len(fields), "column"), f"{len(wanted)}: {what}")
            return False
        wrong = next(index for index, name in enumerate(fields) if name != wanted[index])
        self._report(1, None, f"number {wrong}", f"the name is {_shown(fields[wrong])}", wanted[wrong].decode())
        return True

    def _check_row(self, number: int, line: bytes) -> None:
        fields = _fields(line)
        if len(fields) != self.expected.pixels + 1:
            self._report(number, self.rows, None, count(len(fields), "column"), str(self.expected.pixels + 1))
            return
        self._settle_id(fields[0])
        if fields[0] != str(self.rows + self._ahead).encode():
            self._odd = (number, self.rows, fields[0])
        pixels = fields[1:]
        if not _PIXELS.issuperset(pixels):
            for column, value in enumerate(pixels):
                if value not in _PIXELS:
                    self._report(number, self.rows, str(column), _shown(value), "an integer 0-255")
        elif self.rows + self._ahead in self._first_at:
            name, first = self._first_at[self.rows + self._ahead]
            wrong = np.abs(np.array(pixels, dtype=np.int64) - first.ravel())
            if wrong.max() > MAX_DIFFERENCE:
                column = int((wrong > MAX_DIFFERENCE).argmax())
                what = f"{first.ravel()[column]}, as in the given frame of sequence {name}"
                self._report(number, self.rows, str(column), pixels[column].decode(), what)

    def _settle_id(self, following: bytes | None) -> None:
        """Report the last row's unexpected id: rows are missing or repeated if the `following` id counts on from it.

        following   None at the end of the file
        """
        if self._odd is None:
            return
        (line, row, found), self._odd = self._odd, None
        expected = row + self._ahead
        number = int(found) if found.isdigit() and len(found) < 10 and str(int(found)).encode() == found else None
        counts_on = number is not None and following == str(number + 1).encode()
        if number is None or not (counts_on or (following is None and number > expected)):
            self._report(line, row, "id", _shown(found), str(expected))
            return
        self._ahead = number - row
        self._jumps.append((len(self.faults), row, expected, number))
        self._report(line, row, "id", _shown(found), str(expected))

    def _count_shifted(self) -> None:
        """Say in the faults of missing and repeated rows how many later rows are shifted."""
        for place, row, expected, number in self._jumps:
            if place >= len(self.faults):  # more faults than are shown
                continue
            later = count(self.rows - row - 1, "later row")
            if number > expected:
                lost = f"row {expected} is" if number == expected + 1 else f"rows {expected} to {number - 1} are"
                text = f"{lost} missing, and {later} shifted"
            else:
                text = f"the ids begin again at {number}, in this row and {later}"
            self.faults[place] = replace(self.faults[place], found=text)

    def _check_count(self) -> None:
        if self.rows in self.expected.rows:
            return
        if self.expected.lengths:
            parts = ", ".join(
                f"{length} of sequence {name}"
                for name, length in zip(self.expected.names, self.expected.lengths, strict=True)
            )
            expected = f"{sum(self.expected.lengths)} ({parts})"
        else:
            expected = " or ".join(f"{number} sequences of {LAB_FRAMES}" for number in LAB_SEQUENCES)
        self._report(None, None, None, f"{self.path.name} has {count(self.rows, 'row')}", expected)

    def _report(self, line: int | None, row: int | None, column: str | None, found: str, expected: str) -> None:
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(line, row, column, found, expected))


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of `stream`, with their ends. A longer line than _MAX_LINE comes in pieces of _MAX_LINE bytes."""
    while line := stream.readline(_MAX_LINE):
        yield line


def _fields(line: bytes) -> list[bytes]:
    text = line.rstrip(b"\r\n")
    if b'"' in text:  # A CSV may quote its values. The csv module is slower, so only such a line is given to it.
        with contextlib.suppress(csv.Error, StopIteration):
            return [value.encode("latin-1") for value in next(csv.reader([text.decode("latin-1")]))]
    return text.split(b",")


def _shown(value: bytes) -> str:
    """A value of the file in a message, shortened."""
    text = value.decode("utf-8", "replace")
    return repr(text if len(text) <= 20 else f"{text[:20]}...") if text else "nothing"

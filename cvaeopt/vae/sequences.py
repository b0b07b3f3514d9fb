"""The test sequences of a data folder. Each sequence has one given frame and many labels.

    test/test_img/K/N.png      test/test_label/K/N.png      [test/test_truth/K/N.png]

K is the name of the sequence, and N is a number. If the true frames are known, all of them are in test_truth or in
test_img.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cvaeopt.vae.dataset import list_part
from cvaeopt.vae.png_folder import Png, Report, blocks, check_gaps, check_pairs, stop

_FRAMES, _LABELS, _TRUTH = "test/test_img", "test/test_label", "test/test_truth"


@dataclass(frozen=True, eq=False)
class Sequence:
    """One test sequence. Pictures are uint8 with values 0 to 255.

    name     the name of the sequence's folder
    first    (3, H, W), the given frame
    labels   (T, 3, H, W), T >= 2; label 0 belongs to the given frame
    truth    (T, 3, H, W), the true frames; None if they are not known
    """

    name: str
    first: np.ndarray
    labels: np.ndarray
    truth: np.ndarray | None


@dataclass(frozen=True)
class SequenceFiles:
    """The PNG files of one test sequence. If nothing was reported, there are one first frame and at least two labels.

    truth   one file for each label, or empty
    """

    name: str
    first: list[Png]
    labels: list[Png]
    truth: list[Png]


def test_sequences(root: Path, height: int = 32, width: int = 64) -> Iterator[Sequence]:
    """Yield the test sequences under `root`, in the natural order of their names ("2" before "10").

    DataError names the wrong file, as in `dataset.load`. DataError is also raised if a sequence has no first frame or
    no labels, or if the number of true frames differs from the number of labels.
    """
    for name in sequence_names(root, stop):
        files = sequence_files(root, name, stop)
        first, labels, truth = (
            np.concatenate(list(blocks(pngs, height, width, stop))) if pngs else None
            for pngs in (files.first, files.labels, files.truth)
        )
        assert first is not None and labels is not None
        yield Sequence(name, first[0], labels, truth)


def has_sequences(root: Path) -> bool:
    """Whether `root` has a folder of test frames or a folder of test labels."""
    return any((root / folder).exists() for folder in (_FRAMES, _LABELS))


def count_test_sequences(root: Path) -> int:
    """The number of test sequences under `root`; 0 if `root` has no test folders. DataError as in `test_sequences`."""
    return len(sequence_names(root, stop)) if has_sequences(root) else 0


def sequence_names(root: Path, report: Report) -> list[str]:
    """The names of the sequences that have frames and labels, in natural order."""
    names: dict[str, set[str]] = {}
    for folder in (_FRAMES, _LABELS):
        try:
            names[folder] = {path.name for path in (root / folder).iterdir() if path.is_dir() and path.name[0] != "."}
        except OSError:
            report(
                f"{root / folder} is not a folder that can be read.",
                f"Expected test sequences in {_FRAMES}/0, {_LABELS}/0 and so on.",
                "Check the path.",
            )
            return []
    for here, there in ((_FRAMES, _LABELS), (_LABELS, _FRAMES)):
        for name in sorted(names[here] - names[there], key=_natural):
            report(
                f"{root / here / name} has no partner {root / there / name}.",
                "Expected a first frame and labels for each test sequence.",
                "Copy the missing folder, or remove the other.",
            )
    both = sorted(names[_FRAMES] & names[_LABELS], key=_natural)
    if not both:
        report(
            f"{root / _FRAMES} holds no test sequence.",
            f"Expected folders {_FRAMES}/0, {_FRAMES}/1 and so on.",
            "Copy them there.",
        )
    return both


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that compares digits as whole numbers: '2' before '10', 'seq2' before 'seq10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(not part[0].isdecimal(), int(part) if part[0].isdecimal() else 0, part) for part in parts]


def sequence_files(root: Path, name: str, report: Report) -> SequenceFiles:
    """The PNG files of the test sequence `name`."""
    frames_folder, labels_folder, truth_folder = (root / folder / name for folder in (_FRAMES, _LABELS, _TRUTH))
    frames = list_part(root, f"{_FRAMES}/{name}", report)
    labels = list_part(root, f"{_LABELS}/{name}", report)
    truth = frames if len(frames) == len(labels) else []
    if len(frames) > 1 and not truth:
        report(
            f"{frames_folder} holds {len(frames)} frames and {labels_folder} {len(labels)} labels.",
            "Expected the first frame alone, or as many frames as labels.",
            "Remove the others, or copy the missing ones.",
        )
    if len(labels) == 1:
        report(
            f"{labels_folder} holds a single label, {labels[0].path.name}.",
            "Expected at least 2: the first belongs to the given frame.",
            "Copy the whole sequence there.",
        )
    if labels:
        check_gaps(labels_folder, [png.number for png in labels], report)
    if truth_folder.is_dir():
        truth = list_part(root, f"{_TRUTH}/{name}", report)
        check_pairs(truth_folder, truth, labels_folder, labels, report)
    return SequenceFiles(name, frames[:1], labels, truth)

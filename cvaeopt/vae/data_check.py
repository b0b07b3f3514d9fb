"""Check a data folder for `cvaeopt check-data`. The check finds all problems of the folder, not only the first one."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cvaeopt.errors import DataError
from cvaeopt.vae.dataset import FOLDERS, Dataset, clip_starts, list_videos, load, require_clips
from cvaeopt.vae.frame_cache import Progress
from cvaeopt.vae.metrics import Baselines, baselines
from cvaeopt.vae.png_folder import Report, blocks
from cvaeopt.vae.sequences import has_sequences, sequence_files, sequence_names

_CLIP_FRAMES = 16  # the length of the lab's clips
_MAX_PROBLEMS = 20  # number of problems that are listed; further problems are only counted


@dataclass(frozen=True)
class CheckReport:
    """The result of `check` for a data folder.

    counts          number of PNG files by folder (train and val)
    sizes           native sizes by folder, "WxH", the most frequent first
    sequences       test sequences, each as {"name", "labels", "truth"}: labels is the number of labels, and truth is
                    whether the true frames are known
    clips           number of clips of 16 frames in the training video
    digest          the digest of the decoded videos; None if the videos cannot be loaded
    baselines       None if the videos cannot be loaded
    problems        at most 20 messages; each message names its file. `problem_count` counts all problems.
    """

    root: Path
    height: int
    width: int
    counts: dict[str, int]
    sizes: dict[str, list[str]]
    sequences: list[dict[str, Any]]
    clips: int
    digest: str | None
    baselines: Baselines | None
    problems: list[str]
    problem_count: int

    @property
    def ok(self) -> bool:
        """Whether the folder can be used for training and prediction."""
        return self.problem_count == 0

    def plain(self) -> dict[str, Any]:
        """All fields, and `ok`, as JSON values."""
        return {"ok": self.ok, **asdict(self), "root": str(self.root)}


def check(root: Path, height: int = 32, width: int = 64, *, progress: Progress | None = None) -> CheckReport:
    """Check the data folder `root`. Problems with the data are in the result; they raise no error.

    height, width   size of the decoded frames, pixels

    Videos without problems are decoded into their cache, so that the next `load` need not decode them. A folder may
    have no test sequences. If there are test sequences, they are checked too.
    """
    problems: list[str] = []

    def report(found: str, expected: str, todo: str) -> None:
        problems.append(str(DataError(found, expected, todo)))

    listing = list_videos(root, report)
    counts = {folder: len(pngs) for folder, pngs in listing.items()}
    sizes: dict[str, Counter[str]] = {folder: Counter() for folder in listing}
    dataset: Dataset | None = None
    obstacle: DataError | None = None
    if not problems:
        try:
            dataset = load(root, height, width, progress=progress)
        except DataError as error:
            obstacle = error
    done = 0
    for folder, pngs in listing.items():
        # If the videos were loaded, all pictures of a folder have the same size, so one picture is enough here.
        # Otherwise every file is opened to find all problems.
        for block in blocks(pngs[:1] if dataset else pngs, height, width, report, sizes[folder]):
            done += len(block)
            if progress and not dataset:
                progress("checking frames", done, sum(counts.values()))
    if obstacle and not problems:  # the pictures are good, but there is no room for the cache
        problems.append(str(obstacle))
    if dataset:
        try:
            require_clips(dataset, _CLIP_FRAMES, 1.0)
        except DataError as error:
            problems.append(str(error))
    sequences = _check_sequences(root, height, width, report, progress)
    return CheckReport(
        root=root,
        height=height,
        width=width,
        counts=counts,
        sizes={folder: [size for size, _ in found.most_common()] for folder, found in sizes.items()},
        sequences=sequences,
        clips=len(clip_starts(counts[FOLDERS[0]], _CLIP_FRAMES, 1.0)),
        digest=dataset.digest if dataset else None,
        baselines=baselines(dataset.train, dataset.val) if dataset else None,
        problems=problems[:_MAX_PROBLEMS],
        problem_count=len(problems),
    )


def _check_sequences(
    root: Path, height: int, width: int, report: Report, progress: Progress | None
) -> list[dict[str, Any]]:
    """Check all test sequences and decode their pictures. Return one row for each sequence."""
    names = sequence_names(root, report) if has_sequences(root) else []
    rows = []
    for done, name in enumerate(names, 1):
        listed = sequence_files(root, name, report)
        for pngs in (listed.first, listed.labels, listed.truth):
            for _ in blocks(pngs, height, width, report):
                pass
        rows.append({"name": name, "labels": len(listed.labels), "truth": bool(listed.truth)})
        if progress:
            progress("checking test sequences", done, len(names))
    return rows

"""The page that compares several studies, run folders and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cvaeopt import __version__
from cvaeopt.outcome.comparison_charts import Axis, Line, lines_over, lines_per_frame
from cvaeopt.outcome.differences import Arm, Difference, arms, difference, differences
from cvaeopt.outcome.page import Report, write_page
from cvaeopt.outcome.report_pictures import Picture
from cvaeopt.outcome.run_summary import RunSummary
from cvaeopt.outcome.study_summary import Search
from cvaeopt.text import BASELINES_LONG, short


@dataclass(frozen=True)
class Row:
    """One run or study in the table.

    epochs, hours   of a study: of its whole search; None if not known
    """

    run: RunSummary
    epochs: int | None
    hours: float | None

    def plain(self) -> dict[str, Any]:
        run = self.run
        return {
            "name": run.name,
            "kind": run.kind,
            "value": run.value,
            "estimated": run.estimated,
            "late": run.late,
            "epoch": run.epoch,
            "epochs": self.epochs,
            "gpu_hours": None if self.hours is None else round(self.hours, 4),
            "seeds": sorted(run.values),
            "data_digest": run.data or None,
        }


@dataclass(frozen=True)
class Comparison:
    """The facts of a comparison.

    runs      in the order in which the user named them
    searches  the searches of those that are studies
    levels    PSNR of each baseline, dB, if all runs with known baselines have the same ones; empty otherwise
    settings  (setting, its value in each run) for the settings in which the runs differ
    """

    rows: list[Row]
    arms: list[Arm]
    differences: list[Difference]
    searches: list[Search]
    levels: dict[str, float]
    settings: list[tuple[str, list[str]]]
    several_data: bool
    verdict: str

    @property
    def runs(self) -> list[RunSummary]:
        return [row.run for row in self.rows]

    def plain(self) -> dict[str, Any]:
        return {
            "runs": [row.plain() for row in self.rows],
            "differences": [
                {
                    "of": list(one.arm.members),
                    "from": list(one.other.members),
                    "seeds": list(one.seeds),
                    "value": None if one.value is None else one.value.mean,
                    "low": None if one.value is None else one.value.low,
                    "high": None if one.value is None else one.value.high,
                    "verdict": one.verdict,
                    "why": one.unknown,
                }
                for one in self.differences
            ],
            "verdict": self.verdict,
        }


def comparison(runs: Sequence[RunSummary], searches: Sequence[Search]) -> Comparison:
    """The facts of a comparison of `runs`, of which those with a search are studies."""
    of_study = {search.name: search for search in searches}
    rows = [_row(run, of_study.get(run.name) if run.kind == "study" else None) for run in runs]
    grouped = arms(runs)
    return Comparison(
        rows=rows,
        arms=grouped,
        differences=differences(grouped),
        searches=list(searches),
        levels=_common_levels(runs),
        settings=_different_settings(runs),
        several_data=len({run.data for run in runs if run.data}) > 1,
        verdict=_verdict(grouped),
    )


def write(found: Comparison, out: Path, *, now: datetime) -> Report:
    curves, frames, searches = _curves(found), _frames(found), _searches(found)
    return write_page(
        "comparison.html.j2",
        out,
        [*curves, *frames, *searches],
        found=found,
        baselines=[(BASELINES_LONG.get(name, name), level) for name, level in found.levels.items()],
        best=max((one.value for one in found.runs if one.value is not None), default=None),
        curves=curves,
        frames=frames,
        searches=searches,
        version=__version__,
        date=now.isoformat(sep=" ", timespec="minutes"),
    )


def _row(run: RunSummary, search: Search | None) -> Row:
    if search is not None:
        return Row(run, search.epochs[-1] if search.epochs else 0, search.hours[-1] if search.hours else None)
    return Row(run, len(run.rows) or None, run.hours[-1] if run.hours else None)


def _verdict(grouped: Sequence[Arm]) -> str:
    """A sentence about the highest value, and how it differs from the first arm, or from the second highest value."""
    known = sorted((arm for arm in grouped if arm.value is not None), key=lambda arm: -(arm.value or 0.0))
    if not known:
        return "No value is known."
    best = known[0]
    text = f"{best.name} has the highest value, {best.value:.2f} dB."
    if len(grouped) == 1:
        return f"{text} All runs have the same settings, and differ in their seeds."
    others = [grouped[0]] if best is not grouped[0] else known[1:2]
    return " ".join([text, *(difference(best, other).sentence for other in others)])


def _common_levels(runs: Sequence[RunSummary]) -> dict[str, float]:
    stated = [{name: round(level, 2) for name, level in run.levels.items()} for run in runs if run.levels]
    return dict(stated[0]) if stated and all(levels == stated[0] for levels in stated) else {}


def _different_settings(runs: Sequence[RunSummary]) -> list[tuple[str, list[str]]]:
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = [(name, [short(run.settings[name]) if name in run.settings else "-" for run in runs]) for name in names]
    return [(name, values) for name, values in rows if len(set(values) - {"-"}) > 1]


def _curves(found: Comparison) -> list[Picture]:
    lines = []
    for run in found.runs:
        points = [(row["epoch"], float(row["val_psnr"])) for row in run.rows if "val_psnr" in row]
        lines.append(Line(run.name, [epoch for epoch, _ in points], run.hours, [value for _, value in points]))
    return _over_both("over", lines, found.levels, "Validation PSNR", "Validation PSNR")


def _frames(found: Comparison) -> list[Picture]:
    frames = {run.name: run.files.psnr for run in found.runs}
    means = ", ".join(f"{name} {math.fsum(values) / len(values):.2f} dB" for name, values in frames.items() if values)
    return [
        Picture(
            "per_frame.png",
            lines_per_frame(frames, found.levels),
            f"PSNR of each validation frame; means: {means or 'none is known'}.",
            _missing([run.name for run in found.runs if not run.files.psnr]),
        )
    ]


def _missing(names: Sequence[str]) -> str:
    return f"Not here, so not shown: the PSNR per frame of {', '.join(names)}." if names else ""


def _searches(found: Comparison) -> list[Picture]:
    """The best value so far of each search; empty for fewer than two studies."""
    if len(found.searches) < 2:
        return []
    lines = [Line(search.name, search.epochs, search.hours, search.best) for search in found.searches]
    what = "Best value so far"
    return _over_both("search", lines, found.levels, what, f"{what} of {len(lines)} searches", steps=True)


def _over_both(
    prefix: str, lines: list[Line], levels: dict[str, float], what: str, text: str, *, steps: bool = False
) -> list[Picture]:
    """The chart of `lines` over the trained epochs, and the chart over the hours of training."""
    axes: dict[Axis, str] = {"epochs": "epochs", "hours": "GPU-hours"}
    return [
        Picture(
            f"{prefix}_{axis}.png",
            lines_over(lines, axis, what=what, levels=levels, steps=steps),
            f"{text} over {name} of training.",
        )
        for axis, name in axes.items()
    ]

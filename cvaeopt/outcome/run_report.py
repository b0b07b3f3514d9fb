"""The page of one run, without a study: its curves, its PSNR per frame, its worst frames and its film strip."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from cvaeopt import __version__
from cvaeopt.outcome.export import beaten_baselines
from cvaeopt.outcome.page import Report, write_page
from cvaeopt.outcome.report_pictures import all_of_run, film_strip
from cvaeopt.outcome.report_text import duration, marks
from cvaeopt.outcome.run_summary import RunSummary
from cvaeopt.text import BASELINES_LONG


def run_report(run: RunSummary, out: Path, *, now: datetime) -> Report:
    """Write `out`/report.html and its pictures for one run. The page names the files that the run folder lacks."""
    shown, missing = all_of_run(run.files, run.name, run.levels, "run")
    strip = film_strip(run.files)
    config = run.config
    return write_page(
        "run.html.j2",
        out,
        shown,
        run=run,
        verdict=verdict(run),
        lost=bool(run.value is not None and beaten_baselines(run.value, dict(run.levels))),
        baselines=[(BASELINES_LONG.get(name, name), level) for name, level in run.levels.items()],
        budget=run.settings.get("num_epoch"),
        device_time=duration(3600 * run.hours[-1]) if run.hours else None,
        charts=shown,
        missing=missing,
        strip=strip,
        marks=marks(config) if config else [],
        version=__version__,
        date=now.isoformat(sep=" ", timespec="minutes"),
    )


def verdict(run: RunSummary) -> str:
    """A sentence with the result of the run: its value compared with the baselines, in dB."""
    if run.value is None:
        return "The value of this checkpoint is not known. Roll it out with --data."
    at = f" at epoch {run.epoch}" if run.epoch else ""
    trained = f" of {len(run.rows)}" if at and run.rows else ""
    text = f"{run.value:.2f} dB{at}{trained}"
    if not run.levels:
        return f"{text}; the baselines are not known here."
    lost = beaten_baselines(run.value, dict(run.levels))
    if lost:
        return f"{text}, which does NOT beat {' and '.join(BASELINES_LONG.get(name, name) for name in lost)}."
    name, level = max(run.levels.items(), key=lambda item: item[1])
    return f"{text}, {run.value - level:.2f} dB above the hardest baseline ({BASELINES_LONG.get(name, name)})."

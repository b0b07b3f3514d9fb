"""The facts of a report are right before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.outcome.report_data import MAX_ROWS, report_data
from tests.support.made_up import BASELINES, NOON, definition, run_folder, trials

OVERVIEW = {"storage": "sqlite:///x.db", "baselines": BASELINES, "stopped": None}


@given(count=st.integers(0, 60), seed=st.integers(0, 1000))
def test_every_trial_is_counted_once_and_the_best_comes_first(count: int, seed: int) -> None:
    shown = trials(count, seed=seed)
    data = report_data(definition(), shown, OVERVIEW, artifacts=Path("nowhere"), now=NOON)
    assert sum(data.counts.values()) == len(data.known) == count
    assert data.epochs_spent == sum(trial.epochs for trial in data.known)
    assert sum(kind.count for kind in data.failures) == data.counts["failed"]
    values = [trial.value for trial in data.known if trial.value is not None]
    assert (data.best is None) == (not values)
    if data.best is not None:
        assert data.best.value == max(values) == data.rows[0].value
        assert [one.gain for one in data.baselines] == [
            pytest.approx(data.best.value - level) for level in BASELINES.values()
        ]
    assert len(data.rows) == min(count, MAX_ROWS)


def test_the_best_runs_files_are_read_from_its_run_folder(tmp_path: Path) -> None:
    shown = trials(12)
    bare = report_data(definition(), shown, OVERVIEW, artifacts=tmp_path, now=NOON)
    assert bare.best is not None and bare.run.files is not None
    assert bare.run.files.history == () and bare.run.files.psnr == ()
    run_folder(tmp_path, shown[bare.best.number])
    there = report_data(definition(), shown, OVERVIEW, artifacts=tmp_path, now=NOON)
    assert there.run.files is not None
    assert [row["epoch"] for row in there.run.files.history] == list(range(1, len(there.run.files.history) + 1))
    assert there.run.files.history

"""The benchmarks still run: each in its smallest form. What they measure is not judged here."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench import faults, storage

pytestmark = pytest.mark.slow


def test_a_round_of_faults_leaves_a_whole_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults.machine, "RESULTS", tmp_path)
    size = faults.Size(
        trials=2,
        epochs=2,
        frames=8,
        workers=2,
        ttl_s=1.0,
        kill_every=2,
        away_s=(0.1, 0.2),
        full_s=(0.1, 0.2),
        deadline_s=60.0,
    )
    (ours,) = faults.campaign("sqlite", 1, 0, size)["rounds"]["ours"]
    assert ours["passed"], ours
    assert ours["workers_killed"] + ours["workers_asked"] >= 1
    # How well the baseline does is for the campaign to say.
    result = faults.campaign("sqlite", 1, 1, dataclasses.replace(size, deadline_s=10.0), resume=True)
    assert result["rounds"]["ours"] == [ours]
    assert result["rounds"]["plain"][0]["epochs_begun"] > 0
    assert json.loads((tmp_path / "faults-sqlite.json").read_text())["rounds"] == result["rounds"]
    assert "| curves equal to the undisturbed run | 2 | - |" in faults.table([result])


def test_a_schedule_depends_on_its_seed_alone_and_kills_as_often_as_it_says() -> None:
    size = faults.Size()
    once, again, other = (faults.schedule(seed, size, long_outage=True) for seed in (4, 4, 5))
    assert once == again != other
    first = [fault for fault in once if fault.at < size.total]
    kills = [fault.at for fault in first if fault.kind == "kill"]
    assert abs(len(kills) - size.total / size.kill_every) <= 1
    assert {fault.kind for fault in first} == {"kill", "term", "stop", "database", "disk"}
    assert max(fault.seconds for fault in first) == size.long_away_s


def test_a_load_run_loses_and_doubles_nothing() -> None:
    result = storage.measure("sqlite", [2], seconds=1.0, epochs=1, study=(10, 3))
    (row,) = result["load"]
    assert row["reports"] == 2
    assert row["lost"] == row["doubled"] == row["shared_trials"] == 0
    assert row["errors"] == []
    assert result["large"]["start"]["total_s"] > 0
    assert "| sqlite | 2 | 1.0 | - | 2 |" in storage.table([result])

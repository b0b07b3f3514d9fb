"""The benchmarks still run: each in its smallest form. What they measure is not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import faults, storage
from tests.support.waiting import LONG_S

pytestmark = pytest.mark.slow


def test_a_round_of_faults_leaves_a_whole_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(faults.machine, "RESULTS", tmp_path)
    size = faults.Size(trials=2, epochs=2, frames=8, workers=2, ttl_s=60.0, deadline_s=LONG_S)
    # A fault that is due later may find that all workers have ended: the first one comes before anything is trained.
    kinds = {"kill": 0.0, "term": 0.0, "stop": 0.2, "database": 0.1, "disk": 0.1}
    played = [faults.Fault(0, "kill"), *(faults.Fault(2, kind, seconds) for kind, seconds in kinds.items())]
    monkeypatch.setattr(faults, "schedule", lambda *_, **__: list(played))
    (ours,) = faults.campaign("sqlite", 1, 0, size)["rounds"]["ours"]
    assert ours["passed"], ours
    assert ours["workers_killed"] >= 1
    # How well the baseline does is for the campaign to say: nothing disturbs it here.
    played.clear()
    result = faults.campaign("sqlite", 1, 1, size, resume=True)
    assert result["rounds"]["ours"] == [ours]
    (plain,) = result["rounds"]["plain"]
    assert plain["ended"] and plain["finished"] >= 2 and plain["epochs_begun"] >= 4
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
    networked = faults.schedule(4, size, long_outage=True, network=True)
    assert {fault.kind for fault in networked} - {fault.kind for fault in first} == {"freeze", "drop", "reset"}


def test_a_load_run_loses_and_doubles_nothing() -> None:
    result = storage.measure("sqlite", [2], storage.Load(epochs=1, seconds=1.0), study=(10, 3))
    (row,) = result["load"]
    assert row["reports"] == 2
    assert row["lost"] == row["doubled"] == row["shared_trials"] == 0
    assert row["errors"] == []
    assert result["large"]["start"]["total_s"] > 0
    assert "| sqlite | 2 | 1.0 | - | 2 |" in storage.table([result])

"""`cvaeopt claims` as users type it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import STUDY, Shop

pytestmark = pytest.mark.usefixtures("uncharted_module")

CLAIM = """
[sampler]
kind = "grid"

[[claims]]
text = "1.0 beats 0.0"
better = { tfr = 1.0 }
worse = { tfr = 0 }
"""
GRID = STUDY.replace('lr = { type = "float", low = 1e-4, high = 1e-2, log = true }', "tfr = { CHOICES }") + CLAIM


def test_claims_are_planned_trained_by_workers_and_judged(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path)
    choices = GRID.replace("CHOICES", 'type = "categorical", choices = [1.0, 0.0]')
    (tmp_path / "studies/grid.toml").write_text(choices)
    line = ("claims", "--study", "grid", "--seeds", "2")
    before = shop.files()
    said = shop.run(*line, "--dry-run")
    assert said.code == 0 and "Would register 4 runs of 1 epoch as grid.confirm." in said.out, said.err
    assert json.loads(shop.run(*line, "--dry-run", "--json").out)["new_runs"] == 4
    assert shop.files() == before
    said = shop.run(*line)
    assert said.code == 0, said.err
    assert "Registered 4 runs" in said.err and "1.0 beats 0.0 (final_psnr): cannot be told from 0 seeds" in said.text
    assert "0 of 4 runs ended. A worker takes the others: cvaeopt worker --study grid --gpu 0" in said.text
    said = shop.run("worker", "--study", "grid")
    assert said.code == 0 and "takes trials of study grid.confirm" in said.err
    found = json.loads(shop.run("claims", "--study", "grid", "--json").out)
    assert (found["new_runs"], found["runs"], found["ended"], found["without_measure"]) == (0, 4, 4, 0)
    assert found["claims"][0]["seeds"] == 2 and found["claims"][0]["pairs"][0]["low"] is not None
    # Claims may change when the runs are over; without the file the stored ones count.
    (tmp_path / "studies/grid.toml").write_text(choices.replace('"1.0 beats 0.0"', '"other words"'))
    assert "other words" in shop.run("claims", "--study", "grid").out
    (tmp_path / "studies/grid.toml").unlink()
    assert "other words" in shop.run("claims", "--study", "grid").out
    # What cannot be tested is one message.
    said = shop.run("claims", "--study", "tiny")
    assert said.code == 2 and "tiny.toml has no [[claims]]" in said.err
    said = shop.run("claims", "--study", "grid.confirm")
    assert said.code == 2 and "is a confirmation itself" in said.err
    assert shop.run("claims", "--study", "grid", "--seeds", "1").code == 2

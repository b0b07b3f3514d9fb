"""Successive confirmation from the command line: a worker trains both stages one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command import Shop

pytestmark = pytest.mark.usefixtures("uncharted_module")


def test_a_worker_trains_the_second_stage_after_the_first(tmp_path: Path) -> None:
    shop = Shop.new(tmp_path / "shop")
    assert shop.run("worker", "--study", "tiny").code == 0
    planned = shop.run("confirm", "--study", "tiny", GPU="")
    assert planned.code == 0 and "0 of 6 runs ended" in planned.out
    assert "the best leaders are trained again: 4 runs more" in planned.text
    assert shop.run("worker", "--study", "tiny").code == 0
    facts = json.loads(shop.run("status", "--study", "tiny", "--json").out)["confirmation"]
    assert (facts["runs"], facts["ended"]) == (6, 6)
    assert facts["studies"] == ["tiny.confirm", "tiny.confirm-2"]
    assert [len(one["values"]) for one in facts["leaders"]] == [3, 3] and facts["best"] is not None
    exported = shop.run("export-best", "--study", "tiny")
    assert exported.code == 0 and "estimated from 3 fresh runs, 95 % interval" in exported.out

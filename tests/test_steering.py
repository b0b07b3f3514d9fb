"""`cvaeopt enqueue` and `cvaeopt stop --trial` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cvaeopt.search.definition import load_definition
from cvaeopt.store.opening import open_storage
from cvaeopt.store.study import create_or_open
from tests.support.command import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """A folder whose database has the study "tiny", with two trials to train."""
    shop = Shop.new(tmp_path / "here", data=tmp_path)
    (shop.root / "storage").mkdir()
    with open_storage(f"sqlite:///{shop.root}/storage/cvaeopt.db") as storage:
        create_or_open(storage, load_definition(str(shop.root / "studies/tiny.toml")))
    return shop


def test_several_points_come_from_options_and_from_a_file(shop: Shop) -> None:
    (shop.root / "points.toml").write_text("[[enqueue]]\nlr = 0.002\n\n[[enqueue]]\nlr = 0.003\n")
    shown = shop.run("enqueue", "--study", "tiny", "--set", "lr=0.001", "--file", "points.toml", "--dry-run")
    assert (shown.code, shown.out.count("Would enqueue lr")) == (0, 3)
    done = shop.run("enqueue", "--study", "tiny", "--set", "lr=1e-3", "--set", "lr=0.004", "--json")
    facts = json.loads(done.out)
    assert facts["added"] == [{"lr": 0.001}, {"lr": 0.004}]
    assert (facts["waiting"], facts["free"], facts["dry_run"]) == (2, 2, False)
    more = shop.run("enqueue", "--study", "tiny", "--file", "points.toml", "--set", "lr=0.001")
    assert more.code == 0
    assert "Waits already: lr 0.001" in more.out and "Enqueued lr 0.003" in more.out
    assert "4 points wait, and the budget has room for 2 more trials" in more.text
    assert json.loads(shop.run("status", "--study", "tiny", "--json").out)["trials"]["waiting"] == 4


def test_wrong_points_are_one_message_each_and_change_nothing(shop: Shop) -> None:
    (shop.root / "other.toml").write_text("[search]\nlr = 1\n")
    for arguments, said in [
        (["--set", "lr=1"], "Expected: 0.0001 to 0.01"),
        (["--set", "lr"], "Expected: NAME=VALUE"),
        ([], "No point was given"),
        (["--file", "other.toml"], "other.toml has no table [[enqueue]]"),
        (["--file", "none.toml"], "There is no file none.toml"),
    ]:
        refused = shop.run("enqueue", "--study", "tiny", *arguments)
        assert (refused.code, said in refused.text) == (2, True), refused.text
    assert json.loads(shop.run("status", "--study", "tiny", "--json").out)["trials"]["waiting"] == 0


def test_a_waiting_trial_is_stopped_and_the_status_says_so(shop: Shop) -> None:
    assert shop.run("enqueue", "--study", "tiny", "--set", "lr=0.001", "--set", "lr=0.002").code == 0
    assert "would end" in shop.run("stop", "--study", "tiny", "--trial", "1", "--dry-run").out
    done = json.loads(shop.run("stop", "--study", "tiny", "--trial", "1", "--json").out)
    assert done == {"study": "tiny", "trial": 1, "ended": True, "epochs_done": 0, "worker": None}
    shown = shop.run("status", "--study", "tiny")
    assert "by hand stopped: trial 1" in shown.text
    assert "trial 1 pruned: stopped by hand" in shown.text
    again = shop.run("stop", "--study", "tiny", "--trial", "1")
    assert (again.code, "has ended already: pruned (stopped by hand)" in again.text) == (2, True)
    both = shop.run("stop", "--study", "tiny", "--trial", "1", "--worker", "x")
    assert (both.code, "--trial is given beside --worker" in both.text) == (2, True)
    nobody = shop.run("stop", "--study", "tiny", "--dry-run", "--json")
    assert json.loads(nobody.out) == {"study": "tiny", "asked": [], "dry_run": True}

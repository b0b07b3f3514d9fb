"""`cvaeopt extend` as people use it: more trials, more epochs, and what status and the report say of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cvaeopt.run import trial_run
from tests.support.command import STUDY, Shop

pytestmark = pytest.mark.usefixtures("uncharted_module")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A folder with a study of two trials of one epoch, which a worker has trained."""
    monkeypatch.setattr(trial_run, "trial_artifacts", lambda *arguments, **options: [])
    opened = Shop.new(tmp_path)
    said = opened.run("worker", "--study", "tiny")
    assert said.code == 0, said.err
    return opened


def test_a_study_is_extended_and_trained_on(shop: Shop) -> None:
    planned = shop.run("extend", "--study", "tiny", "--trials", "3", "--epochs", "2", "--dry-run", "--json")
    assert planned.code == 0
    facts = json.loads(planned.out)
    assert facts["dry_run"] and facts["version"] == 2
    assert facts["changes"] == ["budget.trials: 2 -> 3", "budget.epochs: 1 -> 2"]
    # keep_best = 1: the best trial has its checkpoint, and the other is known for its first epoch only.
    assert (len(facts["continues"]), len(facts["partial"]), facts["history"]) == (1, 1, [])
    assert len(json.loads(shop.run("status", "--study", "tiny", "--json").out)["versions"]) == 1

    done = shop.run("extend", "--study", "tiny", "--trials", "3", "--epochs", "2")
    assert done.code == 0
    assert "goes on with version 2 of its definition: budget.trials: 2 -> 3 budget.epochs: 1 -> 2" in done.text
    assert "cvaeopt worker --study tiny" in done.text
    again = shop.run("worker", "--study", "tiny")  # studies/tiny.toml is the first version
    assert again.code == 0
    assert "this worker had version 1 of the definition and takes version 2" in again.text
    status = json.loads(shop.run("status", "--study", "tiny", "--json").out)
    assert status["trials"] == {"complete": 2, "pruned": 1, "running": 0, "waiting": 0, "failed": 0}
    assert status["epochs_spent"] == 2 + 1 + 2
    assert [version["version"] for version in status["versions"]] == [1, 2]
    assert "version 2" in shop.run("status", "--study", "tiny").text

    narrower = STUDY.replace("trials = 2", "trials = 3").replace("epochs = 1", "epochs = 2").replace("1e-4", "9.9e-3")
    (shop.root / "studies" / "tiny.toml").write_text(narrower)
    refused = shop.run("worker", "--study", "tiny")
    assert refused.code == 2 and "cvaeopt extend --study tiny" in refused.text
    done = shop.run("extend", "--study", "tiny")
    assert done.code == 0
    assert "are history" in done.text and "is not in the range 0.0099 to 0.01" in done.text
    assert shop.run("report", "--study", "tiny", "--out", "page").code == 0
    page = (shop.root / "page" / "report.html").read_text()
    assert "search.lr.low: 0.0001 -&gt; 0.0099" in page
    assert "history: not comparable with the newest version" in page


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        ("extend --study tiny", 2, ("has this definition already", "--trials or --epochs")),
        ("extend --study tiny --trials 2", 2, ("has this definition already",)),
        ("extend --study tniy --trials 3", 2, ("has no study 'tniy'", "Did you mean 'tiny'?")),
        ("extend --study tiny --file none.toml", 2, ("There is no file none.toml",)),
        ("extend --study tiny --trials 3 --storage sqlite:///other.db", 2, ("other.db",)),
        ("extend --study tiny --trials 0", 2, ("--trials",)),
    ],
)
def test_what_cannot_be_done_is_one_message(tmp_path: Path, line: str, code: int, parts: tuple[str, ...]) -> None:
    from cvaeopt.search.definition import load_definition
    from cvaeopt.store.opening import open_storage
    from cvaeopt.store.study import create_or_open

    shop = Shop.new(tmp_path)
    (tmp_path / "storage").mkdir()
    with open_storage(f"sqlite:///{tmp_path}/storage/cvaeopt.db") as storage:
        create_or_open(storage, load_definition(str(tmp_path / "studies" / "tiny.toml")))
    said = shop.run(*line.split())
    assert said.code == code
    assert said.out == ""
    for part in parts:
        assert part in said.text

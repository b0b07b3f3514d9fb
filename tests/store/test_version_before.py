"""A database of the version before: opened, continued and reported.

`version_before.sql` was written by that version on SQLite. Of five trials one is complete, one has diverged, one was
given back after its first epoch and two wait. A notebook has enqueued the last, whose row has an attribute that this
version no longer writes.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cvaeopt.outcome.report import report
from cvaeopt.store.identity import KEY
from cvaeopt.store.study import open_existing
from tests.support.fakes import leases
from tests.support.made_up import NOON
from tests.support.sites import Site, awkward, definition, plain_status, train

pytestmark = pytest.mark.usefixtures("uncharted_module")

DUMP = Path(__file__).with_name("version_before.sql")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    path, artifacts = tmp_path / "cvaeopt.db", tmp_path / "artifacts"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DUMP.read_text())
        (identity,) = connection.execute(
            "SELECT value_json FROM study_system_attributes WHERE key = ?", (KEY,)
        ).fetchone()
    (artifacts / "main" / "00002").mkdir(parents=True)
    mark = {"study": "main", "identity": json.loads(identity)}
    (artifacts / "main" / "study.json").write_text(json.dumps(mark))
    (artifacts / "main" / "00002" / "last.1.json").write_text(json.dumps([{"epoch": 1, "value": awkward(2, 1)}]))
    return Site(f"sqlite:///{path}", artifacts)


def test_its_study_is_as_it_was_left(site: Site) -> None:
    with site.open() as storage:
        study, stored = open_existing(storage, "main")
        assert stored.digest() == definition().digest()
        known = plain_status(storage)
        assert known["trials"] == {"complete": 1, "pruned": 0, "running": 0, "waiting": 3, "failed": 1}
        assert known["epochs_spent"] == 7
        assert known["best"]["number"] == 0
        assert study.trials[4].system_attrs["fixed_params"] == {"lr": 5e-3}


def test_its_study_is_continued_where_it_was_left_and_reported(site: Site, tmp_path: Path) -> None:
    first, *later = train(site)
    assert (first.number, first.trained) == (2, [2, 3, 4])
    assert [(run.number, run.trained) for run in later] == [(3, [1, 2, 3, 4]), (4, [1, 2, 3, 4])]
    with site.open() as storage:
        known = plain_status(storage)
        assert known["trials"] == {"complete": 4, "pruned": 0, "running": 0, "waiting": 0, "failed": 1}
        assert known["best"]["number"] == 4
        assert [row.state for row in leases(storage)] == ["done"] * 5
        page = report(storage, "main", tmp_path / "out", artifacts=site.artifacts, now=NOON).page.read_text()
    assert "Trial 4 reached" in page

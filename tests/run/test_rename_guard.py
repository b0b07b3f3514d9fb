"""The dashboard that we serve renames no study of ours, and all others as ever."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest

from cvaeopt.run.dashboard import refuse_renames
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import status
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from testbed.tiny import definition


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with closing(open_storage(ready_url)) as opened:
        yield opened


def ask(application: Any, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Status and JSON of a POST."""
    sent = json.dumps(body).encode()
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(sent)),
        "wsgi.input": io.BytesIO(sent),
    }
    setup_testing_defaults(environ)
    said: list[str] = []
    found = b"".join(application(environ, lambda status, headers, *_: said.append(status)))
    return said[0], json.loads(found)


def test_a_study_of_ours_is_not_renamed_and_the_answer_says_why(storage: Storage) -> None:
    create_or_open(storage, definition())
    theirs = optuna.create_study(storage=storage, study_name="theirs")
    application = refuse_renames(optuna_dashboard.wsgi(storage), storage)
    ours = storage.get_study_id_from_name("tiny")
    for path in (f"/api/studies/{ours}/rename", f"/api/studies/0{ours}/rename"):
        answer, body = ask(application, path, {"study_name": "other"})
        assert answer.startswith("403") and "'tiny' was not renamed" in body["reason"]
    assert status(storage, "tiny")["study"] == "tiny"
    answer, body = ask(application, f"/api/studies/{theirs._study_id}/rename", {"study_name": "other"})
    assert answer.startswith("201") and body["study_name"] == "other"
    assert sorted(study.study_name for study in storage.get_all_studies()) == ["other", "tiny"]

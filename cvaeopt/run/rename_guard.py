"""Keep Optuna's dashboard from renaming the studies of this program.

To rename a study, the dashboard copies the trials to a new study and deletes the old study. The dashboard does not copy
definition, budget and leases, and the copied trials have other ids. Therefore no worker could continue the new study.
Studies of other programs can still be renamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sqlalchemy import select

from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import study_table

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_RENAME = re.compile(r"/api/studies/(\d+)/rename/?")


def refuse_renames(application: WSGIApplication, storage: Storage) -> WSGIApplication:
    """`application`, which is Optuna's dashboard, behind a layer that refuses to rename studies of this program."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = _RENAME.fullmatch(environ.get("PATH_INFO", ""))
        name = _name(storage, int(asked[1])) if asked else None
        if name is None:
            return application(environ, start_response)
        reason = (
            f"Study '{name}' was not renamed: its workers, budget and files go by its name. Start a study under the "
            f'other name instead; [warm_start] study = "{name}" in its file begins with the best points of this one.'
        )
        body = json.dumps({"reason": reason}).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response("400 Bad Request", headers)
        return [body]

    return guarded


def _name(storage: Storage, study_id: int) -> str | None:
    """The name of the study if this program made the study; None otherwise."""
    query = select(study_table.c.name).where(study_table.c.study_id == study_id)
    return storage.read(lambda connection: connection.execute(query).scalars().first())

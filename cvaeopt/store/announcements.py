"""News of a study that only one of its workers may announce: its end, and the death of a worker."""

from __future__ import annotations

import json
import secrets
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select, update

from cvaeopt.store.optuna_rows import STUDY_ATTRS
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, worker_table

_END: Final = "cvaeopt:end"
"""System attribute of a study whose end was announced: {"trials": number of begun trials then, "by": a random text}."""

_ANNOUNCED: Final = "its death was announced"
"""Message in the row of a dead worker whose death was announced."""


def may_announce_end(storage: Storage, study: str) -> bool:
    """Whether the caller is the one that announces the end of `study`; True for one caller only.

    If the study goes on later, for example because its budget was extended, its next end is announced again.
    """
    mine = secrets.token_hex(8)

    def claim() -> bool:
        with storage.transaction() as connection:
            row = storage.lock_study(connection, study)
            begun = select(func.count()).where(lease_table.c.study == study)
            trials = connection.execute(begun).scalar_one()
            known = _read(connection, row.study_id)
            if known.get("trials") == trials:
                return bool(known.get("by") == mine)  # True if the acknowledgement of an earlier attempt was lost
            place = (STUDY_ATTRS.c.study_id == row.study_id) & (STUDY_ATTRS.c.key == _END)
            connection.execute(delete(STUDY_ATTRS).where(place))
            value = json.dumps({"trials": trials, "by": mine})
            connection.execute(insert(STUDY_ATTRS).values(study_id=row.study_id, key=_END, value_json=value))
            return True

    return storage.retry(claim)


def dead_to_announce(storage: Storage, study: str, trial: int) -> list[dict[str, Any]]:
    """The workers that died while they trained `trial`, with the keys id, host, device and epoch.

    Each of them is returned to one caller only, which announces its death.
    """

    def claim() -> list[dict[str, Any]]:
        with storage.transaction() as connection:
            storage.lock_study(connection, study)
            rows = connection.execute(
                select(worker_table).where(
                    worker_table.c.study == study,
                    worker_table.c.trial == trial,
                    worker_table.c.state == "dead",
                    worker_table.c.message != _ANNOUNCED,
                )
            ).all()
            ids = [row.id for row in rows]
            connection.execute(update(worker_table).where(worker_table.c.id.in_(ids)).values(message=_ANNOUNCED))
            return [{key: getattr(row, key) for key in ("id", "host", "device", "epoch")} for row in rows]

    return storage.retry(claim)


def _read(connection: Connection, study_id: int) -> dict[str, Any]:
    text = connection.execute(
        select(STUDY_ATTRS.c.value_json).where(STUDY_ATTRS.c.study_id == study_id, STUDY_ATTRS.c.key == _END)
    ).scalar_one_or_none()
    found = None if text is None else json.loads(text)
    return found if isinstance(found, dict) else {}

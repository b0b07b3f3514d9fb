"""News of a study that only one of its workers may announce: its end, and the death of a worker."""

from __future__ import annotations

import secrets
from typing import Any, Final

from sqlalchemy import Connection, func, select, update

from cvaeopt.store.optuna_rows import STUDY_ATTRS, read_attribute, write_attribute
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

    def claim(connection: Connection) -> bool:
        row = storage.lock_study(connection, study)
        begun = select(func.count()).where(lease_table.c.study == study)
        trials = connection.execute(begun).scalar_one()
        known = read_attribute(connection, STUDY_ATTRS, row.study_id, _END)
        if isinstance(known, dict) and known.get("trials") == trials:
            return bool(known.get("by") == mine)  # True if the acknowledgement of an earlier attempt was lost
        write_attribute(connection, STUDY_ATTRS, row.study_id, _END, {"trials": trials, "by": mine})
        return True

    return storage.write(claim)


def dead_to_announce(storage: Storage, study: str, trial: int) -> list[dict[str, Any]]:
    """The workers that died while they trained `trial`, with the keys id, host, device and epoch.

    Each of them is returned to one caller only, which announces its death.
    """

    def claim(connection: Connection) -> list[dict[str, Any]]:
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

    return storage.write(claim)

"""The study that workers train, and the transactions that change its leases and workers.

All times come from the database's clock (`Storage.now`), so workers' clocks and time zones do not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, and_, case, or_, select, update

from cvaeopt.errors import StudyGone
from cvaeopt.store.damage import explained
from cvaeopt.store.optuna_rows import STUDIES
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import study_table

P = ParamSpec("P")
S = TypeVar("S", bound="LiveStudy")
T = TypeVar("T")


class LiveStudy:
    """The study that had this name at the first call, never a later study of the same name.

    ttl_s   how long a lease is valid after the last sign of life of its worker, seconds
    clock   a clock in seconds; None for the database's clock. Tests give another clock.
    """

    def __init__(
        self, storage: Storage, study: str, *, ttl_s: float = 120.0, clock: Callable[[], float] | None = None
    ) -> None:
        self.storage = storage
        self.study = study
        self.ttl_s = ttl_s
        self._clock = clock
        # SQLite may give the id of a deleted study to a new study. So the time of creation is compared, too.
        self._id_and_time: tuple[int, float] | None = None

    def check_study(self) -> None:
        """StudyGone if the study was deleted since the first call, even if a new study has the same name now."""
        if not self.storage.read(self._exists):
            raise self._gone()

    def _exists(self, connection: Connection) -> bool:
        row = connection.execute(
            select(study_table.c.study_id, study_table.c.created_at)
            .join(
                STUDIES,
                and_(STUDIES.c.study_id == study_table.c.study_id, STUDIES.c.study_name == study_table.c.name),
            )
            .where(study_table.c.name == self.study)
        ).one_or_none()
        if row is None:
            return False
        self._id_and_time = self._id_and_time or (row.study_id, row.created_at)
        return self._id_and_time == (row.study_id, row.created_at)

    def _gone(self) -> StudyGone:
        return StudyGone(
            f"Study {self.study!r} was deleted from {self.storage.url}.",
            "Expected: it stays while workers run.",
            "The files of its trials stay where they are. Restore a backup; or start a worker again, which makes the "
            "study anew, with files of its own.",
        )

    def _now(self, connection: Connection) -> float:
        return self.storage.now(connection) if self._clock is None else self._clock()

    def _note_life(self, connection: Connection, now: float) -> None:
        """Record that the database answers now.

        If the record before is older than `ttl_s` / 2, no expired lease is taken over for the next `ttl_s` / 4. In this
        time the workers that still run can renew their leases.
        """
        alive_at = study_table.c.alive_at
        connection.execute(
            update(study_table)
            .where(study_table.c.name == self.study)
            .where(or_(alive_at.is_(None), alive_at < now - self.ttl_s / 16))  # so most calls write nothing
            .values(
                grace_until=case(
                    (alive_at < now - self.ttl_s / 2, now + self.ttl_s / 4), else_=study_table.c.grace_until
                ),
                alive_at=now,
            )
        )


def in_transaction(method: Callable[Concatenate[S, Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """`method` in a writing transaction of its own; callers leave the argument `connection` out.

    The transaction is committed when `method` returns. The call is repeated while the database does not answer. If the
    call fails because of a damaged row, StudyDamaged names that row.
    """

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with explained(self.storage, self.study):
            return self.storage.write(lambda connection: method(self, connection, *args, **kwargs))

    return call

"""Steer a study while its workers run: enqueue points."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import func, select

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition
from cvaeopt.search.parsing import parse_enqueue
from cvaeopt.search.tables import GridSampler
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import SYSTEM_ATTRS, trial_attributes, trial_states
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing
from cvaeopt.store.tables import lease_table
from cvaeopt.text import Advice

_POINT: Final = "fixed_params"  # Optuna's own system attribute of an enqueued trial
_REQUEST: Final = "cvaeopt:request"  # system attribute of an enqueued trial: the same text for the points of one call


@dataclass(frozen=True)
class Enqueued:
    """The points that `enqueue` has added to a study.

    points    all points that were given, checked and in the spelling of the study
    added     the points that now wait; without points that waited already
    waiting   number of trials of the study that wait for their first start
    free      number of trials that may still begin, by the study's budget of trials; None if it has no such limit
    """

    study: str
    points: list[dict[str, Any]]
    added: list[dict[str, Any]]
    waiting: int
    free: int | None

    def plain(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


@named
def enqueue(storage: Storage, name: str, given: Sequence[dict[str, Any]], *, dry_run: bool = False) -> Enqueued:
    """Add points to study `name`. Workers train them before the sampler suggests another point, in their order.

    given     searched settings and their values; the sampler chooses the settings that a point leaves out, as after
              Optuna's `Study.enqueue_trial`
    dry_run   check the points, and add none

    An enqueued point takes its place in the budget when a worker begins it. A point that waits already is not added
    again. Two calls never add one point twice, even if an acknowledgement of the database was lost.

    SettingsError if a point is outside the search space. StudyError if there is no such study, or if it is a grid or a
    confirmation, whose points are all planned.
    """
    _, definition = open_existing(storage, name)
    _check_kind(definition)
    points = _checked(given, definition)
    request = secrets.token_hex(8)

    def add() -> Enqueued:
        with storage.transaction() as connection:
            row = storage.lock_study(connection, name)
            states = trial_states(connection, row.study_id)
            marks = trial_attributes(connection, row.study_id, SYSTEM_ATTRS, (_POINT, _REQUEST))
            waiting = sum(state == "WAITING" for _, _, state in states)
            mine = [marks[trial_id, _POINT] for (trial_id, _), mark in marks.items() if mark == request]
            if not mine:  # otherwise an earlier attempt has added them, and its acknowledgement was lost
                waits = [marks.get((trial_id, _POINT)) for trial_id, _, state in states if state == "WAITING"]
                mine = [point for point in points if point not in waits]
                if not dry_run:
                    storage.add_waiting(connection, row.study_id, [{_POINT: one, _REQUEST: request} for one in mine])
                waiting += len(mine)
            taken = select(func.count()).where(lease_table.c.study == name)
            begun = connection.execute(taken).scalar_one()
            free = None if row.trials is None else max(row.trials - begun, 0)
            return Enqueued(name, points, mine, waiting, free)

    return storage.retry(add)


def _check_kind(definition: Definition) -> None:
    """StudyError if the points of the study are planned, so that no point can be added."""
    if isinstance(definition.sampler, GridSampler):
        raise StudyError(
            f"Study '{definition.name}' is a grid, whose points are all enqueued already.",
            "Expected: a study whose sampler suggests points.",
            "Search more values under a new name.",
        )
    if definition.confirms is not None:
        parent = definition.confirms.partition("@")[0]
        raise StudyError(
            f"Study '{definition.name}' is a confirmation, whose runs are planned.",
            "Expected: the study whose leaders it trains again.",
            Advice("For more leaders or seeds:", "confirm", "--study", parent, "--top", "N", "--seeds", "M"),
        )


def _checked(given: Sequence[dict[str, Any]], definition: Definition) -> list[dict[str, Any]]:
    """The points in the types and the spelling of the study; SettingsError names the first value that does not fit."""
    settled = space.settled(definition.search, definition.fixed)
    for point in given:
        for setting in point:
            if setting in Config.model_fields and setting not in definition.search:
                value = "of its own in every trial" if setting == "seed" else f"{settled[setting]!r} in every trial"
                if setting == "num_epoch":
                    value = f"{definition.epochs} in every trial"
                raise SettingsError(
                    f"Study '{definition.name}' does not search {setting}: it is {value}.",
                    f"Expected some of: {', '.join(definition.search)}.",
                    f"Leave {setting} out, or train it alone: cvaeopt train --set {setting}=...",
                )
    return [dict(point) for point in parse_enqueue(list(given), definition.search, definition.fixed, "enqueue: point")]

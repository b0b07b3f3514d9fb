"""Steer a study while its workers run: enqueue points, and stop single trials."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, update

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, StudyError, UserError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition
from cvaeopt.search.parsing import parse_enqueue
from cvaeopt.search.tables import GridSampler
from cvaeopt.store.budget import taken
from cvaeopt.store.confirmation import refuse_confirmation
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import STOP, SYSTEM_ATTRS, USER_ATTRS, trial_attributes, trial_states
from cvaeopt.store.roles import settle
from cvaeopt.store.status import BY_HAND
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing
from cvaeopt.store.tables import lease_table
from cvaeopt.text import STATES

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
        return asdict(self)


@dataclass(frozen=True)
class TrialStop:
    """The answer to a request to stop a trial.

    ended        whether the trial has ended now; if False, `worker` ends it after its epoch
    epochs_done  number of epochs that were reported
    worker       id of the worker that holds the trial's lease; None if no worker holds it
    """

    study: str
    trial: int
    ended: bool
    epochs_done: int
    worker: str | None = None

    def plain(self) -> dict[str, Any]:
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

    def add(connection: Connection) -> Enqueued:
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
        free = None if row.trials is None else max(row.trials - taken(connection, name), 0)
        return Enqueued(name, points, mine, waiting, free)

    return storage.write(add)


def _check_kind(definition: Definition) -> None:
    """StudyError if the points of the study are planned, so that no point can be added."""
    if isinstance(definition.sampler, GridSampler):
        raise StudyError(
            f"Study '{definition.name}' is a grid, whose points are all enqueued already.",
            "Expected: a study whose sampler suggests points.",
            "Search more values under a new name.",
        )
    refuse_confirmation(definition)


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


@named
def stop_trial(storage: Storage, name: str, number: int, *, dry_run: bool = False) -> TrialStop:
    """End trial `number` of study `name` as pruned, with the reason `BY_HAND`.

    A trial in training ends after its epoch, on whatever machine it is trained. A trial that waits ends at once, and
    counts as one of the study's trials. If the worker of the trial is dead, the next worker that takes it ends it.

    dry_run   answer what would happen, and change nothing

    StudyError if there is no such study or no such trial. UserError if the trial has ended, or if another program
    trains it.
    """
    attempts = itertools.count()

    def stop(connection: Connection) -> TrialStop:
        is_repeated = next(attempts) > 0
        row = storage.lock_study(connection, name)
        states = {number: (trial_id, state) for trial_id, number, state in trial_states(connection, row.study_id)}
        if number not in states:
            there = f"the trials 0 to {max(states)}" if states else "no trial yet"
            raise StudyError(f"Study '{name}' has no trial {number}.", f"It has {there}.")
        trial_id, state = states[number]
        lease = connection.execute(
            select(lease_table).where(lease_table.c.study == name, lease_table.c.trial_id == trial_id)
        ).one_or_none()
        if state not in ("RUNNING", "WAITING"):
            reason = trial_attributes(connection, row.study_id, USER_ATTRS, ("reason",)).get((trial_id, "reason"))
            # If the acknowledgement of an earlier attempt was lost, that attempt has ended the trial.
            if not is_repeated or not str(reason).startswith(BY_HAND):
                raise _has_ended(name, number, state, reason)
            return TrialStop(name, number, True, 0 if lease is None else lease.epochs_done)
        if lease is None and state == "RUNNING":
            raise UserError(
                f"Trial {number} of study '{name}' is trained by another program, not by a worker of cvaeopt.",
                "Expected: a trial that a worker trains, or that waits.",
                "Stop it where it runs.",
            )
        if lease is not None and lease.owner is not None:
            if not dry_run:
                storage.mark_trial(connection, trial_id, STOP)
            return TrialStop(name, number, False, lease.epochs_done, lease.owner)
        epochs_done = 0 if lease is None else lease.epochs_done
        if not dry_run:
            _close_lease(connection, row, trial_id, number, lease)
            storage.prune_waiting(connection, trial_id, {"reason": BY_HAND, "epochs_done": epochs_done})
            settle(storage, connection, dict(row._mapping), trial_id)
        return TrialStop(name, number, True, epochs_done)

    return storage.write(stop)


def _has_ended(name: str, number: int, state: str, reason: Any) -> UserError:
    why = f" ({reason})" if reason else ""
    return UserError(
        f"Trial {number} of study '{name}' has ended already: {STATES[state]}{why}.",
        "Expected: a trial that runs or waits.",
    )


def _close_lease(connection: Connection, study: Row[Any], trial_id: int, number: int, lease: Row[Any] | None) -> None:
    """Close the lease of a trial that no worker has.

    A trial that was never begun gets a closed lease, so that it counts as one of the study's trials, as it does in
    every table. If the budget has no room for it, it gets none.
    """
    closed = {"state": "done", "outcome": "pruned", "reason": BY_HAND}
    mine = (lease_table.c.study == study.name) & (lease_table.c.trial_id == trial_id)
    if lease is not None:
        values = {**closed, "epochs_reserved": lease.epochs_done}
        connection.execute(update(lease_table).where(mine).values(**values))
        return
    last = connection.execute(
        select(func.coalesce(func.max(lease_table.c.slot), -1)).where(lease_table.c.study == study.name)
    ).scalar_one()
    if study.trials is None or taken(connection, study.name) < study.trials:
        values = {
            "study": study.name,
            "slot": last + 1,
            "trial_id": trial_id,
            "number": number,
            "token": 1,
            "expires_at": 0.0,
            "attempt": 1,
            "attempt_epoch": 0,
            "epochs_reserved": 0,
            "epochs_done": 0,
            "folder": f"{study.name}/{number:05d}",
            **closed,
        }
        connection.execute(lease_table.insert().values(**values))

"""The state of a study: numbers of trials, the best and the last trial, failures and workers."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from optuna.trial import FrozenTrial
from sqlalchemy import Connection, String, cast, func, select

from cvaeopt.search.definition import Definition
from cvaeopt.store import versions
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import STEPS, TRIALS, USER_ATTRS, VALUES, read_trials, trial_attributes, trial_states
from cvaeopt.store.ranking import Best, best_row, best_rows, ranked
from cvaeopt.store.roles import HISTORY
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import require
from cvaeopt.store.tables import lease_table
from cvaeopt.store.workers import workers

FAILED: Final = "failed"
"""User attribute of a trial that failed. Optuna's state of such a trial is PRUNED, so that samplers learn from it."""

BY_HAND: Final = "stopped by hand"
"""The reason of a trial that a user has stopped begins with these words. Optuna's state of the trial is PRUNED."""

_ENDED: Final = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@named
def counts(storage: Storage, name: str) -> dict[str, int]:
    """The number of trials in each state: complete, pruned, running, waiting, failed; and history, if there are any.

    A trial that is history does not count for the newest version of the definition. StudyError for an unknown study.

    If a worker gave its trial back or died, the trial is waiting. Its training continues when a worker takes it.
    """
    study_id = require(storage, name)["study_id"]

    def read(connection: Connection) -> dict[str, int]:
        notes = trial_attributes(connection, study_id, USER_ATTRS, (FAILED, HISTORY))
        return _count(
            trial_states(connection, study_id), set(notes), _open_leases(connection, name, storage.now(connection))
        )

    return storage.read(read)


@named
def without_worker(storage: Storage, name: str) -> frozenset[int]:
    """The numbers of the trials that were begun, have not ended and have no worker; empty for an unknown study.

    These trials have Optuna's state RUNNING. Their training continues when a worker takes them.
    """

    def read(connection: Connection) -> frozenset[int]:
        trial_ids = _open_leases(connection, name, storage.now(connection)).free
        query = select(lease_table.c.number).where(lease_table.c.study == name, lease_table.c.trial_id.in_(trial_ids))
        return frozenset(connection.execute(query).scalars())

    return storage.read(read)


@named
def status(storage: Storage, name: str) -> dict[str, Any]:
    """The dictionary that `cvaeopt status --json` prints; StudyError for an unknown study.

    The number of queries does not grow with the number of trials, and no query reads the trials' curves.
    """
    entry = require(storage, name)
    definition = Definition.parse(json.loads(entry["definition"]), name, f"study '{name}' in {storage.url}")
    study_id = entry["study_id"]
    trials = storage.read(lambda connection: _read_trials(connection, name, study_id, storage.now(connection)))
    best = None
    if trials.best is not None:
        params = storage.get_trial(trials.best.trial_id).params
        ordered = {name: params[name] for name in definition.search if name in params}
        best = {"number": trials.best.number, "value": round(trials.best.value, 4), "params": ordered}
    return {
        "study": name,
        "storage": storage.url,
        "direction": "maximize",
        "metric": definition.metric,
        "budget": {
            "trials": entry["trials"],
            "epochs": entry["epochs"],
            "total_epochs": entry["total_epochs"],
            "wall_clock_h": definition.budget.wall_clock_h,
            "target_db": definition.budget.target_db,
            "patience_trials": definition.budget.patience_trials,
        },
        "trials": trials.counts,
        "open_trials": trials.begun.open,
        "epochs_spent": trials.epochs_spent,
        "best": best,
        "versions": versions.plain(versions.read(storage, entry)),
        "baselines": {key: round(value, 2) for key, value in json.loads(entry["facts"]).get("baselines", {}).items()},
        "last": trials.last,
        "failures": trials.failures,
        "stopped_by_hand": trials.by_hand,
        "stopped": None if _is_met(entry, trials) else entry["stopped_reason"],
        "over": _is_met(entry, trials) or (entry["stopped_reason"] is not None and not trials.begun.open),
        "workers": [
            {key: getattr(worker, key) for key in ("id", "host", "device", "state", "trial", "epoch")}
            | {"beat_age_s": round(worker.beat_age_s, 1), "takeover_s": worker.takeover_s}
            for worker in workers(storage, name)
        ],
    }


@named
def best_trials(storage: Storage, name: str, count: int) -> list[FrozenTrial]:
    """The best `count` ranked trials with their settings and curves, best first; StudyError for an unknown study."""
    study_id = require(storage, name)["study_id"]

    def read() -> list[FrozenTrial]:
        with storage.reading() as connection:
            ids = {one.trial_id for one in best_rows(connection, study_id, count)}
            return ranked(read_trials(connection, study_id, None, ids, sys.maxsize) if ids else [])

    return storage.retry(read)


@dataclass(frozen=True)
class _OpenLeases:
    """The trials whose lease is open: they were begun and have not ended.

    open   number, finished epochs and epochs of a whole run, for each of these trials
    free   the ids of those that no worker trains
    """

    open: list[dict[str, int]]
    free: frozenset[int]


@dataclass(frozen=True)
class _Trials:
    """The facts about a study's trials, read from the database.

    begun          the trials that were begun and have not ended
    epochs_spent   number of reported epochs, summed over all trials
    failures       number and reason of every failed trial
    by_hand        numbers of the trials that a user has stopped
    """

    counts: dict[str, int]
    begun: _OpenLeases
    epochs_spent: int
    failures: list[dict[str, Any]]
    by_hand: list[int]
    best: Best | None
    last: dict[str, Any] | None


def _read_trials(connection: Connection, name: str, study_id: int, now: float) -> _Trials:
    states = trial_states(connection, study_id)
    begun = _open_leases(connection, name, now)
    notes = trial_attributes(connection, study_id, USER_ATTRS, (FAILED, HISTORY, "reason"))
    failures = [
        {
            "number": number,
            "reason": str(notes.get((trial_id, "reason"), notes.get((trial_id, FAILED), "unknown"))),
        }
        for trial_id, number, state in states
        if (trial_id, HISTORY) not in notes and (state == "FAIL" or (state == "PRUNED" and (trial_id, FAILED) in notes))
    ]
    deepest = (
        select(func.max(STEPS.c.step).label("epochs"))
        .select_from(STEPS.join(TRIALS, TRIALS.c.trial_id == STEPS.c.trial_id))
        .where(TRIALS.c.study_id == study_id)
        .group_by(STEPS.c.trial_id)
        .subquery()
    )
    epochs_spent = connection.execute(select(func.sum(deepest.c.epochs))).scalar()
    return _Trials(
        counts=_count(states, set(notes), begun),
        begun=begun,
        epochs_spent=int(epochs_spent or 0),
        failures=failures,
        by_hand=[number for trial_id, number, _ in states if str(notes.get((trial_id, "reason"))).startswith(BY_HAND)],
        best=best_row(connection, study_id),
        last=_last(connection, study_id, notes),
    )


def _is_met(entry: dict[str, Any], trials: _Trials) -> bool:
    """Whether the study has used its whole budget of trials or epochs. A request to stop then had no effect."""
    if trials.begun.open:
        return False
    ended = sum(trials.counts[state] for state in _ENDED.values())
    if entry["trials"] is not None and ended >= entry["trials"]:
        return True
    total_epochs = entry["total_epochs"]
    return total_epochs is not None and trials.epochs_spent + entry["epochs"] > total_epochs


def _open_leases(connection: Connection, name: str, now: float) -> _OpenLeases:
    rows = connection.execute(
        select(lease_table)
        .where(lease_table.c.study == name, lease_table.c.state == "open")
        .order_by(lease_table.c.number)
    ).all()
    free = frozenset(row.trial_id for row in rows if row.owner is None or row.expires_at <= now)
    return _OpenLeases(
        [{"trial": row.number, "epoch": row.epochs_done, "epochs": row.epochs_reserved} for row in rows], free
    )


def _last(connection: Connection, study_id: int, notes: dict[tuple[int, str], Any]) -> dict[str, Any] | None:
    """The trial that ended last, with its value in dB if it is complete; None if no trial has ended.

    The end times come from the workers' clocks, which may differ.
    """
    state = cast(TRIALS.c.state, String)
    row = connection.execute(
        select(TRIALS.c.trial_id, TRIALS.c.number, state.label("state"), VALUES.c.value)
        .select_from(TRIALS.outerjoin(VALUES, VALUES.c.trial_id == TRIALS.c.trial_id))
        .where(TRIALS.c.study_id == study_id, state.in_(list(_ENDED)))
        .order_by(TRIALS.c.datetime_complete.desc(), TRIALS.c.number.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    failed, history = ((row.trial_id, key) in notes for key in (FAILED, HISTORY))
    complete = row.state == "COMPLETE" and row.value is not None
    return {
        "number": row.number,
        "state": HISTORY if history else "failed" if failed else _ENDED[row.state],
        "value": round(row.value, 4) if complete else None,
        "reason": str(notes.get((row.trial_id, "reason"), "")),
    }


def _count(states: Sequence[tuple[int, int, str]], notes: set[tuple[int, str]], begun: _OpenLeases) -> dict[str, int]:
    """The number of trials in each state; `notes` has (trial_id, key) of the attributes FAILED and HISTORY."""
    meant = {("PRUNED", trial_id): "FAIL" for trial_id, key in notes if key == FAILED}
    meant |= {("FAIL", trial_id): "HISTORY" for trial_id, key in notes if key == HISTORY}
    meant |= {("RUNNING", trial_id): "WAITING" for trial_id in begun.free}
    counted = Counter(meant.get((state, trial_id), state) for trial_id, _, state in states)
    return {
        "complete": counted["COMPLETE"],
        "pruned": counted["PRUNED"],
        "running": counted["RUNNING"],
        "waiting": counted["WAITING"],
        "failed": counted["FAIL"],
        **({HISTORY: counted["HISTORY"]} if counted["HISTORY"] else {}),
    }

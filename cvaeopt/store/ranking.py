"""The rule that selects the best trial of a study, for Optuna's trials and for the rows of the database.

A trial is ranked if it is complete, its value is finite and none of its constraints is violated. The best trial is the
ranked trial with the highest value. If several trials have this value, the best is the trial with the lowest number.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, String, cast, func, select

from cvaeopt.store.optuna_rows import SYSTEM_ATTRS, TRIALS, VALUES
from cvaeopt.store.tables import lease_table


class Best(NamedTuple):
    """The best trial of a study: its id in the database, its number and its value in dB."""

    trial_id: int
    number: int
    value: float


def value_of(trial: FrozenTrial) -> float | None:
    """The value by which the trial is ranked, dB; None if the trial is not ranked.

    ValueError for a complete trial without a value: its row in the database is lost.
    """
    if trial.state != TrialState.COMPLETE or not is_feasible(trial.constraints):
        return None
    if not trial.values:
        raise ValueError(f"Trial {trial.number} is complete and has no value.")
    value = trial.values[0]
    return value if math.isfinite(value) else None


def is_feasible(constraints: Mapping[str, float]) -> bool:
    """Whether no constraint is violated. A constraint with a positive value is violated."""
    return all(value <= 0 for value in constraints.values())


def place(value: float, number: int) -> tuple[float, int]:
    """The sort key of a trial. The best trial has the smallest key."""
    return (-value, number)


def ranked(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """The ranked trials among `trials`, best first."""
    places = [(place(value, trial.number), trial) for trial in trials if (value := value_of(trial)) is not None]
    return [trial for _, trial in sorted(places, key=lambda item: item[0])]


def best_row(connection: Connection, study_id: int) -> Best | None:
    """The best trial of the study, or None if no trial is ranked."""
    return next(iter(best_rows(connection, study_id, 1)), None)


def best_rows(connection: Connection, study_id: int, count: int) -> list[Best]:
    """The best `count` ranked trials of the study, best first; fewer if the study has fewer."""
    query = (
        select(TRIALS.c.trial_id, TRIALS.c.number, VALUES.c.value)
        .select_from(VALUES.join(TRIALS, TRIALS.c.trial_id == VALUES.c.trial_id))
        .where(
            TRIALS.c.study_id == study_id,
            cast(TRIALS.c.state, String) == "COMPLETE",
            cast(VALUES.c.value_type, String) == "FINITE",
        )
        .order_by(VALUES.c.value.desc(), TRIALS.c.number)
        .limit(count)
    )
    found: list[Best] = []
    for offset in itertools.count(0, count):
        rows = connection.execute(query.offset(offset)).all()
        feasible = (row for row in rows if is_feasible(_constraints(connection, row.trial_id)))
        found += [Best(row.trial_id, row.number, float(row.value)) for row in feasible]
        if len(found) >= count or len(rows) < count:
            break
    return found[:count]


def _constraints(connection: Connection, trial_id: int) -> dict[str, float]:
    """The constraints of a trial. Optuna 4 stores one list; the installed Optuna stores each constraint separately."""
    rows = connection.execute(
        select(SYSTEM_ATTRS.c.key, SYSTEM_ATTRS.c.value_json).where(
            SYSTEM_ATTRS.c.trial_id == trial_id, SYSTEM_ATTRS.c.key.startswith("constraints")
        )
    )
    constraints: dict[str, float] = {}
    for key, text in rows:
        value = json.loads(text)
        entries = value if isinstance(value, list) else [value]
        constraints |= {f"{key}[{index}]": entry for index, entry in enumerate(entries)}
    return constraints


def progress(connection: Connection, study_id: int) -> tuple[float | None, int]:
    """The best value, dB, and the number of ended trials whose number is higher than that of the best trial.

    If no trial is ranked, the value is None and all ended trials are counted. Trials that are history (`roles`) are
    never counted.
    """
    best = best_row(connection, study_id)
    ended = connection.execute(
        select(func.count()).where(
            TRIALS.c.study_id == study_id,
            cast(TRIALS.c.state, String).in_(("COMPLETE", "PRUNED", "FAIL")),
            TRIALS.c.number > (-1 if best is None else best.number),
            TRIALS.c.trial_id.not_in(select(lease_table.c.trial_id).where(lease_table.c.outcome == "history")),
        )
    ).scalar_one()
    return (None if best is None else best.value), int(ended)

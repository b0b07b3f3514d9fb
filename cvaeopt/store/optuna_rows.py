"""Optuna's tables, and functions that read them with plain queries.

Optuna makes an object for every reported epoch when it reads a trial. With 5,000 trials of up to 100 epochs, this took
10 s and 0.7 GB in every process before its first suggestion. `read_trials` takes a tenth of that time and memory
(bench/suggest.py). Most columns have no type here, so that a damaged row can still be read.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Container, Iterator
from typing import Any, Final

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    String,
    cast,
    column,
    delete,
    insert,
    or_,
    select,
    table,
    true,
)
from sqlalchemy.sql.expression import TableClause

STUDIES: Final = table("studies", column("study_id"), column("study_name"))
STUDY_ATTRS: Final = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
TRIALS: Final = table(
    "trials",
    column("trial_id"),
    column("study_id"),
    column("number"),
    column("state"),
    column("datetime_start", DateTime),
    column("datetime_complete", DateTime),
)
PARAMS: Final = table(
    "trial_params",
    *(column(name) for name in ("trial_id", "param_id", "param_name", "param_value", "distribution_json")),
)
VALUES: Final = table("trial_values", *(column(name) for name in ("trial_id", "objective", "value", "value_type")))
STEPS: Final = table(
    "trial_intermediate_values",
    *(column(name) for name in ("trial_id", "step", "intermediate_value", "intermediate_value_type")),
)
USER_ATTRS: Final = table("trial_user_attributes", *(column(name) for name in ("trial_id", "key", "value_json")))
SYSTEM_ATTRS: Final = table("trial_system_attributes", *(column(name) for name in ("trial_id", "key", "value_json")))

STOP: Final = "cvaeopt:stop"
"""System attribute of a trial that a user asked to stop. Its worker, on any machine, ends it after its epoch."""

_NOT_FINITE: Final = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}
_MAX_ROWS: Final = 100  # fetched at once: faster than single rows, and too few to start a full garbage collection
_MAX_IDS: Final = 500  # in one query, because SQLite limits the number of parameters


def read_trials(
    connection: Connection, study_id: int, states: Container[TrialState] | None, ids: set[int], newer_than: int
) -> list[FrozenTrial]:
    """The trials of a study whose ids are in `ids` or above `newer_than`, sorted by id.

    states       only trials in one of these states are returned; None for all states
    newer_than   -1 for all trials

    KeyError if the study does not exist. Other errors, such as ValueError, come from damaged rows.
    """
    found: list[tuple[int, FrozenTrial]] = []
    for chosen in _conditions(ids, newer_than):
        found += _read(connection, (TRIALS.c.study_id == study_id) & chosen, states)
    if not found and connection.execute(select(STUDIES).where(STUDIES.c.study_id == study_id)).first() is None:
        raise KeyError(f"there is no study with the id {study_id}")
    return [trial for _, trial in sorted(found, key=lambda pair: pair[0])]


def _conditions(ids: set[int], newer_than: int) -> Iterator[ColumnElement[bool]]:
    """SQL conditions for queries of limited length; every chosen trial fulfils exactly one condition."""
    if newer_than == -1:
        yield true()
        return
    older = sorted(one for one in ids if one <= newer_than)
    yield or_(TRIALS.c.trial_id.in_(older[:_MAX_IDS]), TRIALS.c.trial_id > newer_than)
    for start in range(_MAX_IDS, len(older), _MAX_IDS):
        yield TRIALS.c.trial_id.in_(older[start : start + _MAX_IDS])


def _read(
    connection: Connection, chosen: ColumnElement[bool], states: Container[TrialState] | None
) -> list[tuple[int, FrozenTrial]]:
    """Pairs of a trial's id and the trial, for all chosen trials."""

    def rows(of: TableClause) -> Iterator[Any]:
        """The rows of a table that belong to the chosen trials."""
        joined = of.join(TRIALS, TRIALS.c.trial_id == of.c.trial_id)
        result = connection.execute(select(*of.c).select_from(joined).where(chosen))
        return itertools.chain.from_iterable(result.partitions(_MAX_ROWS))

    trials = connection.execute(select(TRIALS).where(chosen)).all()
    if states is not None:
        trials = [row for row in trials if TrialState[row.state] in states]
    if not trials:
        return []
    params: defaultdict[int, list[tuple[int, str, float, str]]] = defaultdict(list)
    for trial_id, param_id, name, value, text in rows(PARAMS):
        params[trial_id].append((param_id, name, value, text))
    values: defaultdict[int, dict[int, float]] = defaultdict(dict)
    curves: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for of, numbers in ((VALUES, values), (STEPS, curves)):
        for trial_id, place, value, kind in rows(of):
            numbers[trial_id][place] = _number(value, kind)
    notes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    system: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for of, attributes in ((USER_ATTRS, notes), (SYSTEM_ATTRS, system)):
        for trial_id, key, text in rows(of):
            attributes[trial_id][key] = json.loads(text)
    return [
        (key, _trial(row, sorted(params[key]), values[key], curves[key], notes[key], system[key]))
        for key, row in ((row.trial_id, row) for row in trials)
    ]


def _trial(
    row: Any,
    params: list[tuple[int, str, float, str]],
    values: dict[int, float],
    curve: dict[int, float],
    user_attrs: dict[str, Any],
    system_attrs: dict[str, Any],
) -> FrozenTrial:
    distributions = {name: _distribution(text) for _, name, _, text in params}
    return FrozenTrial(
        number=row.number,
        state=TrialState[row.state],
        value=None,
        values=[values[objective] for objective in range(len(values))] or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={name: distributions[name].to_external_repr(value) for _, name, value, _ in params},
        distributions=distributions,
        user_attrs=user_attrs,
        system_attrs=system_attrs,
        intermediate_values=curve,
        trial_id=row.trial_id,
    )


def _number(value: Any, kind: str) -> float:
    """The number that Optuna has stored.

    value   the number; None if the number is not finite
    kind    "FINITE", "NAN", "INF_POS" or "INF_NEG"

    ValueError if `value` and `kind` do not agree.
    """
    if (value is None) != (kind in _NOT_FINITE) or (value is not None and kind != "FINITE"):
        raise ValueError(f"value {value!r} of the kind {kind!r}")
    return _NOT_FINITE[kind] if value is None else float(value)


@functools.lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    """The distribution from its JSON text. Trials whose texts are equal share one object."""
    return json_to_distribution(text)


def read_attribute(connection: Connection, of: TableClause, owner: int, key: str) -> Any:
    """The value of one attribute of a study or a trial, whose id is `owner`; None if it has no such attribute."""
    owners, *_ = of.c
    text = connection.execute(select(of.c.value_json).where(owners == owner, of.c.key == key)).scalar_one_or_none()
    return None if text is None else json.loads(text)


def write_attribute(connection: Connection, of: TableClause, owner: int, key: str, value: Any) -> None:
    """Store one attribute of a study or a trial, whose id is `owner`; the value None deletes it."""
    owners, *_ = of.c
    connection.execute(delete(of).where(owners == owner, of.c.key == key))
    if value is not None:
        row = {owners.name: owner, "key": key, "value_json": json.dumps(value, allow_nan=False)}
        connection.execute(insert(of).values(row))


def trial_states(connection: Connection, study_id: int) -> list[tuple[int, int, str]]:
    """(trial_id, number, state) of all trials of the study, sorted by number."""
    rows = connection.execute(
        select(TRIALS.c.trial_id, TRIALS.c.number, cast(TRIALS.c.state, String))
        .where(TRIALS.c.study_id == study_id)
        .order_by(TRIALS.c.number)
    )
    return [(trial_id, number, state) for trial_id, number, state in rows]


def trial_attributes(
    connection: Connection, study_id: int, source: Any, keys: tuple[str, ...] | str
) -> dict[tuple[int, str], Any]:
    """The attributes of the study's trials by (trial_id, key).

    source   USER_ATTRS or SYSTEM_ATTRS
    keys     a tuple of keys, or the common beginning of the keys
    """
    wanted = source.c.key.startswith(keys) if isinstance(keys, str) else source.c.key.in_(keys)
    rows = connection.execute(
        select(source.c.trial_id, source.c.key, source.c.value_json)
        .select_from(source.join(TRIALS, TRIALS.c.trial_id == source.c.trial_id))
        .where(TRIALS.c.study_id == study_id, wanted)
    )
    return {(trial_id, key): json.loads(value) for trial_id, key, value in rows}

"""Find the damaged row of a study. The rows are searched only after reading the study has failed.

Another program, an editor or a faulty disk may have changed a row. SQLite accepts any value in any column. Every
database stores JSON as plain text. Optuna does not check the values that it reads.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast

from optuna.distributions import json_to_distribution
from optuna.exceptions import StorageInternalError
from sqlalchemy import Column, Connection, Float, Integer, column, select, table
from sqlalchemy.exc import SQLAlchemyError

from cvaeopt.errors import SettingsError, StudyDamaged
from cvaeopt.store.optuna_private import contains
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table, worker_table

_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    SettingsError,
    TypeError,
    ValueError,
    StorageInternalError,
    SQLAlchemyError,
)
"""The errors that a damaged row may cause when the row is read or its content is used."""

Check = Callable[[Any], bool]
F = TypeVar("F", bound=Callable[..., Any])


@contextlib.contextmanager
def explained(storage: Storage, study: str) -> Iterator[None]:
    """Inside this block, an error becomes StudyDamaged if `study` has a damaged row. StudyDamaged names the row.

    Without a damaged row, the error is not changed.
    """
    try:
        yield
    except _UNREADABLE as error:
        found = find(storage, study)
        if found is None:
            raise
        raise found from error


def named(function: F) -> F:
    """`function(storage, study, ...)` inside a block of `explained`; `study` is a study's name or its definition."""

    @functools.wraps(function)
    def call(storage: Storage, study: Any, *args: Any, **kwargs: Any) -> Any:
        with explained(storage, getattr(study, "name", study)):
            return function(storage, study, *args, **kwargs)

    return cast(F, call)


def find(storage: Storage, study: str) -> StudyDamaged | None:
    """The first damaged row of study `study`, or None."""
    return storage.read(lambda connection: next(_damaged(connection, study), None))


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _time(value: Any) -> bool:
    if isinstance(value, str):  # SQLite
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return False
        return True
    return isinstance(value, datetime)


def _table(value: Any) -> bool:
    return isinstance(value, dict)


def _numbers(value: Any) -> bool:
    return _table(value) and all(_number(one) for one in value.values())


def _facts(value: Any) -> bool:
    """Whether `value` has the form of the facts that `study.record_facts` writes."""
    if not _table(value):
        return False
    return _text(value.get("data_digest", "")) and _numbers(value.get("baselines", {}))


def _constraint(value: Any) -> bool:
    """Whether `value` is a list of numbers. Optuna 4 writes constraints in this form."""
    return isinstance(value, list) and all(map(_number, value))


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _one_of(*values: str | int) -> Check:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _json(check: Check) -> Check:
    def checks(value: Any) -> bool:
        try:
            return check(json.loads(value))
        except (TypeError, ValueError, RecursionError):
            return False

    return checks


_ATTRIBUTES: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("seed", "epochs_done", "attempt", "estimate_epochs", "cvaeopt:enqueued"), _integer),
    **dict.fromkeys(
        ("reason", "failed", "host", "device", "worker", "data_digest", "settings_digest", "checkpoints"), _text
    ),
    **dict.fromkeys(("seconds", "val_psnr", "val_psnr_late", "estimate_db", "standard_error_db"), _number),
    "constraints": _constraint,
    "versions": _table,
    "fixed_params": _table,
    "cvaeopt:digest": _text,
    "cvaeopt:version": _integer,
    "history": lambda value: _table(value) and {"version", "state", "value", "outcome", "reason"} <= value.keys(),
    "cvaeopt:identity": _text,
}
"""Checks for the attributes that this program reads. An attribute of another program may hold any JSON."""

_KIND: Final = _one_of("FINITE", "INF_POS", "INF_NEG", "NAN")

_OF_TRIAL: Final[Mapping[str, Mapping[str, Check]]] = {
    "trial_values": {"objective": _one_of(0), "value": _or_null(_number), "value_type": _KIND},
    "trial_intermediate_values": {
        "step": _integer,
        "intermediate_value": _or_null(_number),
        "intermediate_value_type": _KIND,
    },
    "trial_params": {"param_name": _text, "param_value": _number, "distribution_json": _json(_table)},
    "trial_user_attributes": {"key": _text, "value_json": _json(lambda value: True)},
    "trial_system_attributes": {"key": _text, "value_json": _json(lambda value: True)},
}
_JSON_COLUMNS: Final[Mapping[str, Check]] = {"definition": _json(_table), "facts": _json(_facts)}


def _of_type(of: Column[Any]) -> Check:
    """The check for a column of the `cvaeopt_` tables, chosen by the column's type."""
    if of.name in _JSON_COLUMNS:
        return _JSON_COLUMNS[of.name]
    if of.table is lease_table and of.name == "state":
        return _one_of("open", "done")
    check = _integer if isinstance(of.type, Integer) else _number if isinstance(of.type, Float) else _text
    return _or_null(check) if of.nullable else check


_OWN: Final[Mapping[str, Mapping[str, Check]]] = {
    own.name: {of.name: _of_type(of) for of in own.c} for own in (study_table, lease_table, worker_table)
}


def _damaged(connection: Connection, study: str) -> Iterator[StudyDamaged]:
    """An error for each damaged row of the study. Columns are read without a type, which could refuse a value."""
    for name, checks in _OWN.items():
        key = "name" if name == "cvaeopt_study" else "study"
        for row in _rows(connection, name, list(checks), key, [study]):
            yield from _wrong(study, "", name, row, checks)
    for row in _rows(connection, "studies", ["study_id", "study_name"], "study_name", [study]):
        yield from _of_study(connection, study, row["study_id"])


def _of_study(connection: Connection, study: str, study_id: Any) -> Iterator[StudyDamaged]:
    attributes = {"key": _text, "value_json": _json(lambda value: True)}
    for name in ("study_system_attributes", "study_user_attributes"):
        for row in _rows(connection, name, ["study_id", *attributes], "study_id", [study_id]):
            yield from _attribute(study, "", name, row, attributes)
    directions = {"direction": _one_of("NOT_SET", "MINIMIZE", "MAXIMIZE"), "objective": _integer}
    for row in _rows(connection, "study_directions", ["study_id", *directions], "study_id", [study_id]):
        yield from _wrong(study, "", "study_directions", row, directions)
    trial = {
        "number": _integer,
        "state": _one_of("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING"),
        "datetime_start": _or_null(_time),
        "datetime_complete": _or_null(_time),
    }
    rows = list(_rows(connection, "trials", ["trial_id", "study_id", *trial], "study_id", [study_id]))
    for row in rows:
        yield from _wrong(study, f", trial {row['number']}", "trials", row, trial)
    by_id = {row["trial_id"]: row for row in rows}
    valued = set()
    for name, checks in _OF_TRIAL.items():
        for row in _rows(connection, name, ["trial_id", *checks], "trial_id", list(by_id)):
            where = f", trial {by_id[row['trial_id']]['number']}"
            if name == "trial_params":
                yield from _wrong(study, where, name, row, checks)
                yield from _parameter(study, where, row)
            elif "value_json" in checks:
                yield from _attribute(study, where, name, row, checks)
            else:
                yield from _wrong(study, where, name, row, checks)
                yield from _value(study, where, name, row)
            if name == "trial_values":
                valued.add(row["trial_id"])
    for trial_id, row in by_id.items():
        if row["state"] == "COMPLETE" and trial_id not in valued:
            yield damaged(study, f", trial {row['number']}", "trial_values", "no row", "a value of a complete trial")


def _rows(
    connection: Connection, name: str, columns: list[str], key: str, values: list[Any]
) -> Iterator[Mapping[str, Any]]:
    names = list(dict.fromkeys([*columns, key]))
    source = table(name, *(column(one) for one in names))
    for start in range(0, len(values), 500):
        query = select(*source.c).where(source.c[key].in_(values[start : start + 500]))
        yield from (dict(row) for row in connection.execute(query).mappings())


def _wrong(
    study: str, where: str, name: str, row: Mapping[str, Any], checks: Mapping[str, Check]
) -> Iterator[StudyDamaged]:
    for key, check in checks.items():
        if not check(row[key]):
            of = (
                f"{row['key']!r}: {key}"
                if "key" in row
                else f"{row['param_name']!r}: {key}"
                if "param_name" in row
                else key
            )
            yield damaged(study, where, name, f"{of} = {_short(row[key])}", "what Optuna and cvaeopt write there")


def _attribute(
    study: str, where: str, name: str, row: Mapping[str, Any], checks: Mapping[str, Check]
) -> Iterator[StudyDamaged]:
    """The errors of `_wrong`, and an error if an attribute of this program has wrong content."""
    wrong = list(_wrong(study, where, name, row, checks))
    yield from wrong
    if wrong:
        return
    key = row["key"]
    check = _number if key.startswith("constraints:") else _ATTRIBUTES.get(key)
    if key.startswith("artifacts:"):
        check = _or_null(_json(_or_null(_table)))
    if check is not None and not check(json.loads(row["value_json"])):
        yield damaged(study, where, name, f"{key!r} = {_short(row['value_json'])}", "what cvaeopt writes there")


def _value(study: str, where: str, name: str, row: Mapping[str, Any]) -> Iterator[StudyDamaged]:
    """An error for a finite value that is missing, or for a NaN as the value of a complete trial."""
    value, kind = ("value", "value_type") if name == "trial_values" else tuple(_OF_TRIAL[name])[1:]
    if (row[value] is None and row[kind] == "FINITE") or (name == "trial_values" and row[kind] == "NAN"):
        yield damaged(study, where, name, f"{value} = {_short(row[value])} of kind {_short(row[kind])}", "a number")


def _parameter(study: str, where: str, row: Mapping[str, Any]) -> Iterator[StudyDamaged]:
    """An error for a parameter whose range cannot be read, or whose value is outside its range."""
    name, value = row["param_name"], row["param_value"]
    try:
        within = json_to_distribution(row["distribution_json"])
        inside = _number(value) and contains(within, float(value))
        shown = within.to_external_repr(value) if inside else value
    except Exception:  # Optuna may raise anything for a range that it did not write
        found, expected = f"{name!r}: distribution_json = {_short(row['distribution_json'])}", "a range of Optuna's"
        yield damaged(study, where, "trial_params", found, expected)
        return
    if not inside:
        yield damaged(study, where, "trial_params", f"{name!r} = {_short(shown)}", f"a value inside {within}")


def damaged(study: str, where: str, name: str, found: str, expected: str) -> StudyDamaged:
    """The error for a damaged row.

    where      the trial, such as ', trial 3', or ''
    name       the table of the row
    found      the damaged content
    expected   the content that a correct row would have
    """
    return StudyDamaged(
        f"Study '{study}'{where}: a row of {name} is damaged ({found}).",
        f"Expected: {expected}.",
        "Restore a backup (cvaeopt admin restore), correct the row, or give the study a new name.",
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."

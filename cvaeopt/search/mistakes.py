"""Find every mistake of a study's tables, so that one message can name them all.

`Definition.parse` stops at the first mistake. Only then do the functions of this module check each key by itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from cvaeopt.config import Config, check_names
from cvaeopt.errors import SettingsError
from cvaeopt.search.parsing import as_setting, complaints, parse_kind, parse_search, subtable
from cvaeopt.search.tables import Budget, Pruner, Sampler, ServiceTable, StudyTable, WarmStart


def with_all_mistakes(first: SettingsError, tables: dict[str, Any], known: Sequence[str], where: str) -> SettingsError:
    """One error with a line for each mistake: unknown tables and keys, and wrong types and values of all tables.

    first   the error that `Definition.parse` met; it is returned unchanged if there is no other mistake
    known   the names of all tables
    """
    found = [first, *_wrong_names(tables, known, where, "table")]
    models: dict[str, type[BaseModel]] = {
        "study": StudyTable, "budget": Budget, "warm_start": WarmStart, "service": ServiceTable,
    }  # fmt: skip
    for name, model in models.items():
        if table := _table(tables, name):
            found += _wrong_names(table, list(model.model_fields), f"{where}: [{name}]", "key")
            found += _wrong_values(model, table, f"{where}: [{name}]")
    again = "confirms" in _table(tables, "study")
    for name, given in _table(tables, "search").items():
        found += _raised(functools.partial(parse_search, {name: given}, f"{where}: [search]", seeds=again))
    fixed = _table(tables, "fixed")
    found += _wrong_names(fixed, list(Config.model_fields), f"{where}: [fixed]", "setting")
    found += _wrong_values(
        Config, {name: as_setting(name, value) for name, value in fixed.items()}, f"{where}: [fixed]"
    )
    found += _raised(lambda: parse_kind(Sampler, "tpe", _table(tables, "sampler"), f"{where}: [sampler]"))
    found += _raised(lambda: parse_kind(Pruner, "none", _table(tables, "pruner"), f"{where}: [pruner]"))
    for name in set(known) - {"enqueue", "claims"}:
        found += _raised(functools.partial(subtable, tables, name, where))
    different = list({error.found: error for error in reversed(found)}.values())[::-1]
    if len(different) == 1:
        return first
    lines = "".join(f"\n- {str(error).removeprefix(f'{where}: ')}" for error in different)
    return SettingsError(f"{where} has {len(different)} mistakes.", todo=f"Correct each of them:{lines}")


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    table = tables.get(name)
    return table if isinstance(table, dict) else {}


def _wrong_names(given: Iterable[str], known: Sequence[str], where: str, kind: str) -> list[SettingsError]:
    checks = [functools.partial(check_names, {name: None}, list(known), where, kind) for name in given]
    return [error for check in checks for error in _raised(check)]


def _wrong_values(model: type[BaseModel], table: dict[str, Any], where: str) -> list[SettingsError]:
    known = {name: value for name, value in table.items() if name in model.model_fields}
    # A misspelt key is missing under its right name, too. And settings of [search] may complete those of [fixed].
    complete = known == table and model is not Config
    try:
        model.model_validate(known)
    except ValidationError as error:
        return complaints(error, where, of_single_keys=not complete)
    return []


def _raised(check: Callable[[], object]) -> list[SettingsError]:
    try:
        check()
    except SettingsError as error:
        return [error]
    return []

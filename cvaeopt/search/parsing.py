"""Read the tables of a study's TOML file. Each table is checked, and the search space is checked at its corners.

Every error is a SettingsError that names the place in the file, what was found and what was expected.
"""

from __future__ import annotations

import contextlib
import re
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from cvaeopt.config import Config, check_names, problem_error, settings_error
from cvaeopt.errors import SettingsError
from cvaeopt.search import space
from cvaeopt.search.space import (
    CategoricalDimension,
    Dimension,
    FloatDimension,
    IntDimension,
    Scalar,
    Values,
    same,
)
from cvaeopt.search.tables import Budget
from cvaeopt.spelling import meant, nearest, words_of

_Model = TypeVar("_Model", bound=BaseModel)
_DIMENSIONS: MappingProxyType[str, type[Dimension]] = MappingProxyType(
    {"float": FloatDimension, "int": IntDimension, "categorical": CategoricalDimension}
)


def parse_table(model: type[_Model], table: dict[str, Any], where: str) -> _Model:
    """The table as a checked `model`; SettingsError if the table is wrong."""
    check_names(table, list(model.model_fields), where, kind="key")
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise complaints(error, where)[0] from None


def complaints(
    error: ValidationError, where: str, inside: int = 0, *, of_single_keys: bool = False
) -> list[SettingsError]:
    """The complaints of `error` as SettingsErrors, one for each key of the table.

    inside           number of leading steps of a complaint's location that belong to the union, not the file
    of_single_keys   whether to leave out complaints about missing keys and about the table as a whole
    """
    made: dict[Any, SettingsError] = {}
    for problem in error.errors():
        location = problem["loc"][inside:]
        if of_single_keys and (not location or problem["type"] == "missing"):
            continue
        if problem["type"] == "missing":
            name = ".".join(str(part) for part in location)
            complaint = SettingsError(f"{where}: {name} is missing.", todo="Add it.")
        else:
            complaint = problem_error(problem, where, inside)
        made.setdefault(location[:1], complaint)
    return list(made.values())


def parse_kind(union: Any, default: str, table: dict[str, Any], where: str) -> Any:
    """The table as the model of `union` that the key `kind` names. Without this key, `default` is the kind."""
    models = {words_of(model, "kind")[0]: model for model in get_args(union)}
    given = table.get("kind", default)
    try:
        return TypeAdapter[Any](Annotated[union, Field(discriminator="kind")]).validate_python(
            {**table, "kind": meant(given, models)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "union_tag_invalid":
            near = nearest(given, models)
            raise SettingsError(
                f"{where}: kind = {given!r}.",
                f"Expected one of: {', '.join(models)}.",
                f"Did you mean '{near}'?" if near else "",
            ) from None
        check_names(table, list(models[str(first["loc"][0])].model_fields), where, kind="key")
        raise complaints(error, where, inside=1)[0] from None


def subtable(tables: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """The table of this name; empty if the table is absent."""
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{where}: {name} = {table!r}.", f"Expected: a table, [{name}].")
    return table


def parse_search(table: dict[str, Any], where: str, *, seeds: bool) -> dict[str, Dimension]:
    """The dimensions of [search] by setting. The setting `seed` is allowed only if `seeds` is True."""
    check_names(table, list(Config.model_fields), where)
    search: dict[str, Dimension] = {}
    for name, given in table.items():
        if name in space.NOT_SEARCHED and not (seeds and name == "seed"):
            raise SettingsError(
                f"{where}: '{name}' cannot be searched: {space.NOT_SEARCHED[name]}.",
                todo=f"Remove {name} from [search].",
            )
        allowed = _types_of(name)
        kind = meant(given.get("type"), allowed) if isinstance(given, dict) else None
        if not isinstance(given, dict) or kind not in allowed:
            raise SettingsError(
                f"{where}: {name} has {'no type' if kind is None else f'type = {kind!r}'}.",
                f"Expected: a table with type = {' or '.join(repr(one) for one in allowed)}.",
            )
        search[name] = parse_table(_DIMENSIONS[kind], _coerced(name, given), f"{where} {name}")
    return search


def _types_of(name: str) -> list[str]:
    annotation = Config.model_fields[name].annotation
    if annotation is float:
        return ["float", "categorical"]
    return ["int", "categorical"] if annotation is int else ["categorical"]


def _coerced(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The dimension's table, with choices and values of `when` converted by `as_setting`."""
    table = dict(given)
    if isinstance(table.get("choices"), list):
        table["choices"] = [as_setting(name, choice) for choice in table["choices"]]
    if isinstance(table.get("when"), dict):
        table["when"] = {
            other: [as_setting(other, value) for value in values] if isinstance(values, list) else values
            for other, values in table["when"].items()
        }
    return table


def as_setting(name: str, value: Any) -> Any:
    """The value in the setting's type and usual spelling, if it can be converted; otherwise the value itself."""
    field = Config.model_fields.get(name)
    if field is not None and field.annotation is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a later check refuses the value and names the setting
            return float(value)
    return meant(value, words_of(Config, name))


def parse_fixed(table: dict[str, Any], search: dict[str, Dimension], budget: Budget, where: str) -> dict[str, Any]:
    """The fixed settings, checked together with the corners of the search space."""
    check_names(table, list(Config.model_fields), f"{where}: [fixed]")
    if "num_epoch" in table:
        raise SettingsError(f"{where}: [fixed] has num_epoch.", todo="Write epochs under [budget] instead.")
    for name in table:
        if name in search:
            raise SettingsError(
                f"{where}: '{name}' is searched and fixed.", todo="Remove it from [search] or from [fixed]."
            )
    table = {name: as_setting(name, value) for name, value in table.items()}
    space.order(search, f"{where}: [search]")  # called first, so that an error about a circle names the file
    config = None
    for point in space.corners(search, table):
        try:
            config = Config.model_validate({**table, **point, "num_epoch": budget.epochs})
        except ValidationError as error:
            raise _corner_complaint(error, table, point, where) from None
    if config is None:
        raise SettingsError(f"{where}: [search] has no point.", todo="Give every setting a range or choices.")
    plain = config.plain()
    return {name: plain[name] for name in table}


def _corner_complaint(error: ValidationError, fixed: dict[str, Any], point: Values, where: str) -> SettingsError:
    first = error.errors()[0]
    if first["loc"]:
        name = str(first["loc"][0])
        complaint = settings_error(error, f"{where}: [{'search' if name in point else 'fixed'}]")
        return SettingsError(complaint.found, complaint.expected, "Change the range." if name in point else "")
    message = first["msg"].removeprefix("Value error, ")
    words = set(re.findall(r"\w+", message))
    values = {**space.settled({}, fixed), **point}
    involved = ", ".join(f"{name} = {value!r}" for name, value in values.items() if name in words)
    return SettingsError(
        f"{where}: [search] reaches settings that cannot run ({involved}): {message}.",
        todo="Narrow a range, fix one of them, or add a 'when'.",
    )


def check_conditions(search: dict[str, Dimension], fixed: dict[str, Any], where: str) -> None:
    """Raise SettingsError if a `when` names a setting that does not exist, or a value that cannot occur."""
    settled = space.settled(search, fixed)
    for name, dimension in search.items():
        check_names(dimension.when, list(Config.model_fields), f"{where} {name}: when")
        for other, values in dimension.when.items():
            if other in search and isinstance(search[other], FloatDimension):
                raise SettingsError(
                    f"{where} {name}: when reads '{other}', a continuous range.",
                    "Expected: an int or categorical setting, whose values can be listed.",
                )
            if other in search:
                for value in values:
                    if not search[other].contains(value):
                        raise SettingsError(
                            f"{where} {name}: when {other} = {value!r}, which is never suggested.",
                            f"Expected: {search[other].text()}.",
                        )
            elif not any(same(value, settled[other]) for value in values):
                raise SettingsError(
                    f"{where}: '{name}' is never searched: its when needs {other} = "
                    f"{' or '.join(repr(value) for value in values)}, and {other} is {settled[other]!r}.",
                    todo=f"Correct the when, search {other}, or remove {name}.",
                )


def check_effects(search: dict[str, Dimension], fixed: dict[str, Any], where: str) -> None:
    """Raise SettingsError if a searched setting has no effect at any corner of the search space."""
    defaults = space.settled({}, fixed)
    effective: set[str] = set()
    for point in space.corners(search, fixed):
        values = {**defaults, **point}
        effective |= {name for name in point if space.has_effect(name, values)}
        if len(effective) == len(search):
            return
    name = next(name for name in search if name not in effective)
    raise SettingsError(
        f"{where}: '{name}' has no effect anywhere in this study: {space.NEEDS[name]}.",
        todo=f"Remove {name}, or search the settings that it needs.",
    )


def parse_enqueue(
    given: Any, search: dict[str, Dimension], fixed: dict[str, Any], where: str
) -> list[dict[str, Scalar]]:
    """The points of [[enqueue]]; SettingsError if a point has a setting that is not searched at this point."""
    if not isinstance(given, list) or not all(isinstance(point, dict) for point in given):
        raise SettingsError(f"{where} is no list of tables.", "Expected: [[enqueue]], in double brackets.")
    points: list[dict[str, Scalar]] = []
    for index, table in enumerate(given, start=1):
        here = f"{where} {index}"
        check_names(table, list(search), here, kind="searched setting")
        point = {name: as_setting(name, value) for name, value in table.items()}
        values = space.settled(search, fixed)
        for name in space.order(search):
            dimension = search[name]
            active = dimension.active(values)
            if name not in point:
                continue
            if not dimension.contains(point[name]):
                raise SettingsError(f"{here}: {name} = {point[name]!r}.", f"Expected: {dimension.text()}.")
            if not active:
                needs = " and ".join(f"{other} in {allowed!r}" for other, allowed in dimension.when.items())
                raise SettingsError(
                    f"{here}: {name} = {point[name]!r} is not searched at this point.",
                    f"Expected beside it: {needs}.",
                    f"Remove {name} from the point, or add what it needs.",
                )
            values[name] = point[name]
        if point in points:
            raise SettingsError(f"{here} repeats {points.index(point) + 1}.", todo="Remove one of them.")
        if not point:
            raise SettingsError(f"{here} is empty.", todo="Name at least one searched setting.")
        points.append(point)
    return points

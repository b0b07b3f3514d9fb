"""The differences between two definitions of a study, and whether a study can go on with the second definition."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import CategoricalDimension, Dimension, Values
from cvaeopt.text import short

_MEASURES: Final[Mapping[str, str]] = {
    "metric": "the values of the old trials are of the other metric",
    "window": "the values of the old trials are means over another number of epochs",
    "seed": "every trial's seed and every suggestion derive from it",
    "seeds": "old and new trials would be seeded in different ways",
    "confirms": "it connects a confirmation with its study",
}
"""The keys of [study] that an extension cannot change, each with the reason."""

_NEW_STUDY: Final = "Give the changed definition a new name; its [warm_start] takes this study's leaders over."


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The settings that differ, as (dotted key, JSON text before, JSON text after); "nothing" for a missing setting.

    before, after   tables as `Definition.plain` returns them. The description is left out.
    """
    old, new = _leaves(before), _leaves(after)
    keys = [key for key in dict.fromkeys([*old, *new]) if key != "study.description"]
    return [(key, old.get(key, "nothing"), new.get(key, "nothing")) for key in keys if old.get(key) != new.get(key)]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The differences as texts, such as "budget.trials: 60 -> 100"."""
    found = [f"{key}: {old} -> {new}" for key, old, new in differences(before, after)]
    return found or ["the order of the settings under [search]"]


def _leaves(value: Any, key: str = "") -> dict[str, str]:
    """The values in nested tables: dotted key -> JSON text. A table in a list has its number in the key."""
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {key: json.dumps(value)}
    return {
        leaf: text
        for name, one in value.items()
        for leaf, text in _leaves(one, f"{key}.{name}" if key else str(name)).items()
    }


def check(before: Definition, after: Definition) -> None:
    """SettingsError names the first change with which the trials of `before` would not be comparable any more.

    StudyError if `before` is a confirmation, which cannot be extended.
    """
    if before.confirms is not None:
        raise StudyError(
            f"Study '{before.name}' is a confirmation.",
            "Expected: a study that searches.",
            "For more leaders or seeds, use cvaeopt confirm.",
        )
    for key, old, new, reason, todo in _refused(before, after):
        raise SettingsError(f"Study '{before.name}': {key} changes from {old} to {new}.", f"Expected: {reason}.", todo)


def _refused(before: Definition, after: Definition) -> Iterator[tuple[str, Any, Any, str, str]]:
    """The changes that are refused: (key, before, after, what was expected, what to do)."""
    for key, reason in _MEASURES.items():
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            yield f"[study] {key}", repr(old), repr(new), f"the same value, because {reason}", _NEW_STUDY
    if after.epochs < before.epochs:
        yield (
            "[budget] epochs",
            before.epochs,
            after.epochs,
            f"at least {before.epochs}, because the old trials were trained for more epochs",
            _NEW_STUDY,
        )
    if before.warm_start != after.warm_start:
        yield (
            "[warm_start]",
            _table(before.warm_start),
            _table(after.warm_start),
            "the same table, because it is read when a study is created",
            "Add the points under [[enqueue]].",
        )
    old_settled, new_settled = (space.settled(one.search, one.fixed) for one in (before, after))
    for name in old_settled.keys() & new_settled.keys():
        if name != "num_epoch" and old_settled[name] != new_settled[name]:
            yield (
                f"[fixed] {name}",
                repr(old_settled[name]),
                repr(new_settled[name]),
                "the same value in all trials of a study",
                f"Search both values ([search] {name}). {_NEW_STUDY}" if name not in space.NOT_SEARCHED else _NEW_STUDY,
            )
    for name, old_range in before.search.items():
        new_range = after.search.get(name)
        if new_range is None:
            yield (
                f"[search] {name}",
                old_range.text(),
                "a fixed value",
                "it stays under [search], because the old trials have several values",
                f"Narrow its range to one value (low = high). {_NEW_STUDY}"
                if not isinstance(old_range, CategoricalDimension)
                else _NEW_STUDY,
            )
        else:
            yield from _refused_range(name, old_range, new_range)


def _refused_range(name: str, old: Dimension, new: Dimension) -> Iterator[tuple[str, Any, Any, str, str]]:
    """Changes of a searched setting that Optuna refuses too, because its samplers compare values on one scale."""
    if isinstance(old, CategoricalDimension) or isinstance(new, CategoricalDimension):
        if type(old) is not type(new) or old != new.model_copy(update={"when": old.when}):
            yield f"[search] {name}", old.text(), new.text(), "the same choices in the same order", _NEW_STUDY
    elif old.log != new.log:
        words = {True: "a log scale", False: "a linear scale"}
        yield f"[search] {name}", words[old.log], words[new.log], "the same scale", _NEW_STUDY


def _table(value: Any) -> str:
    return "no table" if value is None else ", ".join(f"{key} = {one!r}" for key, one in dict(value).items())


def carried_over(config: Config, definition: Definition) -> tuple[Values, str]:
    """The parameters with which `definition` trains the same settings as a run of `config`, and ''.

    A setting that was fixed in the run and is searched in `definition` gets the run's value. If the definition cannot
    train these settings, the parameters are empty and the text says why. The number of epochs is not compared.
    """
    values = space.settled(definition.search, definition.fixed)
    params: Values = {}
    for name in space.order(definition.search):
        dimension, value = definition.search[name], getattr(config, name)
        if dimension.active(values):
            if not dimension.contains(value):
                return {}, f"{name} = {short(value)} is not in the range {dimension.text()}"
            params[name] = values[name] = value
    same = space.params_to_config(definition, params, 0, config.seed).plain()
    mine = config.plain()
    for name, value in mine.items():
        if name != "num_epoch" and value != same[name] and space.has_effect(name, mine):
            return {}, f"{name} = {short(value)} would be {short(same[name])}"
    return params, ""

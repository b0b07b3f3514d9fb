"""Study files and recipes with random changes: they load, or the user is told what is wrong with them."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError, UserError
from cvaeopt.outcome import recipe
from cvaeopt.search.definition import Definition, load_definition

STUDY: dict[str, Any] = {
    "study": {"description": "d", "metric": "val_psnr", "window": 2, "seed": 3, "seeds": "each"},
    "budget": {"trials": 40, "epochs": 30, "patience_trials": 9},
    "fixed": {"lr_scheduler": "cosine", "milestones": [2, 5], "tfr": 1.0},
    "search": {
        "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]},
        "kl_anneal_cycle": {"type": "int", "low": 2, "high": 8, "when": {"kl_anneal_type": ["cyclical"]}},
        "tfr_d_step": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1},
    },
    "sampler": {"kind": "tpe", "n_startup_trials": 5},
    "pruner": {"kind": "median", "n_startup_trials": 5, "warmup_epochs": 3, "interval_epochs": 1},
    "enqueue": [{"lr": 1e-3}, {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 3}],
    "warm_start": {"study": "old", "top": 3},
    "service": {"storage": "sqlite:///x.db", "gpu": 0, "keep_best": 2},
}
RECIPE: dict[str, Any] = {"settings": Config().plain(), "provenance": {"study": "s", "trial": 3, "value": 31.5}}

WORDS = [
    *Config.model_fields, *STUDY, *STUDY["study"], *STUDY["budget"], *STUDY["pruner"], "kind", "type", "low", "high",
    "step", "log", "choices", "when", "grid", "gp", "forecast", "halving", "Adam", "None", "seed", "cpu", "", "\0",
]  # fmt: skip
SCALARS = (
    st.sampled_from(WORDS)
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 8, 30])
    | st.integers(-40, 4000)
    | st.floats()
    | st.sampled_from([0.0, 0.1, 1e-300, 1e300, 0.3])
    | st.dates()
    | st.datetimes()
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every entry of the nested tables and lists, as (table or list, key or index)."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@st.composite
def changed(draw: st.DrawFn, original: dict[str, Any]) -> dict[str, Any]:
    """The tables after one to three changes: a value replaced, removed, renamed or added."""
    tables = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        there = places(tables)
        if not there:
            break
        holder, key = there[draw(st.integers(0, len(there) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "add"]))
        if change == "replace":
            holder[key] = draw(VALUES)
        elif change == "remove":
            del holder[key]
        elif isinstance(holder, list):
            holder.append(draw(VALUES))
        else:
            holder[draw(st.sampled_from(WORDS))] = holder.pop(key) if change == "rename" else draw(VALUES)
    return tables


def study_with(**changes: Any) -> dict[str, Any]:
    return STUDY | changes


@settings(max_examples=150, deadline=None)
@given(changed(STUDY))
@example(study_with(sampler={"kind": {}}))
@example(study_with(sampler={"kind": []}))
@example(study_with(pruner={"kind": {"median": 1}}))
@example(study_with(pruner={"kind": [[]]}))
@example(study_with(pruner={"kind": 10**400}))
@example(study_with(fixed={"tfr": 10**400}))
@example(study_with(search={"lr": {"type": {}, "low": 1e-4, "high": 1e-2}}))
@example(study_with(search={"lr": {"type": "float", "low": 0.0, "high": 1e300, "step": 1e-10}}))
def test_a_changed_study_loads_or_is_refused_with_a_reason(tables: dict[str, Any]) -> None:
    try:
        definition = Definition.parse(tables, "fuzzed", "fuzzed.toml")
    except UserError as error:
        assert "fuzzed" in error.found
        assert error.expected or error.todo
    else:
        assert Definition.parse(definition.plain(), "fuzzed", "again").digest() == definition.digest()


@settings(max_examples=80, deadline=None)
@given(changed(RECIPE))
@example({"settings": {**RECIPE["settings"], "lr": 10**400}})
def test_a_changed_recipe_loads_or_is_refused_with_a_reason(tables: dict[str, Any]) -> None:
    with contextlib.suppress(UserError):
        read = recipe.parse(tables, "fuzzed.toml")
        assert Config.parse(read.settings.plain(), "again") == read.settings
        assert isinstance(read.edited, bool) and isinstance(read.origin, dict)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_file_with_changed_bytes_loads_or_is_refused_with_a_reason(data: st.DataObject) -> None:
    tables, load = data.draw(st.sampled_from([(STUDY, lambda path: load_definition(str(path))), (RECIPE, recipe.read)]))
    content = bytearray(tomli_w.dumps(tables).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:end] = data.draw(st.binary(max_size=8) | st.sampled_from([b"{}", b"[", b"\xef\xbb\xbf", b"'"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.toml"
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            load(path)


@pytest.mark.parametrize("kind", [{}, [], {"tpe": 1}, 3, True, 1.5, "tpee"])
def test_a_kind_that_is_none_is_refused_by_name(kind: Any) -> None:
    for table in ("sampler", "pruner"):
        with pytest.raises(SettingsError) as caught:
            Definition.parse(study_with(**{table: {"kind": kind}}), "test", "test.toml")
        assert caught.value.found == f"test.toml: [{table}]: kind = {kind!r}."
        assert caught.value.expected.startswith("Expected one of: ")

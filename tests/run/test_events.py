"""Events travel between processes as lines of JSON."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.run.events import Event, Outage, from_json, to_json

NUMBERS = st.integers() | st.floats(allow_nan=False)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    dict[str, Any]: st.dictionaries(st.text(), NUMBERS | st.text() | st.none() | st.lists(NUMBERS)),
    dict[str, float]: st.dictionaries(st.text(), st.floats(allow_nan=False)),
    float: st.floats(allow_nan=False),
}


def made(kind: type[Event]) -> st.SearchStrategy[Event]:
    """Events of one kind with any content."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: VALUES.get(hint, st.from_type(hint)) for name, hint in hints.items()})


@given(st.one_of([made(kind) for kind in get_args(Event)]))
def test_an_event_comes_back_as_it_was_sent(event: Event) -> None:
    line = to_json(event)
    assert "\n" not in line and line.isascii()
    assert from_json(line) == event


def test_a_value_that_is_no_number_travels_too() -> None:
    event = from_json(to_json(Outage(math.nan, "")))
    assert isinstance(event, Outage) and math.isnan(event.seconds)


@pytest.mark.parametrize("line", ['{"event": "Unknown"}', '{"said": "x"}', '{"event": "Warned", "text": "x"}'])
def test_another_object_is_no_event(line: str) -> None:
    with pytest.raises((KeyError, TypeError)):
        from_json(line)

"""Streams that cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest


@contextmanager
def closed_pipe() -> Iterator[TextIO]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", buffering=1) as stream:
        yield stream


@contextmanager
def full_disk() -> Iterator[TextIO]:
    place = Path("/dev/full")
    if not place.exists():
        pytest.skip("needs /dev/full")
    with place.open("w", buffering=1) as stream:
        yield stream

"""Waiting for what another process or thread does, without a guess at how long that takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONG_S = 500.0
"""How long something that always happens may take on the busiest machine; a little less than the time-out of a test."""


def until(condition: Callable[[], T], process: subprocess.Popen[str] | None = None) -> T:
    """The first true answer of `condition`; AssertionError when `process` has ended without it."""
    end = time.monotonic() + LONG_S
    while True:
        ended = process is not None and process.poll() is not None  # asked first: it may answer and end
        if answer := condition():
            return answer
        assert not ended, f"the process ended with {process.returncode if process else None} before this happened"
        assert time.monotonic() < end, f"this did not happen within {LONG_S:.0f} s"
        time.sleep(0.02)

"""Kinds of failure of a trial, and how many trials may fail in a row."""

from __future__ import annotations

from cvaeopt.errors import Diverged, UserError

LEARNABLE = {"diverged": "diverged", "out of memory": "out_of_memory", "crashed": "crashed"}
"""Kinds of failure that settings can cause, with the constraint of each kind."""

_MAX_IN_A_ROW = 3
_MAX_LEARNABLE_IN_A_ROW = 9  # settings can cause such failures, so more of them are allowed


def kind_of(error: Exception) -> tuple[str, str]:
    """The kind of failure ("diverged", "out of memory", "device fault" or "error") and its reason in one line."""
    name, message = type(error).__name__, str(error).strip()
    line = message.splitlines()[0] if message else ""
    if isinstance(error, Diverged):
        return "diverged", message
    if name == "OutOfMemoryError" or isinstance(error, MemoryError) or "out of memory" in message.lower():
        return "out of memory", f"{name}: {line}"
    if name == "AcceleratorError" or "CUDA error" in message or "device-side assert" in message:
        return "device fault", f"{name}: {line}"
    return "error", f"{name}: {line}" if line else name


class FailuresInARow:
    """The failures of a worker's trials since its last trial that did not fail."""

    def __init__(self) -> None:
        self._kinds: list[str] = []

    def note(self, kind: str, reason: str) -> None:
        """Record the end of a trial; `kind` is empty if it did not fail. UserError if too many failed in a row."""
        self._kinds = [*self._kinds, kind] if kind else []
        hard = [kind for kind in self._kinds if kind not in ("diverged", "crashed")]
        if len(hard) >= _MAX_IN_A_ROW or len(self._kinds) >= _MAX_LEARNABLE_IN_A_ROW:
            raise UserError(
                f"{len(self._kinds)} trials failed in a row, the last one with: {reason}",
                "Expected: failures to be the exception.",
                "Correct the cause and start the worker again; the failed trials are counted in the budget.",
            )

"""What a worker needs of a trial's training. `TrialRun` is the real one; tests have one that is made of numbers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Literal, Protocol

from optuna.trial import Trial

from cvaeopt.store.leases import Lease


class Epoch(Protocol):
    """One finished epoch of a run, as `EpochResult` has it."""

    @property
    def epoch(self) -> int:
        """Epochs finished, this one included."""

    def row(self) -> dict[str, Any]:
        """The epoch's line of history.jsonl."""


class Trainable(Protocol):
    """One trial in training."""

    @property
    def epoch(self) -> int:
        """Epochs finished; above 0 after a resume."""

    @property
    def epochs(self) -> int:
        """Epochs of the whole trial."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per finished epoch, those before a resume included."""

    def value_of(self, row: dict[str, Any]) -> float:
        """What is reported for this epoch."""

    def final_value(self) -> float:
        """What is told when all epochs are trained."""

    def run(self) -> Generator[Epoch, None, None]:
        """Train the epochs that remain."""

    def save(self) -> None:
        """Write a checkpoint, whole or not at all; OSError when the disk is full."""

    def settle(self) -> None:
        """Wait, a bounded time, until the last checkpoint is where the next owner finds it; never raises."""

    def finish(self, state: Literal["complete", "pruned", "failed"], reason: str) -> None:
        """Write what people want to see; never raises."""


Factory = Callable[[Trial, Lease], Trainable]
"""Makes the training of a trial: suggests its settings, opens its folder, restores its newest checkpoint."""

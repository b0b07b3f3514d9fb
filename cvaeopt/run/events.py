"""What a worker reports to whoever watches it: small facts, which the console prints and tests collect.

A worker that another process started sends them to it as lines of JSON, see `to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class StudyOpened:
    """The process is about to train trials of `study`: settings, data, storage and study are in order.

    baselines   of the study's data, dB, by their names
    """

    study: str
    baselines: dict[str, float]


@dataclass(frozen=True)
class StudyRead:
    """What `status` says of the whole study now, as JSON values."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class WorkerStarted:
    """The worker is registered and begins to look for a trial."""

    worker: str
    study: str
    device: str


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins, or goes on after `epoch` finished epochs; `params` are its suggestions."""

    number: int
    epoch: int
    epochs: int
    attempt: int
    params: dict[str, Any]


@dataclass(frozen=True)
class LeaseTaken:
    """The worker continues a trial that another worker stopped training; `epoch` epochs were reported."""

    number: int
    token: int
    attempt: int
    epoch: int


@dataclass(frozen=True)
class EpochDone:
    """One epoch is trained. `row` is its line of history.jsonl; `pending` while the database is away."""

    number: int
    epoch: int
    epochs: int
    value: float
    row: dict[str, Any]
    pending: bool


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over. `value` is None unless it is complete; `failed` is the kind of failure or empty."""

    number: int
    outcome: Literal["complete", "pruned", "failed"]
    reason: str
    epochs_done: int
    value: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class TrialLeft:
    """The worker stopped training a trial that is not over: it was stopped, or lost the lease."""

    number: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class Waiting:
    """There is no trial to train now, but there may be one later."""

    reason: str


@dataclass(frozen=True)
class Outage:
    """The database has not answered for `seconds`; `reason` is its last error. Training goes on."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Recovered:
    """The database is back after `seconds`; `delivered` reports were waiting for it."""

    seconds: float
    delivered: int = 0


@dataclass(frozen=True)
class Stalled:
    """No epoch ended within `deadline_s`: the lease is no longer renewed, so that another worker takes over."""

    number: int
    deadline_s: float


@dataclass(frozen=True)
class Stopping:
    """The worker was asked to stop and ends after the current epoch."""

    reason: str


@dataclass(frozen=True)
class Warned:
    """Something is not as it should be, and the worker goes on."""

    message: str


@dataclass(frozen=True)
class WorkerEnded:
    """The worker is done: "finished" (the budget is met) or "stopped" (as asked)."""

    kind: Literal["finished", "stopped"]
    reason: str
    trials: int


Event = (
    StudyOpened
    | StudyRead
    | WorkerStarted
    | TrialStarted
    | LeaseTaken
    | EpochDone
    | TrialEnded
    | TrialLeft
    | Waiting
    | Outage
    | Recovered
    | Stalled
    | Stopping
    | Warned
    | WorkerEnded
)
Listener = Callable[[Event], None]

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def to_json(event: Event) -> str:
    """The event in one line of JSON: its fields, and the name of its class as "event"."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event of a line that `to_json` made; KeyError or TypeError for another object, ValueError for other text."""
    fields = json.loads(line)
    return _KINDS[fields.pop("event")](**fields)

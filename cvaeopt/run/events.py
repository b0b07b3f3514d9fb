"""The events of a worker. The console prints these events, and tests collect them.

If another process started the worker, the worker sends its events to that process as lines of JSON, see `to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class StudyOpened:
    """The process is about to train trials of `study`: settings, data, storage and study are in order.

    baselines   the baselines of the study's data by name, dB
    """

    study: str
    baselines: dict[str, float]


@dataclass(frozen=True)
class StudyExtended:
    """The worker takes the newest version of the study's definition.

    known     number of the version that the worker had
    version   number of the newest version
    by        user@host of the person who made this version; "" if it is not known
    changes   the settings that differ between these versions, as text
    """

    study: str
    known: int
    version: int
    by: str
    changes: list[str]


@dataclass(frozen=True)
class StudyRead:
    """The present state of the whole study, as the JSON values that `status` returns."""

    facts: dict[str, Any]


@dataclass(frozen=True)
class WorkerStarted:
    """The worker is registered and begins to look for a trial."""

    worker: str
    study: str
    device: str


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins, or continues after `epoch` finished epochs. `params` are the trial's suggested settings."""

    number: int
    epoch: int
    epochs: int
    attempt: int
    params: dict[str, Any]


@dataclass(frozen=True)
class LeaseTaken:
    """The worker continues a trial that another worker stopped training. `epoch` epochs were reported before."""

    number: int
    token: int
    attempt: int
    epoch: int


@dataclass(frozen=True)
class EpochDone:
    """One epoch is trained. `row` is the epoch's row in history.jsonl. `pending`: the report has no answer yet."""

    number: int
    epoch: int
    epochs: int
    value: float
    row: dict[str, Any]
    pending: bool


@dataclass(frozen=True)
class TrialEnded:
    """A trial has ended. `value` is None unless the trial is complete. `failed` is the kind of failure, or empty."""

    number: int
    outcome: Literal["complete", "pruned", "failed"]
    reason: str
    epochs_done: int
    value: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class TrialLeft:
    """The worker stopped training a trial that has not ended: the worker was asked to stop, or lost the lease."""

    number: int
    epoch: int
    reason: str


@dataclass(frozen=True)
class Waiting:
    """There is no trial to train now, but there may be one later."""

    reason: str


@dataclass(frozen=True)
class Outage:
    """The database has not answered for `seconds`; `reason` is the last error. Training continues."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class Recovered:
    """The database answers again after `seconds`; `delivered` is the number of reports that waited."""

    seconds: float
    delivered: int = 0


@dataclass(frozen=True)
class Stalled:
    """No epoch ended within `deadline_s`. The lease is no longer renewed, so that another worker can take the trial."""

    number: int
    deadline_s: float


@dataclass(frozen=True)
class Stopping:
    """The worker was asked to stop and will end after the current epoch."""

    reason: str


@dataclass(frozen=True)
class Warned:
    """There is a problem, but the worker continues."""

    message: str


@dataclass(frozen=True)
class WorkerEnded:
    """The worker has ended: "finished" (the budget is met) or "stopped" (a stop was requested)."""

    kind: Literal["finished", "stopped"]
    reason: str
    trials: int


Event = (
    StudyOpened
    | StudyExtended
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
    """The event as one line of JSON: the event's fields, and its class name under the key "event"."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_json(line: str) -> Event:
    """The event in a line of `to_json`; KeyError or TypeError for other JSON objects, ValueError for other text."""
    fields = json.loads(line)
    return _KINDS[fields.pop("event")](**fields)

"""A study in the storage: created once by whoever is first, verified by everybody else, counted, ranked."""

from __future__ import annotations

import difflib
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, String, cast, column, delete, func, insert, select, table, update
from sqlalchemy.orm import Session

from cvaeopt.errors import StudyError
from cvaeopt.search import space
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.store import identity, leases
from cvaeopt.store.damage import named
from cvaeopt.store.storage import Storage, lease_table, study_table
from cvaeopt.suggest.sampler import pruner_for, sampler_for

__all__ = [
    "Definition",
    "best",
    "counts",
    "create_or_open",
    "identity_of",
    "left",
    "load_definition",
    "names",
    "open_existing",
    "pruner_for",
    "record_facts",
    "sampler_for",
    "status",
    "stored_definition",
]

ENQUEUED = "cvaeopt:enqueued"
"""System attribute of a trial that waited in the study from its start: the index of its point."""

MARK = "cvaeopt:digest"
"""System attribute of a study that ties it to its row in cvaeopt_study: SQLite gives the id of a deleted study to the
next one, so that the id alone does not say that the row is this study's."""

FAILED = "failed"
"""User attribute of a trial that failed; Optuna's state is then PRUNED, so that samplers learn from it."""

_SHOWN_DIFFERENCES = 3

# Optuna's own tables, as far as they are read here.
_STUDIES = table("studies", column("study_id"), column("study_name"))
_STUDY_ATTRS = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
_TRIALS = table(
    "trials", column("trial_id"), column("number"), column("study_id"), column("state"), column("datetime_complete")
)
_VALUES = table("trial_values", column("trial_id"), column("value"), column("value_type"))
_STEPS = table("trial_intermediate_values", column("trial_id"), column("step"))
_USER_ATTRS = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))
_SYSTEM_ATTRS = table("trial_system_attributes", column("trial_id"), column("key"), column("value_json"))


@named
def create_or_open(storage: Storage, definition: Definition) -> Study:
    """The study of `definition`, created (with its enqueued points, once) if it is not there yet.

    Any number of workers may call this at the same time, and any of them may be killed in it.
    StudyError if a study of this name was created from another definition or by another program.
    """
    entry = _entry(storage, definition.name)
    if entry is None:
        _create(storage, definition)
        entry = _entry(storage, definition.name)
        if entry is None:
            raise StudyError(f"Study '{definition.name}' was deleted while it was being created.", todo="Start again.")
    if entry["digest"] != definition.digest():
        raise StudyError(
            f"Study '{definition.name}' was created from another definition "
            f"(stored {entry['digest']}, file {definition.digest()}): "
            f"{_differences(json.loads(entry['definition']), definition.plain())}.",
            todo=f"Restore {definition.name}.toml or create the study under a new name.",
        )
    if entry["identity"] is None:
        _identify(storage, entry)
    return _load(storage, definition)


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """The first three settings in which two definitions differ, such as "budget.trials: stored 4, file 5"."""
    before, after = _leaves(stored), _leaves(given)
    keys = [key for key in dict.fromkeys([*before, *after]) if key != "study.description"]
    found = [
        f"{key}: stored {before.get(key, 'nothing')}, file {after.get(key, 'nothing')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]
    if not found:
        return "the settings under [search] stand in another order"
    more = f"; and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
    return "; ".join(found[:_SHOWN_DIFFERENCES]) + more


def _leaves(value: Any, key: str = "") -> dict[str, str]:
    """The values in nested tables, as JSON, by dotted key; tables in a list are numbered."""
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {key: json.dumps(value)}
    return {
        leaf: text
        for name, one in value.items()
        for leaf, text in _leaves(one, f"{key}.{name}" if key else str(name)).items()
    }


@named
def open_existing(storage: Storage, name: str) -> tuple[Study, Definition]:
    """The study of this name and the definition it was created from ([service] at its defaults).

    StudyError with the names that exist if there is none.
    """
    definition = stored_definition(storage, name)
    return _load(storage, definition), definition


@named
def stored_definition(storage: Storage, name: str) -> Definition:
    """The definition a study was created from; StudyError with the names that exist if there is none."""
    entry = _require(storage, name)
    return Definition.parse(json.loads(entry["definition"]), name, f"study '{name}' in {storage.url}")


def names(storage: Storage) -> list[str]:
    """The names of all studies that this program has made in the storage, in order."""

    def read() -> list[str]:
        with storage.reading() as connection:
            return list(connection.execute(select(study_table.c.name).order_by(study_table.c.name)).scalars())

    return storage.retry(read)


@named
def record_facts(
    storage: Storage, name: str, data_digest: str, measure: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """The study's facts: `data_digest` and `baselines` (dB), measured and stored by the first worker.

    StudyError if the study's trials were measured on data with another digest: values could not be compared.
    """
    entry = _require(storage, name)
    facts = json.loads(entry["facts"])
    if "data_digest" not in facts:
        measured = {"data_digest": data_digest, "baselines": measure()}

        def record() -> dict[str, Any]:
            with storage.transaction() as connection:
                stored: dict[str, Any] = json.loads(storage.lock_study(connection, name).facts)
                if "data_digest" not in stored:
                    stored |= measured
                    connection.execute(
                        update(study_table)
                        .where(study_table.c.name == name)
                        .values(facts=json.dumps(stored, allow_nan=False))
                    )
                return stored

        facts = storage.retry(record)
    if facts["data_digest"] != data_digest:
        raise StudyError(
            f"Study '{name}' was measured on other data (stored {facts['data_digest']}, here {data_digest}).",
            todo="Give the same --data to every worker, or create the study under a new name.",
        )
    return dict(facts)


def best(study: Study) -> FrozenTrial | None:
    """The complete feasible trial with the highest value, the earliest of equals; None when there is none."""
    return next(iter(_ranked(study)), None)


def _ranked(study: Study) -> list[FrozenTrial]:
    """The complete feasible trials, the best first."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = [
        trial
        for trial in trials
        if math.isfinite(trial.values[0]) and all(value <= 0 for value in trial.constraints.values())
    ]
    return sorted(ranked, key=lambda trial: (-trial.values[0], trial.number))


@named
def counts(storage: Storage, name: str) -> dict[str, int]:
    """Trials by state: complete, pruned, running, waiting, failed; StudyError for an unknown study.

    A trial that its worker left, or that lost its worker, is waiting: it goes on when a worker takes it.
    """
    study_id = _require(storage, name)["study_id"]

    def read() -> dict[str, int]:
        with storage.reading() as connection:
            states = _states(connection, study_id)
            attributes = _attributes(connection, study_id, _USER_ATTRS, (FAILED,))
            _, left = _open_leases(connection, name, storage.now(connection))
            return _count(states, {trial_id for trial_id, _ in attributes}, left)

    return storage.retry(read)


@named
def left(storage: Storage, name: str) -> frozenset[int]:
    """The numbers of the trials that were begun, are not over, and have no worker; empty for an unknown study.

    Optuna calls them running. They go on when a worker takes them.
    """

    def read() -> frozenset[int]:
        with storage.reading() as connection:
            _, trial_ids = _open_leases(connection, name, storage.now(connection))
            query = select(lease_table.c.number).where(
                lease_table.c.study == name, lease_table.c.trial_id.in_(trial_ids)
            )
            return frozenset(connection.execute(query).scalars())

    return storage.retry(read)


@named
def status(storage: Storage, name: str) -> dict[str, Any]:
    """What `cvaeopt status --json` prints; StudyError for an unknown study.

    A fixed number of queries, none of which reads the trials' curves.
    """
    entry = _require(storage, name)
    definition = Definition.parse(json.loads(entry["definition"]), name, f"study '{name}' in {storage.url}")

    def read() -> dict[str, Any]:
        with storage.reading() as connection:
            now = storage.now(connection)
            return _status(connection, name, entry["study_id"], now)

    found = storage.retry(read)
    winner = found.pop("best")
    if winner is not None:
        trial_id, number, value = winner
        params = storage.get_trial(trial_id).params
        ordered = {name: params[name] for name in definition.search if name in params}
        winner = {"number": number, "value": round(value, 4), "params": ordered}
    return {
        "study": name,
        "storage": storage.url,
        "direction": "maximize",
        "metric": definition.metric,
        "budget": {
            "trials": entry["trials"],
            "epochs": entry["epochs"],
            "total_epochs": entry["total_epochs"],
            "wall_clock_h": definition.budget.wall_clock_h,
            "target_db": definition.budget.target_db,
            "patience_trials": definition.budget.patience_trials,
        },
        "trials": found["trials"],
        "epochs_spent": found["epochs_spent"],
        "best": winner,
        "baselines": {key: round(value, 2) for key, value in json.loads(entry["facts"]).get("baselines", {}).items()},
        "last": found["last"],
        "failures": found["failures"],
        "stopped": None if _is_met(entry, found) else entry["stopped_reason"],
        "workers": [
            {
                "id": worker.id,
                "host": worker.host,
                "device": worker.device,
                "state": worker.state,
                "trial": worker.trial,
                "epoch": worker.epoch,
                "beat_age_s": round(worker.beat_age_s, 1),
            }
            for worker in leases.workers(storage, name)
        ],
    }


def _is_met(entry: dict[str, Any], found: dict[str, Any]) -> bool:
    """True if the study has trained all that its trials or epochs allow: no stop has kept it from anything."""
    if found["open"]:
        return False
    trials, total_epochs = entry["trials"], entry["total_epochs"]
    ended = sum(found["trials"][state] for state in ("complete", "pruned", "failed"))
    if trials is not None and ended >= trials:
        return True
    return total_epochs is not None and found["epochs_spent"] + entry["epochs"] > total_epochs


def _open_leases(connection: Connection, name: str, now: float) -> tuple[set[int], set[int]]:
    """The ids of the trials that were begun and are not over, and of those among them that no worker trains."""
    rows = connection.execute(
        select(lease_table.c.trial_id, lease_table.c.owner, lease_table.c.expires_at).where(
            lease_table.c.study == name, lease_table.c.state == "open"
        )
    ).all()
    left = {row.trial_id for row in rows if row.owner is None or row.expires_at <= now}
    return {row.trial_id for row in rows}, left


def _status(connection: Connection, name: str, study_id: int, now: float) -> dict[str, Any]:
    states = _states(connection, study_id)
    begun, left = _open_leases(connection, name, now)
    notes = _attributes(connection, study_id, _USER_ATTRS, (FAILED, "reason"))
    failed = {trial_id for trial_id, key in notes if key == FAILED}
    failures = [
        {
            "number": number,
            "reason": str(notes.get((trial_id, "reason"), notes.get((trial_id, FAILED), "unknown"))),
        }
        for trial_id, number, state in states
        if state == "FAIL" or (state == "PRUNED" and trial_id in failed)
    ]
    deepest = (
        select(func.max(_STEPS.c.step).label("epochs"))
        .select_from(_STEPS.join(_TRIALS, _TRIALS.c.trial_id == _STEPS.c.trial_id))
        .where(_TRIALS.c.study_id == study_id)
        .group_by(_STEPS.c.trial_id)
        .subquery()
    )
    epochs_spent = connection.execute(select(func.sum(deepest.c.epochs))).scalar()
    return {
        "trials": _count(states, failed, left),
        "open": bool(begun),
        "epochs_spent": int(epochs_spent or 0),
        "failures": failures,
        "best": _best(connection, study_id, states),
        "last": _last(connection, study_id, notes),
    }


def _last(connection: Connection, study_id: int, notes: dict[tuple[int, str], Any]) -> dict[str, Any] | None:
    """The trial that ended last, as far as the workers' clocks agree; its value in dB if it is complete."""
    ended = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
    state = cast(_TRIALS.c.state, String)
    row = connection.execute(
        select(_TRIALS.c.trial_id, _TRIALS.c.number, state.label("state"), _VALUES.c.value)
        .select_from(_TRIALS.outerjoin(_VALUES, _VALUES.c.trial_id == _TRIALS.c.trial_id))
        .where(_TRIALS.c.study_id == study_id, state.in_(list(ended)))
        .order_by(_TRIALS.c.datetime_complete.desc(), _TRIALS.c.number.desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return None
    failed = (row.trial_id, FAILED) in notes
    complete = row.state == "COMPLETE" and row.value is not None
    return {
        "number": row.number,
        "state": "failed" if failed else ended[row.state],
        "value": round(row.value, 4) if complete else None,
        "reason": str(notes.get((row.trial_id, "reason"), "")),
    }


def _best(
    connection: Connection, study_id: int, states: Sequence[tuple[int, int, str]]
) -> tuple[int, int, float] | None:
    """(trial_id, number, value) of the best complete feasible trial, as `best` has it."""
    constraints = _attributes(connection, study_id, _SYSTEM_ATTRS, "constraints")
    infeasible = {trial_id for (trial_id, _), value in constraints.items() if not _satisfied(value)}
    complete = {trial_id: number for trial_id, number, state in states if state == "COMPLETE"}
    values = connection.execute(
        select(_VALUES.c.trial_id, _VALUES.c.value)
        .select_from(_VALUES.join(_TRIALS, _TRIALS.c.trial_id == _VALUES.c.trial_id))
        .where(_TRIALS.c.study_id == study_id, cast(_VALUES.c.value_type, String) == "FINITE")
    )
    ranked = [
        (-value, complete[trial_id], trial_id)
        for trial_id, value in values
        if trial_id in complete and trial_id not in infeasible
    ]
    if not ranked:
        return None
    value, number, trial_id = min(ranked)
    return trial_id, number, -value


def _satisfied(value: Any) -> bool:
    return all(one <= 0 for one in value) if isinstance(value, list) else value <= 0


def _states(connection: Connection, study_id: int) -> list[tuple[int, int, str]]:
    """(trial_id, number, state) of all trials of the study."""
    rows = connection.execute(
        select(_TRIALS.c.trial_id, _TRIALS.c.number, cast(_TRIALS.c.state, String))
        .where(_TRIALS.c.study_id == study_id)
        .order_by(_TRIALS.c.number)
    )
    return [(trial_id, number, state) for trial_id, number, state in rows]


def _attributes(
    connection: Connection, study_id: int, source: Any, keys: tuple[str, ...] | str
) -> dict[tuple[int, str], Any]:
    """The attributes of the study's trials by (trial_id, key): some keys, or all that start with a string."""
    wanted = source.c.key.startswith(keys) if isinstance(keys, str) else source.c.key.in_(keys)
    rows = connection.execute(
        select(source.c.trial_id, source.c.key, source.c.value_json)
        .select_from(source.join(_TRIALS, _TRIALS.c.trial_id == source.c.trial_id))
        .where(_TRIALS.c.study_id == study_id, wanted)
    )
    return {(trial_id, key): json.loads(value) for trial_id, key, value in rows}


def _count(states: Sequence[tuple[int, int, str]], failed: set[int], left: set[int]) -> dict[str, int]:
    instead = {**{("PRUNED", one): "FAIL" for one in failed}, **{("RUNNING", one): "WAITING" for one in left}}
    found = Counter(instead.get((state, trial_id), state) for trial_id, _, state in states)
    return {
        "complete": found["COMPLETE"],
        "pruned": found["PRUNED"],
        "running": found["RUNNING"],
        "waiting": found["WAITING"],
        "failed": found["FAIL"],
    }


def _load(storage: Storage, definition: Definition) -> Study:
    return optuna.load_study(
        study_name=definition.name,
        storage=storage,
        sampler=sampler_for(definition),
        pruner=pruner_for(definition),
    )


def _require(storage: Storage, name: str) -> dict[str, Any]:
    entry = _entry(storage, name)
    if entry is not None:
        return entry
    there = [other for other in names(storage) if other != name]
    near = difflib.get_close_matches(name, there, n=1)
    if near:
        todo = f"Did you mean '{near[0]}'?"
    elif there:
        todo = f"There are: {', '.join(there)}."
    else:
        todo = "It has no study yet: start a worker to create one."
    raise StudyError(f"{storage.url} has no study '{name}'.", todo=todo)


def _entry(storage: Storage, name: str) -> dict[str, Any] | None:
    """The study's row; None if there is none, or if its study was deleted from Optuna's tables since."""

    def read() -> dict[str, Any] | None:
        with storage.reading() as connection:
            return _current(connection, name)

    return storage.retry(read)


def _identify(storage: Storage, entry: dict[str, Any]) -> None:
    """Give a study that an older version made its identity; of several callers the first one does."""
    mine = identity.of_older(entry["name"], entry["created_at"])
    study_id = entry["study_id"]

    def enter() -> None:
        with storage.transaction() as connection:
            storage.lock_study(connection, entry["name"])
            current = _current(connection, entry["name"])
            if current is not None and current["identity"] is None and current["study_id"] == study_id:
                connection.execute(
                    insert(_STUDY_ATTRS).values(study_id=study_id, key=identity.KEY, value_json=json.dumps(mine))
                )

    storage.retry(enter)


@named
def identity_of(storage: Storage, name: str) -> identity.Identity:
    """Whose files are those of study `name`; StudyError for an unknown study."""
    return identity.stated(name, _require(storage, name)["identity"])


def _current(connection: Connection, name: str) -> dict[str, Any] | None:
    own = _STUDY_ATTRS.alias()
    rows = connection.execute(
        select(study_table, _STUDY_ATTRS.c.value_json, own.c.value_json.label("identity"))
        .select_from(
            study_table.join(
                _STUDIES,
                (_STUDIES.c.study_id == study_table.c.study_id) & (_STUDIES.c.study_name == study_table.c.name),
            )
            .join(
                _STUDY_ATTRS,
                (_STUDY_ATTRS.c.study_id == study_table.c.study_id) & (_STUDY_ATTRS.c.key == MARK),
            )
            .outerjoin(own, (own.c.study_id == study_table.c.study_id) & (own.c.key == identity.KEY))
        )
        .where(study_table.c.name == name)
    )
    row = rows.mappings().one_or_none()
    if row is None or json.loads(row["value_json"]) != row["digest"]:
        return None
    return {**row, "identity": None if row["identity"] is None else json.loads(row["identity"])}


def _create(storage: Storage, definition: Definition) -> None:
    """Make the study, its row and its waiting trials; of several callers the first one does."""
    points = [*definition.points(), *_earlier_points(storage, definition)]
    try:
        study_id = storage.create_new_study([StudyDirection.MAXIMIZE], definition.name)
    except DuplicatedStudyError:  # made by another worker, perhaps a moment ago
        study_id = storage.get_study_id_from_name(definition.name)
    study = optuna.load_study(study_name=definition.name, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([definition.metric])

    def enter() -> None:
        with storage.transaction() as connection:
            _enter(connection, storage, definition, study_id, points)

    storage.retry(enter)


def _earlier_points(storage: Storage, definition: Definition) -> list[dict[str, Any]]:
    """The points of [warm_start]: those of the earlier study's best trials, as far as they fit in here.

    Only points are taken, never values: those may have been measured on other data, or for fewer epochs.
    """
    warm = definition.warm_start
    if warm is None:
        return []
    earlier = stored_definition(storage, warm.study)
    common = space.settled(earlier.search, earlier.fixed)
    study = optuna.load_study(study_name=warm.study, storage=storage)
    found: list[dict[str, Any]] = []
    for trial in _ranked(study):
        point = space.fitting(definition.search, definition.fixed, {**common, **trial.params})
        if point and point not in found and point not in definition.enqueue:
            found.append(point)
    return found[: warm.top]


def _enter(
    connection: Connection, storage: Storage, definition: Definition, study_id: int, points: list[dict[str, Any]]
) -> None:
    """The row and the waiting trials, in one transaction: a crash leaves both or neither."""
    connection.execute(select(_STUDIES.c.study_id).where(_STUDIES.c.study_id == study_id).with_for_update())
    if _current(connection, definition.name) is not None:
        return
    if _states(connection, study_id):
        raise StudyError(
            f"{storage.url} has a study '{definition.name}' that another program made.",
            todo="Give this study another name, or use another storage. Optuna's dashboard renames a study by making "
            "such a copy and deleting the study: a backup has it under its old name.",
        )
    # What is there under this name belonged to a study that was deleted in the dashboard.
    connection.execute(delete(study_table).where(study_table.c.name == definition.name))
    connection.execute(delete(lease_table).where(lease_table.c.study == definition.name))
    budget = definition.budget
    connection.execute(
        insert(study_table).values(
            name=definition.name,
            study_id=study_id,
            definition=json.dumps(definition.plain(), allow_nan=False),
            digest=definition.digest(),
            seed=definition.seed,
            created_at=storage.now(connection),
            trials=budget.trials,
            epochs=budget.epochs,
            total_epochs=budget.total_epochs,
            wall_clock_s=None if budget.wall_clock_h is None else budget.wall_clock_h * 3600,
            facts="{}",
            stopped_reason=None,
        )
    )
    attributes = {MARK: definition.digest(), identity.KEY: identity.new()}
    connection.execute(
        delete(_STUDY_ATTRS).where(_STUDY_ATTRS.c.study_id == study_id, _STUDY_ATTRS.c.key.in_(list(attributes)))
    )
    for key, value in attributes.items():
        connection.execute(insert(_STUDY_ATTRS).values(study_id=study_id, key=key, value_json=json.dumps(value)))
    # Optuna's public enqueue_trial opens a transaction of its own, so that a crash could lose or repeat
    # points; the method below it takes ours.
    with Session(bind=connection, join_transaction_mode="rollback_only") as session:
        for index, point in enumerate(points):
            waiting = create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": point, ENQUEUED: index})
            storage._get_prepared_new_trial(study_id, waiting, session)
        session.flush()

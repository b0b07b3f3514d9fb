"""Create and open studies. The first worker creates a study. Every other worker checks that the definitions agree.

A worker may also hold an older version of the definition (`versions`); it then takes the newest version.
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Connection, delete, insert, select, update

from cvaeopt.errors import StudyError
from cvaeopt.search import space
from cvaeopt.search.changes import differences
from cvaeopt.search.definition import Definition
from cvaeopt.store import identity, ranking, versions
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import STUDIES, STUDY_ATTRS, trial_states, write_attribute
from cvaeopt.store.storage import Storage
from cvaeopt.store.tables import lease_table, study_table
from cvaeopt.suggest.sampler import pruner_for, sampler_for
from cvaeopt.text import Advice

ENQUEUED = "cvaeopt:enqueued"
"""System attribute of a trial that was enqueued when the study was created: the index of its point."""

MARK = "cvaeopt:digest"
"""System attribute that connects a study with its row in cvaeopt_study. The study's id is not enough, because SQLite
may give the id of a deleted study to a new study."""

_SHOWN_DIFFERENCES = 3


@named
def create_or_open(storage: Storage, definition: Definition) -> Study:
    """The study of `definition`, created with its enqueued points if it does not exist yet.

    Any number of workers may call this function at the same time. A worker that is killed inside it does no harm.
    If `definition` is an older version of the study's definition, the sampler and the pruner are those of the newest
    version. StudyError if a study of this name was created from another definition or by another program.
    """
    entry = _entry(storage, definition.name)
    if entry is None:
        _create(storage, definition)
        entry = _entry(storage, definition.name)
        if entry is None:
            raise StudyError(f"Study '{definition.name}' was deleted while it was being created.", todo="Start again.")
    newest = newest_version(storage, entry, definition)
    if entry["identity"] is None:
        _identify(storage, entry)
    return _load(storage, newest)


def newest_version(storage: Storage, entry: dict[str, Any], definition: Definition) -> Definition:
    """The newest version of the study's definition, with the table [service] of `definition`.

    entry        the study's row in cvaeopt_study
    definition   any version of the study's definition; StudyError for another definition
    """
    mine = definition.digest()
    if entry["digest"] == mine:
        return definition
    name = definition.name
    if mine not in {one.digest for one in versions.read(storage, entry)}:
        raise StudyError(
            f"Study '{name}' was created from another definition (stored {entry['digest']}, file {mine}): "
            f"{_differences(json.loads(entry['definition']), definition.plain())}.",
            todo=Advice(
                f"Restore {name}.toml or create the study under a new name. To go on with this study:",
                "extend",
                "--study",
                name,
            ),
        )
    newest = Definition.parse(json.loads(entry["definition"]), name, f"study '{name}' in {storage.url}")
    return newest.model_copy(update={"service": definition.service})


def _differences(stored: dict[str, Any], given: dict[str, Any]) -> str:
    """A text with the first three settings that differ, such as "budget.trials: stored 4, file 5"."""
    found = [f"{key}: stored {before}, file {after}" for key, before, after in differences(stored, given)]
    if not found:
        return "the settings under [search] are in another order"
    more = f"; and {len(found) - _SHOWN_DIFFERENCES} more" if len(found) > _SHOWN_DIFFERENCES else ""
    return "; ".join(found[:_SHOWN_DIFFERENCES]) + more


@named
def newest(storage: Storage, definition: Definition) -> tuple[Definition, list[versions.Version]]:
    """The newest version of a study's definition (`newest_version`), and all versions, oldest first."""
    entry = require(storage, definition.name)
    return newest_version(storage, entry, definition), versions.read(storage, entry)


@named
def load(storage: Storage, definition: Definition) -> Study:
    """The existing study of `definition`, with the sampler and the pruner of this definition."""
    return _load(storage, definition)


@named
def open_existing(storage: Storage, name: str) -> tuple[Study, Definition]:
    """The study of this name and its stored definition. The settings of [service] have their defaults.

    If the study does not exist, StudyError names the existing studies.
    """
    definition = stored_definition(storage, name)
    return _load(storage, definition), definition


@named
def stored_definition(storage: Storage, name: str) -> Definition:
    """The definition from which a study was created. If the study does not exist, StudyError names existing studies."""
    entry = require(storage, name)
    return Definition.parse(json.loads(entry["definition"]), name, f"study '{name}' in {storage.url}")


def names(storage: Storage) -> list[str]:
    """The sorted names of all studies that have a row in cvaeopt_study."""
    query = select(study_table.c.name).order_by(study_table.c.name)
    return storage.read(lambda connection: list(connection.execute(query).scalars()))


@named
def record_facts(
    storage: Storage, name: str, data_digest: str, measure: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """The study's facts: `data_digest` and `baselines` (dB). The first worker measures and stores them.

    StudyError if the study's data have another digest, because values on different data cannot be compared.
    """
    entry = require(storage, name)
    facts = json.loads(entry["facts"])
    if "data_digest" not in facts:
        measured = {"data_digest": data_digest, "baselines": measure()}

        def record(connection: Connection) -> dict[str, Any]:
            stored: dict[str, Any] = json.loads(storage.lock_study(connection, name).facts)
            if "data_digest" not in stored:
                stored |= measured
                connection.execute(
                    update(study_table)
                    .where(study_table.c.name == name)
                    .values(facts=json.dumps(stored, allow_nan=False))
                )
            return stored

        facts = storage.write(record)
    if facts["data_digest"] != data_digest:
        raise StudyError(
            f"Study '{name}' was measured on other data (stored {facts['data_digest']}, here {data_digest}).",
            todo="Give the same --data to every worker, or create the study under a new name.",
        )
    return dict(facts)


def _load(storage: Storage, definition: Definition) -> Study:
    return optuna.load_study(
        study_name=definition.name,
        storage=storage,
        sampler=sampler_for(definition),
        pruner=pruner_for(definition),
    )


def require(storage: Storage, name: str) -> dict[str, Any]:
    """The study's row with its identity. If the study does not exist, StudyError names existing studies."""
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
    """The study's row with its identity; None if there is no row, or if the study was deleted from Optuna's tables."""
    return storage.read(lambda connection: _current(connection, name))


def _identify(storage: Storage, entry: dict[str, Any]) -> None:
    """Give an identity to a study of an older version. If several workers call this, only the first call has effect."""
    mine = identity.of_older(entry["name"], entry["created_at"])
    study_id = entry["study_id"]

    def enter(connection: Connection) -> None:
        storage.lock_study(connection, entry["name"])
        current = _current(connection, entry["name"])
        if current is not None and current["identity"] is None and current["study_id"] == study_id:
            write_attribute(connection, STUDY_ATTRS, study_id, identity.KEY, mine)

    storage.write(enter)


@named
def identity_of(storage: Storage, name: str) -> identity.Identity:
    """The identity of study `name`, which owns the study's files; StudyError for an unknown study."""
    return identity.stated(name, require(storage, name)["identity"])


def first_digest(storage: Storage, name: str) -> str:
    """The digest of the definition with which study `name` was created."""
    return versions.read(storage, require(storage, name))[0].digest


def _current(connection: Connection, name: str) -> dict[str, Any] | None:
    """The study's row with its identity; None if there is no row, or if the row belongs to a deleted study."""
    own = STUDY_ATTRS.alias()
    rows = connection.execute(
        select(study_table, STUDY_ATTRS.c.value_json, own.c.value_json.label("identity"))
        .select_from(
            study_table.join(
                STUDIES,
                (STUDIES.c.study_id == study_table.c.study_id) & (STUDIES.c.study_name == study_table.c.name),
            )
            .join(
                STUDY_ATTRS,
                (STUDY_ATTRS.c.study_id == study_table.c.study_id) & (STUDY_ATTRS.c.key == MARK),
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
    """Make the study, its row and its waiting trials. If several workers call this, they are made only once."""
    points = [*definition.points(), *_earlier_points(storage, definition)]
    try:
        study_id = storage.create_new_study([StudyDirection.MAXIMIZE], definition.name)
    except DuplicatedStudyError:  # another worker has made the study
        study_id = storage.get_study_id_from_name(definition.name)
    study = optuna.load_study(study_name=definition.name, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([definition.metric])
    storage.write(lambda connection: _enter(connection, storage, definition, study_id, points))


def _earlier_points(storage: Storage, definition: Definition) -> list[dict[str, Any]]:
    """The points of [warm_start]: the settings of the earlier study's best trials, as far as this study can use them.

    Settings that this study does not search, or that are out of its ranges, are left out. The values of the trials are
    not copied, because they may have been measured on other data or after fewer epochs.
    """
    warm = definition.warm_start
    if warm is None:
        return []
    earlier = stored_definition(storage, warm.study)
    common = space.settled(earlier.search, earlier.fixed)
    study = optuna.load_study(study_name=warm.study, storage=storage)
    found: list[dict[str, Any]] = []
    for trial in ranking.ranked(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))):
        point = space.fitting(definition.search, definition.fixed, {**common, **trial.params})
        if point and point not in found and point not in definition.enqueue:
            found.append(point)
    return found[: warm.top]


def _enter(
    connection: Connection, storage: Storage, definition: Definition, study_id: int, points: list[dict[str, Any]]
) -> None:
    """Write the study's row and its waiting trials in the caller's transaction, so that a crash leaves both or neither.

    StudyError if another program has made a study of this name with trials.
    """
    connection.execute(select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id).with_for_update())
    if _current(connection, definition.name) is not None:
        return
    if trial_states(connection, study_id):
        raise StudyError(
            f"{storage.url} has a study '{definition.name}' that another program made.",
            todo="Give this study another name, or use another storage. Optuna's dashboard renames a study by making "
            "such a copy and deleting the study: a backup has it under its old name.",
        )
    # Rows with this name are left from a study that was deleted in the dashboard.
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
    write_attribute(connection, STUDY_ATTRS, study_id, MARK, definition.digest())
    write_attribute(connection, STUDY_ATTRS, study_id, identity.KEY, identity.new())
    storage.add_waiting(
        connection, study_id, [{"fixed_params": point, ENQUEUED: index} for index, point in enumerate(points)]
    )

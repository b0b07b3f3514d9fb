"""Go on with a study under a changed definition, which becomes the newest version of the study's definition.

An extension is one transaction. It locks the study's row, as every claim of a trial does. So it happens before or after
a claim, never in the middle, and of two extensions of the same version the second is refused.

Trials that workers train at this moment end under the version with which they were begun. A worker takes the newest
version when it claims its next trial.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, delete, select, update

from cvaeopt.errors import StudyError
from cvaeopt.search.changes import changes, check
from cvaeopt.search.definition import Definition
from cvaeopt.store import versions
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import STUDY_ATTRS, SYSTEM_ATTRS, TRIALS
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import ENQUEUED, MARK, stored_definition
from cvaeopt.store.tables import study_table
from cvaeopt.store.versions import Version
from cvaeopt.text import Advice

_RUNG: Final = "completed_rung_"
"""Beginning of the trial attributes in which Optuna's successive halving records the values at its rungs."""


@dataclass(frozen=True)
class Extension:
    """A new version of a study's definition, and what becomes of the study's trials.

    version   the number of the new version
    before    the digest of the version before
    changes   the settings that differ, as text
    queued    points that are queued as first trials of the new version
    """

    study: str
    version: int
    digest: str
    before: str
    changes: list[str]
    queued: list[dict[str, Any]]

    def plain(self) -> dict[str, Any]:
        """The extension as JSON values."""
        return asdict(self)


@named
def plan(storage: Storage, name: str, changed: Definition) -> Extension:
    """What `extend` would do now. Raises the errors of `extend`."""
    before = _before(storage, name, changed)

    def read() -> Extension:
        with storage.reading() as connection:
            study = connection.execute(select(study_table).where(study_table.c.name == name)).mappings().one()
            return _planned(connection, dict(study), before, changed)

    return storage.retry(read)


@named
def extend(storage: Storage, name: str, changed: Definition, by: str) -> Extension:
    """Make `changed` the newest version of the definition of study `name`; returns what was done.

    by   user@host of the person who asks for it

    SettingsError names the first change with which the study cannot go on. StudyError if nothing changes, or if another
    process has extended the study meanwhile; nothing is written then.
    """
    before = _before(storage, name, changed)
    mark = secrets.token_hex(6)
    planned: Extension | None = None

    def write() -> Extension:
        nonlocal planned
        with storage.transaction() as connection:
            study = dict(storage.lock_study(connection, name)._mapping)
            known = versions.chain(connection, study)
            if planned is not None and known[-1].mark == mark:
                return planned  # an earlier attempt was committed, but its acknowledgement was lost
            if study["digest"] != before.digest():
                raise _overtaken(name, known)
            planned = _planned(connection, study, before, changed)
            made = Version(
                planned.version, planned.digest, planned.before, by, storage.now(connection), changed.plain(), mark
            )
            for version in [*known, made] if len(known) == 1 else [made]:
                versions.write(connection, study["study_id"], version)
            _write(connection, storage, study["study_id"], before, changed, planned)
            return planned

    return storage.retry(write)


def _before(storage: Storage, name: str, changed: Definition) -> Definition:
    """The newest version of the definition; SettingsError or StudyError if the study cannot go on with `changed`."""
    before = stored_definition(storage, name)
    if before.digest() == changed.digest():
        raise StudyError(
            f"Study '{name}' has this definition already (digest {changed.digest()}).",
            "Expected: a change, such as more trials.",
            "Name it with --trials or --epochs, or change the study's file.",
        )
    check(before, changed)
    return before


def _overtaken(name: str, known: list[Version]) -> StudyError:
    newest = known[-1]
    when = datetime.fromtimestamp(newest.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    what = "; ".join(changes(known[-2].definition, newest.definition)) if len(known) > 1 else "a new definition"
    return StudyError(
        f"Study '{name}' was extended to version {newest.number} at the same moment, by {newest.by or 'somebody'} at "
        f"{when}: {what}.",
        "Expected: nobody else extends it meanwhile. Nothing of this extension was written.",
        Advice("Run the same command again if the study shall go on from there; see", "status", "--study", name),
    )


def _planned(connection: Connection, study: Mapping[str, Any], before: Definition, changed: Definition) -> Extension:
    earlier = before.points()
    return Extension(
        study=study["name"],
        version=versions.newest_number(connection, study["study_id"]) + 1,
        digest=changed.digest(),
        before=study["digest"],
        changes=changes(before.plain(), changed.plain()),
        queued=[point for point in changed.points() if point not in earlier],
    )


def _write(
    connection: Connection,
    storage: Storage,
    study_id: int,
    before: Definition,
    changed: Definition,
    planned: Extension,
) -> None:
    """Write the study's row and its waiting trials."""
    budget, digest = changed.budget, changed.digest()
    connection.execute(
        update(study_table)
        .where(study_table.c.name == planned.study)
        .values(
            definition=json.dumps(changed.plain(), allow_nan=False),
            digest=digest,
            trials=budget.trials,
            epochs=budget.epochs,
            total_epochs=budget.total_epochs,
            wall_clock_s=None if budget.wall_clock_h is None else budget.wall_clock_h * 3600,
        )
    )
    connection.execute(
        update(STUDY_ATTRS)
        .where(STUDY_ATTRS.c.study_id == study_id, STUDY_ATTRS.c.key == MARK)
        .values(value_json=json.dumps(digest))
    )
    if before.pruner != changed.pruner:
        # These attributes hold values at the rungs of the earlier pruner, whose epochs may differ.
        of_study = select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        connection.execute(
            delete(SYSTEM_ATTRS).where(SYSTEM_ATTRS.c.trial_id.in_(of_study), SYSTEM_ATTRS.c.key.startswith(_RUNG))
        )
    every = changed.points()
    storage.add_waiting(
        connection, study_id, [{"fixed_params": point, ENQUEUED: every.index(point)} for point in planned.queued]
    )

"""Go on with a study under a changed definition, which becomes the newest version of the study's definition.

An extension is one transaction. It locks the study's row, as every claim of a trial does. So it happens before or after
a claim, never in the middle, and of two extensions of the same version the second is refused.

Trials that workers train at this moment end under the version with which they were begun. A worker takes the newest
version when it claims its next trial.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, get_args

from sqlalchemy import Connection, delete, select, update

from cvaeopt.errors import StudyError
from cvaeopt.search import space
from cvaeopt.search.changes import changes, check
from cvaeopt.search.definition import Definition
from cvaeopt.store import roles, versions
from cvaeopt.store.damage import named
from cvaeopt.store.optuna_rows import STUDY_ATTRS, SYSTEM_ATTRS, TRIALS, write_attribute
from cvaeopt.store.roles import Role
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import ENQUEUED, MARK, stored_definition
from cvaeopt.store.tables import lease_table, study_table
from cvaeopt.store.versions import Version
from cvaeopt.text import Advice

MAX_LEADERS: Final = 5
"""Number of best trials that are trained again if the number of epochs changes what they mean."""


@dataclass(frozen=True)
class Extension:
    """A new version of a study's definition, and what becomes of the study's trials.

    version   the number of the new version
    before    the digest of the version before
    changes   the settings that differ, as text
    counts    number of trials that mean the same in the new version; None if no trial changes
    continues numbers of the complete trials that continue to the new number of epochs from their checkpoints
    partial   numbers of the complete trials that count like pruned trials, because their checkpoints are not kept
    open      numbers of the trials that workers train now; what becomes of them is decided when they have ended
    history   the trials that do not count any more: their number, the reason, and the first epoch that differs
    queued    points that are queued as first trials of the new version: new points of [[enqueue]], and leaders
    free      number of trials that may still begin, queued ones included; None without a limit on the trials
    """

    study: str
    version: int
    digest: str
    before: str
    changes: list[str]
    counts: int | None
    continues: list[int]
    partial: list[int]
    open: list[int]
    history: list[dict[str, Any]]
    queued: list[dict[str, Any]]
    free: int | None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@named
def plan(
    storage: Storage, name: str, changed: Definition, has_checkpoint: Callable[[int], bool] = lambda number: False
) -> Extension:
    """What `extend` would do now. Raises the errors of `extend`."""
    before = _before(storage, name, changed)

    def read(connection: Connection) -> Extension:
        study = connection.execute(select(study_table).where(study_table.c.name == name)).mappings().one()
        return _planned(connection, dict(study), before, changed, has_checkpoint)[0]

    return storage.read(read)


@named
def extend(
    storage: Storage,
    name: str,
    changed: Definition,
    by: str,
    has_checkpoint: Callable[[int], bool] = lambda number: False,
) -> Extension:
    """Make `changed` the newest version of the definition of study `name`; returns what was done.

    by               user@host of the person who asks for it
    has_checkpoint   whether the checkpoint of a trial, given by its number, is kept: a complete trial then continues if
                     the new version has more epochs

    SettingsError names the first change with which the study cannot go on. StudyError if nothing changes, or if another
    process has extended the study meanwhile; nothing is written then.
    """
    before = _before(storage, name, changed)
    mark = secrets.token_hex(6)
    planned: Extension | None = None

    def write(connection: Connection) -> Extension:
        nonlocal planned
        study = dict(storage.lock_study(connection, name)._mapping)
        known = versions.chain(connection, study)
        if planned is not None and known[-1].mark == mark:
            return planned  # an earlier attempt was committed, but its acknowledgement was lost
        if study["digest"] != before.digest():
            raise _overtaken(name, known)
        planned, found = _planned(connection, study, before, changed, has_checkpoint)
        made = Version(
            planned.version, planned.digest, planned.before, by, storage.now(connection), changed.plain(), mark
        )
        for version in [*known, made] if len(known) == 1 else [made]:
            versions.write(connection, study["study_id"], version)
        _write(connection, storage, study["study_id"], before, changed, planned)
        roles.apply(storage, connection, name, found, changed, planned.version)
        return planned

    return storage.write(write)


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


def _planned(
    connection: Connection,
    study: Mapping[str, Any],
    before: Definition,
    changed: Definition,
    has_checkpoint: Callable[[int], bool],
) -> tuple[Extension, list[Role]]:
    found = [] if _same_trials(before, changed) else roles.roles(connection, study, changed, has_checkpoint)
    earlier = before.points()
    queued = [point for point in changed.points() if point not in earlier]
    free = _free(connection, study["name"], changed, found)
    newly = [role for role in found if roles.HISTORY not in role.trial.user_attrs]
    for role in newly[:MAX_LEADERS]:
        # A leader that has to be trained from its first epoch, because the number of epochs matters to it.
        again = role.kind == "partial" or role.epoch is not None
        if again and role.value is not None and role.config is not None:
            point = space.fitting(changed.search, changed.fixed, dict(role.config))
            if point and point not in queued and (free is None or len(queued) < free):
                queued.append(point)
    numbers = {kind: [role.number for role in found if role.kind == kind] for kind in get_args(roles.Kind)}
    extension = Extension(
        study=study["name"],
        version=versions.newest_number(connection, study["study_id"]) + 1,
        digest=changed.digest(),
        before=study["digest"],
        changes=changes(before.plain(), changed.plain()),
        counts=len(numbers["counts"]) if found else None,
        continues=sorted(numbers["continues"]),
        partial=sorted(numbers["partial"]),
        open=sorted(numbers["open"]),
        history=[
            {"number": role.number, "reason": role.reason, "epoch": role.epoch}
            for role in sorted(found, key=lambda role: role.number)
            if role.kind == "history"
        ],
        queued=queued,
        free=free,
    )
    return extension, found


def _free(connection: Connection, name: str, changed: Definition, found: list[Role]) -> int | None:
    """The number of trials that may still begin under `changed`."""
    if changed.budget.trials is None:
        return None
    rows = connection.execute(
        select(lease_table.c.number, lease_table.c.outcome).where(lease_table.c.study == name)
    ).all()
    kinds = {role.number: role.kind for role in found}
    old = {number for number, outcome in rows if kinds.get(number, outcome) == roles.HISTORY}
    return max(0, changed.budget.trials - len(rows) + len(old))


def _same_trials(before: Definition, changed: Definition) -> bool:
    """Whether both versions train the same trials, so that no trial changes its role."""
    spaces = [(list(one.search.items()), one.epochs, space.settled(one.search, one.fixed)) for one in (before, changed)]
    return spaces[0] == spaces[1]


def _write(
    connection: Connection,
    storage: Storage,
    study_id: int,
    before: Definition,
    changed: Definition,
    planned: Extension,
) -> None:
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
    write_attribute(connection, STUDY_ATTRS, study_id, MARK, digest)
    if before.pruner != changed.pruner:
        # These attributes hold values at the rungs of the earlier pruner, whose epochs may differ.
        of_study = select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)
        connection.execute(
            delete(SYSTEM_ATTRS).where(SYSTEM_ATTRS.c.trial_id.in_(of_study), SYSTEM_ATTRS.c.key.startswith(roles.RUNG))
        )
    every = changed.points()
    places = [{ENQUEUED: every.index(point)} if point in every else {} for point in planned.queued]
    attributes = [{"fixed_params": point, **at} for point, at in zip(planned.queued, places, strict=True)]
    storage.add_waiting(connection, study_id, attributes)

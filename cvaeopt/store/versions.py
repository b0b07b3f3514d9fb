"""The versions of a study's definition, and the version under which each trial was begun.

A study begins with version 1. `extension.extend` adds a version. Each version names the digest of the version before,
so the versions form a chain. They are attributes of the study, which are copied with the study's rows; a study that was
never extended has no such attribute. The row in cvaeopt_study always holds the newest version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection, select

from cvaeopt.search.changes import changes
from cvaeopt.search.definition import Definition
from cvaeopt.store.optuna_rows import STUDY_ATTRS, SYSTEM_ATTRS, read_attribute, write_attribute
from cvaeopt.store.storage import Storage

PREFIX: Final = "cvaeopt:version:"
"""Beginning of the study attributes that hold the versions. The number of the version follows, with five digits."""

OF_TRIAL: Final = "cvaeopt:version"
"""System attribute of a trial: the number of the version under which it was begun. A trial without it has version 1."""


@dataclass(frozen=True)
class Version:
    """One version of a study's definition.

    number       from 1
    digest       the digest of the definition
    before       the digest of the version before; None for version 1
    by           user@host of the person who made this version; '' if it is not known
    at           time at which the version was made, seconds since 1970 on the database's clock
    definition   the tables of the definition (`Definition.plain`)
    mark         random digits by which the process that made the version knows it again
    """

    number: int
    digest: str
    before: str | None
    by: str
    at: float
    definition: dict[str, Any]
    mark: str = ""

    def parsed(self, name: str) -> Definition:
        """The definition of study `name` in this version. The settings of [service] have their defaults."""
        return Definition.parse(self.definition, name, f"version {self.number} of study '{name}'")


def chain(connection: Connection, study: Mapping[str, Any]) -> list[Version]:
    """All versions of a study, oldest first.

    study   the study's row in cvaeopt_study
    """
    rows = connection.execute(
        select(STUDY_ATTRS.c.value_json)
        .where(STUDY_ATTRS.c.study_id == study["study_id"], STUDY_ATTRS.c.key.startswith(PREFIX))
        .order_by(STUDY_ATTRS.c.key)
    ).scalars()
    found = [Version(**json.loads(text)) for text in rows]
    return found or [
        Version(1, study["digest"], None, "", study["created_at"], json.loads(study["definition"])),
    ]


def read(storage: Storage, study: Mapping[str, Any]) -> list[Version]:
    """All versions of a study, oldest first; `study` is the study's row in cvaeopt_study."""
    return storage.read(lambda connection: chain(connection, study))


def write(connection: Connection, study_id: int, version: Version) -> None:
    """Store a version, in place of a version that has the same number."""
    write_attribute(connection, STUDY_ATTRS, study_id, f"{PREFIX}{version.number:05d}", asdict(version))


def newest_number(connection: Connection, study_id: int) -> int:
    key = connection.execute(
        select(STUDY_ATTRS.c.key)
        .where(STUDY_ATTRS.c.study_id == study_id, STUDY_ATTRS.c.key.startswith(PREFIX))
        .order_by(STUDY_ATTRS.c.key.desc())
        .limit(1)
    ).scalar_one_or_none()
    return 1 if key is None else int(key.removeprefix(PREFIX))


def of_trial(connection: Connection, trial_id: int) -> int:
    """The number of the version under which a trial was begun."""
    return int(read_attribute(connection, SYSTEM_ATTRS, trial_id, OF_TRIAL) or 1)


def set_of_trial(connection: Connection, trial_id: int, number: int) -> None:
    """Record the version of a trial. Version 1 needs no record."""
    write_attribute(connection, SYSTEM_ATTRS, trial_id, OF_TRIAL, number if number > 1 else None)


def plain(versions: list[Version]) -> list[dict[str, Any]]:
    """The versions as JSON values, with the changes since the version before instead of the definition."""
    return [
        {
            "version": one.number,
            "digest": one.digest,
            "before": one.before,
            "by": one.by or None,
            "at": one.at,
            "changes": changes(earlier.definition, one.definition) if earlier is not None else [],
        }
        for earlier, one in zip([None, *versions], versions, strict=False)
    ]

"""Which study a file belongs to: a name may be used twice, so every study has an identity, too.

A study that was deleted and started again has the same name, the same settings and the same trial numbers. So have
two studies of equal names in two databases. Their files must not be mixed. The identity is random. It is made with the
study and kept in the study's attributes, so that it moves with the study's rows. Checkpoints hold it, too.

The files of a study are in `artifacts/NAME`, where `study.json` says which study the folder belongs to. If the folder
belongs to another study, or does not say to which, they are in `artifacts/NAME@IDENTITY`. No file is ever moved.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import optuna

from cvaeopt.errors import StudyError
from cvaeopt.files import RunFolder, digest, inside, umask, write_json
from cvaeopt.store.optuna_private import id_of, storage_of

KEY: Final = "cvaeopt:identity"
"""System attribute of a study: its identity."""

MARKER: Final = "study.json"
"""The file in a study's folder that says which study the folder belongs to."""

_OLD: Final = "old-"
_UNKNOWN: Final = "?"  # the owner of a folder that does not name one
_VALID: Final = re.compile(r"(old-)?[0-9a-f]{12}")


def new() -> str:
    """An identity for a study that is made now."""
    return secrets.token_hex(6)


def of_older(name: str, created_at: float) -> str:
    """The identity of a study that an older version of this program made; every process computes the same one."""
    return f"{_OLD}{digest([name, created_at])}"


@dataclass(frozen=True)
class Identity:
    """The identity of study `study`.

    value   '' for a study without one: another program made it, or an older version did and no worker has opened it
    """

    study: str
    value: str = ""

    @property
    def is_old(self) -> bool:
        """Whether files without an identity may belong to this study, because it is as old as such files."""
        return not self.value or self.value.startswith(_OLD)

    @property
    def accepted(self) -> frozenset[str | None]:
        """The identities in the provenance of the checkpoints that this study may continue."""
        return frozenset({self.value, None} if self.is_old else {self.value})

    @property
    def objects(self) -> str:
        """The prefix of the trials' numbers in an object store."""
        return self.study if self.is_old else f"{self.study}/{self.value}"

    def find(self, artifacts: Path) -> Path:
        """The study's folder, which may not be there yet; ValueError if the study's name would leave `artifacts`."""
        usual = inside(artifacts, self.study)
        own = usual.with_name(f"{usual.name}@{self.value or 'unknown'}")
        if own.is_dir():
            return own
        owner = _owner(usual)
        mine = owner == self.value or (owner == _UNKNOWN and self.is_old) or owner is None
        return usual if mine else own

    def claim(self, artifacts: Path) -> Path:
        """`find`, with the folder made and marked as this study's; it is no error here if the folder cannot be made.

        Any number of workers, of several studies, may call it at the same time, because a folder and its mark appear
        in one step.
        """
        folder = self.find(artifacts)
        if not self.value or _owner(folder) is not None:
            return folder
        with contextlib.suppress(OSError):
            _make(folder, {"study": self.study, "identity": self.value})
        folder = self.find(artifacts)
        if _owner(folder) is None:  # nothing can be written there now; this name will need no mark later
            return folder.with_name(f"{inside(artifacts, self.study).name}@{self.value}")
        return folder

    def run(self, artifacts: Path, number: int) -> RunFolder:
        """The folder of trial `number`, as `find` has it."""
        return RunFolder(self.find(artifacts) / f"{number:05d}")


def of(study: optuna.Study) -> Identity:
    """The identity of a study."""
    return stated(study.study_name, storage_of(study).get_study_system_attrs(id_of(study)).get(KEY))


def given(study: optuna.Study) -> Identity:
    """As `of`; a study that plain Optuna made gets its identity here, when its first trial is trained."""
    known = of(study)
    if known.value:
        return known
    storage_of(study).set_study_system_attr(id_of(study), KEY, new())
    return of(study)


def stated(name: str, value: Any) -> Identity:
    """The identity of study `name` from its attribute; StudyError if it is damaged, as it is used in paths."""
    if value is None:
        return Identity(name)
    if not isinstance(value, str) or not _VALID.fullmatch(value):
        raise StudyError(
            f"Study '{name}': its attribute '{KEY}' is damaged ({value!r}).",
            "Expected: twelve hexadecimal digits.",
            "Restore a backup, or give the study a new name.",
        )
    return Identity(name, value)


def _owner(folder: Path) -> str | None:
    """The identity that `folder` is marked with; "?" if it has files and no mark; None if it is missing or empty."""
    try:
        marked = json.loads((folder / MARKER).read_text())
        return str(marked["identity"])
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            return _UNKNOWN if any(folder.iterdir()) else None
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return _UNKNOWN


def _make(folder: Path, mark: dict[str, str]) -> None:
    """Make `folder` and its mark in one step; OSError if it exists and is not empty, or cannot be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        write_json(scratch / MARKER, mark)
        scratch.chmod(0o777 & ~umask())
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise

"""Which study a file belongs to: every study has an identity of its own, which its name is not.

A study that was deleted and started again has the same name, the same settings and the same trial numbers, and so have
studies of equal names in two databases. Their files must not be mixed. The identity is random, is made with the study
and stands in the attributes of the study, so that it moves with its rows; checkpoints carry it in their provenance.

The files of a study are in `artifacts/NAME`, where `study.json` says whose folder it is. Where the folder belongs to
another study, or nobody knows to whom, they are in `artifacts/NAME@IDENTITY`. Nothing is ever moved or taken over.
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
"""The file in a study's folder that says whose folder it is."""

_OLD: Final = "old-"
_UNKNOWN: Final = "?"  # the owner of a folder that does not say whose it is
_VALID: Final = re.compile(r"(old-)?[0-9a-f]{12}")


def new() -> str:
    """An identity for a study that is made now."""
    return secrets.token_hex(6)


def of_older(name: str, created_at: float) -> str:
    """The identity of a study that an older version of this program made, the same for whoever asks."""
    return f"{_OLD}{digest([name, created_at])}"


@dataclass(frozen=True)
class Identity:
    """The identity of study `study`.

    value   '' for a study that has none: one of another program, or of an older version that no worker has opened
    """

    study: str
    value: str = ""

    @property
    def is_old(self) -> bool:
        """Whether files without an identity may be this study's: it is as old as they are."""
        return not self.value or self.value.startswith(_OLD)

    @property
    def accepted(self) -> frozenset[str | None]:
        """The identities in the provenance of the checkpoints that this study may continue."""
        return frozenset({self.value, None} if self.is_old else {self.value})

    @property
    def objects(self) -> str:
        """What stands before the trials' numbers in an object store."""
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
        """`find`, with the folder made and marked as this study's; a folder that cannot be made is no error here.

        Any number of workers, of several studies, may call it at the same time: a folder appears with its mark.
        """
        folder = self.find(artifacts)
        if not self.value or _owner(folder) is not None:
            return folder
        with contextlib.suppress(OSError):
            _make(folder, {"study": self.study, "identity": self.value})
        folder = self.find(artifacts)
        if _owner(folder) is None:  # nothing can be written there now: later, this name needs no mark
            return folder.with_name(f"{inside(artifacts, self.study).name}@{self.value}")
        return folder

    def run(self, artifacts: Path, number: int) -> RunFolder:
        """The folder of trial `number`, as `find` has it."""
        return RunFolder(self.find(artifacts) / f"{number:05d}")


def of(study: optuna.Study) -> Identity:
    """The identity of a study."""
    return stated(study.study_name, storage_of(study).get_study_system_attrs(id_of(study)).get(KEY))


def given(study: optuna.Study) -> Identity:
    """`of`; a study that plain Optuna made gets an identity when its first trial is trained."""
    known = of(study)
    if known.value:
        return known
    storage_of(study).set_study_system_attr(id_of(study), KEY, new())
    return of(study)


def stated(name: str, value: Any) -> Identity:
    """The identity of study `name` from its attribute; StudyError if that is damaged: it becomes part of paths."""
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
    """The identity that `folder` is marked with; "?" if it has files and no mark; None if it is not there, or empty."""
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
    """Make `folder` with its mark at once; OSError if it is there and not empty, or cannot be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        write_json(scratch / MARKER, mark)
        scratch.chmod(0o777 & ~umask())
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise

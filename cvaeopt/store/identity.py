"""The identity of a study, which shows which study a file belongs to.

A name is not enough. If a study is deleted and started again, the new study may have the same name, settings and trial
numbers. Two databases may also hold two studies of the same name. The files of such studies must not be mixed.
Therefore every study has a random identity. The identity is made with the study and is one of the study's attributes,
so that it is copied with the study's rows. Checkpoints contain the identity, too.

The files of a study are in `artifacts/NAME`. The file `study.json` in this folder holds the identity of the study that
owns the folder. If that folder belongs to another study, or if its owner is unknown, the study's files are in
`artifacts/NAME@IDENTITY`. No file is ever moved.
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
"""The system attribute that holds the identity of a study."""

MARKER: Final = "study.json"
"""The name of the marker. The marker is the file in a study's folder that holds the study's identity."""

_OLD: Final = "old-"
_UNKNOWN: Final = "?"  # the owner of a folder that has files but no readable marker
_VALID: Final = re.compile(r"(old-)?[0-9a-f]{12}")


def new() -> str:
    """A random identity for a new study."""
    return secrets.token_hex(6)


def of_older(name: str, created_at: float) -> str:
    """The identity of a study that an older version of this program made. Every process computes the same value."""
    return f"{_OLD}{digest([name, created_at])}"


@dataclass(frozen=True)
class Identity:
    """The identity of study `study`.

    value   twelve hexadecimal digits, with the prefix 'old-' for a study of an older version; '' for no identity

    A study has no identity if another program made it. A study of an older version has no identity until a worker
    opens the study.
    """

    study: str
    value: str = ""

    @property
    def is_old(self) -> bool:
        """Whether files without an identity may belong to this study: the study may be older than identities."""
        return not self.value or self.value.startswith(_OLD)

    @property
    def accepted(self) -> frozenset[str | None]:
        """The identities of the checkpoints that this study may continue. None means a checkpoint without identity."""
        return frozenset({self.value, None} if self.is_old else {self.value})

    @property
    def objects(self) -> str:
        """The prefix of the study's objects in an object store; the trial's number follows."""
        return self.study if self.is_old else f"{self.study}/{self.value}"

    def find(self, artifacts: Path) -> Path:
        """The study's folder, which may not exist yet. ValueError if the study's name leads out of `artifacts`."""
        usual = inside(artifacts, self.study)
        own = usual.with_name(f"{usual.name}@{self.value or 'unknown'}")
        if own.is_dir():
            return own
        owner = _owner(usual)
        mine = owner == self.value or (owner == _UNKNOWN and self.is_old) or owner is None
        return usual if mine else own

    def claim(self, artifacts: Path) -> Path:
        """The study's folder, made and marked with the study's identity. No error if the folder cannot be made.

        Workers of several studies may call this method at the same time, because a folder and its marker are created
        in one step. A study without an identity gets the path from `find`, and no folder is made.
        """
        own = inside(artifacts, self.study)
        own = own.with_name(f"{own.name}@{self.value}")
        for _ in range(4):  # another study's worker may take the usual folder at any moment; then its own one is next
            folder = self.find(artifacts)
            owner = _owner(folder)
            unmarked = owner == _UNKNOWN and (folder == own or self.is_old)
            if not self.value or owner == self.value or unmarked:
                return folder
            if owner is None:
                with contextlib.suppress(OSError):
                    _make(folder, {"study": self.study, "identity": self.value})
        return own  # no folder can be made now; a name with the identity needs no marker later

    def run(self, artifacts: Path, number: int) -> RunFolder:
        """The folder of trial `number` inside the study's folder (`find`)."""
        return RunFolder(self.find(artifacts) / f"{number:05d}")


def of(study: optuna.Study) -> Identity:
    """The identity of a study."""
    return stated(study.study_name, storage_of(study).get_study_system_attrs(id_of(study)).get(KEY))


def given(study: optuna.Study) -> Identity:
    """The identity of a study. A study without an identity gets one here.

    Plain Optuna makes studies without an identity. They get an identity when their first trial is trained.
    """
    known = of(study)
    if known.value:
        return known
    storage_of(study).set_study_system_attr(id_of(study), KEY, new())
    return of(study)


def stated(name: str, value: Any) -> Identity:
    """The identity of study `name` from the `value` of its attribute.

    StudyError if the value is damaged. The value is checked because it becomes a part of paths.
    """
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
    """The identity in the marker of `folder`; None if the folder is missing or empty.

    "?" if the folder has files but no marker, or if the marker cannot be read.
    """
    for _ in range(2):  # another worker may make the folder, with its marker, between the two looks at it
        try:
            return str(json.loads((folder / MARKER).read_text())["identity"])
        except FileNotFoundError:
            try:
                if not any(folder.iterdir()):
                    return None
            except OSError:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return _UNKNOWN
    return _UNKNOWN


def _make(folder: Path, mark: dict[str, str]) -> None:
    """Make `folder` and its marker in one step; OSError if the folder is not empty or cannot be made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        write_json(scratch / MARKER, mark)
        scratch.chmod(0o777 & ~umask())
        scratch.rename(folder)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise

"""The places where a command reads and writes, and the spelling of the commands that a message advises."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cvaeopt.errors import DataError, UserError

if TYPE_CHECKING:
    from cvaeopt.search.tables import ServiceTable

DEFAULT_STORAGE = "sqlite:///storage/cvaeopt.db"
DEFAULT_ARTIFACTS = "storage/artifacts"

_CONFIRMATION = re.compile(r"\.confirm(-\d+)?$")
_TAKE_ARTIFACTS = ("worker", "confirm", "claims", "dashboard", "export-runs", "fetch", "report")


@dataclass(frozen=True)
class Flags:
    """The places that the user gave to a command, as options or as environment variables. None: not given."""

    study: str | None = None
    storage: str | None = None
    data: Path | None = None
    artifacts: Path | None = None
    checkpoints: str | None = None
    gpu: str | None = None


@dataclass(frozen=True)
class Places:
    """The places where a command reads and writes.

    study         name of the study in the database; "" if the command has no study
    storage       URL of the SQL storage, password included
    data          data folder; None if no folder was given
    artifacts     folder of the trials' files, not checked yet: see `artifact_folder`
    checkpoints   URL of the object store; None if there is none
    device        index of the GPU, or "cpu"; None: the first GPU, or the CPU if there is no GPU
    typed         the options that an advised command must repeat. An option whose value is in an environment variable
                  is left out, because the next command reads the variable itself.
    """

    study: str
    storage: str
    data: Path | None
    artifacts: Path
    checkpoints: str | None
    device: str | None
    typed: Flags = field(default_factory=Flags)

    @classmethod
    def resolve(cls, flags: Flags, environment: Mapping[str, str], service: ServiceTable | None = None) -> Places:
        """Each place: the value in `flags`, else the value in [service] of the study, else the default.

        An advised command does not repeat a value of an environment variable, because the command reads the variable.
        """
        stated = {} if service is None else service.model_dump()
        storage = None if flags.storage == environment.get("CVAEOPT_STORAGE") else flags.storage
        artifacts = None if str(flags.artifacts) == environment.get("CVAEOPT_ARTIFACTS") else flags.artifacts
        data = flags.data or stated.get("data")
        device = stated.get("gpu") if flags.gpu is None else flags.gpu
        return cls(
            study=_name(flags.study) if flags.study else "",
            storage=flags.storage or stated.get("storage") or DEFAULT_STORAGE,
            data=None if data is None else Path(data),
            artifacts=flags.artifacts or Path(stated.get("artifacts") or DEFAULT_ARTIFACTS),
            checkpoints=flags.checkpoints or stated.get("checkpoints"),
            device=None if device is None else str(device),
            typed=Flags(study=flags.study, storage=storage, artifacts=artifacts),
        )

    def data_folder(self) -> Path:
        """The data folder; DataError if no folder was given."""
        if self.data is None:
            raise DataError(
                "No data folder was given.",
                "Expected: --data DIR, CVAEOPT_DATA, or data under [service] in the study.",
                "Draw one to try with: cvaeopt demo-data demo/data",
            )
        return self.data

    def artifact_folder(self) -> Path:
        """The folder of the trials' files; UserError if the folder or one of its parents is a file."""
        folder = self.artifacts
        if (taken := next((place for place in (folder, *folder.parents) if place.exists()), folder)).is_file():
            above = "" if taken == folder else f" (in the path {folder})"
            raise UserError(
                f"{taken}{above} is a file.",
                "Expected: the folder of the trials' files, or one that can be made.",
                "Name a folder with --artifacts.",
            )
        return folder

    def command(self, words: Sequence[str]) -> str:
        """The command `cvaeopt WORDS` as the user can type it here.

        The study has the name or the path that the user typed. --storage and --artifacts are repeated if the user typed
        them and the command takes them. A URL with a password is replaced by the word URL,
        because a masked URL would not work.
        """
        words = list(words)
        parent = _CONFIRMATION.sub("", self.study)
        at = words.index("--study") + 1 if "--study" in words else 0
        if at and _CONFIRMATION.sub("", words[at]) == parent:
            words[at : at + 1] = [self._study(words[at], parent), *self._repeated(words[0])]
        return shlex.join(["cvaeopt", *words])

    def _study(self, name: str, parent: str) -> str:
        path = Path(self.typed.study or "")
        by_path = path.suffix.lower() == ".toml" and path.with_name(f"{parent}.toml").exists()
        return str(path.with_name(f"{name}.toml")) if by_path else name

    def _repeated(self, command: str) -> list[str]:
        from cvaeopt.store.urls import mask

        url, folder = self.typed.storage, self.typed.artifacts
        repeated = [] if url is None else ["--storage", url if mask(url) == url else "URL"]
        if folder is not None and command in _TAKE_ARTIFACTS:
            repeated += ["--artifacts", str(folder)]
        return repeated


def _name(study: str) -> str:
    from cvaeopt.search.definition import definition_path

    return definition_path(study).stem


def definition_file(study: str) -> Path:
    """The TOML file of a study. A confirmation without a file of its own uses the file of its study."""
    from cvaeopt.search.definition import definition_path

    path = definition_path(study)
    if path.exists():
        return path
    parent = _CONFIRMATION.sub("", path.stem)
    return path.with_name(f"{parent}.toml") if study.lower().endswith(".toml") else definition_path(parent)

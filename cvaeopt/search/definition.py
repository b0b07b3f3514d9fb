"""The definition of a study: the content of its TOML file, checked once and then immutable."""

from __future__ import annotations

import difflib
import itertools
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field

from cvaeopt import tomlfile
from cvaeopt.config import check_names
from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.files import digest
from cvaeopt.search import space
from cvaeopt.search.claims import Claim, parse_claims
from cvaeopt.search.mistakes import with_all_mistakes
from cvaeopt.search.parsing import (
    check_conditions,
    check_effects,
    parse_enqueue,
    parse_fixed,
    parse_kind,
    parse_search,
    parse_table,
    subtable,
)
from cvaeopt.search.space import Dimension, Scalar, Values
from cvaeopt.search.tables import (
    NAME,
    Budget,
    GridSampler,
    NoPruner,
    Pruner,
    Sampler,
    ServiceTable,
    StudyTable,
    WarmStart,
)
from cvaeopt.vae import snapshots

SHIPPED: Final = Path(str(files("cvaeopt"))) / "studies"
"""The folder of the studies that come with the package."""

TABLES: Final = (
    "study",
    "budget",
    "fixed",
    "search",
    "sampler",
    "pruner",
    "enqueue",
    "warm_start",
    "claims",
    "service",
)
MAX_GRID_POINTS: Final = 10_000
_OTHER_SUFFIXES = (
    ".yaml",
    ".yml",
    ".json",
    ".ini",
    ".cfg",
    ".conf",
    ".txt",
    ".py",
    ".xml",
    ".csv",
    ".md",
    ".db",
)


class Definition(StudyTable):
    """The definition of a study: the searched settings, the sampler, the pruner and the budget.

    `load_definition` makes a definition from a TOML file, and `Definition.parse` makes it from tables. Both functions
    check the definition as a whole.
    """

    name: str
    budget: Budget
    fixed: dict[str, Any]
    search: dict[str, Annotated[Dimension, Field(discriminator="type")]]
    sampler: Annotated[Sampler, Field(discriminator="kind")]
    pruner: Annotated[Pruner, Field(discriminator="kind")]
    enqueue: list[dict[str, Scalar]]
    warm_start: WarmStart | None
    claims: list[Claim]
    service: ServiceTable

    @classmethod
    def parse(cls, tables: dict[str, Any], name: str, where: str) -> Self:
        """The checked definition; SettingsError if a table is wrong, StudyError if `name` cannot name a study.

        where   the source of the tables, such as the path of a file, for error messages

        If several keys are wrong, the error has a line for each.
        """
        check_name(name, where)
        try:
            return cls._parse(tables, name, where)
        except SettingsError as error:
            raise with_all_mistakes(error, tables, TABLES, where) from None

    @classmethod
    def _parse(cls, tables: dict[str, Any], name: str, where: str) -> Self:
        check_names(tables, list(TABLES), where, kind="table")
        for table in ("budget", "search"):
            if not tables.get(table):
                raise SettingsError(
                    f"{where}: the table [{table}] is missing or empty.",
                    todo="Add it: [budget] limits the study, and [search] names the settings that are searched.",
                )
        studied = parse_table(StudyTable, subtable(tables, "study", where), f"{where}: [study]")
        budget = parse_table(Budget, subtable(tables, "budget", where), f"{where}: [budget]")
        again = studied.confirms is not None
        search = parse_search(subtable(tables, "search", where), f"{where}: [search]", seeds=again)
        fixed = parse_fixed(subtable(tables, "fixed", where), search, budget, where)
        check_conditions(search, fixed, f"{where}: [search]")
        check_effects(search, {**fixed, "num_epoch": budget.epochs}, f"{where}: [search]")
        definition = cls(
            **dict(studied),
            name=name,
            budget=budget,
            fixed=fixed,
            search=search,
            sampler=parse_kind(Sampler, "tpe", subtable(tables, "sampler", where), f"{where}: [sampler]"),
            pruner=parse_kind(Pruner, "none", subtable(tables, "pruner", where), f"{where}: [pruner]"),
            enqueue=parse_enqueue(tables.get("enqueue", []), search, fixed, f"{where}: [[enqueue]]"),
            warm_start=parse_table(WarmStart, subtable(tables, "warm_start", where), f"{where}: [warm_start]")
            if "warm_start" in tables
            else None,
            claims=[],
            service=parse_table(ServiceTable, subtable(tables, "service", where), f"{where}: [service]"),
        )
        _check_together(definition, where)
        if not tables.get("claims"):
            return definition
        return definition.model_copy(update={"claims": definition.parse_claims(tables["claims"], where)})

    @property
    def epochs(self) -> int:
        """Number of epochs of one trial."""
        return self.budget.epochs

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the study's frames, pixels; equal in all trials."""
        settled = space.settled(self.search, self.fixed)
        return settled["frame_H"], settled["frame_W"]

    def plain(self) -> dict[str, Any]:
        """The definition as the tables that `parse` takes, in JSON values and without [[claims]] and [service]."""
        studied = StudyTable(**{name: getattr(self, name) for name in StudyTable.model_fields})
        return {
            "study": studied.model_dump(exclude_none=True),
            "budget": self.budget.model_dump(exclude_none=True),
            "fixed": dict(self.fixed),
            "search": {name: _plain_dimension(dimension) for name, dimension in self.search.items()},
            "sampler": self.sampler.model_dump(),
            "pruner": self.pruner.model_dump(),
            "enqueue": [dict(point) for point in self.enqueue],
            **({} if self.warm_start is None else {"warm_start": self.warm_start.model_dump()}),
        }

    def parse_claims(self, given: Any, where: str) -> list[Claim]:
        """The checked claims about this study; SettingsError if a claim is wrong, or if the study is no grid."""
        if not isinstance(self.sampler, GridSampler):
            raise SettingsError(
                f"{where}: [[claims]] beside [sampler] kind = {self.sampler.kind!r}.",
                "Expected: kind = 'grid', whose points are the arms that claims compare.",
            )
        return parse_claims(given, self.search, self.fixed, f"{where}: [[claims]]")

    def digest(self) -> str:
        """Twelve hex digits that identify the search. Definitions of the same search have the same digest.

        Description, seed_noise_db, [[claims]] and [service] do not change the digest. The order of the searched
        settings changes the digest, because grid and quasi-random points depend on the order.
        """
        tables = self.plain()
        del tables["study"]["description"], tables["study"]["seed_noise_db"]
        if self.seeds == "each":  # studies that are older than this key keep their digests
            del tables["study"]["seeds"]
        return digest({**tables, "order": list(self.search)})

    def points(self) -> list[Values]:
        """The points to run before the sampler suggests points: the enqueued points, or the whole grid."""
        if isinstance(self.sampler, GridSampler):
            return list(space.grid(self.search, self.fixed))
        return [dict(point) for point in self.enqueue]


def load_definition(study: str, folder: Path = Path("studies")) -> Definition:
    """The checked definition of `study`, which is a name (`folder/NAME.toml`) or the path of a TOML file.

    StudyError if there is no such file; its message suggests existing studies. SettingsError if the content is wrong.
    """
    path = definition_path(study, folder)
    try:
        tables = tomlfile.read(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}.", "Expected: a TOML file that can be read.") from None
    return Definition.parse(tables, path.stem, str(path))


def definition_path(study: str, folder: Path = Path("studies")) -> Path:
    """The file of `study`, which is a name or the path of a TOML file; StudyError if it is neither.

    If `folder` has no study of this name, the name may belong to a study of the package, see `is_shipped`.
    """
    if study.lower().endswith(".toml"):
        path = Path(study)
        check_name(path.stem, study)
        return path
    path = folder / f"{study}.toml"
    if Path(study).suffix.lower() in _OTHER_SUFFIXES and not path.exists():
        near = Path(study).with_suffix(".toml")
        raise StudyError(
            f"{study} is not a .toml file.",
            "Expected: the name of a study, or the path of a TOML file.",
            f"Did you mean {near}?" if near.exists() else "Write the study as TOML.",
        )
    check_name(study, "--study")
    shipped = SHIPPED / path.name
    return shipped if shipped.is_file() and not path.exists() else path


def is_shipped(path: Path) -> bool:
    """Whether `path` is a study of the package. Such a study is used if the user's folder has no study of its name."""
    return path.parent == SHIPPED


def check_name(name: str, where: str) -> None:
    """Raise StudyError if `name` cannot name a study. A file, a folder and a row of the database get this name."""
    if not NAME.fullmatch(name):
        raise StudyError(
            f"{where}: {name!r} is no study name.",
            "Expected: a letter or digit, then up to 63 letters, digits, '_', '.' or '-'.",
            "Give such a name, or the path of a .toml file that has one.",
        )


def _missing(path: Path) -> StudyError:
    here, shipped = (sorted(file.stem for file in folder.glob("*.toml")) for folder in (path.parent, SHIPPED))
    near = difflib.get_close_matches(path.stem, [*here, *shipped], n=1)
    if near:
        todo = f"Did you mean '{near[0]}'?"
    else:
        todo = f"There are: {', '.join(here) or 'none'}. With cvaeopt come: {', '.join(shipped)}."
    found = f"No study definition {path.absolute()}."
    if not path.parent.exists() and not path.is_absolute():
        found += f" You are in {Path.cwd()}, which has no folder {path.parent}."
    return StudyError(found, todo=todo)


def _check_together(definition: Definition, where: str) -> None:
    budget, sampler, pruner = definition.budget, definition.sampler, definition.pruner
    if definition.window > budget.epochs:
        raise SettingsError(
            f"{where}: [study] window = {definition.window}.",
            f"Expected: at most [budget] epochs = {budget.epochs}.",
        )
    if definition.service.snapshots is not None:
        snapshots.epochs_of(definition.service.snapshots, budget.epochs, f"{where}: [service] snapshots")
    warm = definition.warm_start
    if warm is not None:
        check_name(warm.study, f"{where}: [warm_start] study")
        if isinstance(sampler, GridSampler) or warm.study == definition.name:
            reason = (
                "a grid runs every point anyway" if isinstance(sampler, GridSampler) else "this is the study itself"
            )
            raise SettingsError(f"{where}: [warm_start] study = {warm.study!r}: {reason}.", todo="Remove [warm_start].")
    waiting = len(definition.enqueue) + (0 if warm is None else warm.top)
    if isinstance(sampler, GridSampler):
        _check_grid(definition, where)
    elif budget.trials is not None and waiting > budget.trials:
        raise SettingsError(
            f"{where}: {waiting} points are enqueued, [budget] trials = {budget.trials}.",
            todo="Raise trials or remove points.",
        )
    if not isinstance(pruner, NoPruner) and pruner.warmup_epochs >= budget.epochs:
        raise SettingsError(
            f"{where}: [pruner] warmup_epochs = {pruner.warmup_epochs}, so that no trial is ever pruned.",
            f"Expected: less than [budget] epochs = {budget.epochs}.",
            'Lower it, or write kind = "none".',
        )


def _check_grid(definition: Definition, where: str) -> None:
    for name, dimension in definition.search.items():
        if not dimension.every():
            raise SettingsError(
                f"{where}: [search] {name} is continuous, [sampler] kind = 'grid'.",
                "Expected: a finite number of values.",
                f"Give {name} a step, or list its values as choices.",
            )
    if definition.enqueue:
        raise SettingsError(
            f"{where}: [[enqueue]] beside [sampler] kind = 'grid', which runs every point anyway.",
            todo="Remove [[enqueue]].",
        )
    points = space.grid(definition.search, definition.fixed)
    size = sum(1 for _ in itertools.islice(points, MAX_GRID_POINTS + 1))
    if size > MAX_GRID_POINTS:
        raise SettingsError(f"{where}: the grid has more than {MAX_GRID_POINTS} points.", todo="Search fewer values.")
    if definition.budget.trials != size:
        raise SettingsError(
            f"{where}: [budget] trials = {definition.budget.trials}, and the grid has {size} points.",
            "Expected: one trial a point.",
            f"Write trials = {size}.",
        )


def _plain_dimension(dimension: Dimension) -> dict[str, Any]:
    table = dimension.model_dump(exclude_none=True)
    if not table["when"]:
        del table["when"]
    return table

"""What a study is: the tables of its TOML file, checked once and frozen."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import re
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from cvaeopt import tomlfile
from cvaeopt.config import Config, check_names, settings_error
from cvaeopt.errors import SettingsError, StudyError
from cvaeopt.files import digest
from cvaeopt.search import space
from cvaeopt.search.space import (
    CategoricalDimension,
    Dimension,
    FloatDimension,
    IntDimension,
    Scalar,
    Values,
    same,
)
from cvaeopt.spelling import Table, meant, nearest, words_of

SHIPPED = Path(str(files("cvaeopt"))) / "studies"
"""The studies that come with the package."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
TABLES = ("study", "budget", "fixed", "search", "sampler", "pruner", "enqueue", "warm_start", "service")
MOST_GRID_POINTS = 10_000
_OTHER_SUFFIXES = (".yaml", ".yml", ".json", ".ini", ".cfg", ".conf", ".txt", ".py", ".xml", ".csv", ".md", ".db")


class StudyTable(Table):
    """The table [study]: what is measured."""

    description: str = Field("", description="what the study asks; shown in reports, free to change")
    metric: Literal["val_psnr", "val_psnr_late"] = Field(
        "val_psnr", description="validation PSNR over all frames, or over the last third of them, dB"
    )
    window: int = Field(1, ge=1, description="a trial's value is the mean of the metric over its last epochs")
    seed_noise_db: float = Field(
        0.35, ge=0, description="standard deviation between training seeds, part of a trial's standard error, dB"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the seed that every random draw of the study derives from")
    seeds: Literal["each", "common"] = Field(
        "each", description="a training seed for each trial, or one for all: its luck then drops out of comparisons"
    )
    confirms: str | None = Field(
        None,
        pattern=rf"^{NAME.pattern}@[0-9a-f]{{12}}$",
        description="study (and its identity, or its definition's digest) that is trained again; seed is then searched",
    )


class Budget(Table):
    """The table [budget]: the study ends at whichever limit is met first."""

    trials: int | None = Field(None, ge=1, lt=2**31, description="trials of the study, enqueued ones included")
    epochs: int = Field(ge=1, lt=2**31, description="epochs of one trial: its num_epoch")
    total_epochs: int | None = Field(None, ge=1, lt=2**31, description="epochs of all trials together")
    wall_clock_h: float | None = Field(None, gt=0, description="hours from the start of its first trial")
    target_db: float | None = Field(None, description="a complete trial's value that ends the study, dB")
    patience_trials: int | None = Field(
        None, ge=1, lt=2**31, description="trials ended since the best one that end the study"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trials is None and self.total_epochs is None and self.wall_clock_h is None:
            raise ValueError("no limit: one of trials, total_epochs and wall_clock_h is needed")
        if self.total_epochs is not None and self.total_epochs < self.epochs:
            raise ValueError(f"total_epochs = {self.total_epochs} is less than one trial's epochs = {self.epochs}")
        return self


class TpeSampler(Table):
    """Tree-structured Parzen estimator, multivariate, as in Optuna 5."""

    kind: Literal["tpe"] = "tpe"
    n_startup_trials: int = Field(10, ge=0, description="finished trials before the model is used")
    n_ei_candidates: int = Field(24, ge=1, description="candidates of which the most promising is taken")
    constant_liar: bool = Field(
        True, description="count running trials as poor ones, so that workers do not repeat each other"
    )


class RandomSampler(Table):
    """Every trial independent of all others."""

    kind: Literal["random"] = "random"


class GridSampler(Table):
    """Every point of the grid once, in the order of [search], the last setting fastest."""

    kind: Literal["grid"] = "grid"


class QmcSampler(Table):
    """Scrambled Halton points: random search that leaves no holes."""

    kind: Literal["qmc"] = "qmc"


class GpSampler(Table):
    """Gaussian process with an error for every value; learns from pruned, running and diverged trials too."""

    kind: Literal["gp"] = "gp"
    n_startup_trials: int = Field(6, ge=2, description="trials that say something before the model is used")
    tpe_every: int = Field(2, ge=0, description="every so many trials TPE suggests instead; 0: never")


class NoPruner(Table):
    """Every trial runs all of its epochs."""

    kind: Literal["none"] = "none"


class MedianPruner(Table):
    """Stops a trial whose best epoch so far is below the median of the finished trials at the same epoch."""

    kind: Literal["median"]
    n_startup_trials: int = Field(ge=0, description="finished trials before the first one is pruned")
    warmup_epochs: int = Field(ge=0, description="epochs of a trial before it can be pruned")
    interval_epochs: int = Field(ge=1, lt=2**31, description="epochs between two decisions")
    n_min_trials: int = Field(1, ge=1, description="finished trials that must have reached the epoch")


class PercentilePruner(Table):
    """The same with a percentile instead of the median."""

    kind: Literal["percentile"]
    percentile: float = Field(gt=0, lt=100, description="share of the finished trials that is kept, per cent")
    n_startup_trials: int = Field(ge=0, description="finished trials before the first one is pruned")
    warmup_epochs: int = Field(ge=0, description="epochs of a trial before it can be pruned")
    interval_epochs: int = Field(ge=1, lt=2**31, description="epochs between two decisions")
    n_min_trials: int = Field(1, ge=1, description="finished trials that must have reached the epoch")


class HalvingPruner(Table):
    """Asynchronous successive halving: at each rung the best 1 of `reduction_factor` goes on."""

    kind: Literal["halving"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial at the first rung")
    reduction_factor: int = Field(ge=2, description="epochs grow, and trials shrink, by this factor a rung")


class HyperbandPruner(Table):
    """Several successive halvings whose first rungs differ."""

    kind: Literal["hyperband"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial at the first rung of the keenest bracket")
    reduction_factor: int = Field(ge=2, description="epochs grow, and trials shrink, by this factor a rung")


class ForecastPruner(Table):
    """Stops a trial whose forecast end would not reach the leaders'; learned from the complete trials."""

    kind: Literal["forecast"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial before it can be pruned")
    interval_epochs: int = Field(ge=1, lt=2**31, description="epochs between two decisions")
    n_startup_trials: int = Field(3, ge=2, description="complete trials that the forecast is learned from, at least")
    keep: float = Field(0.0, ge=0, le=1, description="share of the complete trials that count as leaders")
    odds: float = Field(1.0, gt=0, description="stops what is less than so many times as likely as a fresh trial")


class WarmStart(Table):
    """The table [warm_start]: points of an earlier study that are run anew, after the enqueued ones."""

    study: str = Field(description="an earlier study in the same storage")
    top: int = Field(5, ge=1, description="its best trials whose points are taken")


class ServiceTable(Table):
    """The table [service]: where the study runs. Not part of the digest; flags and environment come first."""

    storage: str | None = Field(None, description="URL of the SQL storage")
    data: str | None = Field(None, description="data folder in the lab's layout")
    artifacts: str | None = Field(None, description="folder of the run folders")
    checkpoints: str | None = Field(None, description="object store for copies of the checkpoints, s3://BUCKET/PREFIX")
    gpu: Annotated[int, Field(ge=0)] | Literal["cpu"] | None = Field(None, description="index of the GPU, or cpu")
    keep_best: int = Field(5, ge=1, description="complete trials whose checkpoints are kept")
    keep_pictures: int = Field(
        50, ge=1, description="best trials, and as many latest ones, that keep their pictures in the dashboard"
    )


Sampler = TpeSampler | RandomSampler | GridSampler | QmcSampler | GpSampler
Pruner = NoPruner | MedianPruner | PercentilePruner | HalvingPruner | HyperbandPruner | ForecastPruner


class Definition(StudyTable):
    """A study: what is searched, how, and for how long.

    Made by `load_definition` (TOML) or `Definition.parse` (tables); both check it as a whole.
    """

    name: str
    budget: Budget
    fixed: dict[str, Any]
    search: dict[str, Annotated[Dimension, Field(discriminator="type")]]
    sampler: Annotated[Sampler, Field(discriminator="kind")]
    pruner: Annotated[Pruner, Field(discriminator="kind")]
    enqueue: list[dict[str, Scalar]]
    warm_start: WarmStart | None
    service: ServiceTable

    @classmethod
    def parse(cls, tables: dict[str, Any], name: str, where: str) -> Self:
        """The checked definition; SettingsError names `where` it stands, what was found and expected."""
        check_name(name, where)
        check_names(tables, list(TABLES), where, kind="table")
        for table in ("budget", "search"):
            if not tables.get(table):
                raise SettingsError(
                    f"{where}: the table [{table}] is missing or empty.",
                    todo="Add it: [budget] limits the study, and [search] names the settings that are searched.",
                )
        studied = _parse(StudyTable, _table(tables, "study", where), f"{where}: [study]")
        budget = _parse(Budget, _table(tables, "budget", where), f"{where}: [budget]")
        again = studied.confirms is not None
        search = _parse_search(_table(tables, "search", where), f"{where}: [search]", seeds=again)
        fixed = _parse_fixed(_table(tables, "fixed", where), search, budget, where)
        _check_conditions(search, fixed, f"{where}: [search]")
        _check_effects(search, {**fixed, "num_epoch": budget.epochs}, f"{where}: [search]")
        definition = cls(
            **dict(studied),
            name=name,
            budget=budget,
            fixed=fixed,
            search=search,
            sampler=_parse_kind(Sampler, "tpe", _table(tables, "sampler", where), f"{where}: [sampler]"),
            pruner=_parse_kind(Pruner, "none", _table(tables, "pruner", where), f"{where}: [pruner]"),
            enqueue=_parse_enqueue(tables.get("enqueue", []), search, fixed, f"{where}: [[enqueue]]"),
            warm_start=_parse(WarmStart, _table(tables, "warm_start", where), f"{where}: [warm_start]")
            if "warm_start" in tables
            else None,
            service=_parse(ServiceTable, _table(tables, "service", where), f"{where}: [service]"),
        )
        _check_together(definition, where)
        return definition

    @property
    def epochs(self) -> int:
        """Epochs of one trial."""
        return self.budget.epochs

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of the study's frames, pixels; no trial varies them."""
        settled = space.settled(self.search, self.fixed)
        return settled["frame_H"], settled["frame_W"]

    def plain(self) -> dict[str, Any]:
        """The definition as the tables `parse` takes, JSON values, [service] left out."""
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

    def digest(self) -> str:
        """Twelve hex digits that name what is searched and how; description, seed_noise_db and [service] do not count.

        The order of the searched settings counts: grid and quasi-random points follow it.
        """
        tables = self.plain()
        del tables["study"]["description"], tables["study"]["seed_noise_db"]
        if self.seeds == "each":  # studies that are older than this key keep their names
            del tables["study"]["seeds"]
        return digest({**tables, "order": list(self.search)})

    def points(self) -> list[Values]:
        """The points to run before the sampler is asked: the enqueued ones, or the whole grid."""
        if isinstance(self.sampler, GridSampler):
            return list(space.grid(self.search, self.fixed))
        return [dict(point) for point in self.enqueue]


def load_definition(study: str, folder: Path = Path("studies")) -> Definition:
    """The checked definition of a study: a name (`folder/NAME.toml`) or the path of a TOML file.

    StudyError if there is no such file (it lists those that exist), SettingsError if its content is wrong.
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
    """The file of a study that is given by its name or by the path of a TOML file; StudyError if it is neither.

    A name that `folder` does not have may be that of a study which comes with the package: see `is_shipped`.
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
    """Whether `path` is a study that comes with the package, used where the user's folder has none of its name."""
    return path.parent == SHIPPED


def check_name(name: str, where: str) -> None:
    """StudyError if `name` cannot name a study (it becomes a file name, a folder and a row)."""
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
    return StudyError(f"No study definition {path}.", todo=todo)


_Model = TypeVar("_Model", bound=BaseModel)


def _parse(model: type[_Model], table: dict[str, Any], where: str) -> _Model:
    check_names(table, list(model.model_fields), where, kind="key")
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise _complaint(error, where) from None


def _complaint(error: ValidationError, where: str, inside: int = 0) -> SettingsError:
    """The first complaint; `inside` so many steps of its place, which are the union's and not the file's."""
    first = error.errors()[0]
    if first["type"] == "missing":
        name = ".".join(str(part) for part in first["loc"][inside:])
        return SettingsError(f"{where}: {name} is missing.", todo="Add it.")
    return settings_error(error, where, inside)


def _parse_kind(union: Any, default: str, table: dict[str, Any], where: str) -> Any:
    """The one of the models of `union` that the table's `kind` names."""
    models = {words_of(model, "kind")[0]: model for model in get_args(union)}
    given = table.get("kind", default)
    try:
        return TypeAdapter[Any](Annotated[union, Field(discriminator="kind")]).validate_python(
            {**table, "kind": meant(given, models)}
        )
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "union_tag_invalid":
            near = nearest(given, models)
            raise SettingsError(
                f"{where}: kind = {given!r}.",
                f"Expected one of: {', '.join(models)}.",
                f"Did you mean '{near}'?" if near else "",
            ) from None
        check_names(table, list(models[str(first["loc"][0])].model_fields), where, kind="key")
        raise _complaint(error, where, inside=1) from None


def _table(tables: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{where}: {name} = {table!r}.", f"Expected: a table, [{name}].")
    return table


_DIMENSIONS: MappingProxyType[str, type[Dimension]] = MappingProxyType(
    {"float": FloatDimension, "int": IntDimension, "categorical": CategoricalDimension}
)


def _parse_search(table: dict[str, Any], where: str, *, seeds: bool) -> dict[str, Dimension]:
    """The dimensions of [search]; `seeds` allows seed among them."""
    check_names(table, list(Config.model_fields), where)
    search: dict[str, Dimension] = {}
    for name, given in table.items():
        if name in space.NOT_SEARCHED and not (seeds and name == "seed"):
            raise SettingsError(
                f"{where}: '{name}' cannot be searched: {space.NOT_SEARCHED[name]}.",
                todo=f"Remove {name} from [search].",
            )
        allowed = _types_of(name)
        kind = meant(given.get("type"), allowed) if isinstance(given, dict) else None
        if not isinstance(given, dict) or kind not in allowed:
            raise SettingsError(
                f"{where}: {name} has {'no type' if kind is None else f'type = {kind!r}'}.",
                f"Expected: a table with type = {' or '.join(repr(one) for one in allowed)}.",
            )
        search[name] = _parse(_DIMENSIONS[kind], _coerced(name, given), f"{where} {name}")
    return search


def _types_of(name: str) -> list[str]:
    annotation = Config.model_fields[name].annotation
    if annotation is float:
        return ["float", "categorical"]
    return ["int", "categorical"] if annotation is int else ["categorical"]


def _coerced(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The dimension's table with whole numbers made real ones where the settings are real numbers."""
    table = dict(given)
    if isinstance(table.get("choices"), list):
        table["choices"] = [_as_setting(name, choice) for choice in table["choices"]]
    if isinstance(table.get("when"), dict):
        table["when"] = {
            other: [_as_setting(other, value) for value in values] if isinstance(values, list) else values
            for other, values in table["when"].items()
        }
    return table


def _as_setting(name: str, value: Any) -> Any:
    """The value in the kind and the spelling that the setting has, where that can be told."""
    field = Config.model_fields.get(name)
    if field is not None and field.annotation is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # left as it is, it is refused by name
            return float(value)
    return meant(value, words_of(Config, name))


def _parse_fixed(table: dict[str, Any], search: dict[str, Dimension], budget: Budget, where: str) -> dict[str, Any]:
    """The fixed settings, checked together with the corners of the search space."""
    check_names(table, list(Config.model_fields), f"{where}: [fixed]")
    if "num_epoch" in table:
        raise SettingsError(f"{where}: [fixed] has num_epoch.", todo="Write epochs under [budget] instead.")
    for name in table:
        if name in search:
            raise SettingsError(
                f"{where}: '{name}' is searched and fixed.", todo="Remove it from [search] or from [fixed]."
            )
    table = {name: _as_setting(name, value) for name, value in table.items()}
    space.order(search, f"{where}: [search]")  # before the walk below, which would not end in a circle
    config = None
    for point in space.corners(search, table):
        try:
            config = Config.model_validate({**table, **point, "num_epoch": budget.epochs})
        except ValidationError as error:
            raise _corner_complaint(error, table, point, where) from None
    if config is None:
        raise SettingsError(f"{where}: [search] has no point.", todo="Give every setting a range or choices.")
    plain = config.plain()
    return {name: plain[name] for name in table}


def _corner_complaint(error: ValidationError, fixed: dict[str, Any], point: Values, where: str) -> SettingsError:
    first = error.errors()[0]
    if first["loc"]:
        name = str(first["loc"][0])
        complaint = settings_error(error, f"{where}: [{'search' if name in point else 'fixed'}]")
        return SettingsError(complaint.found, complaint.expected, "Change the range." if name in point else "")
    message = first["msg"].removeprefix("Value error, ")
    words = set(re.findall(r"\w+", message))
    values = {**space.settled({}, fixed), **point}
    involved = ", ".join(f"{name} = {value!r}" for name, value in values.items() if name in words)
    return SettingsError(
        f"{where}: [search] reaches settings that cannot run ({involved}): {message}.",
        todo="Narrow a range, fix one of them, or add a 'when'.",
    )


def _check_conditions(search: dict[str, Dimension], fixed: dict[str, Any], where: str) -> None:
    settled = space.settled(search, fixed)
    for name, dimension in search.items():
        check_names(dimension.when, list(Config.model_fields), f"{where} {name}: when")
        for other, values in dimension.when.items():
            if other in search and isinstance(search[other], FloatDimension):
                raise SettingsError(
                    f"{where} {name}: when reads '{other}', a continuous range.",
                    "Expected: an int or categorical setting, whose values can be listed.",
                )
            if other in search:
                for value in values:
                    if not search[other].contains(value):
                        raise SettingsError(
                            f"{where} {name}: when {other} = {value!r}, which is never suggested.",
                            f"Expected: {search[other].text()}.",
                        )
            elif not any(same(value, settled[other]) for value in values):
                raise SettingsError(
                    f"{where}: '{name}' is never searched: its when needs {other} = "
                    f"{' or '.join(repr(value) for value in values)}, and {other} is {settled[other]!r}.",
                    todo=f"Correct the when, search {other}, or remove {name}.",
                )


def _check_effects(search: dict[str, Dimension], fixed: dict[str, Any], where: str) -> None:
    """SettingsError if a searched setting changes nothing anywhere in the space."""
    defaults = space.settled({}, fixed)
    effective: set[str] = set()
    for point in space.corners(search, fixed):
        values = {**defaults, **point}
        effective |= {name for name in point if space.has_effect(name, values)}
        if len(effective) == len(search):
            return
    name = next(name for name in search if name not in effective)
    raise SettingsError(
        f"{where}: '{name}' has no effect anywhere in this study: {space.NEEDS[name]}.",
        todo=f"Remove {name}, or search the settings that it needs.",
    )


def _parse_enqueue(
    given: Any, search: dict[str, Dimension], fixed: dict[str, Any], where: str
) -> list[dict[str, Scalar]]:
    if not isinstance(given, list) or not all(isinstance(point, dict) for point in given):
        raise SettingsError(f"{where} is no list of tables.", "Expected: [[enqueue]], in double brackets.")
    points: list[dict[str, Scalar]] = []
    for index, table in enumerate(given, start=1):
        here = f"{where} {index}"
        check_names(table, list(search), here, kind="searched setting")
        point = {name: _as_setting(name, value) for name, value in table.items()}
        values = space.settled(search, fixed)
        for name in space.order(search):
            dimension = search[name]
            active = dimension.active(values)
            if name not in point:
                continue
            if not dimension.contains(point[name]):
                raise SettingsError(f"{here}: {name} = {point[name]!r}.", f"Expected: {dimension.text()}.")
            if not active:
                needs = " and ".join(f"{other} in {allowed!r}" for other, allowed in dimension.when.items())
                raise SettingsError(
                    f"{here}: {name} = {point[name]!r} is not searched at this point.",
                    f"Expected beside it: {needs}.",
                    f"Remove {name} from the point, or add what it needs.",
                )
            values[name] = point[name]
        if point in points:
            raise SettingsError(f"{here} repeats {points.index(point) + 1}.", todo="Remove one of them.")
        if not point:
            raise SettingsError(f"{here} is empty.", todo="Name at least one searched setting.")
        points.append(point)
    return points


def _check_together(definition: Definition, where: str) -> None:
    budget, sampler, pruner = definition.budget, definition.sampler, definition.pruner
    if definition.window > budget.epochs:
        raise SettingsError(
            f"{where}: [study] window = {definition.window}.",
            f"Expected: at most [budget] epochs = {budget.epochs}.",
        )
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
    size = sum(1 for _ in itertools.islice(points, MOST_GRID_POINTS + 1))
    if size > MOST_GRID_POINTS:
        raise SettingsError(f"{where}: the grid has more than {MOST_GRID_POINTS} points.", todo="Search fewer values.")
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

"""The search space: which settings vary, under which condition, and how a trial's parameters become a Config."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Protocol, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from pydantic import Field, model_validator

from cvaeopt.config import Config, settings_digest
from cvaeopt.errors import SettingsError
from cvaeopt.spelling import Table

Scalar = bool | int | float | str
Values = dict[str, Any]

# The settings that cannot be searched, each with the reason.
NOT_SEARCHED = {
    "num_epoch": "every trial runs [budget] epochs",
    "seed": "it is made from the study's seed, for each trial or for all of them ([study] seeds)",
    "milestones": "a list of epochs is no range; search gamma, or search lr_scheduler",
    "frame_H": "the trials would be measured on different frames",
    "frame_W": "the trials would be measured on different frames",
    "val_noise_seed": "the winner would be the luckiest noise; trials are compared on the same noise",
}

# The conditions under which a setting has an effect. `has_effect` checks these conditions.
NEEDS = {
    "kl_formula": "it needs a kl_anneal_type other than 'none', or 'seed003' among the formulas",
    "kl_anneal_cycle": "it needs kl_anneal_type 'cyclical', or 'monotonic' with a kl_formula that uses it",
    "kl_anneal_ratio": "it needs a kl_anneal_type other than 'none' and a kl_formula other than 'seed004'",
    "tfr_sde": "it needs tfr and tfr_d_step above 0 and fewer epochs than the trial has",
    "tfr_d_step": "it needs tfr above 0 and a tfr_sde below the trial's epochs",
    "tfr_formula": "it needs tfr and tfr_d_step above 0 and a tfr_sde below the trial's epochs",
    "tfr_coin": "it needs tfr above 0",
    "forced_loss": "it needs tfr above 0",
    "detach": "it needs a tfr that is below 1 at some epoch",
    "clip_order": "it needs batch_size above 1",
    "momentum": "it needs optim 'SGD'",
    "gamma": "it needs lr_scheduler 'MultiStepLR' or 'ExponentialLR'",
    "lr_min": "it needs lr_scheduler 'cosine'",
    "val_noise_scale": "it needs val_noise 'scaled'",
}

# If a space has more corners than this, only a random sample of its corners is used.
MAX_CORNERS = 4096


class _Dimension(Table):
    when: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(
        default_factory=dict,
        description="searched only where each of these settings has one of the listed values",
    )

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the setting is searched beside these `values`, in which inactive settings are absent."""
        return all(name in values and values[name] in allowed for name, allowed in self.when.items())


class _Range(_Dimension):
    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="draw the logarithm evenly; needs low > 0")

    def ends(self) -> list[Any]:
        """The smallest and the largest value."""
        return [self.low, self.high] if self.low < self.high else [self.low]

    def _check_range(self, step: float | None) -> None:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0, found {self.low:g}")
        if self.log and step is not None:
            raise ValueError("log and step exclude each other: leave one out")


class FloatDimension(_Range):
    """A range of real numbers."""

    type: Literal["float"]
    step: float | None = Field(None, gt=0, description="distance of neighbouring values; not with log")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_range(self.step)
        if self.step is not None:
            # In decimal arithmetic, 0.3 is exactly three steps of 0.1; in binary arithmetic it is not.
            try:
                rest = (_decimal(self.high) - _decimal(self.low)) % _decimal(self.step)
            except ArithmeticError:
                raise ValueError(
                    f"step = {self.step:g} is too small for low = {self.low:g}, high = {self.high:g}"
                ) from None
            if rest:
                raise ValueError(f"high - low = {self.high - self.low:g} is no multiple of step = {self.step:g}")
        return self

    def suggest(self, name: str, trial: BaseTrial) -> float:
        """The trial's value for this dimension."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether `value` can be suggested."""
        if not isinstance(value, float) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return abs(steps - round(steps)) <= 1e-8

    def every(self) -> list[Any]:
        """All values in rising order; an empty list for a continuous range."""
        if self.low == self.high:
            return [self.low]
        if self.step is None:
            return []
        low, step = _decimal(self.low), _decimal(self.step)
        count = int((_decimal(self.high) - low) / step) + 1
        return [float(low + index * step) for index in range(count)]

    def text(self) -> str:
        step = f" in steps of {self.step:g}" if self.step is not None else ""
        return f"{self.low:g} to {self.high:g}{step}"


class IntDimension(_Range):
    """A range of whole numbers."""

    type: Literal["int"]
    low: int = Field(description="smallest value")
    high: int = Field(description="largest value")
    step: int = Field(1, ge=1, description="distance of neighbouring values; 1 with log")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_range(None if self.step == 1 else self.step)
        if (self.high - self.low) % self.step:
            raise ValueError(f"high - low = {self.high - self.low} is no multiple of step = {self.step}")
        return self

    def suggest(self, name: str, trial: BaseTrial) -> int:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def every(self) -> list[Any]:
        """All values in rising order."""
        return list(range(self.low, self.high + 1, self.step))

    def text(self) -> str:
        step = f" in steps of {self.step}" if self.step != 1 else ""
        return f"{self.low} to {self.high}{step}"


class CategoricalDimension(_Dimension):
    """A list of values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1, description="the values")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for index, choice in enumerate(self.choices):
            if any(same(choice, other) for other in self.choices[:index]):
                raise ValueError(f"the choice {choice!r} stands there twice")
        return self

    def suggest(self, name: str, trial: BaseTrial) -> Scalar:
        value = trial.suggest_categorical(name, self.choices)
        assert value is not None  # TOML has no null, so no choice is None
        return value

    def contains(self, value: Any) -> bool:
        return any(same(value, choice) for choice in self.choices)

    def every(self) -> list[Any]:
        """All choices in their listed order."""
        return list(self.choices)

    def ends(self) -> list[Any]:
        """All choices, because choices have no order."""
        return self.every()

    def text(self) -> str:
        return "one of " + ", ".join(repr(choice) for choice in self.choices)


Dimension = FloatDimension | IntDimension | CategoricalDimension
Search = Mapping[str, Dimension]


class Searched(Protocol):
    """The parts of a study's definition that this module reads."""

    @property
    def name(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def seeds(self) -> str: ...
    @property
    def epochs(self) -> int: ...
    @property
    def fixed(self) -> Values: ...
    @property
    def search(self) -> dict[str, Dimension]: ...


def suggest(definition: Searched, trial: BaseTrial) -> Config:
    """The checked settings of this trial, suggested in an order in which every condition can be decided.

    trial   a running trial or a `FixedTrial` of Optuna; a trial from another worker keeps its values
    """
    values = settled(definition.search, definition.fixed)
    params: Values = {}
    for name in order(definition.search):
        dimension = definition.search[name]
        if dimension.active(values):
            params[name] = values[name] = dimension.suggest(name, trial)
    return params_to_config(definition, params, trial.number)


def params_to_config(definition: Searched, params: Mapping[str, Any], number: int, seed: int | None = None) -> Config:
    """The checked settings of trial `number` with these `params`; SettingsError if the parameters do not fit.

    seed   the training seed; None for the seed of a trial that has this number and new settings
    """
    where = f"trial {number} of study '{definition.name}'"
    for name in params:
        if name not in definition.search:
            raise SettingsError(
                f"{where}: the study does not search '{name}'.",
                f"Expected some of: {', '.join(definition.search)}.",
                "Use the definition the study was created from.",
            )
    if seed is None:
        seed = trial_seed(definition.seed, 0 if definition.seeds == "common" else number)
    settings = {"seed": seed, **definition.fixed, **params}
    return Config.parse({**settings, "num_epoch": definition.epochs}, where)


def trial_seed(seed: int, number: int) -> int:
    """The training seed of trial `number` of a study, below 2^31; equal on every machine.

    If trials have common seeds, `number` is the number of earlier trials with the same settings.
    """
    return stream(seed, number, "training") >> 1


def stream(seed: int, number: int, purpose: str) -> int:
    """A 32-bit seed for one purpose in one trial; equal on every machine."""
    text = f"{seed}/{number}/{purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def key_of(definition: Searched, params: Mapping[str, Any]) -> str:
    """Twelve hex digits for the settings of a trial without its seed; equal if two trials train in the same way.

    A setting without effect does not change the key, such as the decay of a forcing ratio that is 0.
    """
    values = params_to_config(definition, params, 0).plain()
    del values["seed"]
    return settings_digest({name: value for name, value in values.items() if has_effect(name, values)})


def settled(search: Search, fixed: Mapping[str, Any]) -> Values:
    """The settings that no trial varies: `fixed`, and the defaults of settings that are neither fixed nor searched."""
    values = {name: field.default for name, field in Config.model_fields.items()} | dict(fixed)
    return {name: value for name, value in values.items() if name not in search}


def order(search: Search, where: str = "[search]") -> list[str]:
    """The searched names; each name follows the names in its condition. SettingsError if conditions form a circle."""
    done: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise SettingsError(
                f"{where}: the conditions run in a circle: {cycle}.",
                "Expected: a setting depends on others that do not depend on it.",
                "Remove one 'when' of the circle.",
            )
        path.append(name)
        for other in search[name].when:
            if other in search:
                visit(other)
        path.pop()
        done.append(name)

    for name in search:
        visit(name)
    return done


def fitting(search: Search, fixed: Mapping[str, Any], known: Mapping[str, Any]) -> Values:
    """The part of a `known` point that can be suggested in this space, without values that are out of range."""
    values, point = settled(search, fixed), {}
    for name in order(search):
        if name in known and search[name].active(values) and search[name].contains(known[name]):
            values[name] = point[name] = known[name]
    return point


def distribution(dimension: Dimension) -> BaseDistribution:
    """The dimension as a distribution of Optuna."""
    if isinstance(dimension, CategoricalDimension):
        return CategoricalDistribution(dimension.choices)
    kind = FloatDistribution if isinstance(dimension, FloatDimension) else IntDistribution
    return kind(dimension.low, dimension.high, log=dimension.log, step=dimension.step)  # type: ignore[arg-type]


def grid(search: Search, fixed: Mapping[str, Any]) -> Iterator[Values]:
    """Every point of the conditional grid exactly once; the last name in `order` varies fastest."""
    return _points(search, order(search), settled(search, fixed), lambda dimension: dimension.every())


def corners(search: Search, fixed: Mapping[str, Any]) -> Iterator[Values]:
    """The points at the ends of all ranges. If there are too many, always the same sample of `MAX_CORNERS` points."""
    names, values = order(search), settled(search, fixed)
    if math.prod(len(dimension.ends()) for dimension in search.values()) <= MAX_CORNERS:
        yield from _points(search, names, values, lambda dimension: dimension.ends())
        return
    draw = random.Random(0)
    for _ in range(MAX_CORNERS):
        yield next(_points(search, names, values, lambda dimension: [draw.choice(dimension.ends())]))


def has_effect(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a change of setting `name` could change a run. `values` are all settings of Config except the seed."""
    annealed = values["kl_anneal_type"] != "none"
    one_cycle = values["kl_anneal_type"] == "monotonic" and values["kl_formula"] in ("fu", "seed003")
    forced = values["tfr"] > 0
    decays = forced and values["tfr_sde"] < values["num_epoch"]
    rules: dict[str, bool] = {
        "kl_formula": annealed or values["kl_formula"] == "seed003",  # which weighs the first epoch with 0
        "kl_anneal_cycle": annealed and not one_cycle,
        "kl_anneal_ratio": annealed and values["kl_formula"] != "seed004",
        "tfr_sde": decays and values["tfr_d_step"] > 0,
        "tfr_d_step": decays,
        "tfr_formula": decays and values["tfr_d_step"] > 0,
        "tfr_coin": forced,
        "forced_loss": forced,
        "detach": values["tfr"] < 1 or (decays and values["tfr_d_step"] > 0),
        "clip_order": values["batch_size"] > 1,
        "momentum": values["optim"] == "SGD",
        "gamma": values["lr_scheduler"] in ("MultiStepLR", "ExponentialLR"),
        "lr_min": values["lr_scheduler"] == "cosine",
        "val_noise_scale": values["val_noise"] == "scaled",
    }
    return rules.get(name, True)


def without_effect(search: Search, fixed: Mapping[str, Any]) -> set[str]:
    """The settings that no trial varies and that have no effect at any corner of the search space."""
    defaults, idle = settled({}, fixed), set(NEEDS) - set(search)
    for point in corners(search, fixed):
        idle = {name for name in idle if not has_effect(name, {**defaults, **point})}
    return idle


def same(one: Any, other: Any) -> bool:
    """Whether two TOML values are equal and have the same type; `1`, `1.0` and `true` are three different values."""
    return type(one) is type(other) and one == other


def _points(
    search: Search, names: list[str], values: Values, choose: Callable[[Dimension], list[Any]]
) -> Iterator[Values]:
    if not names:
        yield {}
        return
    name, rest = names[0], names[1:]
    dimension = search[name]
    if not dimension.active(values):
        yield from _points(search, rest, values, choose)
        return
    for value in choose(dimension):
        for point in _points(search, rest, {**values, name: value}, choose):
            yield {name: value, **point}


def _decimal(value: float) -> Decimal:
    return Decimal(str(value))

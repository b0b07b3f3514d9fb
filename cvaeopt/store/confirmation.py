"""The leaders of a study trained again, from fresh seeds.

A confirmation is a study of its own in the same storage, `NAME.confirm` (then `NAME.confirm-2`, ... when more leaders
or seeds are asked for). Its definition is made from the parent's stored one: the same settings and ranges, `seed`
searched beside them, every leader with every seed enqueued, no pruner. So leases, resuming, budgets, artifacts and
reports are those of any study, and the parent's sampler never sees the repeats.

All leaders get the same seeds, which are none of the search's.

By default the confirmation is successive: every leader is trained once, with the first fresh seed, and then only the
best FINALISTS of them with the others. So five leaders cost nine runs instead of fifteen. The parent's study keeps a
note of it (PLANNED), and the first worker that comes after the first stage is over registers the second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from optuna.trial import FrozenTrial

from cvaeopt.errors import SettingsError, StudyDamaged, StudyError
from cvaeopt.search.definition import Definition, check_name
from cvaeopt.search.space import key_of, stream
from cvaeopt.store import study as studies
from cvaeopt.store.damage import damaged, named
from cvaeopt.store.ranking import value_of
from cvaeopt.store.status import counts
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import ask_stop, workers
from cvaeopt.text import Advice

FINALISTS: Final = 2
"""Leaders that the second stage of a successive confirmation trains."""

SEEDS: Final = 3
"""Runs of each finalist, the one of the first stage included."""

PLANNED: Final = "cvaeopt:confirmation"
"""User attribute of a study whose confirmation is successive: {"finalists": number, "seeds": number}."""

_SEEDS = {"type": "int", "low": 0, "high": 2**31 - 1}


@dataclass(frozen=True)
class Leader:
    """Settings that did well in the search.

    key        names the settings; the seed, and settings that change nothing beside the others, do not count
    trials     the numbers of the search's complete trials that had them, best first
    searched   mean value of these trials, dB
    params     of the best of these trials
    """

    key: str
    trials: tuple[int, ...]
    searched: float
    params: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What `confirm` would have trained.

    seeds        the fresh seeds, the same for every leader
    definition   the study of the repeats that are still to be registered; None when all of them are
    registered   the confirmations that exist
    over         whether the search itself has ended
    successive   whether a second stage follows, with the best leaders of the first only
    later_runs   runs of that second stage, which are registered when the first one is over
    """

    study: str
    leaders: tuple[Leader, ...]
    seeds: tuple[int, ...]
    epochs: int
    definition: Definition | None
    registered: tuple[str, ...]
    over: bool
    successive: bool = False
    later_runs: int = 0

    @property
    def new_runs(self) -> int:
        """How many runs would be registered."""
        return 0 if self.definition is None else len(self.definition.points())

    def plain(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "study": self.study,
            "leaders": [
                {"trials": list(one.trials), "searched": round(one.searched, 4), "params": one.params}
                for one in self.leaders
            ],
            "seeds": list(self.seeds),
            "epochs": self.epochs,
            "registered": list(self.registered),
            "new": None if self.definition is None else self.definition.name,
            "new_runs": self.new_runs,
            "later_runs": self.later_runs,
        }


@named
def plan(storage: Storage, name: str, top: int, seeds: int | None = None) -> Plan:
    """The confirmation of the best `top` settings of study `name`.

    seeds   fresh seeds for each of them; None for a successive confirmation

    Repeats that an earlier confirmation has are not asked for again. StudyError when there is no such study, it has no
    complete trial, or is a confirmation itself.
    """
    for option, value in (("--top", top), ("--seeds", seeds)):
        if value is not None and value < 1:
            raise SettingsError(f"{option} {value}.", "Expected: at least 1.")
    study, definition = studies.open_existing(storage, name)
    if definition.confirms is not None:
        parent = definition.confirms.partition("@")[0]
        raise StudyError(
            f"Study '{name}' is a confirmation itself.",
            "Expected: the study whose leaders it trains again.",
            Advice("For more leaders or seeds:", "confirm", "--study", parent, "--top", "N", "--seeds", "M"),
        )
    found = leaders(definition, study.get_trials(deepcopy=False))[:top]
    if not found:
        raise StudyError(
            f"Study '{name}' has no complete trial.",
            "Expected: at least one.",
            Advice("Let a worker finish one:", "worker", "--study", name, "--gpu", "0"),
        )
    namesakes = _namesakes(storage, name)
    known = _of(storage, definition, namesakes)
    later = 0
    if seeds is None:
        missing = _missing(known, found, _fresh_seeds(definition, 1))
        second, later = _second_stage(storage, definition, known, FINALISTS, SEEDS, len(missing))
        if not missing:
            missing, later = second, later - len(second)
    else:
        missing = _missing(known, found, _fresh_seeds(definition, seeds))
    return Plan(
        name,
        tuple(found),
        _fresh_seeds(definition, seeds or SEEDS),
        definition.epochs,
        _definition(storage, definition, missing, namesakes) if missing else None,
        tuple(one.name for one in known),
        over=_ended(storage, definition),
        successive=seeds is None,
        later_runs=later,
    )


def register(storage: Storage, planned: Plan) -> None:
    """Put the repeats of `planned` into the storage; workers of the parent take them when its budget is met.

    StudyError when somebody else has registered other repeats under the same name meanwhile.
    """
    if planned.successive:
        storage.set_study_user_attr(
            storage.get_study_id_from_name(planned.study), PLANNED, {"finalists": FINALISTS, "seeds": SEEDS}
        )
    if planned.definition is None:
        return
    try:
        studies.create_or_open(storage, planned.definition)
    except StudyError:
        raise StudyError(
            f"Another confirmation of '{planned.study}' was registered at the same moment.",
            todo="Run the same command again: it adds what is still missing.",
        ) from None


@named
def advance(storage: Storage, parent: Definition) -> None:
    """Register the second stage of a successive confirmation of `parent`, once its first stage is over.

    Nothing happens where none is planned, or it is registered already. Workers that come at the same moment register
    the same study, which exists once.
    """
    namesakes = _namesakes(storage, parent.name)
    points, _ = _planned(storage, parent, _of(storage, parent, namesakes))
    if points:
        studies.create_or_open(storage, _definition(storage, parent, points, namesakes))


@named
def later_runs(storage: Storage, parent: Definition) -> int:
    """How many runs a second stage has that is planned for `parent` and not registered yet."""
    return _planned(storage, parent, confirmations(storage, parent))[1]


@named
def runs(storage: Storage, confirmation: Definition) -> list[tuple[dict[str, Any], FrozenTrial]]:
    """The trials of a confirmation by number, each with the point that was registered for it.

    A trial that somebody else added is passed over. StudyDamaged where a trial names a point that does not exist.
    """
    points = confirmation.points()
    trials = storage.get_all_trials(storage.get_study_id_from_name(confirmation.name), deepcopy=False)
    found = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        # By its place in the queue: a run that was given up at once has no parameters yet.
        place: int | None = trial.system_attrs.get(studies.ENQUEUED)
        if place is None:
            continue
        if type(place) is not int or place not in range(len(points)):
            raise damaged(
                confirmation.name,
                f", trial {trial.number}",
                "trial_system_attributes",
                f"{studies.ENQUEUED!r} = {place!r}",
                f"a number below {len(points)}, the runs that are registered",
            )
        found.append((points[place], trial))
    return found


@named
def confirmations(storage: Storage, parent: Definition) -> list[Definition]:
    """The definitions of all confirmations of the study `parent`, the first one first.

    Those of an earlier study of the same name are passed over.
    """
    return _of(storage, parent, _namesakes(storage, parent.name))


def _of(storage: Storage, parent: Definition, namesakes: Mapping[str, Definition]) -> list[Definition]:
    """Those of `namesakes` that are confirmations of `parent`, the first one first."""
    mark = _mark(storage, parent)
    found = [definition for definition in namesakes.values() if definition.confirms == mark]
    return sorted(found, key=lambda definition: _index(definition.name, parent.name))


def _missing(known: Iterable[Definition], found: Iterable[Leader], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The points of each leader with each seed that no confirmation in `known` has."""
    have = {(key_of(one, point), point["seed"]) for one in known for point in one.points()}
    found = list(found)
    return [{**leader.params, "seed": seed} for seed in seeds for leader in found if (leader.key, seed) not in have]


def _planned(storage: Storage, parent: Definition, known: list[Definition]) -> tuple[list[dict[str, Any]], int]:
    """As `_second_stage`, of what the parent's study says; nothing where its confirmation is not successive."""
    attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(parent.name))
    if PLANNED not in attributes:
        return [], 0
    try:
        finalists, seeds = (int(attributes[PLANNED][key]) for key in ("finalists", "seeds"))
    except (KeyError, TypeError, ValueError):
        where, value = "study_user_attributes", f"{PLANNED!r} = {attributes[PLANNED]!r}"
        raise damaged(parent.name, "", where, value, "the numbers of finalists and of seeds") from None
    return _second_stage(storage, parent, known, finalists, seeds)


def _second_stage(
    storage: Storage, parent: Definition, known: list[Definition], finalists: int, seeds: int, unregistered: int = 0
) -> tuple[list[dict[str, Any]], int]:
    """The points of the second stage that can be registered now, and how many runs of it are still to be registered.

    The first stage are all runs with the first fresh seed; `unregistered` of them are not in `known` yet. It alone
    decides who is a finalist, so that this does not change while the second stage is trained.
    """
    first, *others = _fresh_seeds(parent, seeds)
    stage = [
        (Leader(key_of(one, point), (), 0.0, {name: value for name, value in point.items() if name != "seed"}), trial)
        for one in known
        for point, trial in runs(storage, one)
        if point["seed"] == first
    ]
    if unregistered or not all(trial.state.is_finished() for _, trial in stage):
        return [], min(finalists, len(stage) + unregistered) * len(others)
    ranked = sorted(((value, leader) for leader, trial in stage if (value := value_of(trial)) is not None), key=_first)
    points = _missing(known, [leader for _, leader in ranked[:finalists]], others)
    return points, len(points)


def _first(ranked: tuple[float, Leader]) -> tuple[float, str]:
    """Sorts the higher value first, and equal ones the same way on every machine."""
    return -ranked[0], ranked[1].key


@named
def unfinished(storage: Storage, parent: Definition) -> list[Definition]:
    """The confirmations of `parent` of which a repeat is still to be trained."""
    return [one for one in confirmations(storage, parent) if not _ended(storage, one)]


@named
def stop(storage: Storage, name: str, worker: str | None = None) -> list[str]:
    """As `workers.ask_stop`, for study `name` and its confirmations, which its workers take when its budget is met."""
    asked: list[str] = []
    parent = studies.stored_definition(storage, name)
    running = {
        one: [row.id for row in workers(storage, one)]
        for one in (name, *(one.name for one in confirmations(storage, parent)))
    }
    holders = [one for one, ids in running.items() if worker in ids] if worker is not None else list(running)
    for one in holders or [name]:
        asked += ask_stop(storage, one, worker)
    return asked


def leaders(definition: Definition, trials: Iterable[FrozenTrial]) -> list[Leader]:
    """The different settings of the complete feasible trials, best first.

    Trials of the same settings are repeats: one leader with the mean of their values.
    """
    groups: dict[str, list[tuple[float, FrozenTrial]]] = {}
    for trial in trials:
        value = value_of(trial)
        if value is not None:
            groups.setdefault(key_of(definition, trial.params), []).append((value, trial))
    found = []
    for key, members in groups.items():
        members.sort(key=lambda member: (-member[0], member[1].number))
        mean = math.fsum(value for value, _ in members) / len(members)
        found.append(Leader(key, tuple(trial.number for _, trial in members), mean, dict(members[0][1].params)))
    return sorted(found, key=lambda leader: (-leader.searched, min(leader.trials)))


def fresh_seed(seed: int, index: int) -> int:
    """Training seed number `index` of the confirmations of a study, below 2^31; the same on every machine."""
    return stream(seed, index, "confirmation") >> 1


def _fresh_seeds(parent: Definition, number: int) -> tuple[int, ...]:
    return tuple(fresh_seed(parent.seed, index) for index in range(number))


def _definition(
    storage: Storage, parent: Definition, points: list[dict[str, Any]], taken: Collection[str]
) -> Definition:
    """A new confirmation of `parent` with these points; its name is none of those that are `taken`."""
    name = f"{parent.name}.confirm"
    while name in taken:
        name = f"{parent.name}.confirm-{_index(name, parent.name) + 1}"
    check_name(name, f"the confirmation of '{parent.name}'")
    tables = parent.plain()
    del tables["sampler"], tables["pruner"]
    tables["study"] |= {
        "description": f"The leaders of '{parent.name}' again, from fresh seeds",
        "confirms": _mark(storage, parent),
    }
    tables["budget"] = {"trials": len(points), "epochs": parent.epochs}
    tables["fixed"].pop("seed", None)
    tables["search"]["seed"] = _SEEDS
    # Every point is enqueued whole, so that no sampler is asked; this one would cost nothing.
    tables["sampler"] = {"kind": "random"}
    tables["enqueue"] = points
    return Definition.parse(tables, name, f"the confirmation of '{parent.name}'")


def _mark(storage: Storage, parent: Definition) -> str:
    """Which study a confirmation belongs to: by its identity, or by its definition for one that is older than that."""
    known = studies.identity_of(storage, parent.name)
    return f"{parent.name}@{parent.digest() if known.is_old else known.value}"


def _namesakes(storage: Storage, name: str) -> dict[str, Definition]:
    """The studies that are named like confirmations of `name`."""
    found = {}
    for other in studies.names(storage):
        if re.fullmatch(rf"{re.escape(name)}\.confirm(-\d+)?", other):
            try:
                found[other] = studies.stored_definition(storage, other)
            except StudyDamaged:
                raise
            except StudyError:  # deleted in the dashboard: its row is all that is left
                continue
    return found


def _index(name: str, parent: str) -> int:
    """1 for NAME.confirm, 2 for NAME.confirm-2."""
    return int(name.removeprefix(f"{parent}.confirm").removeprefix("-") or 1)


def _ended(storage: Storage, definition: Definition) -> bool:
    """Whether as many trials as the budget has are over (a study without such a limit: whether none is open)."""
    states = counts(storage, definition.name)
    if definition.budget.trials is None:
        return not states["running"] and not states["waiting"]
    return states["complete"] + states["pruned"] + states["failed"] >= definition.budget.trials

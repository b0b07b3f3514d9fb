"""The leaders of a study trained again, from fresh seeds.

A confirmation is a study of its own in the same storage, `NAME.confirm` (then `NAME.confirm-2`, ... when more leaders
or seeds are asked for). Its definition is made from the parent's stored one: the same settings and ranges, `seed`
searched beside them, every leader with every seed enqueued, no pruner. So leases, resuming, budgets, artifacts and
reports are those of any study, and the parent's sampler never sees the repeats.

All leaders get the same seeds, which are none of the search's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from cvaeopt.errors import SettingsError, StudyDamaged, StudyError
from cvaeopt.search.definition import Definition, check_name
from cvaeopt.search.space import key_of, stream
from cvaeopt.store import study as studies
from cvaeopt.store.damage import named
from cvaeopt.store.status import counts
from cvaeopt.store.storage import Storage
from cvaeopt.store.workers import ask_stop, workers
from cvaeopt.text import Advice

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
    """

    study: str
    leaders: tuple[Leader, ...]
    seeds: tuple[int, ...]
    epochs: int
    definition: Definition | None
    registered: tuple[str, ...]
    over: bool

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
        }


@named
def plan(storage: Storage, name: str, top: int, seeds: int) -> Plan:
    """The confirmation of the best `top` settings of study `name` with `seeds` fresh seeds each.

    Repeats that an earlier confirmation has are not asked for again. StudyError when there is no such study, it has no
    complete trial, or is a confirmation itself.
    """
    for option, value in (("--top", top), ("--seeds", seeds)):
        if value < 1:
            raise SettingsError(f"{option} {value}.", "Expected: at least 1.")
    study, definition = studies.open_existing(storage, name)
    if definition.confirms is not None:
        parent = definition.confirms.partition("@")[0]
        raise StudyError(
            f"Study '{name}' is a confirmation itself.",
            "Expected: the study whose leaders it trains again.",
            Advice("For more leaders or seeds:", "confirm", "--study", parent, "--top", "N", "--seeds", "M"),
        )
    trials = study.get_trials(deepcopy=False)
    found = leaders(definition, trials)[:top]
    if not found:
        raise StudyError(
            f"Study '{name}' has no complete trial.",
            "Expected: at least one.",
            Advice("Let a worker finish one:", "worker", "--study", name, "--gpu", "0"),
        )
    fresh = tuple(fresh_seed(definition.seed, index) for index in range(seeds))
    known = confirmations(storage, definition)
    have = {(key_of(one, point), point["seed"]) for one in known for point in one.points()}
    missing = [{**leader.params, "seed": seed} for seed in fresh for leader in found if (leader.key, seed) not in have]
    wanted = _definition(storage, definition, missing) if missing else None
    return Plan(
        name,
        tuple(found),
        fresh,
        definition.epochs,
        wanted,
        tuple(one.name for one in known),
        over=_ended(storage, definition),
    )


def register(storage: Storage, planned: Plan) -> None:
    """Put the repeats of `planned` into the storage; workers of the parent take them when its budget is met.

    StudyError when somebody else has registered other repeats under the same name meanwhile.
    """
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
def confirmations(storage: Storage, parent: Definition) -> list[Definition]:
    """The definitions of all confirmations of the study `parent`, the first one first.

    Those of an earlier study of the same name are passed over.
    """
    mark = _mark(storage, parent)
    found = [definition for definition in _namesakes(storage, parent.name).values() if definition.confirms == mark]
    return sorted(found, key=lambda definition: _index(definition.name, parent.name))


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
        if trial.state != TrialState.COMPLETE or any(value > 0 for value in trial.constraints.values()):
            continue
        value = trial.values[0]
        if math.isfinite(value):
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


def _definition(storage: Storage, parent: Definition, points: list[dict[str, Any]]) -> Definition:
    taken = _namesakes(storage, parent.name)
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

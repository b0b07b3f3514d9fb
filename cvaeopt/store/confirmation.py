"""Confirmations: the leaders of a study are trained again from fresh seeds.

A confirmation is a separate study in the same storage. Its name is `NAME.confirm`. Confirmations that add leaders or
seeds later are named `NAME.confirm-2`, and so on. The definition is made from the parent's stored definition: it has
the same settings and ranges, searches `seed` too, enqueues every leader with every seed, and has no pruner. So leases,
resuming, budgets, artifacts and reports work as in any study. The parent's sampler never sees the confirmation runs.

All leaders get the same seeds. The search does not use these seeds.

By default the confirmation is successive. In the first stage every leader is trained once, with the first fresh seed.
In the second stage only the best FINALISTS leaders are trained with the other seeds. So five leaders cost nine runs
instead of fifteen. The attribute PLANNED of the parent study records this plan. When the first stage is over, the next
worker that looks for work registers the second stage.
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
"""Number of leaders that the second stage of a successive confirmation trains."""

SEEDS: Final = 3
"""Number of runs of each finalist, including the run of the first stage."""

PLANNED: Final = "cvaeopt:confirmation"
"""User attribute of a study whose confirmation is successive: {"finalists": number, "seeds": number}."""

_SEEDS = {"type": "int", "low": 0, "high": 2**31 - 1}


@dataclass(frozen=True)
class Leader:
    """Settings whose trials reached a high value in the search.

    key        a key for the settings, without the seed and without settings that have no effect (`key_of`)
    trials     the numbers of the search's complete trials with these settings, best first
    searched   mean value of these trials, dB
    params     the parameters of the best of these trials
    """

    key: str
    trials: tuple[int, ...]
    searched: float
    params: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The runs that `confirm` will register.

    seeds        the fresh seeds, the same for every leader
    definition   the study of the runs that are not registered yet; None if all runs are registered
    registered   the names of the confirmations that exist
    over         whether the search has ended
    successive   whether there are two stages; the second trains only the best leaders of the first
    later_runs   number of runs of the second stage that can be registered only after the first stage
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
        """The number of runs that `register` would register now."""
        return 0 if self.definition is None else len(self.definition.points())

    def plain(self) -> dict[str, Any]:
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


def refuse_confirmation(definition: Definition, what: str = "leaders") -> None:
    """StudyError if the study is a confirmation. `what` says what its study trains again: "leaders" or "arms"."""
    if definition.confirms is not None:
        parent = definition.confirms.partition("@")[0]
        more = Advice("For more leaders or seeds:", "confirm", "--study", parent, "--top", "N", "--seeds", "M")
        raise StudyError(
            f"Study '{definition.name}' is a confirmation itself, whose runs are planned.",
            f"Expected: the study whose {what} it trains again.",
            more if what == "leaders" else Advice("Name that study:", "claims", "--study", parent),
        )


@named
def plan(storage: Storage, name: str, top: int, seeds: int | None = None) -> Plan:
    """The plan for confirming the best `top` settings of study `name`.

    seeds   number of fresh seeds for each of these settings; None for a successive confirmation

    Runs that an earlier confirmation has are not planned again. StudyError if the study does not exist, if it has no
    complete trial, or if it is a confirmation.
    """
    for option, value in (("--top", top), ("--seeds", seeds)):
        if value is not None and value < 1:
            raise SettingsError(f"{option} {value}.", "Expected: at least 1.")
    study, definition = studies.open_existing(storage, name)
    refuse_confirmation(definition)
    found = leaders(definition, study.get_trials(deepcopy=False))[:top]
    if not found:
        raise StudyError(
            f"Study '{name}' has no complete trial.",
            "Expected: at least one.",
            Advice("Let a worker finish one:", "worker", "--study", name, "--gpu", "0"),
        )
    return plan_runs(storage, definition, found, seeds)


def plan_runs(storage: Storage, definition: Definition, found: Sequence[Leader], seeds: int | None) -> Plan:
    """The plan for training the settings `found` of the study `definition` with fresh seeds; `seeds` as in `plan`."""
    namesakes = _namesakes(storage, definition.name)
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
        definition.name,
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
    """Put the runs of `planned` into the storage. The parent's workers train them when the parent's budget is met.

    StudyError if another process has registered other runs under the same name meanwhile.
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
    """Register the second stage of a successive confirmation of `parent`, if its first stage is over.

    This function does nothing if no second stage is planned, or if it is registered already. Workers may call it at
    the same moment: they register the same study, and it is created only once.
    """
    namesakes = _namesakes(storage, parent.name)
    points, _ = _planned(storage, parent, _of(storage, parent, namesakes))
    if points:
        studies.create_or_open(storage, _definition(storage, parent, points, namesakes))


@named
def later_runs(storage: Storage, parent: Definition) -> int:
    """The number of runs of `parent`'s second stage that are not registered yet; 0 if no second stage is planned."""
    return _planned(storage, parent, confirmations(storage, parent))[1]


@named
def runs(storage: Storage, confirmation: Definition) -> list[tuple[dict[str, Any], FrozenTrial]]:
    """Pairs of the registered point and the trial, for each run of a confirmation, in the order of the trial numbers.
    A trial that another program added is left out. StudyDamaged if a trial refers to a point that does not exist.
    """
    points = confirmation.points()
    trials = storage.get_all_trials(storage.get_study_id_from_name(confirmation.name), deepcopy=False)
    found = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        # The point comes from the place in the queue, because a run that failed at once has no parameters.
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
    """The definitions of all confirmations of the study `parent`, oldest first.

    Confirmations of an earlier, deleted study of the same name are left out.
    """
    return _of(storage, parent, _namesakes(storage, parent.name))


def _of(storage: Storage, parent: Definition, namesakes: Mapping[str, Definition]) -> list[Definition]:
    """The definitions in `namesakes` that are confirmations of `parent`, oldest first."""
    mark = _mark(storage, parent)
    # The runs of a version with another number of epochs say nothing about this version.
    found = [one for one in namesakes.values() if one.confirms == mark and one.epochs == parent.epochs]
    return sorted(found, key=lambda definition: _index(definition.name, parent.name))


def _missing(known: Iterable[Definition], found: Sequence[Leader], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One point for each pair of leader and seed, without the pairs that a confirmation in `known` has."""
    have = {(key_of(one, point), point["seed"]) for one in known for point in one.points()}
    return [{**leader.params, "seed": seed} for seed in seeds for leader in found if (leader.key, seed) not in have]


def _planned(storage: Storage, parent: Definition, known: list[Definition]) -> tuple[list[dict[str, Any]], int]:
    """`_second_stage` with the numbers in the parent's attribute PLANNED; ([], 0) if that attribute is missing."""
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
    """The points of the second stage that can be registered now, and the number of runs that are not registered yet.
    unregistered   number of runs of the first stage that are not in `known` yet

    The first stage consists of all runs with the first fresh seed. Only the first stage decides which leaders are
    finalists, so the finalists do not change while the second stage is trained.
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
    values = [(-value, leader.key, leader) for leader, trial in stage if (value := value_of(trial)) is not None]
    ranked = sorted(values, key=lambda one: one[:2])  # equal values have the same order on every machine
    points = _missing(known, [leader for *_, leader in ranked[:finalists]], others)
    return points, len(points)


@named
def unfinished(storage: Storage, parent: Definition) -> list[Definition]:
    """The confirmations of `parent` that still have runs to train."""
    return [one for one in confirmations(storage, parent) if not _ended(storage, one)]


@named
def stop(storage: Storage, name: str, worker: str | None = None, *, dry_run: bool = False) -> list[str]:
    """Ask the workers of study `name` and of its confirmations to stop; returns the ids of the asked workers.

    The workers of a study also train its confirmations. `worker` and `dry_run` have the same meaning as in `ask_stop`.
    """
    parent = studies.stored_definition(storage, name)
    running = {
        one: [row.id for row in workers(storage, one)]
        for one in (name, *(one.name for one in confirmations(storage, parent)))
    }
    holders = [one for one, ids in running.items() if worker in ids] if worker is not None else list(running)
    return [asked for one in holders or [name] for asked in ask_stop(storage, one, worker, dry_run=dry_run)]


def leaders(definition: Definition, trials: Iterable[FrozenTrial]) -> list[Leader]:
    """One leader for each of the different settings of the ranked trials (`ranking`), best first.

    The value of a leader is the mean value of all trials with its settings.
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
    """A new confirmation of `parent` with these points. Its name is not in `taken`."""
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
    # Every point is enqueued with all its parameters, so the sampler never suggests a value.
    tables["sampler"] = {"kind": "random"}
    tables["enqueue"] = points
    return Definition.parse(tables, name, f"the confirmation of '{parent.name}'")


def _mark(storage: Storage, parent: Definition) -> str:
    """The mark that connects a confirmation with `parent`: the parent's name and identity.

    If `parent` is older than identities, the mark holds the digest of the parent's definition instead.
    """
    known = studies.identity_of(storage, parent.name)
    return f"{parent.name}@{studies.first_digest(storage, parent.name) if known.is_old else known.value}"


def _namesakes(storage: Storage, name: str) -> dict[str, Definition]:
    """The definitions, by name, of the studies that are named like confirmations of `name`."""
    found = {}
    for other in studies.names(storage):
        if re.fullmatch(rf"{re.escape(name)}\.confirm(-\d+)?", other):
            try:
                found[other] = studies.stored_definition(storage, other)
            except StudyDamaged:
                raise
            except StudyError:  # the study was deleted in the dashboard, which keeps its row in cvaeopt_study
                continue
    return found


def _index(name: str, parent: str) -> int:
    """The number of a confirmation: 1 for NAME.confirm, 2 for NAME.confirm-2."""
    return int(name.removeprefix(f"{parent}.confirm").removeprefix("-") or 1)


def _ended(storage: Storage, definition: Definition) -> bool:
    """Whether all trials of the budget have ended; without a limit on trials, whether no trial runs or waits."""
    states = counts(storage, definition.name)
    if definition.budget.trials is None:
        return not states["running"] and not states["waiting"]
    return states["complete"] + states["pruned"] + states["failed"] >= definition.budget.trials

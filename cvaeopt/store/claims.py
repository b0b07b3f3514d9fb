"""The runs that test the claims about a grid: a confirmation of every arm, with the same fresh seeds for all arms.

The runs of the study itself do not count, because their user may have seen them before he wrote the claims.
"""

from __future__ import annotations

import math
from typing import Any, Final

from optuna.trial import FrozenTrial

from cvaeopt.errors import SettingsError
from cvaeopt.search.claims import Claim
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import key_of
from cvaeopt.store.confirmation import Leader, Plan, confirmations, plan_runs, refuse_confirmation, runs
from cvaeopt.store.damage import damaged, named
from cvaeopt.store.storage import Storage

SEEDS: Final = 5
"""Number of runs of each arm, unless the user asks for another number."""

CLAIMS: Final = "cvaeopt:claims"
"""User attribute of a study: its claims, as they were when `cvaeopt claims` ran last. The report shows them."""


def arms(definition: Definition) -> list[Leader]:
    """The arms of a grid: one entry for each point that trains differently. Their value of the search is NaN."""
    found: dict[str, Leader] = {}
    for point in definition.points():
        key = key_of(definition, point)
        found.setdefault(key, Leader(key, (), math.nan, point))
    return list(found.values())


def require_claims(definition: Definition, where: str) -> None:
    """Raise an error if the study has no claims, or if it is a confirmation."""
    refuse_confirmation(definition, "arms")
    if not definition.claims:
        raise SettingsError(
            f"{where} has no [[claims]].",
            "Expected: at least one claim about the arms of its grid.",
            "Add one: text, better, worse and measure, such as better = { tfr = 0.8 }.",
        )


def plan(storage: Storage, definition: Definition, seeds: int | None) -> Plan:
    """The plan for training every arm of the stored study `definition` with `seeds` fresh seeds.

    seeds   None for as many seeds as are registered, or SEEDS if none is
    """
    if seeds is None:
        seeds = registered_seeds(storage, definition) or SEEDS
    return plan_runs(storage, definition, arms(definition), seeds)


def registered_seeds(storage: Storage, definition: Definition) -> int:
    """The number of fresh seeds in all confirmations of the study."""
    return len({point["seed"] for one in confirmations(storage, definition) for point in one.points()})


@named
def record(storage: Storage, definition: Definition) -> None:
    """Store the claims of the definition with its study, so that reports on other machines show them."""
    storage.set_study_user_attr(
        storage.get_study_id_from_name(definition.name),
        CLAIMS,
        [claim.model_dump(mode="json") for claim in definition.claims],
    )


@named
def recorded(storage: Storage, definition: Definition) -> list[Claim]:
    """The claims that `record` stored last; empty if none were stored. StudyDamaged if they cannot be read."""
    attributes = storage.get_study_user_attrs(storage.get_study_id_from_name(definition.name))
    if not attributes.get(CLAIMS):
        return []
    try:
        return definition.parse_claims(attributes[CLAIMS], "stored")
    except SettingsError as error:
        where, value = "study_user_attributes", f"{CLAIMS!r} = {attributes[CLAIMS]!r}"
        raise damaged(definition.name, "", where, value, f"claims about its arms ({error})") from None


def fresh_runs(storage: Storage, definition: Definition) -> dict[str, dict[int, FrozenTrial]]:
    """The runs of the study's confirmations: key of the settings -> training seed -> trial."""
    found: dict[str, dict[int, FrozenTrial]] = {}
    for one in confirmations(storage, definition):
        for point, trial in runs(storage, one):
            seed: Any = point["seed"]
            found.setdefault(key_of(one, point), {})[seed] = trial
    return found

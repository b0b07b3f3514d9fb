"""What becomes of a study's trials when the study's definition has a new version.

A trial that the new version would train in the same way counts: its parameters get the new ranges, and a setting that
was fixed becomes a parameter with its fixed value, so that samplers see complete points. If the new version has more
epochs, a complete trial is only the beginning of a trial of the new version:

    its checkpoint is kept        it continues: it has an open lease again, and any worker takes it
    its checkpoint is not kept    it counts like a pruned trial

Every other trial is history. Optuna's state of such a trial is FAIL, so that no sampler, pruner or ranking uses it; the
attribute HISTORY keeps its state and its value, and a later version may count it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Row, delete, select, update

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.search import space
from cvaeopt.search.changes import carried_over
from cvaeopt.search.definition import Definition
from cvaeopt.search.parsing import parse_enqueue
from cvaeopt.store import versions
from cvaeopt.store.optuna_private import RepeatedStorage, trial_id_of
from cvaeopt.store.optuna_rows import STOP, SYSTEM_ATTRS, USER_ATTRS, read_trials, write_attribute
from cvaeopt.store.ranking import is_feasible, place
from cvaeopt.store.tables import lease_table
from cvaeopt.vae.schedules import first_differences

HISTORY: Final = "history"
"""User attribute of a trial that does not count for the newest version: the version under which it was begun, its
state, value (dB) and outcome, and the reason. It is also the outcome in the trial's lease."""

RUNG: Final = "completed_rung_"
"""Beginning of the trial attributes in which Optuna's successive halving records the values at its rungs."""

_FIXED_PARAMS: Final = "fixed_params"  # Optuna's attribute with the point of an enqueued trial
_MAX_ID: Final = 2**31 - 1  # no trial has a higher id

Kind = Literal["counts", "continues", "partial", "history", "open"]


@dataclass(frozen=True)
class Role:
    """What becomes of one trial.

    kind      "counts"; "continues" from its checkpoint; "partial": counts like a pruned trial; "history"; "open": a
              worker trains it, and its role is decided when it has ended
    trial     the trial as it is stored now
    version   the number of the version under which it was begun
    params    its parameters under the new version
    value     its value, dB, from the time when it counted; None if it has none
    reason    why it is history
    epoch     the first epoch that the new version would train differently; None if there is none
    config    its settings; None if they are not known
    """

    kind: Kind
    trial: FrozenTrial
    version: int
    params: dict[str, Any]
    value: float | None = None
    reason: str = ""
    epoch: int | None = None
    config: Config | None = None

    @property
    def number(self) -> int:
        return self.trial.number


def roles(
    connection: Connection,
    study: Mapping[str, Any],
    changed: Definition,
    has_checkpoint: Callable[[int], bool],
    only: int | None = None,
) -> list[Role]:
    """The roles of the study's trials under the definition `changed`: the trials with the highest values come first.

    study            the study's row in cvaeopt_study
    has_checkpoint   whether the checkpoint of a trial, given by its number, is kept
    only             the id of a single trial; None for all trials
    """
    known = {one.number: one.parsed(study["name"]) for one in versions.chain(connection, study)}
    ids, newer_than = (set[int](), -1) if only is None else ({only}, _MAX_ID)
    trials = read_trials(connection, study["study_id"], None, ids, newer_than)
    leases = {
        row.trial_id: row
        for row in connection.execute(select(lease_table).where(lease_table.c.study == study["name"])).all()
    }
    reserved = sum(row.epochs_reserved for row in leases.values())
    found = []
    for trial in sorted(trials, key=_rank):
        lease = leases.get(trial_id_of(trial))
        number = int(trial.system_attrs.get(versions.OF_TRIAL, 1))
        role = _role(trial, lease, number, known[number], changed)
        if role.kind == "continues":
            assert lease is not None
            more = changed.epochs - lease.epochs_reserved
            total = changed.budget.total_epochs
            begun = not trial.state.is_finished()
            if (total is not None and reserved + more > total) or not (begun or has_checkpoint(trial.number)):
                role = replace(role, kind="open" if begun else "partial", params=trial.params if begun else role.params)
            else:
                reserved += more
        found.append(role)
    return found


def before(trial: FrozenTrial) -> tuple[TrialState, float | None]:
    """The state and the value of a trial from the time when it counted."""
    kept = trial.user_attrs.get(HISTORY)
    if kept is not None:
        return TrialState[kept["state"]], kept["value"]
    return trial.state, trial.values[0] if trial.values else None


def _rank(trial: FrozenTrial) -> tuple[bool, tuple[float, int]]:
    """A sort key: complete trials come first, and of these the trials with the highest values."""
    state, value = before(trial)
    ranked = state == TrialState.COMPLETE and is_feasible(trial.constraints) and value is not None
    finite = value if ranked and value is not None and math.isfinite(value) else -math.inf
    return (not ranked, place(finite, trial.number))


def _role(trial: FrozenTrial, lease: Row[Any] | None, number: int, began: Definition, changed: Definition) -> Role:
    state, value = before(trial)
    if state == TrialState.WAITING:
        return _waiting(trial, number, changed)
    is_left = state == TrialState.RUNNING and lease is not None and lease.owner is None
    config = (
        None if state == TrialState.FAIL or (state == TrialState.RUNNING and not is_left) else _config(began, trial)
    )
    if config is None:  # it is trained now, or nothing can be learned from it
        return Role("open" if state == TrialState.RUNNING else "counts", trial, number, trial.params, value)
    params, reason = carried_over(config, changed)
    if reason:
        return Role("history", trial, number, trial.params, value, reason, config=config)
    longer = config.model_copy(update={"num_epoch": changed.epochs})
    # A diverged trial has trained one epoch more than it reported.
    trained = (trial.last_step or 0) + ("failed" in trial.user_attrs)
    differ = first_differences(config, longer, min(trained, config.num_epoch))
    if differ:
        name, epoch = min(differ.items(), key=lambda item: item[1])
        reason = f"{name} of epoch {epoch} depends on the number of epochs"
        return Role("history", trial, number, trial.params, value, reason, epoch, config)
    unfinished = is_left or (state == TrialState.COMPLETE and config.num_epoch < changed.epochs)
    if not unfinished or (is_left and config.num_epoch == changed.epochs):
        return Role("counts", trial, number, params, value, config=config)
    return Role("partial" if lease is None else "continues", trial, number, params, value, config=config)


def _waiting(trial: FrozenTrial, number: int, changed: Definition) -> Role:
    """The role of an enqueued point, which is history if the new version cannot suggest it."""
    point = trial.system_attrs.get(_FIXED_PARAMS, {})
    try:
        parse_enqueue([point] if point else [], changed.search, changed.fixed, f"the point of trial {trial.number}")
    except SettingsError as error:
        return Role("history", trial, number, trial.params, reason=error.found.rstrip("."))
    return Role("counts", trial, number, trial.params)


def _config(began: Definition, trial: FrozenTrial) -> Config | None:
    """The settings of a trial; None if the trial has no value for some setting that it searches."""
    values = space.settled(began.search, began.fixed)
    for name in space.order(began.search):
        if began.search[name].active(values):
            if name not in trial.params:
                return None
            values[name] = trial.params[name]
    try:
        return space.params_to_config(began, trial.params, trial.number, trial.user_attrs.get("seed"))
    except SettingsError:  # another program added the trial
        return None


# ---- writing


def apply(
    storage: RepeatedStorage,
    connection: Connection,
    study: str,
    found: Sequence[Role],
    changed: Definition,
    version: int,
) -> None:
    """Give the trials their roles under `changed`, which has the number `version`, in the caller's transaction."""
    ranges = {name: space.distribution(dimension) for name, dimension in changed.search.items()}
    for role in found:
        trial, trial_id = role.trial, trial_id_of(role.trial)
        state, value = before(trial)
        is_old = HISTORY in trial.user_attrs
        if role.kind == "history":
            if not is_old:
                _make_history(storage, connection, study, role)
            continue
        params = dict(trial.distributions) if role.config is None else {name: ranges[name] for name in role.params}
        if role.kind in ("counts", "open") and not is_old and params == trial.distributions:
            continue
        if is_old:
            _forget(connection, USER_ATTRS, trial_id, HISTORY)
            _set_lease(connection, study, trial_id, outcome=trial.user_attrs[HISTORY]["outcome"])
        if role.kind == "continues":
            state, value = TrialState.RUNNING, None
            # A violated constraint may still be written, because the trial is trained again.
            _forget(connection, SYSTEM_ATTRS, trial_id, "constraints")
            _forget(connection, SYSTEM_ATTRS, trial_id, STOP)
            free = {"state": "open", "owner": None, "outcome": None, "reason": None, "attempt": 1}
            done = lease_table.c.epochs_done
            _set_lease(connection, study, trial_id, **free, attempt_epoch=done, epochs_reserved=changed.epochs)
        elif role.kind == "partial":
            state, value = TrialState.PRUNED, trial.intermediate_values[trial.last_step or 0]
            reason = f"{trial.last_step} of {changed.epochs} epochs trained; its checkpoint is not kept"
            write_attribute(connection, USER_ATTRS, trial_id, "reason", reason)
            _set_lease(connection, study, trial_id, outcome="pruned", reason=reason)
        entries = trial.params if role.config is None else role.params
        storage.rewrite_trial(
            connection, trial_id, state, value, {name: (params[name], entry) for name, entry in entries.items()}
        )
        if role.config is not None:
            versions.set_of_trial(connection, trial_id, version)


def settle(storage: RepeatedStorage, connection: Connection, study: Mapping[str, Any], trial_id: int) -> None:
    """Give a trial that has just ended its role, if the study was extended while it was trained.

    study   the study's row in cvaeopt_study, locked
    """
    version = versions.newest_number(connection, study["study_id"])
    if versions.of_trial(connection, trial_id) == version:
        return
    changed = Definition.parse(json.loads(study["definition"]), study["name"], f"study '{study['name']}'")
    found = roles(connection, study, changed, lambda number: True, only=trial_id)
    apply(storage, connection, study["name"], found, changed, version)


def _make_history(storage: RepeatedStorage, connection: Connection, study: str, role: Role) -> None:
    trial, trial_id = role.trial, trial_id_of(role.trial)
    outcome = connection.execute(
        select(lease_table.c.outcome).where(lease_table.c.study == study, lease_table.c.trial_id == trial_id)
    ).scalar_one_or_none()
    kept = {
        "version": role.version,
        "state": trial.state.name,
        "value": role.value if role.value is not None and math.isfinite(role.value) else None,
        "outcome": outcome,
        "reason": role.reason,
    }
    write_attribute(connection, USER_ATTRS, trial_id, HISTORY, kept)
    _forget(connection, SYSTEM_ATTRS, trial_id, RUNG)
    done = lease_table.c.epochs_done
    _set_lease(connection, study, trial_id, state="done", outcome=HISTORY, epochs_reserved=done)
    params = {name: (trial.distributions[name], value) for name, value in trial.params.items()}
    storage.rewrite_trial(connection, trial_id, TrialState.FAIL, None, params)


def _set_lease(connection: Connection, study: str, trial_id: int, **values: Any) -> None:
    connection.execute(
        update(lease_table).where(lease_table.c.study == study, lease_table.c.trial_id == trial_id).values(**values)
    )


def _forget(connection: Connection, table: Any, trial_id: int, beginning: str) -> None:
    """Delete the attributes of a trial whose keys begin with `beginning`."""
    connection.execute(delete(table).where(table.c.trial_id == trial_id, table.c.key.startswith(beginning)))

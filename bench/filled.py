"""Finished trials in a study, written as plain rows as a worker leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Connection, insert, select

from cvaeopt.search.definition import Definition
from cvaeopt.search.space import distribution
from cvaeopt.store.leases import CONSTRAINTS


@dataclass(frozen=True)
class Finished:
    """One trial: its parameters in the form that Optuna stores, its reported values, and how it ended.

    value    None for a trial that was pruned
    failed   the constraint that the trial violates; '' for none
    """

    params: Mapping[str, float]
    curve: Sequence[float]
    value: float | None
    failed: str = ""


def write(
    connection: Connection, study_id: int, definition: Definition, trials: Sequence[Finished], notes: dict[str, Any]
) -> list[int]:
    """Write the trials into an empty study; returns their ids. `notes` are the user attributes of every trial."""
    now = datetime.now()
    common = {"study_id": study_id, "datetime_start": now, "datetime_complete": now}
    states = [TrialState.PRUNED if trial.value is None else TrialState.COMPLETE for trial in trials]
    rows = [{**common, "number": number, "state": state} for number, state in enumerate(states)]
    connection.execute(insert(models.TrialModel), rows)
    query = select(models.TrialModel.trial_id).where(models.TrialModel.study_id == study_id)
    ids = list(connection.execute(query.order_by(models.TrialModel.number)).scalars())

    def add(model: Any, of: Callable[[Finished], Iterable[dict[str, Any]]]) -> None:
        made = [{"trial_id": key, **row} for key, trial in zip(ids, trials, strict=True) for row in of(trial)]
        for start in range(0, len(made), 10_000):
            connection.execute(insert(model), made[start : start + 10_000])

    known = models.TrialValueModel.TrialValueType.FINITE
    finite = models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE
    ranges = {name: distribution_to_json(distribution(one)) for name, one in definition.search.items()}
    written = [{"key": key, "value_json": json.dumps(note)} for key, note in notes.items()]
    add(
        models.TrialValueModel,
        lambda trial: [{"objective": 0, "value": trial.value, "value_type": known}] * (trial.value is not None),
    )
    add(
        models.TrialIntermediateValueModel,
        lambda trial: (
            {"step": step, "intermediate_value": value, "intermediate_value_type": finite}
            for step, value in enumerate(trial.curve, 1)
        ),
    )
    add(
        models.TrialParamModel,
        lambda trial: (
            {"param_name": name, "param_value": trial.params[name], "distribution_json": text}
            for name, text in ranges.items()
        ),
    )
    add(
        models.TrialSystemAttributeModel,
        lambda trial: (
            {"key": f"constraints:{key}", "value_json": json.dumps(float(key == trial.failed))} for key in CONSTRAINTS
        ),
    )
    add(models.TrialUserAttributeModel, lambda trial: written)
    return ids

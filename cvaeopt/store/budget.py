"""The budget of a study: whether another trial may begin."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select

from cvaeopt.store.ranking import progress
from cvaeopt.store.roles import HISTORY
from cvaeopt.store.tables import lease_table


def spent(connection: Connection, study: Row[Any], now: float) -> str:
    """The reason why no new trial may begin; '' if a trial may begin.

    study   the study's row in cvaeopt_study, locked
    now     the database's clock, seconds
    """
    reserved = connection.execute(
        select(func.coalesce(func.sum(lease_table.c.epochs_reserved), 0)).where(lease_table.c.study == study.name)
    ).scalar_one()
    if study.trials is not None and taken(connection, study.name) >= study.trials:
        return f"all {study.trials} trials are taken"
    if study.total_epochs is not None and reserved + study.epochs > study.total_epochs:
        return f"{reserved} of {study.total_epochs} epochs are taken and a trial needs {study.epochs}"
    started_at = study.started_at
    if study.wall_clock_s is not None and started_at is not None and now - started_at >= study.wall_clock_s:
        return f"the study's {study.wall_clock_s / 3600:.3g} h are over"
    rules = json.loads(study.definition).get("budget", {})
    target, patience = rules.get("target_db"), rules.get("patience_trials")
    if target is None and patience is None:
        return ""
    best, since = progress(connection, study.study_id)
    if best is None:
        return ""
    if target is not None and best >= target:
        return f"the best trial reaches {best:.2f} dB, the target was {target:g}"
    if patience is not None and since >= patience:
        return f"{since} trials have ended since the best one ({best:.2f} dB)"
    return ""


def taken(connection: Connection, name: str) -> int:
    """The number of trials of study `name` that were begun. Trials that are history (`roles`) do not count any more."""
    outcome = lease_table.c.outcome
    counted = select(func.count()).where(lease_table.c.study == name, or_(outcome.is_(None), outcome != HISTORY))
    return int(connection.execute(counted).scalar_one())

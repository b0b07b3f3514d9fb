"""The only module that uses private names of Optuna (names with a leading underscore).

The columns of Optuna's tables are in `optuna_rows`. A new release of Optuna may change the private names or the
columns. Then tests/store/test_optuna_private.py names the changed parts.
"""

from __future__ import annotations

import abc
import functools
import json
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.trial import BaseTrial, FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, orm, select

from cvaeopt.store.optuna_rows import SYSTEM_ATTRS, read_trials, trial_attributes
from cvaeopt.store.tables import lease_table

T = TypeVar("T")

_ARTIFACT: Final = "artifacts:"
"""Prefix of the trial attributes in which Optuna and the dashboard record a trial's files."""

READING: Final = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial_id_from_study_id_trial_number",
    "get_trial_param",
    "get_trial_user_attrs",
    "get_trial_system_attrs",
    "get_trial",
    "_get_best_trial_id",
)
WRITING: Final = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "set_trial_param",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)
"""Methods of RDBStorage that write. The methods in READING and WRITING are repeated unchanged during an outage."""


class RepeatedStorage(RDBStorage, abc.ABC):
    """Optuna's SQL storage; `persist` repeats every call during an outage.

    Methods with an argument `connection` run inside the transaction that the caller has opened on this connection.
    """

    @abc.abstractmethod
    def persist(self, call: Callable[[int], T], *, reading: bool = False) -> T:
        """The result of `call(attempt)`, which is repeated while the database does not answer.

        attempt   the number of the attempt, from 0
        reading   True if `call` only reads: the transaction then takes no write lock
        """

    @abc.abstractmethod
    def transaction(self) -> AbstractContextManager[Connection]:
        """A connection in one writing transaction. The transaction is committed when the block ends."""

    @abc.abstractmethod
    def read(self, query: Callable[[Connection], T]) -> T:
        """The result of `query` in one reading transaction, which is repeated during an outage."""

    @abc.abstractmethod
    def write(self, change: Callable[[Connection], T]) -> T:
        """The result of `change` in one writing transaction, which is repeated during an outage."""

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """True if this call has put the trial into `state`.

        This is also true if an acknowledgement was lost and the call was repeated.
        """

        def attempt(number: int) -> bool:
            try:
                done = super(RepeatedStorage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if number == 0 or not self._has(trial_id, state, values):
                    raise
                return True
            return done or (number > 0 and self._has(trial_id, state, values))

        return self.persist(attempt)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        ids, newer_than = included_trial_ids, trial_id_greater_than
        return self.read(lambda connection: read_trials(connection, study_id, states, ids, newer_than))

    def _has(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        trial = self.get_trial(trial_id)
        return trial.state == state and (values is None or trial.values == list(values))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """The new trial. Only one trial is created, even if an acknowledgement is lost and the call is repeated."""
        template = template_trial or create_trial(state=TrialState.RUNNING)
        tried: FrozenTrial | None = None  # the trial of the attempt before, whose transaction may have failed

        def create(_: int) -> FrozenTrial:
            nonlocal tried
            with self.transaction() as connection, orm.Session(bind=connection) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                made = None if tried is None else self._find_again(tried, study_id, session)
                if made is None:
                    trial = self._get_prepared_new_trial(study_id, template, session)
                    session.flush()
                    session.expire_all()
                    made = self._build_frozen_trial_from_trial_model(trial)
                tried = made
                return made

        return self.persist(create)

    def _find_again(self, made: FrozenTrial, study_id: int, session: orm.Session) -> FrozenTrial | None:
        """The trial `made`, read again from the database, or None if the transaction that made it failed.

        PostgreSQL never uses an id twice. If a transaction failed in SQLite, another process may get its trial's id.
        The trial of that process then has another start time, or other enqueued parameters.
        """
        trial = session.get(models.TrialModel, made._trial_id)
        if trial is None or trial.study_id != study_id or trial.number != made.number:
            return None
        again = self._build_frozen_trial_from_trial_model(trial)
        started = made.datetime_start in (None, again.datetime_start)
        return again if started and made.system_attrs.items() <= again.system_attrs.items() else None

    def next_trial(self, connection: Connection, study_id: int) -> tuple[int, int]:
        """(id, number) of the next trial to train; its state is RUNNING when the transaction commits.

        The WAITING trials without a lease are enqueued points. The next trial is the one of them with the lowest
        number. If there is no such trial, a new trial is made. KeyError if the study was deleted.
        """
        with orm.Session(bind=connection) as session:
            # Optuna takes the same lock when it gives numbers to trials.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            trial = (
                session.query(models.TrialModel)
                .filter(models.TrialModel.study_id == study_id)
                .filter(models.TrialModel.state == TrialState.WAITING)
                .filter(models.TrialModel.trial_id.not_in(select(lease_table.c.trial_id)))
                .order_by(models.TrialModel.number)
                .limit(1)
                .with_for_update()
                .one_or_none()
            )
            if trial is None:
                trial = self._get_prepared_new_trial(study_id, None, session)
            else:
                trial.state = TrialState.RUNNING
                trial.datetime_start = datetime.now()
            session.flush()
            return int(trial.trial_id), int(trial.number)

    def add_waiting(self, connection: Connection, study_id: int, attributes: Sequence[dict[str, Any]]) -> None:
        """Add one WAITING trial for each dictionary of system attributes, in the transaction of `connection`.

        Optuna's public `enqueue_trial` opens a new transaction for each point, so a crash could lose or repeat points.
        """
        with orm.Session(bind=connection, join_transaction_mode="rollback_only") as session:
            for system_attrs in attributes:
                waiting = create_trial(state=TrialState.WAITING, system_attrs=system_attrs)
                self._get_prepared_new_trial(study_id, waiting, session)
            session.flush()

    def mark_trial(self, connection: Connection, trial_id: int, key: str) -> None:
        """Set the system attribute `key` of a trial that has not ended to True, in the transaction of `connection`."""
        with orm.Session(bind=connection) as session:
            self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, key, True)
            session.flush()

    def prune_waiting(self, connection: Connection, trial_id: int, notes: dict[str, Any]) -> None:
        """End a trial that nobody trains as PRUNED, with the user attributes `notes`, in the caller's transaction."""
        with orm.Session(bind=connection) as session:
            trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
            for key, value in notes.items():
                self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, key, value)
            trial.state = TrialState.PRUNED
            trial.datetime_complete = datetime.now()
            session.flush()

    def rewrite_trial(
        self,
        connection: Connection,
        trial_id: int,
        state: TrialState,
        value: float | None,
        params: Mapping[str, tuple[BaseDistribution, Any]],
    ) -> None:
        """Replace the state, the value and the parameters of a trial, also of a trial that has ended.

        params   name -> (distribution, value), in the order of the parameters
        """
        with orm.Session(bind=connection, join_transaction_mode="rollback_only") as session:
            trial = session.get_one(models.TrialModel, trial_id)
            trial.state = state
            if not state.is_finished():
                trial.datetime_complete = None
            elif trial.datetime_complete is None:
                trial.datetime_complete = datetime.now()
            for model in (models.TrialValueModel, models.TrialParamModel):
                session.query(model).filter(model.trial_id == trial_id).delete()
            if value is not None:
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                session.add(models.TrialValueModel(trial_id=trial_id, objective=0, value=stored, value_type=kind))
            for name, (distribution, entry) in params.items():
                session.add(
                    models.TrialParamModel(
                        trial_id=trial_id,
                        param_name=name,
                        param_value=distribution.to_internal_repr(entry),
                        distribution_json=distribution_to_json(distribution),
                    )
                )
            session.flush()

    def write_report(self, connection: Connection, trial_id: int, epoch: int, value: float) -> None:
        """Write one reported value of a running trial; UpdateFinishedTrialError if the trial has ended."""
        with orm.Session(bind=connection) as session:
            self._set_trial_intermediate_value_without_commit(session, trial_id, epoch, value)
            session.flush()

    def artifacts(self, study_id: int) -> dict[int, dict[str, dict[str, Any]]]:
        """The files that the dashboard shows: id of the trial -> id of the file -> the file's `ArtifactMeta`."""

        listed: dict[int, dict[str, dict[str, Any]]] = {}
        stored = self.read(lambda connection: trial_attributes(connection, study_id, SYSTEM_ATTRS, _ARTIFACT))
        for (trial_id, key), value in stored.items():
            entry = json.loads(value)
            if entry is not None:
                listed.setdefault(trial_id, {})[key.removeprefix(_ARTIFACT)] = entry
        return listed

    def forget_artifacts(self, trial_id: int, artifact_ids: Sequence[str]) -> int:
        """Remove files from the dashboard's list of a trial; returns the number of removed entries.

        The trial may have ended; Optuna's own methods refuse to change such a trial. The dashboard sets the attribute
        to `null` instead, but then `optuna.artifacts.get_all_artifact_meta` fails.
        """
        keys = [f"{_ARTIFACT}{artifact_id}" for artifact_id in artifact_ids]
        query = sqlalchemy.delete(SYSTEM_ATTRS).where(SYSTEM_ATTRS.c.trial_id == trial_id, SYSTEM_ATTRS.c.key.in_(keys))
        return self.write(lambda connection: int(connection.execute(query).rowcount))


def _repeated(name: str, reading: bool) -> Callable[..., Any]:
    """The method `name` of RDBStorage, repeated while the database does not answer."""
    method = getattr(RDBStorage, name)

    @functools.wraps(method)
    def call(self: RepeatedStorage, *args: Any, **kwargs: Any) -> Any:
        return self.persist(lambda _: method(self, *args, **kwargs), reading=reading)

    return call


for _name in (*READING, *WRITING):
    setattr(RepeatedStorage, _name, _repeated(_name, _name in READING))


def id_of(study: Study) -> int:
    return study._study_id


def trial_id_of(trial: BaseTrial) -> int:
    return int(trial._trial_id)  # type: ignore[attr-defined]


def storage_of(study: Study) -> BaseStorage:
    return study._storage


def forget_trials(study: Study) -> None:
    """Make the next call in this thread read the study's trials again."""
    study._thread_local.cached_all_trials = None


def contains(distribution: BaseDistribution, value: float) -> bool:
    """Whether `value` is in the range of the distribution; `value` has the form that the database stores."""
    return distribution._contains(value)

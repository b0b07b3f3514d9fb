"""The database: URL rules, and an Optuna storage that survives an outage.

`Storage` is an `optuna.storages.RDBStorage` whose every call is repeated, with backoff, until the database answers
or a stated limit passes (`StorageUnreachable`). Plain Optuna ends a worker at the first hiccup.

Four tables of our own stand beside Optuna's, all with the prefix `cvaeopt_`:

    cvaeopt_schema    the version of these tables
    cvaeopt_study     one row a study: definition, budget, when it began
    cvaeopt_lease     one row a budgeted trial: who trains it, until when, and what it may cost
    cvaeopt_worker    one row a worker: where it is and when it last gave a sign of life

Optuna's private parts are touched in this module and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import shutil
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Column, Connection, Float, Integer, MetaData, String, Table, Text, event, orm
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from cvaeopt.errors import CvaeoptError, SchemaError, StorageRefused, StorageUnreachable, StudyError, UserError
from cvaeopt.store import urls, watchdog
from cvaeopt.store.outage import first_line, is_outage, is_refusal, refused
from cvaeopt.store.outage import unreachable as unreachable
from cvaeopt.store.trial_reader import read_trials
from cvaeopt.store.urls import mask as mask
from cvaeopt.text import Advice

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "sqlite:///storage/cvaeopt.db"
SCHEMA_VERSION = 1

_NAME = String(512)  # as long as Optuna's study names

metadata = MetaData()
schema_table = Table("cvaeopt_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))
study_table = Table(
    "cvaeopt_study",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("study_id", Integer, nullable=False),
    Column("definition", Text, nullable=False),  # JSON
    Column("digest", String(64), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("created_at", Float(53), nullable=False),
    # The budget: trials of the study, epochs of one trial, epochs of the study, seconds of the study
    Column("trials", Integer),
    Column("epochs", Integer, nullable=False),
    Column("total_epochs", Integer),
    Column("wall_clock_s", Float(53)),
    Column("facts", Text, nullable=False, default="{}"),  # JSON
    Column("stopped_reason", Text),
    Column("started_at", Float(53)),  # the first claim; the wall clock counts from here
    Column("alive_at", Float(53)),  # the last sign of life of any worker
    Column("grace_until", Float(53)),  # no expired lease is taken over before this
)
lease_table = Table(
    "cvaeopt_lease",
    metadata,
    Column("study", _NAME, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("trial_id", Integer, nullable=False, unique=True),
    Column("number", Integer, nullable=False),
    Column("state", String(8), nullable=False),  # open | done
    Column("owner", String(128)),  # null after a graceful release
    Column("token", Integer, nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Column("attempt", Integer, nullable=False),  # starts since the last finished epoch
    Column("attempt_epoch", Integer, nullable=False),  # epochs_done when `attempt` began to count
    Column("epochs_reserved", Integer, nullable=False),
    Column("epochs_done", Integer, nullable=False),
    Column("folder", String(1024), nullable=False),  # under the artifact folder
    Column("checkpoint_epoch", Integer),
    Column("checkpoint_host", String(255)),
    Column("outcome", String(16)),  # complete | pruned | failed
    Column("reason", Text),
)
worker_table = Table(
    "cvaeopt_worker",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("study", _NAME, nullable=False),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("kernel", String(64), nullable=False),  # the running system whose process table knows `pid`
    Column("device", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("trial", Integer),
    Column("epoch", Integer),
    Column("started_at", Float(53), nullable=False),
    Column("beat_at", Float(53), nullable=False),
    Column("ttl_s", Float(53), nullable=False),
    Column("stop", Integer, nullable=False, default=0),
    Column("message", Text, nullable=False, default=""),
)

_NONCE = "cvaeopt:nonce"
"""Trial attribute that says whether a creation whose acknowledgement was lost has happened."""

_ARTIFACT = "artifacts:"
"""Prefix of the trial attributes in which Optuna and the dashboard list files."""

_LEAST_FREE = 65536
"""Bytes free on a disk below which SQLite cannot make its side files."""

_HURRY_S = 2.0
"""How long a call is still repeated once the process was asked to stop, seconds."""


def _retried(method: F, *, reading: bool = False) -> F:
    """`method` of RDBStorage, repeated while the database does not answer; `reading` takes no write lock."""

    @functools.wraps(method)
    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        def attempt(_: int) -> Any:
            with self._mode(reading):
                return method(self, *args, **kwargs)

        return self._persist(attempt)

    return cast(F, call)


class Storage(RDBStorage):
    """Optuna's SQL storage, hardened; made by `open_storage`, and closed at the end of a `with` block.

    url           the URL with its password masked
    limit_s       how long a call is repeated before StorageUnreachable, seconds
    on_retry      called before each repetition with (seconds of the outage so far, what the database said)
    on_recovery   called when a repeated call succeeded, with the seconds of the outage
    hurry         True when the process was asked to stop: calls then give up after a few seconds
    silence_s     PostgreSQL: how long the server may be silent during one statement, seconds; that is an outage then
    """

    def __init__(
        self,
        url: str,
        *,
        limit_s: float = 900.0,
        busy_s: float = 10.0,
        silence_s: float = watchdog.SILENCE_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        target = urls.parse(url)
        self.limit_s = limit_s
        self.on_retry: Callable[[float, str], None] = _ignore
        self.on_recovery: Callable[[float], None] = _ignore
        self.hurry: Callable[[], bool] = _never
        self._source = url
        self._busy_s = busy_s
        self._silence_s = silence_s
        self._sleep = sleep
        self._clock = clock
        self._jitter = random.Random()
        self._local = threading.local()
        try:
            super().__init__(
                urls.template(target),
                engine_kwargs=urls.engine_options(target, busy_s, silence_s, lambda: self.hurry()),
                skip_table_creation=True,
            )
        except BaseException:
            if hasattr(self, "scoped_session"):
                self.close()
            raise
        self.url = mask(target.render_as_string(hide_password=False))
        event.listen(self.engine, "handle_error", self._refuse)
        if self.engine.name == "sqlite":
            self._harden_sqlite()

    def __reduce__(self) -> tuple[Callable[..., Storage], tuple[str, float, float, float]]:
        return (_reopen, (self._source, self.limit_s, self._busy_s, self._silence_s))

    def _refuse(self, context: sqlalchemy.engine.ExceptionContext) -> StorageRefused | None:
        """What is raised in place of a driver's error that is a refusal, such as a missing right."""
        error = context.sqlalchemy_exception
        if error is None or not is_refusal(error):
            return None
        return refused(self.url, self.scrub(first_line(error)))

    def _harden_sqlite(self) -> None:
        # Installed after construction: Optuna's schema check holds one transaction while it opens another.
        self.engine.dispose()

        @event.listens_for(self.engine, "connect")
        def _connected(connection: Any, _record: Any) -> None:
            connection.isolation_level = None  # transactions begin when we say so, below
            connection.execute("PRAGMA synchronous=NORMAL")
            with contextlib.suppress(sqlite3.OperationalError):  # a copy made by other means may have lost it
                connection.execute("PRAGMA journal_mode=WAL")

        @event.listens_for(self.engine, "begin")
        def _begun(connection: Connection) -> None:
            # Without IMMEDIATE two writers read the same row and both believe they took the trial.
            # Reads stay deferred: a status of a large study must not hold up the workers.
            reading = getattr(self._local, "reading", False)
            connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        self.remove_session()
        self.engine.dispose()

    # ---- repetition

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Within the block, and in this thread only, calls are repeated for at most `seconds`."""
        before = getattr(self._local, "limit_s", None)
        self._local.limit_s = seconds
        try:
            yield
        finally:
            self._local.limit_s = before

    @contextlib.contextmanager
    def _mode(self, reading: bool) -> Iterator[None]:
        before = getattr(self._local, "reading", False)
        self._local.reading = reading
        try:
            yield
        finally:
            self._local.reading = before

    def retry(self, call: Callable[[], T]) -> T:
        """What `call` returns, repeated while the database does not answer; StorageUnreachable after the limit.

        `call` may have happened although it seemed to fail (a lost acknowledgement), so it must bear repetition.
        """
        return self._persist(lambda _: call())

    def _persist(self, call: Callable[[int], T]) -> T:
        """`call(attempt)` until it succeeds; attempt counts from 0."""
        failed_at: float | None = None
        pause = 0.2
        attempt = 0
        while True:
            started = self._clock()
            try:
                result = call(attempt)
            except (StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
                if not is_outage(error):
                    _check_sqlite_content(error, self.url)
                    raise
                said = self.scrub(first_line(error))
            else:
                if failed_at is not None:
                    self.on_recovery(self._clock() - failed_at)
                return result
            now = self._clock()
            failed_at = started if failed_at is None else failed_at  # a call that hung was an outage from its beginning
            outage_s = now - failed_at
            limit_s = getattr(self._local, "limit_s", None)
            limit_s = self.limit_s if limit_s is None else min(limit_s, self.limit_s)
            if outage_s >= limit_s or (outage_s >= _HURRY_S and self.hurry()):
                raise unreachable(self.url, outage_s, said) from None
            self.on_retry(outage_s, said)
            self._sleep(min(pause * self._jitter.uniform(0.5, 1.0), max(limit_s - outage_s, 0.0)))
            pause = min(pause * 2, 3.0)
            attempt += 1

    def scrub(self, text: str) -> str:
        """`text` without the password of this database, in any spelling."""
        return urls.scrub(text, self._source)

    # ---- transactions of our own

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection in one writing transaction, committed when the block ends.

        On SQLite writers are serialised; elsewhere lock what you read (`lock_study`). Not repeated: put the
        block into a function and give that to `retry`.
        """
        with self._mode(False), self.engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection in one reading transaction that keeps no writer waiting."""
        with self._mode(True), self.engine.begin() as connection:
            yield connection

    def now(self, connection: Connection) -> float:
        """The database server's clock, seconds since 1970 UTC, at this moment (not when the transaction began)."""
        text = {
            "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
            "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
        }
        return float(connection.execute(sqlalchemy.text(text[self.engine.name])).scalar_one())

    def lock_study(self, connection: Connection, name: str) -> sqlalchemy.Row[Any]:
        """The row of study `name` in cvaeopt_study, locked until the transaction ends; StudyError if unknown."""
        query = sqlalchemy.select(study_table).where(study_table.c.name == name).with_for_update()
        row = connection.execute(query).one_or_none()
        if row is None:
            raise StudyError(
                f"Study {name!r} is not in {self.url}.",
                todo=Advice("Create it:", "worker", "--study", name),
            )
        return row

    def artifacts(self, study_id: int) -> dict[int, dict[str, dict[str, Any]]]:
        """The files that the dashboard lists: id of the trial -> id of the file -> its `ArtifactMeta`."""

        def read() -> dict[int, dict[str, dict[str, Any]]]:
            attribute, trial = models.TrialSystemAttributeModel, models.TrialModel
            found: dict[int, dict[str, dict[str, Any]]] = {}
            with self.reading() as connection:
                rows = connection.execute(
                    sqlalchemy.select(attribute.trial_id, attribute.key, attribute.value_json)
                    .join(trial, trial.trial_id == attribute.trial_id)
                    .where(trial.study_id == study_id, attribute.key.startswith(_ARTIFACT))
                )
                for trial_id, key, value in rows:
                    entry = json.loads(json.loads(value))
                    if entry is not None:
                        found.setdefault(trial_id, {})[key.removeprefix(_ARTIFACT)] = entry
            return found

        return self.retry(read)

    def forget_artifacts(self, trial_id: int, artifact_ids: Sequence[str]) -> int:
        """Take files off the dashboard's list of a trial, finished or not; how many were on it.

        Optuna changes nothing of a finished trial, and the dashboard's own way (an attribute `null`) breaks
        `optuna.artifacts.get_all_artifact_meta`.
        """
        attribute = models.TrialSystemAttributeModel

        def forget() -> int:
            with self.transaction() as connection:
                keys = [f"{_ARTIFACT}{one}" for one in artifact_ids]
                done = connection.execute(
                    sqlalchemy.delete(attribute).where(attribute.trial_id == trial_id, attribute.key.in_(keys))
                )
                return int(done.rowcount)

        return self.retry(forget)

    def next_trial(self, connection: Connection, study_id: int) -> tuple[int, int]:
        """(id, number) of the trial to run next, RUNNING when the transaction commits.

        The lowest-numbered WAITING trial that no lease holds (an enqueued point), else a new one. KeyError if the
        study is gone.
        """
        with orm.Session(bind=connection) as session:
            # Optuna numbers its trials under this lock.
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
            leased = sqlalchemy.select(lease_table.c.trial_id)
            trial = (
                session.query(models.TrialModel)
                .filter(models.TrialModel.study_id == study_id)
                .filter(models.TrialModel.state == TrialState.WAITING)
                .filter(models.TrialModel.trial_id.not_in(leased))
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

    def progress(self, connection: Connection, study_id: int) -> tuple[float | None, int]:
        """The highest value of a complete trial (None without one), and how many trials with a higher number than
        that trial's have ended; the earliest of equals counts."""
        trial, value = models.TrialModel, models.TrialValueModel
        best = connection.execute(
            sqlalchemy.select(value.value, trial.number)
            .join(trial, trial.trial_id == value.trial_id)
            .where(
                trial.study_id == study_id,
                trial.state == TrialState.COMPLETE,
                value.value_type == value.TrialValueType.FINITE,
            )
            .order_by(value.value.desc(), trial.number)
            .limit(1)
        ).one_or_none()
        ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        after = connection.execute(
            sqlalchemy.select(sqlalchemy.func.count()).where(
                trial.study_id == study_id,
                trial.state.in_(ended),
                trial.number > (-1 if best is None else best.number),
            )
        ).scalar_one()
        return (None if best is None else float(best.value)), int(after)

    def write_report(self, connection: Connection, trial_id: int, epoch: int, value: float) -> None:
        """Write one reported value of a running trial; UpdateFinishedTrialError if the trial has ended."""
        with orm.Session(bind=connection) as session:
            self._set_trial_intermediate_value_without_commit(session, trial_id, epoch, value)
            session.flush()

    # ---- what Optuna calls

    create_new_study = _retried(RDBStorage.create_new_study)
    delete_study = _retried(RDBStorage.delete_study)
    set_study_user_attr = _retried(RDBStorage.set_study_user_attr)
    set_study_system_attr = _retried(RDBStorage.set_study_system_attr)
    get_study_id_from_name = _retried(RDBStorage.get_study_id_from_name, reading=True)
    get_study_name_from_id = _retried(RDBStorage.get_study_name_from_id, reading=True)
    get_study_directions = _retried(RDBStorage.get_study_directions, reading=True)
    get_study_user_attrs = _retried(RDBStorage.get_study_user_attrs, reading=True)
    get_study_system_attrs = _retried(RDBStorage.get_study_system_attrs, reading=True)
    get_all_studies = _retried(RDBStorage.get_all_studies, reading=True)
    set_trial_param = _retried(RDBStorage.set_trial_param)
    _set_trial_param = _retried(RDBStorage._set_trial_param)
    set_trial_intermediate_value = _retried(RDBStorage.set_trial_intermediate_value)
    set_trial_user_attr = _retried(RDBStorage.set_trial_user_attr)
    set_trial_system_attr = _retried(RDBStorage.set_trial_system_attr)
    get_trial_id_from_study_id_trial_number = _retried(RDBStorage.get_trial_id_from_study_id_trial_number, reading=True)
    get_trial_param = _retried(RDBStorage.get_trial_param, reading=True)
    get_trial_user_attrs = _retried(RDBStorage.get_trial_user_attrs, reading=True)
    get_trial_system_attrs = _retried(RDBStorage.get_trial_system_attrs, reading=True)
    get_trial = _retried(RDBStorage.get_trial, reading=True)
    _get_best_trial_id = _retried(RDBStorage._get_best_trial_id, reading=True)

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        def read() -> list[FrozenTrial]:
            with self.reading() as connection:
                return read_trials(connection, study_id, states, included_trial_ids, trial_id_greater_than)

        return self.retry(read)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """True if the trial is in `state` now by this call, also when the call's acknowledgement was lost."""

        def attempt(number: int) -> bool:
            try:
                with self._mode(False):
                    done = super(Storage, self).set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if number == 0 or not self._already(trial_id, state, values):
                    raise
                return True
            return done or (number > 0 and self._already(trial_id, state, values))

        return self._persist(attempt)

    def _already(self, trial_id: int, state: TrialState, values: Sequence[float] | None) -> bool:
        trial = self.get_trial(trial_id)
        return trial.state == state and (values is None or trial.values == list(values))

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """The new trial; created once, also when the acknowledgement of its creation was lost."""
        template = template_trial or create_trial(state=TrialState.RUNNING)
        nonce = uuid.uuid4().hex
        system_attrs = {**template.system_attrs, _NONCE: nonce}

        def create() -> FrozenTrial:
            with self.transaction() as connection, orm.Session(bind=connection) as session:
                models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
                trial = self._created_with(nonce, session)
                if trial is None:
                    attempt = _copy(template, system_attrs)
                    trial = self._get_prepared_new_trial(study_id, attempt, session)
                session.flush()
                session.expire_all()
                return self._build_frozen_trial_from_trial_model(trial)

        return self.retry(create)

    def _created_with(self, nonce: str, session: orm.Session) -> models.TrialModel | None:
        return (
            session.query(models.TrialModel)
            .join(models.TrialSystemAttributeModel)
            .filter(models.TrialSystemAttributeModel.key == _NONCE)
            .filter(models.TrialSystemAttributeModel.value_json == json.dumps(nonce))
            .one_or_none()
        )


def open_storage(
    url: str,
    *,
    create: bool = True,
    limit_s: float = 900.0,
    start_limit_s: float = 30.0,
    busy_s: float = 10.0,
    silence_s: float = watchdog.SILENCE_S,
) -> Storage:
    """The storage at `url`, its tables made if they are missing; any number of processes may start at once.

    create          make folder, database file and tables; without it StudyError says that there is nothing yet
    limit_s         how long every later call is repeated during an outage, seconds
    start_limit_s   how long this call waits for the database, seconds (a wrong host should not take 15 minutes)
    busy_s          SQLite: how long one attempt waits for another process' lock, seconds
    silence_s       PostgreSQL: how long the server may be silent during one statement, seconds

    UserError for a URL that cannot work, StorageRefused for what the server says no to, StorageUnreachable when nobody
    answers and, at once, for a SQLite file on a full disk, SchemaError for tables of another version.
    """
    target = urls.parse(url)
    shown = mask(url)
    absent: list[Path] = []
    if target.get_backend_name() == "sqlite":
        absent = [path for path in _sqlite_files(target) if not path.exists()]
        _check_sqlite_file(target, shown, create)
    started = time.monotonic()
    jitter = random.Random()
    pause = 0.2
    while True:
        try:
            _make_tables(target, shown, create, busy_s, silence_s)
            return Storage(url, limit_s=limit_s, busy_s=busy_s, silence_s=silence_s)
        except CvaeoptError:
            raise
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise UserError(
                f"No driver is installed for {shown} ({first_line(error)}).", todo=_driver_advice(target)
            ) from None
        except TypeError as error:  # how a driver other than psycopg refuses an option
            if not target.query or target.drivername == urls.PSYCOPG:
                raise
            raise UserError(
                f"The driver of {shown} does not take an option of this URL ({urls.scrub(first_line(error), url)}).",
                todo="Change --storage.",
            ) from None
        except (RuntimeError, StorageInternalError, sqlalchemy.exc.SQLAlchemyError) as error:
            said = urls.scrub(first_line(error), url)
            _check_room(error, target, absent)
            _check_sqlite_content(error, shown)
            if not isinstance(error, (StorageInternalError, sqlalchemy.exc.SQLAlchemyError)):  # Optuna's, of its tables
                raise SchemaError(
                    f"The Optuna tables in {shown} are of another version ({urls.scrub(str(error), url)})",
                    todo="Stop the workers, then: cvaeopt admin upgrade COPY --storage URL",
                ) from None
            if not is_outage(error):
                raise refused(shown, said) from None
        except sqlite3.DatabaseError as error:  # the creation lock
            said = str(error)
            _check_sqlite_content(error, shown)
            _check_room(error, target, absent)
        waited = time.monotonic() - started
        if waited >= min(start_limit_s, limit_s):
            raise unreachable(shown, waited, said)
        time.sleep(pause * jitter.uniform(0.5, 1.0))
        pause = min(pause * 2, 3.0)


def _check_sqlite_file(target: URL, shown: str, create: bool) -> None:
    path = Path(target.database or "")
    if path.is_dir():
        raise UserError(f"{shown} is a folder.", "Expected a file.", "Change --storage.")
    if not create and not path.exists():
        raise StudyError(
            f"There is no database {shown} yet.",
            todo="Start a worker, which creates it, or change --storage.",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder of {shown} cannot be made ({error.strerror}).", todo="Change --storage.") from None


def _sqlite_files(target: URL) -> list[Path]:
    """The files that opening a SQLite database may create."""
    return [Path(f"{target.database}{ending}") for ending in ("", ".lock", "-journal", "-wal", "-shm")]


def _check_room(error: BaseException, target: URL, absent: list[Path]) -> None:
    """StorageUnreachable if `error` says that the disk of a SQLite file is full; what was made of `absent` is then
    removed. UserError if the folder is read-only.

    During a run room may be made while calls are repeated; at the start somebody should be told at once.
    """
    codes = _sqlite_codes(error)
    folder = Path(target.database or "").absolute().parent
    if sqlite3.SQLITE_CANTOPEN in codes and folder.is_dir() and not os.access(folder, os.W_OK):
        raise UserError(
            f"The SQLite database {target.database} may not be written (its folder is read-only).",
            "Expected: a file, in a folder, that this user may write.",
            "Change their permissions, or name another file with --storage.",
        ) from None
    if sqlite3.SQLITE_FULL not in codes:
        # Without room for its side files SQLite speaks of an I/O error, or of a file that it cannot open.
        if not codes & {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}:
            return
        try:
            if shutil.disk_usage(folder).free >= _LEAST_FREE:
                return
        except OSError:
            return
    for path in absent:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()
    raise StorageUnreachable(
        f"The disk of {folder} is full: the database cannot be written.",
        todo="Make room there, or put the database on another disk with --storage; then run the same command again.",
    ) from None


def _check_sqlite_content(error: BaseException, shown: str) -> None:
    """UserError if `error` says that a SQLite file is no database, is damaged, or may not be written."""
    codes = _sqlite_codes(error)
    if sqlite3.SQLITE_NOTADB in codes:
        raise UserError(
            f"{shown} is not a SQLite database: the file holds something else.",
            "Expected: a file that cvaeopt has made, or the name of a file that is not there yet.",
            "Name another file with --storage; nothing was changed in this one.",
        ) from None
    if sqlite3.SQLITE_CORRUPT in codes:
        raise UserError(
            f"The SQLite database {shown} is damaged ({first_line(error)}).",
            "Expected: a whole file; a copy made with cp while workers write is none.",
            "Stop the workers, move the file away, and restore a backup (storage/README.md).",
        ) from None
    if codes & {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        raise UserError(
            f"The SQLite database {shown} may not be written ({first_line(error)}).",
            "Expected: a file, in a folder, that this user may write.",
            "Change their permissions, or name another file with --storage.",
        ) from None


def _sqlite_codes(error: BaseException) -> set[int]:
    """SQLite's primary result codes in `error` and in what it wraps."""
    origins = [error, error.__cause__, getattr(error, "orig", None), getattr(error.__cause__, "orig", None)]
    return {getattr(one, "sqlite_errorcode", 0) & 0xFF for one in origins if isinstance(one, sqlite3.Error)}


def _driver_advice(target: URL) -> str:
    """How to install the driver that the URL asks for."""
    backend, _, driver = target.drivername.partition("+")
    if backend == "postgresql" and driver == "psycopg":
        return "For PostgreSQL: pip install 'cvaeopt[postgres]'"
    return f"Install the driver that the URL names: pip install {driver}; or write {backend}://..."


def _make_tables(target: URL, shown: str, create: bool, busy_s: float, silence_s: float) -> None:
    """Make all tables unless they are there; SchemaError if ours are of another version."""
    options = urls.engine_options(target, busy_s, silence_s)
    own: dict[str, Any] = {key: options[key] for key in ("connect_args", "creator") if key in options}
    engine = sqlalchemy.create_engine(target, poolclass=NullPool, **own)
    if target.drivername == "postgresql+psycopg":
        # Before SQLAlchemy's own first question, which fails without a word where text comes as bytes.
        event.listen(engine, "connect", functools.partial(_require_utf8, shown), insert=True)
    try:
        if _is_ready(engine, shown):
            return
        if not create:
            raise StudyError(
                f"The database {shown} holds no study yet.",
                todo="Start a worker, which creates its tables, or change --storage.",
            )
        with _creation_lock(engine, target):
            if _is_ready(engine, shown):
                return
            if engine.name == "sqlite":
                with engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            # Without a pool no connection stays open, also where Optuna fails half-way.
            RDBStorage(urls.template(target), engine_kwargs={**own, "poolclass": NullPool}).remove_session()
            metadata.create_all(engine)
            with engine.begin() as connection:  # last: its presence says that everything is there
                connection.execute(schema_table.insert().values(version=SCHEMA_VERSION))
    finally:
        engine.dispose()


def _require_utf8(shown: str, connection: Any, _record: Any) -> None:
    """UserError if the database cannot hold every text; SQL_ASCII gives even its version as bytes."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UserError(
            f"The database {shown} has the encoding {encoding}.",
            "Expected: UTF8.",
            "Make another one: createdb --encoding=UTF8 --template=template0 NAME, and name it with --storage.",
        )


def _is_ready(engine: sqlalchemy.Engine, shown: str) -> bool:
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table(schema_table.name):
            return False
        found = connection.execute(sqlalchemy.select(schema_table.c.version)).scalars().all()
    if not found:
        return False
    version = max(found)
    if version != SCHEMA_VERSION:
        todo = (
            "Install the newer cvaeopt (pip install --upgrade cvaeopt), or use another --storage."
            if version > SCHEMA_VERSION
            else "Finish its studies with the cvaeopt that made them, or use another --storage."
        )
        raise SchemaError(
            f"The cvaeopt tables in {shown} are of version {version}.", f"Expected: {SCHEMA_VERSION}.", todo
        )
    return True


@contextlib.contextmanager
def _creation_lock(engine: sqlalchemy.Engine, target: URL) -> Iterator[None]:
    """Hold the one right to create tables; it ends with the process, however that ends."""
    if engine.name == "sqlite":
        # A second SQLite file is a lock that every platform has.
        guard = sqlite3.connect(f"{target.database}.lock", timeout=60, isolation_level=None)
        try:
            guard.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            guard.close()
        return
    # A lock of the transaction: that of a session would stay with a pooler's connection. And nobody waits for it inside
    # the server: whoever waits would keep a connection that the owner may need.
    give_up_at = time.monotonic() + 60.0
    while time.monotonic() < give_up_at:
        with engine.connect() as connection:
            if connection.execute(sqlalchemy.text("SELECT pg_try_advisory_xact_lock(7170313)")).scalar_one():
                yield
                return
        time.sleep(random.uniform(0.1, 0.3))
    raise sqlalchemy.exc.TimeoutError("another process is making the tables")


def _copy(template: FrozenTrial, system_attrs: dict[str, Any]) -> FrozenTrial:
    return FrozenTrial(
        number=template.number,
        state=template.state,
        value=None,
        values=template.values,
        datetime_start=template.datetime_start,
        datetime_complete=template.datetime_complete,
        params=template.params,
        distributions=template.distributions,
        user_attrs=template.user_attrs,
        system_attrs=system_attrs,
        intermediate_values=template.intermediate_values,
        trial_id=template._trial_id,
    )


def _reopen(url: str, limit_s: float, busy_s: float, silence_s: float = watchdog.SILENCE_S) -> Storage:
    return open_storage(url, limit_s=limit_s, busy_s=busy_s, silence_s=silence_s)


def _ignore(*_: object) -> None:
    return None


def _never() -> bool:
    return False

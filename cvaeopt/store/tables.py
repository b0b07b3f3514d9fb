"""The four tables that stand beside Optuna's in the database; their names begin with `cvaeopt_`.

cvaeopt_schema    the version of these tables
cvaeopt_study     one row for each study: its definition, its budget, when it began
cvaeopt_lease     one row for each trial that was begun: who trains it, until when, and what it may cost
cvaeopt_worker    one row for each worker: where it runs and when it last gave a sign of life
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, MetaData, String, Table, Text

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

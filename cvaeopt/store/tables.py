"""The four tables that this program adds to Optuna's tables. Their names begin with `cvaeopt_`.

cvaeopt_schema    the version of these tables
cvaeopt_study     one row for each study: its definition, its budget and its start
cvaeopt_lease     one row for each trial that was begun: its worker, the end of its lease and its reserved epochs
cvaeopt_worker    one row for each worker: its machine, its state and its last sign of life
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
    Column("started_at", Float(53)),  # the time of the first claim; wall_clock_s counts from this time
    Column("alive_at", Float(53)),  # the time of the last recorded sign of life of any worker
    Column("grace_until", Float(53)),  # no expired lease is taken over before this time
)
lease_table = Table(
    "cvaeopt_lease",
    metadata,
    Column("study", _NAME, primary_key=True),
    Column("slot", Integer, primary_key=True, autoincrement=False),
    Column("trial_id", Integer, nullable=False, unique=True),
    Column("number", Integer, nullable=False),
    Column("state", String(8), nullable=False),  # open | done
    Column("owner", String(128)),  # null if the worker gave the trial back
    Column("token", Integer, nullable=False),
    Column("expires_at", Float(53), nullable=False),
    Column("attempt", Integer, nullable=False),  # attempts to finish the next epoch, from 1
    Column("attempt_epoch", Integer, nullable=False),  # epochs_done when `attempt` was set to 1
    Column("epochs_reserved", Integer, nullable=False),
    Column("epochs_done", Integer, nullable=False),
    Column("folder", String(1024), nullable=False),  # relative to the artifact folder
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
    Column("kernel", String(64), nullable=False),  # identifies the system and process table that contain `pid`
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

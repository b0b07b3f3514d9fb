"""A study that one worker trains is the same to the last bit, interrupted or not, with real training and TPE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cvaeopt.run import events
from cvaeopt.run.objective import Objective
from cvaeopt.run.timing import Timing
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.store.opening import open_storage
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open
from cvaeopt.store.workers import ask_stop
from testbed import tiny

pytestmark = pytest.mark.usefixtures("uncharted_module")

DATA = tiny.dataset()
DEFINITION = Definition.parse(
    {
        "study": {"seed": 5},
        "budget": {"trials": 4, "epochs": 3},
        "fixed": {**tiny.WIDTHS, "output": "sigmoid", "kl_norm": "element", "shuffle": True},
        "search": {
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "tfr": {"type": "float", "low": 0.0, "high": 1.0},
            "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "none"]},
            "kl_anneal_cycle": {"type": "int", "low": 1, "high": 3, "when": {"kl_anneal_type": ["cyclical"]}},
        },
        "sampler": {"kind": "tpe", "n_startup_trials": 2},
        "pruner": {"kind": "median", "n_startup_trials": 2, "warmup_epochs": 1, "interval_epochs": 1},
    },
    "same",
    "test",
)


def trained(folder: Path, stop_every: int | None) -> list[dict[str, Any]]:
    """What the study came to; its worker is asked to stop after every `stop_every` epochs and started again."""
    with open_storage(f"sqlite:///{folder}/study.db") as storage:
        return _trained(storage, folder, stop_every)


def _trained(storage: Storage, folder: Path, stop_every: int | None) -> list[dict[str, Any]]:
    study = create_or_open(storage, DEFINITION)
    objective = Objective(DEFINITION, DATA, artifacts=folder / "artifacts")
    epochs = 0

    def hear(event: events.Event) -> None:
        nonlocal epochs
        if isinstance(event, events.EpochDone):
            epochs += 1
            if stop_every and epochs % stop_every == 0:
                ask_stop(storage, DEFINITION.name)

    for _ in range(30):
        worker = Worker(
            study,
            storage,
            lambda trial, lease: objective.open(trial, lease.token),
            artifacts=folder / "artifacts",
            listener=hear,
            timing=Timing(ttl_s=1.0, poll_s=0.05),  # four signs of life in that second, each of which sees a stop
        )
        if worker.run().kind == "finished":
            break
    trials = study.get_trials(deepcopy=False)
    assert len(trials) == 4 and all(trial.state.is_finished() for trial in trials)
    return [
        {
            "params": trial.params,
            "curve": trial.intermediate_values,
            "value": trial.values,
            "state": trial.state,
            "seed": trial.user_attrs["seed"],
        }
        for trial in trials
    ]


@pytest.mark.slow
def test_a_study_is_the_same_to_the_last_bit_interrupted_or_not(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert trained(whole, None) == trained(parts, 2)

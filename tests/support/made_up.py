"""A folder of test sequences, and studies whose trials were never trained."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from PIL import Image
from sqlalchemy import insert

from cvaeopt.files import RunFolder
from cvaeopt.pictures import run_pictures
from cvaeopt.search.definition import Definition
from cvaeopt.store import confirmation as confirmations
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing

BASELINES = {"copy_first": 23.9, "train_mean": 25.4, "nearest_pose": 26.1}
NOON = datetime.datetime(2026, 3, 2, 12)


def frames(count: int, seed: int = 0, height: int = 8, width: int = 16) -> np.ndarray:
    """A bright square on a grey ground, uint8 (count, 3, height, width)."""
    at = np.cumsum(np.random.default_rng(seed).integers(-1, 2, count)) % (width - 4)
    made = np.full((count, 3, height, width), 90, np.uint8)
    for index, x in enumerate(at):
        made[index, :, 2:6, x : x + 4] = np.array([220, 60, 30], np.uint8)[:, None, None]
    return made


def sequence_folder(root: Path, sequences: int, labels: int, truth: bool = False, first_number: int = 0) -> Path:
    """`root` with test sequences in the lab's layout; labels are the negatives of the frames."""
    for number in range(first_number, first_number + sequences):
        shown = frames(labels, seed=number)
        _png(root / f"test/test_img/{number}/0.png", shown[0])
        for index, frame in enumerate(shown):
            _png(root / f"test/test_label/{number}/{index}.png", 255 - frame)
            if truth:
                _png(root / f"test/test_truth/{number}/{index}.png", frame)
    return root


def definition(trials: int = 30, epochs: int = 10, **tables: Any) -> Definition:
    """A study of lr, tfr and the KL weight's shape."""
    return Definition.parse(
        {
            "study": {"description": "made up", "window": 2, "seed": 7},
            "budget": {"trials": trials, "epochs": epochs},
            "fixed": {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8},
            "search": {
                "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
                "tfr": {"type": "float", "low": 0.0, "high": 1.0},
                "kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]},
            },
            **tables,
        },
        "made-up",
        "test",
    )


def trials(count: int, seed: int = 0, epochs: int = 10, level: float = 30.0) -> list[FrozenTrial]:
    """Finished trials; the third of every four is pruned, the seventh of every eight has diverged."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        params = {
            "lr": float(10 ** draw.uniform(-4, -2)),
            "tfr": float(draw.uniform(0, 1)),
            "kl_anneal_type": ["cyclical", "monotonic", "none"][number % 3],
        }
        top = level - 4 * params["tfr"] + float(draw.normal()) * 0.3
        last = 4 if number % 4 == 2 else epochs
        state, attributes = TrialState.COMPLETE, {"reason": "all epochs trained"}
        if number % 4 == 2:
            state, attributes = TrialState.PRUNED, {"reason": f"pruned at epoch {last}"}
        if number % 8 == 6:
            last = 1
            attributes = {"reason": "The training loss became nan in epoch 2.", "failed": "diverged"}
        curve = {epoch: top - 12 * float(np.exp(-epoch / 2)) for epoch in range(1, last + 1)}
        trial = create_trial(
            state=state,
            params=params,
            distributions={
                "lr": FloatDistribution(1e-4, 1e-2, log=True),
                "tfr": FloatDistribution(0, 1),
                "kl_anneal_type": CategoricalDistribution(("cyclical", "monotonic", "none")),
            },
            value=curve[last] if state == TrialState.COMPLETE else None,
            intermediate_values=curve,
            user_attrs={
                **attributes,
                "epochs_done": last,
                "seconds": 60.0 * last,
                "data_digest": "0123456789ab",
                "versions": {"cvaeopt": "0.1.0"},
            },
        )
        trial.number = number
        trial.datetime_start = NOON + datetime.timedelta(minutes=number)
        trial.datetime_complete = trial.datetime_start + datetime.timedelta(minutes=1)
        made.append(trial)
    return made


def fill(storage: Storage, study: optuna.Study, made: Sequence[FrozenTrial]) -> None:
    """Write finished trials into an empty study, thousands in a second, in one transaction."""
    rows: dict[Any, list[dict[str, Any]]] = {
        models.TrialModel: [],
        models.TrialValueModel: [],
        models.TrialParamModel: [],
        models.TrialIntermediateValueModel: [],
        models.TrialUserAttributeModel: [],
    }
    for trial in made:
        key = {"trial_id": trial.number + 1}
        rows[models.TrialModel].append(
            {
                **key,
                "number": trial.number,
                "study_id": study._study_id,
                "state": trial.state,
                "datetime_start": trial.datetime_start,
                "datetime_complete": trial.datetime_complete,
            }
        )
        finite = {"value_type": models.TrialValueModel.TrialValueType.FINITE}
        if trial.value is not None:
            rows[models.TrialValueModel].append({**key, "objective": 0, "value": trial.value, **finite})
        for name, value in trial.params.items():
            kind = trial.distributions[name]
            rows[models.TrialParamModel].append(
                {
                    **key,
                    "param_name": name,
                    "param_value": kind.to_internal_repr(value),
                    "distribution_json": distribution_to_json(kind),
                }
            )
        known = {"intermediate_value_type": models.TrialIntermediateValueModel.TrialIntermediateValueType.FINITE}
        for step, value in trial.intermediate_values.items():
            rows[models.TrialIntermediateValueModel].append({**key, "step": step, "intermediate_value": value, **known})
        for name, value in trial.user_attrs.items():
            rows[models.TrialUserAttributeModel].append({**key, "key": name, "value_json": json.dumps(value)})
    with storage.transaction() as connection:
        for model, values in rows.items():
            if values:
                connection.execute(insert(model), values)


def history(curve: dict[int, float]) -> list[dict[str, Any]]:
    """Lines of history.jsonl for reported values."""
    return [
        {
            "epoch": epoch,
            "lr": 1e-3,
            "tfr": max(0.0, 1 - epoch / 10),
            "teacher_forced": 0.0,
            "beta": min(1.0, epoch / 5),
            "train_loss": 0.1 / epoch,
            "train_mse": 0.08 / epoch,
            "train_kl": 0.02,
            "val_psnr": value,
            "val_psnr_late": value - 1,
            "seconds": 1.5,
        }
        for epoch, value in curve.items()
    ]


def run_folder(artifacts: Path, trial: FrozenTrial, study: str = "made-up") -> RunFolder:
    """The run folder that a finished trial leaves."""
    return _finished(RunFolder.of_trial(artifacts, study, trial.number), trial, f"{study} / trial {trial.number}")


def retrained_folder(root: Path, trial: FrozenTrial, study: str = "made-up") -> RunFolder:
    """The folder that a finished retraining of a trial's settings leaves."""
    folder = _finished(RunFolder(root), trial, "best.pt")
    (root / "retrain.json").write_text(json.dumps({"kind": "retrain", "study": study, "trial": trial.number}))
    sheet = {"epoch": 8, "val_psnr": 31.25, "val_psnr_late": 30.5}
    (root / "score.json").write_text(json.dumps({"kind": "score", **sheet}))
    return folder


def _finished(folder: RunFolder, trial: FrozenTrial, title: str) -> RunFolder:
    folder.root.mkdir(parents=True)
    rows = history(trial.intermediate_values)
    folder.write_history(rows)
    folder.config.write_text(json.dumps({}))
    truth = frames(9)
    run_pictures.trial_artifacts(
        folder.root,
        rows,
        psnr_frames=np.linspace(30, 25, 9),
        prediction=truth // 2 + 40,
        truth=truth,
        labels=255 - truth,
        title=title,
    )
    return folder


def _png(path: Path, frame: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frame.transpose(1, 2, 0)).save(path)


def run_all(storage: Storage, name: str, value: Any) -> None:
    """End every waiting run of a confirmation with `value(params)`: dB, or the kind of its failure."""
    study, found = open_existing(storage, name)
    for _ in range(found.budget.trials or 0):
        trial = study.ask()
        params = study.get_trials()[trial.number].system_attrs["fixed_params"]
        for key, dimension in found.search.items():
            if key in params:
                dimension.suggest(key, trial)
        level = value(params)
        if isinstance(level, str):
            trial.set_user_attr("failed", level)
            study.tell(trial, state=TrialState.PRUNED if level == "diverged" else TrialState.FAIL)
        else:
            study.tell(trial, level)


def registered(storage: Storage, top: int = 3, seeds: int | None = 2) -> confirmations.Plan:
    """Register a confirmation of study `made-up`."""
    planned = confirmations.plan(storage, "made-up", top, seeds)
    confirmations.register(storage, planned)
    return planned


def ablation(artifacts: Path) -> tuple[Definition, list[FrozenTrial]]:
    """A grid over the KL weight's shape, trained to the end."""
    study = definition(
        trials=3,
        search={"kl_anneal_type": {"type": "categorical", "choices": ["cyclical", "monotonic", "none"]}},
        sampler={"kind": "grid"},
    )
    shown = [trial for trial in trials(12) if trial.value is not None][:3]
    for number, trial in enumerate(shown):
        trial.number = number
        trial.params = {"kl_anneal_type": ["cyclical", "monotonic", "none"][number]}
        trial.distributions = {"kl_anneal_type": trial.distributions["kl_anneal_type"]}
        run_folder(artifacts, trial)
    return study, shown

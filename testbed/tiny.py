"""A tiny data set, tiny settings and a tiny study, for tests that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna

from cvaeopt.config import Config
from cvaeopt.search.definition import Definition
from cvaeopt.vae.dataset import Dataset, Split

WIDTHS = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "frame_H": 8, "frame_W": 16, "train_vi_len": 4}


def dataset(frames: int = 24, val: int = 7, seed: int = 0) -> Dataset:
    """A bright square that moves over a grey ground, its outline as label; 8 x 16 pixels."""
    return Dataset(Path("tiny"), _split(frames, seed), _split(val, seed + 1), f"tiny{frames}-{val}-{seed}")


def config(**settings: Any) -> Config:
    """Tiny settings: four epochs, so that every schedule moves."""
    return Config.parse({**WIDTHS, "num_epoch": 4, "batch_size": 2, **settings}, "test")


def definition(**changes: Any) -> Definition:
    """The study "tiny": three trials of three epochs; `changes` are settings by table."""
    tables: dict[str, Any] = {
        "study": {"metric": "val_psnr", "window": 2, "seed": 7},
        "budget": {"trials": 3, "epochs": 3},
        "fixed": {**WIDTHS, "tfr": 0.0, "kl_norm": "element", "output": "sigmoid"},
        "search": {"lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}},
    }
    for table, values in changes.items():
        tables[table] = {**tables.get(table, {}), **values}
    return Definition.parse(tables, "tiny", "test")


def new_study() -> optuna.Study:
    """An empty study "tiny" in memory."""
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0), study_name="tiny")


def _split(count: int, seed: int) -> Split:
    generator = np.random.default_rng(seed)
    at = np.cumsum(generator.integers(-1, 2, count)) % 12
    frames = np.full((count, 3, 8, 16), 90, np.uint8)
    labels = np.full((count, 3, 8, 16), 255, np.uint8)
    for index, x in enumerate(at):
        frames[index, :, 2:6, x : x + 4] = np.array([220, 60, 30], np.uint8)[:, None, None]
        labels[index, 1:, 2:6, x] = 0
        labels[index, :2, 2:6, x + 3] = 0
    return Split(frames, labels)


DATA = dataset()

"""Tables of trainings that cost nothing, on a known landscape: for the tests of the table and of the replay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bench import table
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.search.definition import Definition, load_definition

DEFINITION = load_definition(str(table.SPACE))


def curve_of(config: Config) -> np.ndarray:
    """A landscape with its best lr at 4e-3, a little own noise, and 1 dB more for the second seed."""
    top = 38 - 3 * math.log10(config.lr / 4e-3) ** 2 + (config.seed == table.SEEDS[1])
    own = np.random.default_rng([config.seed, int(config.lr * 1e9)]).normal() * 0.1
    return top + own - 12 * np.exp(-np.arange(1, config.num_epoch + 1) / 8)


def fake(config: Config, limit: float = 1.5e-2) -> Iterator[SimpleNamespace]:
    for epoch, value in enumerate(curve_of(config), 1):
        if config.lr > limit and epoch == 3:
            raise Diverged("The training loss", math.nan, epoch)
        yield SimpleNamespace(val_psnr=float(value), val_psnr_late=float(value) + 1, train_loss=0.1 / epoch)


def table_in(folder: Path) -> table.Table:
    return table.Table(folder / "table.jsonl", folder / "table.jsonl.gz", "meaning")


def wanted_of(count: int) -> list[tuple[table.Setting, int]]:
    return [(setting, seed) for setting in table.settings(DEFINITION, count) for seed in table.SEEDS]


def filled(folder: Path, count: int, definition: Definition = DEFINITION) -> table.Table:
    made = table_in(folder)
    table.fill(definition, made, wanted_of(count), fake, "here")
    return made

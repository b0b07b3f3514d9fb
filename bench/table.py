"""A table of real trainings, on which any method of searching can be replayed in seconds.

    python -m bench.table --data demo/dance                           # what the table lacks: many core-hours
    python -m bench.table --data demo/dance --settings 60 --until-s 3600      # any part of it
    python -m bench.table --data demo/dance --best 40 --extra-seeds 4         # further seeds of the best settings
    python -m bench.table --pack                                      # write the compressed table that is committed

The settings are scrambled Sobol points of the space in bench/table.toml; each is trained from the same seeds. One JSON
line a training: its settings, every epoch and how it ended; a divergence is a line as well. A line is written whole
by one call, and lines that are there, or in the compressed file, are not trained again. Several processes, on one
machine, may fill the same file: each training is locked by whoever does it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import math
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from bench import machine
from bench.machine import rows_of
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.files import digest
from cvaeopt.search.definition import Definition, load_definition
from cvaeopt.search.space import Values, distribution, has_effect, key_of, order, params_to_config, settled
from cvaeopt.suggest.estimate import estimate
from cvaeopt.suggest.quasirandom import value_at
from cvaeopt.vae import dataset, device
from cvaeopt.vae.metrics import baselines
from cvaeopt.vae.trainer import EpochResult, Trainer

SPACE = Path(__file__).parent / "table.toml"
KEPT = "table.jsonl"
SOBOL_SEED = 16
SEEDS = (1, 2)  # training seeds of every setting
CURVES = ("val_psnr", "val_psnr_late", "train_loss")
CLIPS, VAL = 20, (16, 33)  # clips of the training video, and the frames of the validation video that are used
DATA = "f3d2a2cc00b5"  # the digest of those frames of the dance data

Row = dict[str, Any]
Train = Callable[[Config], Iterable[EpochResult]]
Key = tuple[int, int]
"""A training: the index of its setting and its seed."""


@dataclass(frozen=True)
class Setting:
    """One point of the table: the searched settings that have an effect on its training."""

    index: int
    key: str
    params: Values


def settings(definition: Definition, count: int) -> list[Setting]:
    """The first `count` settings: Sobol points without what has no effect, and none that would train alike."""
    names = order(definition.search)
    sequence = SobolEngine(len(names), scramble=True, seed=SOBOL_SEED)
    distributions = {name: distribution(definition.search[name]) for name in names}
    made: dict[str, Setting] = {}
    while len(made) < count:
        place = dict(zip(names, sequence.draw(1, dtype=torch.float64)[0].tolist(), strict=True))
        values, params = settled(definition.search, definition.fixed), {}
        for name in names:
            if definition.search[name].active(values):
                values[name] = params[name] = value_at(distributions[name], place[name])
        resolved = params_to_config(definition, params, 0).plain()
        key = key_of(definition, params)
        if key not in made:
            params = {name: value for name, value in params.items() if has_effect(name, resolved)}
            made[key] = Setting(len(made), key, params)
    return list(made.values())


def meaning(definition: Definition, data_digest: str = DATA) -> str:
    """The digest that two rows of one table share: what is trained, on which frames, and what may vary."""
    tables = definition.plain()
    asked = {name: tables[name] for name in ("search", "fixed")}
    asked |= {"order": list(definition.search), "epochs": definition.epochs, "window": definition.window}
    return digest({**asked, "sobol": SOBOL_SEED, "data": data_digest})


# ---- one training


def training(definition: Definition, setting: Setting, seed: int, train: Train) -> Row:
    """The row of one training, which has ended in its last epoch, in a divergence or in an error of the trainer.

    Errors of the machine (memory, disk) are raised: they say nothing about the setting.
    """
    config = params_to_config(definition, setting.params, 0, seed)
    curves: dict[str, list[float | None]] = {name: [] for name in CURVES}
    row: Row = {"index": setting.index, "key": setting.key, "params": setting.params, "seed": seed}
    row |= {"diverged": None, "error": None}
    began = time.process_time()
    try:
        for result in train(config):
            for name in CURVES:
                value = getattr(result, name)
                curves[name].append(round(value, 4) if math.isfinite(value) else None)
    except Diverged:
        row["diverged"] = len(curves["val_psnr"]) + 1
    except (OSError, MemoryError):
        raise
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"
    return {**row, "seconds": round(time.process_time() - began, 1), **curves}


def value_of(row: Row, window: int) -> float | None:
    """What the training is worth: the mean of its last epochs, dB; None if it did not end."""
    if row["diverged"] is not None or row["error"] is not None:
        return None
    return estimate(row["val_psnr"], window).value


# ---- the file


@dataclass(frozen=True)
class Table:
    """The rows of one meaning in a file and in the compressed one beside it.

    path      the file that is appended to
    packed    the compressed one, which is read as well
    meaning   rows of another meaning are left alone
    """

    path: Path
    packed: Path
    meaning: str

    def rows(self) -> dict[Key, Row]:
        """The trainings that are there, in the table's order."""
        known: dict[Key, Row] = {}
        for row in self._lines():
            if "index" in row and row["meaning"] == self.meaning:
                known.setdefault((row["index"], row["seed"]), row)
        return dict(sorted(known.items()))

    def headers(self) -> list[Row]:
        """What the rows were measured on."""
        return [row for row in self._lines() if "header" in row and row["meaning"] == self.meaning]

    def append(self, row: Row) -> None:
        """Add one line, whole or not at all."""
        machine.append(self.path, {"meaning": self.meaning, **row})

    @contextlib.contextmanager
    def claimed(self, key: Key) -> Iterator[bool]:
        """Whether this process may do the training: nobody does it and its row is missing. Ends with the process."""
        claims = self.path.with_name(self.path.name + ".claims")
        claims.mkdir(parents=True, exist_ok=True)
        path = claims / "{:05d}-{}".format(*key)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield key not in self.rows()
            path.unlink(missing_ok=True)

    def pack(self) -> int:
        """Write all that is known into the compressed file, the same bytes for the same rows; the trainings in it."""
        headers = {row["header"]: row for row in self.headers()}
        rows = self.rows()
        machine.pack(self.packed.with_suffix(""), [*(headers[name] for name in sorted(headers)), *rows.values()])
        return len(rows)

    def _lines(self) -> list[Row]:
        """Complete lines, the compressed file's first."""
        return [row for path in dict.fromkeys([self.packed.with_suffix(""), self.path]) for row in rows_of(path)]


# ---- filling it


def fill(
    definition: Definition,
    table: Table,
    wanted: Iterable[tuple[Setting, int]],
    train: Train,
    header: str,
    until_s: float = math.inf,
) -> int:
    """Do the wanted trainings that nobody has done or is doing, none after `until_s` seconds; how many were done."""
    ends, done = time.monotonic() + until_s, 0
    known = table.rows()
    for setting, seed in wanted:
        if (setting.index, seed) in known:
            continue
        if time.monotonic() > ends:
            break
        with table.claimed((setting.index, seed)) as mine:
            if mine:
                row = training(definition, setting, seed, train)
                table.append({**row, "of": header})
                done += 1
    return done


def best(rows: dict[Key, Row], window: int, count: int) -> list[int]:
    """The indices of the `count` settings with the highest mean over the common seeds, best first."""
    means = {}
    for index in sorted({index for index, _ in rows}):
        values = [value_of(rows[index, seed], window) for seed in SEEDS if (index, seed) in rows]
        if len(values) == len(SEEDS) and None not in values:
            means[index] = float(np.mean([value for value in values if value is not None]))
    return sorted(means, key=lambda index: (-means[index], index))[:count]


def unpacked(archive: Path, data: Path) -> None:
    """Make the data folder of the archive where it is missing."""
    if not (data / "train").exists():
        with tarfile.open(archive) as tar:
            tar.extractall(data.parent, filter="data")


def trained(data: dataset.Dataset, config: Config) -> Iterator[EpochResult]:
    """A `Train` on the data, one core."""
    return Trainer(config, data, "cpu").run()


def part_of(data: dataset.Dataset, length: int) -> dataset.Dataset:
    """The frames that are used: clips of `length` frames, evenly spread, and a piece of the validation video."""
    blocks = np.linspace(0, len(data.train) // length - 1, CLIPS).round().astype(int)
    rows = (blocks[:, None] * length + np.arange(length)).ravel()
    frames = slice(*VAL)
    return dataclasses.replace(
        data,
        train=dataset.Split(np.array(data.train.frames[rows]), np.array(data.train.labels[rows])),
        val=dataset.Split(np.array(data.val.frames[frames]), np.array(data.val.labels[frames])),
        digest=digest({"of": data.digest, "rows": rows.tolist(), "val": list(VAL)}),
    )


def header_of(data: dataset.Dataset, definition: Definition) -> Row:
    """What the rows of this process are measured on; its name leaves out the date."""
    facts = machine.facts()
    known = {name: round(value, 2) for name, value in baselines(data.train, data.val).plain().items()}
    about = {"machine": {**facts, "date": None}, "baselines": known, "data": data.digest}
    about |= {"definition": definition.plain(), "clips": CLIPS, "val": list(VAL)}
    return {"header": digest(about), **about, "machine": facts}


def kept(out: Path = machine.RESULTS / KEPT) -> Table:
    """The table of the space in bench/table.toml, with what is committed."""
    return Table(out, machine.RESULTS / f"{KEPT}.gz", meaning(load_definition(str(SPACE))))


def main() -> None:
    """Train what was asked for and is missing, or pack the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("demo/dance"), help="data folder in the lab's layout")
    parser.add_argument("--archive", type=Path, help="made into the data folder where that is missing")
    parser.add_argument("--settings", type=int, default=300, help="settings of the table")
    parser.add_argument("--best", type=int, default=0, help="train so many of the best from further seeds instead")
    parser.add_argument("--extra-seeds", type=int, default=4, help="how many further seeds")
    parser.add_argument("--until-s", type=float, default=math.inf, help="start no training after so many seconds")
    parser.add_argument("--pack", action="store_true", help="train nothing: write the compressed table")
    parser.add_argument("--out", type=Path, default=machine.RESULTS / KEPT)
    options = parser.parse_args()
    table = kept(options.out)
    if options.pack:
        print(f"{table.pack()} trainings in {table.packed}")
        return
    if options.archive:
        unpacked(options.archive, options.data)
    device.use("cpu", 1)
    definition = load_definition(str(SPACE))
    data = part_of(dataset.load(options.data, *definition.frame_size), definition.fixed["train_vi_len"])
    if data.digest != DATA:
        parser.error(f"{options.data}: frames with digest {data.digest}; the table is made of the dance data, {DATA}")
    points = settings(definition, options.settings)
    wanted = [(setting, seed) for setting in points for seed in SEEDS]
    if options.best:
        missing = sum((setting.index, seed) not in table.rows() for setting, seed in wanted)
        if missing:
            parser.error(f"{missing} trainings of the common seeds are missing: run without --best first")
        further = range(max(SEEDS) + 1, max(SEEDS) + 1 + options.extra_seeds)
        chosen = best(table.rows(), definition.window, options.best)
        wanted = [(points[index], seed) for seed in further for index in chosen if index < len(points)]
    header = header_of(data, definition)
    if header["header"] not in {known["header"] for known in table.headers()}:
        table.append(header)
    done = fill(definition, table, wanted, partial(trained, data), header["header"], options.until_s)
    print(f"{done} trainings done, {len(wanted)} wanted, in {options.out}")


if __name__ == "__main__":
    main()

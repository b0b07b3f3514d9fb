"""The noise that is left in validation PSNR once the BatchNorm statistics are recalibrated.

    cvaeopt demo-data demo/data
    python -m bench.noise --data demo/data             # about 15 minutes of one core; goes on where it was cut
    python -m bench.noise --data demo/data --quick     # two minutes; nothing is kept

Real networks of reduced widths are trained with several settings and several seeds. After every epoch the same weights
are validated three ways: with running statistics, with recalibrated ones, and averaged (`ema`) and recalibrated; after
the last one also with other noise draws z. What is told apart, each as a standard deviation in dB with a 95 % interval:

    epochs    between neighbouring epochs of one run, its trend taken away (second differences), by thirds of the run
    seeds     between training seeds, of the mean over the last `WINDOW` epochs
    draws     between noise draws z, the same weights

Intervals are bootstrapped over runs. Results are kept in bench/results/noise.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from bench import machine
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.files import write_json
from cvaeopt.vae import dataset
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.metrics import psnr_per_frame
from cvaeopt.vae.model import CVAE
from cvaeopt.vae.rollout import evaluation, noise, recalibrate, roll_out, to_float
from cvaeopt.vae.trainer import Trainer

EPOCHS = 10
SEEDS = 3
WINDOW = 3
DRAWS = 8
EMA = 0.97  # a step; about 33 steps, and an epoch has 38
SIZE = (16, 32)
WIDTHS = {"F_dim": 32, "L_dim": 8, "N_dim": 4, "D_out_dim": 32}
COMMON = {
    **WIDTHS,
    "frame_H": SIZE[0],
    "frame_W": SIZE[1],
    "train_vi_len": 8,
    "partial": 0.4,
    "batch_size": 1,
    "shuffle": True,
    "output": "sigmoid",
    "kl_anneal_type": "none",
    "skip_steps": 5,
    "ema": EMA,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {"lr": 1e-3, "lr_scheduler": "constant", "tfr": 0.0},
    "cosine": {"lr": 1e-3, "lr_scheduler": "cosine", "tfr": 0.0},
    "forced": {"lr": 2e-3, "lr_scheduler": "cosine", "tfr": 0.6, "tfr_sde": 2, "tfr_d_step": 0.1, "kl_norm": "element"},
}
WAYS = ("recalibrated", "recalibrated, averaged", "running")


def score(model: CVAE, data: Dataset, z: torch.Tensor, output: Any) -> float:
    """Free-running validation PSNR of `model` with its stored statistics, mean over frames, dB."""
    first, truth = to_float(torch.tensor(data.val.frames[:1])), to_float(torch.tensor(data.val.frames[1:]))
    with evaluation(model):
        frames = roll_out(model, first, torch.tensor(data.val.labels[None, 1:]), z[None], output)
    return float(psnr_per_frame(frames[0], truth).mean())


def one_run(data: Dataset, name: str, seed: int, epochs: int, draws: int, scratch: Path) -> dict[str, Any]:
    """The curves of one training run in all ways, and its last epoch with other noise draws, dB.

    A run that was cut short goes on from its last epoch, which lies in `scratch`.
    """
    config = Config.parse({**COMMON, **SETTINGS[name], "num_epoch": epochs, "seed": seed}, f"bench/noise.py: {name}")
    trainer = Trainer(config, data)
    labels = torch.tensor(data.train.labels)[: int(len(data.train) * config.partial)]
    shape = (len(data.val) - 1, config.N_dim, *SIZE)
    common = noise("prior", 1.0, 0, *shape)
    curves: dict[str, list[float]] = {way: [] for way in WAYS}
    others: list[float] = []
    scratch.mkdir(parents=True, exist_ok=True)
    kept = scratch / f"{name}-{seed}.json"
    if kept.exists() and epochs == EPOCHS:
        saved = json.loads(kept.read_text())
        trainer.restore(scratch / saved["weights"])
        curves = saved["curves"]
    try:
        for result in trainer.run():
            averaged = trainer.averaged
            assert averaged is not None
            curves["running"].append(score(trainer.model, data, common, config.output))
            curves["recalibrated, averaged"].append(result.val_psnr)
            trainer.averaged = None  # validate the weights as they are
            plain = trainer.validated_model()
            trainer.averaged = averaged
            recalibrate(plain, labels)
            curves["recalibrated"].append(score(plain, data, common, config.output))
            weights = scratch / f"{name}-{seed}-{result.epoch}.pt"
            trainer.save(weights)
            write_json(kept, {"curves": curves, "weights": weights.name})
            if result.epoch == epochs:
                others = [score(plain, data, noise("prior", 1.0, draw, *shape), config.output) for draw in range(draws)]
    except Diverged as error:
        return {"settings": name, "seed": seed, "diverged": str(error)}
    finally:
        for old in scratch.glob(f"{name}-{seed}-*.pt"):
            if old.name != f"{name}-{seed}-{trainer.epoch}.pt" or trainer.epoch == epochs:
                old.unlink()
        if trainer.epoch == epochs:
            kept.unlink(missing_ok=True)
    return {"settings": name, "seed": seed, "curves": curves, "draws": others}


def between_epochs(curve: Sequence[float]) -> float:
    """Standard deviation of a curve about its local trend, dB, from second differences.

    Unbiased (as a variance) for independent noise on a line: y[e-1] - 2 y[e] + y[e+1] has 6 times its variance.
    """
    second = np.diff(np.asarray(curve, dtype=float), 2)
    return float(np.sqrt(np.mean(second**2) / 6)) if len(second) else float("nan")


def pooled(values: Sequence[float]) -> float:
    """The standard deviation that several independent ones estimate together."""
    return float(np.sqrt(np.mean(np.square(values))))


def seeds_deviation(finals: Sequence[Sequence[float]]) -> float:
    """Standard deviation between seeds within settings, pooled over settings; one list a setting."""
    squares = sum(float(np.var(one, ddof=1)) * (len(one) - 1) for one in finals if len(one) > 1)
    freedom = sum(len(one) - 1 for one in finals if len(one) > 1)
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def interval(figure: Callable[[list[Any]], float], units: list[Any], draws: int = 2000) -> list[float]:
    """95 % bootstrap interval of `figure` over `units` drawn with replacement."""
    generator = np.random.default_rng(0)
    found = [figure([units[i] for i in generator.integers(len(units), size=len(units))]) for _ in range(draws)]
    finite = [one for one in found if np.isfinite(one)]
    return [round(float(q), 3) for q in np.quantile(finite, [0.025, 0.975])] if finite else []


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All standard deviations with their intervals, from the runs that did not diverge."""
    good = [run for run in runs if "curves" in run]
    names = sorted({run["settings"] for run in good})
    found: dict[str, Any] = {"runs": len(good), "diverged": len(runs) - len(good), "epochs": {}, "seeds": {}}
    for way in WAYS:
        third = len(good[0]["curves"][way]) // 3
        parts = {
            "first": slice(0, third + 1),
            "middle": slice(third - 1, 2 * third + 1),
            "last": slice(-third - 1, None),
        }
        found["epochs"][way] = {}
        for name in names:
            these = [run["curves"][way] for run in good if run["settings"] == name]
            for part, where in parts.items():
                each = [between_epochs(curve[where]) for curve in these]
                found["epochs"][way][f"{name}, {part} third"] = [round(pooled(each), 3), *interval(pooled, each)]
        finals = [
            [float(np.mean(run["curves"][way][-WINDOW:])) for run in good if run["settings"] == name] for name in names
        ]
        labelled = [(index, value) for index, one in enumerate(finals) for value in one]

        def regroup(units: list[Any]) -> float:
            return seeds_deviation([[value for index, value in units if index == group] for group in range(len(names))])

        found["seeds"][way] = {
            "pooled": [round(seeds_deviation(finals), 3), *interval(regroup, labelled)],
            **{name: round(seeds_deviation([one]), 3) for name, one in zip(names, finals, strict=True)},
            "means": {name: round(float(np.mean(one)), 2) for name, one in zip(names, finals, strict=True)},
        }
    draws = [float(np.std(run["draws"], ddof=1)) for run in good if len(run["draws"]) > 1]
    found["draws"] = [round(pooled(draws), 4), *interval(pooled, draws)]
    return found


def main() -> None:
    """Train what is missing, print the figures, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "cvaeopt-noise")
    parser.add_argument("--until-s", type=float, default=float("inf"), help="start no run after so many seconds")
    options = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    data = dataset.load(options.data, *SIZE)
    epochs, seeds, draws = (3, 2, 2) if options.quick else (EPOCHS, options.seeds, DRAWS)
    wanted = [(name, seed) for seed in range(seeds) for name in SETTINGS]
    kept = machine.RESULTS / "noise.json"
    runs = json.loads(kept.read_text())["raw"] if kept.exists() and not options.quick else []
    for name, seed in wanted:
        if any(run["settings"] == name and run["seed"] == seed for run in runs):
            continue
        if time.monotonic() - began > options.until_s:
            break
        run = one_run(data, name, seed, epochs, draws, options.scratch)
        runs.append(run)
        print(f"{name} {seed}: {run.get('curves', {}).get('recalibrated') or run}", flush=True)
        if not options.quick:
            machine.keep("noise", {"machine": machine.facts(), "figures": figures(runs), "raw": runs})
    print(json.dumps(figures(runs), indent=2))


if __name__ == "__main__":
    main()

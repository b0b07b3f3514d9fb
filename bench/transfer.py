"""Which transfer of schedules is better: `absolute` or `proportional`? Measured, setting by setting.

    python -m bench.transfer                 # about 10 minutes of one core; bench/results/transfer.json
    python -m bench.transfer --quick         # one seed, fewer epochs, nothing is kept

Each family of settings has a schedule that matters. Of its candidates the one with the best mean over two seeds of a
short run wins, as a search would have it; the winner is then trained for longer, under both transfers, from the
same fresh seeds. What is compared is the value of one run (mean validation PSNR of its last two epochs), in pairs:
proportional minus absolute, same settings, same seed.

The mean over all pairs has two intervals: over the pairs, which answers for these settings, and over the families'
means, which answers for settings like these and is the one to decide by.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.machine import facts, keep

SETTINGS: dict[str, Any] = {
    # Half-size frames and the smallest widths that carry colour: an epoch is a few seconds of one core.
    "F_dim": 24,
    "L_dim": 8,
    "N_dim": 4,
    "D_out_dim": 24,
    "frame_H": 16,
    "frame_W": 32,
    "train_vi_len": 8,
    "batch_size": 1,
    "shuffle": True,
    "lr": 1.5e-3,
    "lr_scheduler": "cosine",
    "tfr": 0.0,
    "kl_anneal_type": "none",
    "kl_norm": "element",
    "output": "sigmoid",
    "skip_steps": 5,
}
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "forcing that falls": [
        {"tfr": 1.0, "tfr_sde": 1, "tfr_d_step": 0.5},
        {"tfr": 0.6, "tfr_sde": 0, "tfr_d_step": 0.2},
    ],
    "cyclical KL": [
        {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 2, "kl_anneal_ratio": 0.5},
        {"kl_anneal_type": "cyclical", "kl_anneal_cycle": 1, "kl_anneal_ratio": 1.0},
    ],
    "steps of lr": [
        {"lr_scheduler": "MultiStepLR", "milestones": [2], "gamma": 0.2},
        {"lr_scheduler": "MultiStepLR", "milestones": [1, 3], "gamma": 0.5},
    ],
    "forcing and KL": [
        {
            "tfr": 0.8,
            "tfr_sde": 1,
            "tfr_d_step": 0.4,
            "kl_anneal_type": "cyclical",
            "kl_anneal_cycle": 2,
            "kl_anneal_ratio": 0.5,
        },
    ],
}
CHOOSING_SEEDS = 2
FIRST_FRESH_SEED = 100
WINDOW = 2


def value_of(config: Any, data: Any) -> float | None:
    """Mean validation PSNR of the last two epochs of a run, dB; None if it diverged."""
    from cvaeopt.errors import Diverged
    from cvaeopt.vae.trainer import Trainer

    try:
        curve = [result.val_psnr for result in Trainer(config, data, "cpu").run()]
    except Diverged:
        return None
    return math.fsum(curve[-WINDOW:]) / len(curve[-WINDOW:])


def winner(family: str, short: int, data: Any) -> dict[str, Any]:
    """The candidate of a family with the best mean in short runs, and every candidate's values."""
    from cvaeopt.config import Config

    tried = []
    for candidate in FAMILIES[family]:
        values: list[float | None] = []
        if len(FAMILIES[family]) > 1:
            for seed in range(CHOOSING_SEEDS):
                config = Config.parse({**SETTINGS, **candidate, "num_epoch": short, "seed": seed}, family)
                values.append(value_of(config, data))
        tried.append({"settings": candidate, "values": values})

    def level(one: dict[str, Any]) -> float:
        return math.fsum(-math.inf if value is None else value for value in one["values"])

    return {"winner": max(tried, key=level)["settings"], "tried": tried}


def compare(short: int, long: int, seeds: int, data: Any, families: list[str]) -> dict[str, Any]:
    """Every family's winner under both transfers, in pairs of equal seeds, with means and intervals in dB."""
    from cvaeopt.config import Config
    from cvaeopt.outcome.noise import interval
    from cvaeopt.outcome.transfer import landmarks, transfer

    found: dict[str, Any] = {}
    for family in families:
        chosen = winner(family, short, data)
        print(f"{family}: {chosen['winner']} wins {[one['values'] for one in chosen['tried']]}", flush=True)
        config = Config.parse({**SETTINGS, **chosen["winner"], "num_epoch": short}, family)
        pairs = []
        for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds):
            pair: dict[str, Any] = {"seed": seed}
            for mode in ("proportional", "absolute"):
                run = transfer(config, long, mode).model_copy(update={"seed": seed})
                pair[mode] = value_of(run, data)
            pairs.append(pair)
            print(
                f"  seed {seed}: {_db(pair['proportional'])} proportional, {_db(pair['absolute'])} absolute", flush=True
            )
        found[family] = {
            **chosen,
            "schedules": {
                mode: landmarks(transfer(config, long, mode)).plain() for mode in ("proportional", "absolute")
            },
            "pairs": pairs,
            "difference": asdict(interval(_differences(pairs))) if _differences(pairs) else None,
        }
    every = [difference for one in found.values() for difference in _differences(one["pairs"])]
    means = [one["difference"]["mean"] for one in found.values() if one["difference"]]
    return {
        "families": found,
        "over_pairs": asdict(interval(every)) if every else None,
        "over_families": asdict(interval(means)) if means else None,
    }


def _differences(pairs: list[dict[str, Any]]) -> list[float]:
    """Proportional minus absolute, dB, where both runs came to their end."""
    return [
        pair["proportional"] - pair["absolute"]
        for pair in pairs
        if pair["proportional"] is not None and pair["absolute"] is not None
    ]


def verdict(over: dict[str, Any] | None) -> str:
    """What the interval decides: 'proportional', 'absolute' or 'undecided'."""
    if over is None or over["low"] is None or over["low"] <= 0 <= over["high"]:
        return "undecided"
    return "proportional" if over["mean"] > 0 else "absolute"


def table(result: dict[str, Any]) -> str:
    """The result as the table of studies/README.md."""
    lines = ["| settings | pairs | proportional, dB | absolute, dB | difference, dB (95 %) |", "|---|---|---|---|---|"]
    for name, one in result["families"].items():
        columns = [", ".join(_db(pair[mode]) for pair in one["pairs"]) for mode in ("proportional", "absolute")]
        lines.append(f"| {name} | {len(one['pairs'])} | {columns[0]} | {columns[1]} | {_text(one['difference'])} |")
    for name, key in (("all pairs", "over_pairs"), ("the families' means", "over_families")):
        lines.append(f"| {name} | | | | {_text(result[key])} |")
    return "\n".join(lines)


def _db(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.2f}"


def _text(over: dict[str, Any] | None) -> str:
    if over is None:
        return "-"
    if over["low"] is None:
        return f"{over['mean']:+.2f}"
    return f"{over['mean']:+.2f} ({over['low']:+.2f} to {over['high']:+.2f})"


def main() -> None:
    """Run the comparison and keep its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", type=int, default=4, help="epochs of the search")
    parser.add_argument("--long", type=int, default=12, help="epochs of the retraining")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=8, help="clips of 16 frames in the training video")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--quick", action="store_true", help="one seed, 2 and 4 epochs; nothing is kept")
    options = parser.parse_args()
    if options.quick:
        options.short, options.long, options.seeds, options.clips = 2, 4, 1, 2
    import torch

    from cvaeopt.vae import dataset, demonstration

    torch.set_num_threads(1)
    began, spent = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "data"
        demonstration.write(root, clips=options.clips, val_frames=64, sequences=1, sequence_frames=4)
        data = dataset.load(root, SETTINGS["frame_H"], SETTINGS["frame_W"])
        measured = compare(options.short, options.long, options.seeds, data, options.families)
    result = {
        "machine": facts(),
        "options": {key: value for key, value in vars(options).items() if key != "quick"},
        "settings": SETTINGS,
        **measured,
        "verdict": verdict(measured["over_families"]),
        "core_seconds": round(time.process_time() - spent),
        "seconds": round(time.perf_counter() - began),
    }
    print(table(result))
    print(f"verdict: {result['verdict']}; {result['core_seconds']} s of one core")
    if not options.quick:
        print(keep("transfer", result))


if __name__ == "__main__":
    main()

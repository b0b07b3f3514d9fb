"""Our trainer against the template's loop: seconds an epoch, validation frames a second, memory, PSNR.

    python -m bench.engine --data demo/data                 # this machine's processor, demonstration widths
    python -m bench.engine --data DIR --device cuda:0 --widths default
    python -m bench.engine --data demo/data --quick         # speed once, under two minutes on two cores
    python -m bench.engine --data demo/data --parts psnr    # a part alone: speed, psnr or trials

Both sides run in ONE process each, alternated (A B A B ...) on the same data, widths, seeds and threads; figures are
medians over the repeats with smallest and largest, and ratios are of medians. The baseline runs as torch comes: all
cores inside every operation. `psnr` trains both sides from the same seeds; `trials` is the memory of a process that
trains one trial after another.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.machine import facts, keep, spread
from cvaeopt.outcome.intervals import interval

SIDES = ("template", "ours")
MIXED = "ours, bf16"
PARTS = ("speed", "psnr", "trials")

PASSED_ON = ("data", "device", "widths", "batch-size", "seed", "loader-workers", "precision")
PASSED_ON += ("psnr-epochs", "psnr-lr", "trials")

WIDTHS = {
    "demo": {"F_dim": 32, "L_dim": 8, "N_dim": 4, "D_out_dim": 32},
    "quarter": {"F_dim": 32, "L_dim": 16, "N_dim": 4, "D_out_dim": 48},
    "default": {},
}


def prepared(device: str, threads: int | None) -> str:
    """The device, such as "cuda:0", set up as the product does; before torch is imported."""
    from cvaeopt.vae import device as devices

    kind, _, number = device.partition(":")
    return devices.use("cpu" if kind == "cpu" else number or "0", threads)


def measure_one(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One repeat of one side, in this process: seconds of a forced and a free epoch, of validation, peak memory."""
    ours = side == "ours"
    # The engine's processor set-up (how freed memory is kept) is part of it, so the baseline goes without.
    device = prepared(options.device, options.threads) if ours else options.device
    import torch

    if not ours and options.threads:
        torch.set_num_threads(options.threads)
    from bench.template import TemplateTrainer
    from cvaeopt.config import Config
    from cvaeopt.vae import dataset
    from cvaeopt.vae.trainer import Trainer

    settings = {
        **WIDTHS[options.widths],
        "kl_anneal_type": "none",
        "kl_norm": "batch",
        "output": "sigmoid",
        "lr_scheduler": "constant",
        "shuffle": True,
        "batch_size": options.batch_size,
        "num_epoch": 1000,
        "seed": options.seed,
    }
    cuda = options.device.startswith("cuda")

    def timed(work: Any) -> float:
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - began

    figures: dict[str, Any] = {}
    if ours:
        loading = time.perf_counter()
        data = dataset.load(options.data)
        figures["load_s"] = time.perf_counter() - loading
        for mode, tfr in (("forced", 1.0), ("free", 0.0)):
            config = Config.parse({**settings, "tfr": tfr, "tfr_sde": 1000, "precision": options.precision}, "bench")
            trainer = Trainer(config, data, device)
            if options.warm_up:
                trainer._train_epoch()
            figures[f"{mode}_epoch_s"] = timed(trainer._train_epoch)
        frames = len(data.val) - 1
        figures["validation_s"] = timed(lambda: trainer.validate(frames=False))
    else:
        for mode in ("forced", "free"):
            config = Config.parse(settings, "bench")
            template = TemplateTrainer(config, options.data, options.device, options.loader_workers)
            if options.warm_up:
                template.train_epoch(mode == "forced")
            figures[f"{mode}_epoch_s"] = timed(functools.partial(template.train_epoch, mode == "forced"))
        frames = 0

        def validate() -> None:
            nonlocal frames
            frames = len(template.validate())

        figures["validation_s"] = timed(validate)
    figures["validation_frames_per_s"] = frames / figures["validation_s"]
    figures["peak_host_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if cuda:
        figures["peak_device_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return figures


def quality(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """Validation PSNR after `--psnr-epochs` free epochs, from the seed of this repeat (statistics recalibrated)."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    from bench.template import TemplateTrainer
    from cvaeopt.config import Config
    from cvaeopt.vae import dataset
    from cvaeopt.vae.metrics import baselines
    from cvaeopt.vae.trainer import Trainer

    config = Config.parse(
        {
            **WIDTHS[options.widths],
            "kl_anneal_type": "none",
            "kl_norm": "element",
            "output": "sigmoid",
            "lr_scheduler": "cosine",
            "shuffle": True,
            "batch_size": options.batch_size,
            "lr": options.psnr_lr,
            "tfr": 0.0,
            "num_epoch": options.psnr_epochs,
            "label_bn": "frame",
            "seed": options.seed,
            "frame_H": options.psnr_size[0],
            "frame_W": options.psnr_size[1],
            "precision": "bf16" if side == MIXED else options.precision,
        },
        "bench",
    )
    data = dataset.load(options.data, *options.psnr_size)
    trainer = Trainer(config, data, options.device)
    if side != "template":
        psnr = [result.val_psnr for result in trainer.run()][-1]
    else:
        torch.manual_seed(options.seed)
        template = TemplateTrainer(config, options.data, options.device, options.loader_workers)
        for _ in range(options.psnr_epochs):
            template.train_epoch(forced=False)
        # Judged by the same validation: only how it was trained differs.
        trainer.start_from(template.model.state_dict())
        psnr = trainer.validate(frames=False).mean
    return {"psnr_db": psnr, "mean_frame_db": baselines(data.train, data.val).train_mean}


def memory(options: argparse.Namespace) -> list[float]:
    """Resident memory of this process, MB, after each of `--trials` trials (three steps of either kind, validation)."""
    device = prepared(options.device, options.threads)
    import torch

    from cvaeopt.config import Config
    from cvaeopt.vae import dataset
    from cvaeopt.vae.trainer import Trainer

    data = dataset.load(options.data)
    found = []
    for trial in range(options.trials):
        config = Config.parse(
            {
                **WIDTHS[options.widths],
                "tfr": 0.5,
                "tfr_coin": "step",
                "lr": 1e-4 * (1 + trial % 7),
                "seed": trial,
                "batch_size": options.batch_size,
                "partial": 6.5 * options.batch_size * 16 / len(data.train),
                "num_epoch": 1,
                "skip_steps": 6,
            },
            "bench",
        )
        list(Trainer(config, data, device).run())
        if device == "cpu":
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        else:
            resident = torch.cuda.memory_allocated()
        found.append(resident / 2**20)
    return found


def difference(ours: list[float], theirs: list[float]) -> dict[str, float | None]:
    """Mean of the paired differences ours - theirs with its 95 % t interval, dB."""
    found = interval([mine - other for mine, other in zip(ours, theirs, strict=True)])
    return {"mean_db": found.mean, "low_db": found.low, "high_db": found.high, "seeds": len(ours)}


def _in_process(what: str, side: str, options: argparse.Namespace) -> Any:
    """`measure_one`, `quality` or `memory` in a fresh process, so that neither side inherits the other's memory."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as result:
        arguments = [sys.executable, "-m", "bench.engine", "--one", what, side, result.name]
        arguments += ["--psnr-size", *map(str, options.psnr_size)]
        for name in PASSED_ON:
            arguments += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
        if options.threads:
            arguments += ["--threads", str(options.threads)]
        if options.warm_up:
            arguments.append("--warm-up")
        subprocess.run(arguments, check=True, cwd=Path(__file__).parent.parent)
        return json.load(result)


def main() -> None:
    """Run the comparison and keep its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", choices=WIDTHS, default="demo")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--loader-workers", type=int, default=2, help="of the baseline's DataLoader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--psnr-seeds", type=int, default=5)
    parser.add_argument("--psnr-epochs", type=int, default=8)
    parser.add_argument("--psnr-lr", type=float, default=1.5e-3)
    parser.add_argument("--psnr-size", type=int, nargs=2, default=(16, 32), metavar=("H", "W"))
    parser.add_argument("--trials", type=int, default=50, help="trials in one process, for its memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm-up", action="store_true", help="one epoch before the timed one")
    parser.add_argument("--quick", action="store_true", help="speed alone, one repeat")
    parser.add_argument("--name", help="of the result in bench/results")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "SIDE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, side, target = options.one
        found = memory(options) if what == "trials" else (measure_one if what == "speed" else quality)(side, options)
        Path(target).write_text(json.dumps(found))
        return
    if options.quick:
        options.parts, options.repeats = ["speed"], 1
    result: dict[str, Any] = {
        "machine": facts(options.device),
        "options": {k: str(v) for k, v in vars(options).items() if k not in ("one", "data", "name")},
    }
    if "speed" in options.parts:
        result |= _speed(options)
        print(f"times faster: { ({key: round(value, 2) for key, value in result['times_faster'].items()}) }")
    if "psnr" in options.parts:
        compared: dict[str, list[float]] = {side: [] for side in (*SIDES, MIXED)}
        for seed in range(options.psnr_seeds):
            options.seed = seed
            for side, values in compared.items():
                found = _in_process("quality", side, options)
                values.append(found["psnr_db"])
                result["mean_frame_db"] = found["mean_frame_db"]
                print(f"seed {seed} {side}: {values[-1]:.2f} dB", flush=True)
        result["psnr_db"] = compared
        result["psnr_difference"] = {
            side: difference(compared[side], compared["template"]) for side in compared if side != "template"
        }
        print(f"less the lab's protocol: {result['psnr_difference']}; mean frame {result['mean_frame_db']:.2f} dB")
    if "trials" in options.parts:
        result["resident_mb_after_trial"] = _in_process("trials", "ours", options)
        print(f"memory after each trial, MB: {[round(value) for value in result['resident_mb_after_trial']]}")
    print(keep(options.name or f"engine-{options.device.split(':')[0]}-{options.widths}", result))


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for repeat in range(options.repeats):
        for side in SIDES:
            runs[side].append(_in_process("speed", side, options))
            print(f"repeat {repeat + 1}/{options.repeats} {side}: {runs[side][-1]}", flush=True)
    figures = {side: {key: spread([run[key] for run in found]) for key in found[0]} for side, found in runs.items()}
    ratios = {
        key: figures["template"][key]["median"] / figures["ours"][key]["median"]
        for key in ("forced_epoch_s", "free_epoch_s", "validation_s")
    }
    return {"figures": figures, "times_faster": ratios}


if __name__ == "__main__":
    main()

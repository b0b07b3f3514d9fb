"""K trials at once on one device, each in a process of its own: epochs a second of all together, and memory.

    python -m bench.together --data demo/data               # this machine's processor, demonstration widths
    python -m bench.together --data DIR --device cuda:0 --widths default
    python -m bench.together --data demo/data --quick       # under two minutes on two cores

Processes are what `cvaeopt worker --trials-per-gpu K` starts. On a CPU each trial gets cores // K threads, at least
one. Half of the steps are forced: the coin is drawn once a step, and every trial draws its own coins. An epoch here is
its training steps; validation is left out. Processor seconds an epoch are given too, because they mean something on a
machine that has other work, which a rate does not. Memory is PSS: pages that processes share are counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.engine import WIDTHS, prepared
from bench.machine import facts, keep, of_kernel, spread

_HOME = Path(__file__).parent.parent


def measure(members: int, options: argparse.Namespace) -> dict[str, float]:
    """One repeat with K = `members`: seconds until all have trained an epoch, processor seconds, and memory in MB.

    All members are made ready first; they train, and are measured, at the same time.
    """
    children = [
        subprocess.Popen(
            _command(index, members, options), cwd=_HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for index in range(members)
    ]
    try:
        _answers(children)  # ready
        began = time.perf_counter()
        _tell(children)
        _answers(children)  # trained
        seconds = time.perf_counter() - began
        memory = sum(_pss_mb(child.pid) for child in children)
        _tell(children)
        core_s, device_mb = map(sum, zip(*(map(float, said.split()) for said in _answers(children)), strict=True))
        return {"seconds": seconds, "core_s": core_s, "host_mb": memory, "device_mb": device_mb}
    finally:
        for child in children:
            child.communicate()


def _answers(children: list[subprocess.Popen[str]]) -> list[str]:
    lines = [child.stdout.readline().strip() for child in children if child.stdout]
    if not all(lines):
        raise SystemExit("A member of the benchmark died, see above.")
    return lines


def _tell(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()


def _command(index: int, members: int, options: argparse.Namespace) -> list[str]:
    given = [sys.executable, "-m", "bench.together", "--data", str(options.data), "--device", options.device]
    for name in ("widths", "steps", "frames"):
        given += [f"--{name}", str(getattr(options, name))]
    return [*given, "--members", str(members), "--index", str(index)]


# ---- inside a fresh process


def _member(options: argparse.Namespace) -> None:
    """What the process of member `options.index` does: one epoch, when it is told to."""
    from cvaeopt.vae.device import cores

    device = prepared(options.device, max(1, cores() // options.members))
    import torch

    from cvaeopt.vae import dataset

    data = dataset.load(options.data)
    cuda = device.startswith("cuda")
    _trainer(data, options.index, 1, options, device)()  # the first epoch warms up
    train = _trainer(data, options.index, options.steps, options, device)
    print("ready", flush=True)
    sys.stdin.readline()
    used = time.process_time()
    train()
    if cuda:
        torch.cuda.synchronize()
    used = time.process_time() - used
    print("trained", flush=True)
    sys.stdin.readline()  # until the memory of all is measured
    print(used, torch.cuda.max_memory_reserved() / 2**20 if cuda else 0.0, flush=True)


def _config(data: Any, index: int, steps: int, options: argparse.Namespace) -> Any:
    """Settings of member `index`: as a search makes them, with an epoch of `steps` steps."""
    from cvaeopt.config import Config

    settings = {
        **WIDTHS[options.widths],
        "seed": index,
        "lr": 1e-3 / (1 + index),
        "lr_scheduler": "constant",
        "tfr": 0.5,
        "tfr_sde": 1000,
        "tfr_coin": "step",
        "num_epoch": 1000,
        "train_vi_len": options.frames,
        "shuffle": True,
        "output": "sigmoid",
        "kl_norm": "element",
    }
    config = Config.parse(settings, "bench")
    frames = steps * config.batch_size * config.train_vi_len
    # A hair more than the fraction, of which the frames are the whole part.
    return config.model_copy(update={"partial": min(1.0, (frames + 0.5) / len(data.train))})


def _trainer(data: Any, index: int, steps: int, options: argparse.Namespace, device: str) -> Callable[[], Any]:
    from cvaeopt.vae.trainer import Trainer

    return Trainer(_config(data, index, steps, options), data, device)._train_epoch


def _pss_mb(pid: int) -> float:
    """Memory of a process in MB, its share of pages that others map too; 0 where /proc does not say it."""
    return float(of_kernel(f"/proc/{pid}/smaps_rollup", "Pss:") or 0) / 1024


def _free_mb() -> float:
    return float(of_kernel("/proc/meminfo", "MemAvailable:") or "inf") / 1024


# ---- the whole


def table(result: dict[str, Any]) -> str:
    """The figures as the table of bench/README.md."""
    lines = ["| K | epochs/s | core s an epoch | MB |", "|---|---|---|---|"]
    for members, figures in result["figures"].items():
        rate, core_s, memory = (figures[key] for key in ("epochs_per_s", "core_s_per_epoch", "host_mb"))
        lines.append(
            f"| {members} | {rate['median']:.3f} ({rate['min']:.3f} to {rate['max']:.3f}) | {core_s['median']:.2f} "
            f"| {memory['median']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the comparison and keep its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", choices=WIDTHS, default="demo")
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="K")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of an epoch, batch 2")
    parser.add_argument("--frames", type=int, default=16, help="of a clip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="K = 1, 2, 4, one repeat of two steps, 4 frames a clip")
    parser.add_argument("--name", help="of the result in bench/results")
    parser.add_argument("--members", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index is not None:
        _member(options)
        return
    if options.quick:
        options.trials, options.steps, options.frames, options.repeats = [1, 2, 4], 2, 4, 1
    runs: dict[int, list[dict[str, float]]] = {}
    left_out: list[str] = []
    kind = options.device.split(":")[0]
    name = options.name or f"together-{kind}-{options.widths}{'-quick' if options.quick else ''}"
    for repeat in range(options.repeats):
        for members in options.trials:
            smaller = [found[0]["host_mb"] / k for k, found in runs.items() if k < members]
            if smaller and smaller[-1] * members > 0.8 * _free_mb():
                left_out.append(f"K = {members}: not enough free memory")
                continue
            figures = measure(members, options)
            runs.setdefault(members, []).append(figures)
            print(
                f"repeat {repeat + 1}/{options.repeats} K {members}: {members / figures['seconds']:.3f} epochs/s, "
                f"{figures['core_s'] / members:.2f} core s an epoch, {figures['host_mb']:.0f} MB",
                flush=True,
            )
            path = keep(name, _result(runs, sorted(set(left_out)), options))  # what there is of a run cut short
    print(table(json.loads(path.read_text())))
    print(path)


def _result(
    runs: dict[int, list[dict[str, float]]], left_out: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    return {
        "machine": {**facts(options.device), "load": list(os.getloadavg())},
        "options": {key: getattr(options, key) for key in ("device", "widths", "trials", "steps", "frames", "repeats")},
        "figures": {
            str(members): {
                "epochs_per_s": spread([members / one["seconds"] for one in found]),
                "core_s_per_epoch": spread([one["core_s"] / members for one in found]),
                "host_mb": spread([one["host_mb"] for one in found]),
                "device_mb": spread([one["device_mb"] for one in found]),
            }
            for members, found in runs.items()
        },
        "left_out": left_out,
    }


if __name__ == "__main__":
    main()

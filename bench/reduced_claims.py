"""The claims of seed reports 003 and 004 at reduced widths, tested by the command `cvaeopt claims`.

    python -m bench.reduced_claims --data demo/dance --out claims            # all four studies, resumable
    python -m bench.reduced_claims --data demo/dance --out claims --studies seed003-kl seed004-kl
    python -m bench.reduced_claims --data demo/dance --out claims --keep     # train nothing, keep the verdicts so far

Written into the folder --out: `data`, some clips of the training video and a piece of the validation video; a copy of
each study with the settings of `SMALL` instead of its own; and the database with the runs. A run that has ended is not
trained again, so the command may be interrupted. The answers of `cvaeopt claims --json` and the measures of every run
are kept in bench/results/reduced-claims.json with the machine, the versions and the commit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from bench import machine
from cvaeopt.search.claims import MEASURES

STUDIES = ("seed004-kl", "seed003-kl", "seed004-kl-printed", "seed003-kl-printed")
SHIPPED = Path(__file__).parent.parent / "studies"
CLIPS, LENGTH, VAL = 16, 3, (16, 33)  # clips of the training video, frames of a clip, frames of the validation video
SMALL: dict[str, Any] = {
    "F_dim": 32,
    "L_dim": 8,
    "N_dim": 4,
    "D_out_dim": 32,
    "frame_H": 8,
    "frame_W": 16,
    "train_vi_len": LENGTH,
    "partial": 1.0,
    "batch_size": 1,
    "lr": 2e-3,
}
STRIDED_BATCH = 2  # with one clip in a batch, every order of its frames is the same


def frames_of(count: int) -> list[int]:
    """The numbers of the training frames that are used: CLIPS clips of LENGTH frames, evenly spread over `count`."""
    blocks = np.linspace(0, count // LENGTH - 1, CLIPS).round().astype(int)
    return [int(number) for number in (blocks[:, None] * LENGTH + np.arange(LENGTH)).ravel()]


def write_data(data: Path, out: Path) -> None:
    """Copy the frames that are used into a new data folder, where it is missing."""
    if out.exists():
        return
    scratch = out.with_name(out.name + ".new")
    shutil.rmtree(scratch, ignore_errors=True)
    count = len(list((data / "train/train_img").glob("*.png")))
    for part, numbers in (("train", frames_of(count)), ("val", list(range(*VAL)))):
        for folder in (f"{part}/{part}_img", f"{part}/{part}_label"):
            (scratch / folder).mkdir(parents=True)
            for place, number in enumerate(numbers):
                shutil.copy(data / folder / f"{number}.png", scratch / folder / f"{place}.png")
    scratch.rename(out)


def reduced(text: str) -> str:
    """The text of a study's file with the settings of SMALL, and with lr falling late in the run."""
    epochs = tomllib.loads(text)["budget"]["epochs"]
    changes = {**SMALL, "milestones": [epochs * 3 // 5, epochs * 9 // 10]}
    if 'clip_order = "strided"' in text:
        changes["batch_size"] = STRIDED_BATCH
    for name in changes:
        text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE)
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in changes.items())
    return text.replace("[fixed]\n", f"[fixed]\n{lines}")


def asked(study: Path, out: Path, seeds: int, train: bool) -> dict[str, Any]:
    """The answer of `cvaeopt claims --json` about the study; with `train`, after training what is missing."""
    command = [sys.executable, "-m", "cvaeopt", "claims", "--study", str(study), "--seeds", str(seeds), "--json"]
    command += ["--storage", f"sqlite:///{out / 'claims.db'}", "--artifacts", str(out / "artifacts")]
    if train:
        command += ["--gpu", "cpu", "--threads", "1", "--data", str(out / "data")]
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def runs(name: str, out: Path) -> list[dict[str, Any]]:
    """Arm, seed and measures of every run of the study's copy that has ended."""
    url = f"sqlite:///{out / 'claims.db'}"
    trials = optuna.load_study(study_name=f"{name}-small.confirm", storage=url).trials
    return [{"arm": trial.params, **trial.user_attrs[MEASURES]} for trial in trials if MEASURES in trial.user_attrs]


def main() -> None:
    """Train what is missing, ask for the verdicts, and keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("demo/dance"), help="data folder in the lab's layout")
    parser.add_argument("--out", type=Path, default=Path("claims"), help="folder for data, studies and database")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each arm")
    parser.add_argument("--keep", action="store_true", help="train nothing: keep the verdicts of the runs so far")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    write_data(options.data, options.out / "data")
    answers = {}
    for name in options.studies:
        study = options.out / f"{name}-small.toml"
        study.write_text(reduced((SHIPPED / f"{name}.toml").read_text()))
        answer = asked(study, options.out, options.seeds, not options.keep)
        answers[name] = {**answer, "measures": runs(name, options.out)}
        result = {"machine": machine.facts(), "settings": SMALL, "clips": CLIPS, "val": list(VAL), "studies": answers}
        print(f"{name}: {machine.keep('reduced-claims', result)}")


if __name__ == "__main__":
    main()

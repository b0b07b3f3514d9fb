"""The check of a user's own trainer: its code is run in a process of its own, and each finding says what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cvaeopt.errors import UserError

COSTS: Final = {
    "truth scored": "A forced step trains through the KL term alone, so forcing looks harmful. Score the prediction, "
    "then replace it by the true frame.",
    "posterior input": "z cannot describe the frame that is predicted. Give the posterior the current frame; here "
    '`posterior = "previous"` trains as this code does.',
    "posterior leak": "Validation reports 38 to 39 dB that no test reaches, because z tells the answer. Draw z from "
    "N(0, I).",
    "BatchNorm mode": "Training, validation and the lab's tester normalise the poses differently. Validate in "
    "evaluation mode, train in training mode; recalibrated statistics save 5 to 11 dB (cvaeopt recalibrate).",
    "reparameterization": "The KL term describes another distribution than the one that is sampled. Use "
    "mu + exp(logvar / 2) * eps.",
    "PSNR of the given frame": "The mean PSNR cannot be compared with other people's. Count the 629 predicted frames.",
    "detach": "Gradients pass through all 15 frames: more memory, and they may explode. Here `detach = false` does the "
    "same.",
    "KL cycle": "Its settings mean something else than elsewhere. Name the meaning with `kl_formula` here.",
    "frozen learning rate": "Little is learnt after these epochs. With cosine schedules people reach 36 to 38 dB.",
    "label order": "The network learns to draw another pose than the one that is scored.",
}
"""Check -> what a finding costs, and what to do."""

TIMEOUT_S: Final = 120.0
_TAIL = 500  # characters of the user's output that a message repeats


@dataclass(frozen=True)
class Row:
    """The result of one check: a finding, "could not be checked", or neither.

    line   line in the user's file; 0 if unknown
    """

    check: str
    line: int
    found: str
    unchecked: str

    def plain(self) -> dict[str, Any]:
        """The row as JSON values."""
        state = "finding" if self.found else "unchecked" if self.unchecked else "ok"
        costs = COSTS[self.check] if self.found else None
        return {"check": self.check, "state": state, "line": self.line or None, "found": self.found or None,
                "costs": costs, "unchecked": self.unchecked or None}  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """The results of all checks. `missing` has the names of modules that stand-ins replaced."""

    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def findings(self) -> list[Row]:
        """The rows with a finding."""
        return [row for row in self.rows if row.found]

    @property
    def unchecked(self) -> dict[str, list[str]]:
        """The checks that could not be made, by the reason."""
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            if row.unchecked:
                reasons.setdefault(row.unchecked, []).append(row.check)
        return reasons


def require_file(trainer: Path) -> None:
    """UserError unless `trainer` is a file of Python code."""
    if not trainer.is_file() or trainer.suffix != ".py":
        found = f"There is no file {trainer}."
        if trainer.exists():
            found = f"{trainer} is a folder." if trainer.is_dir() else f"{trainer} is no .py file."
        raise UserError(found, "Expected: the Python file of a trainer, such as Trainer.py.")


def diagnose(trainer: Path, timeout_s: float = TIMEOUT_S) -> Diagnosis:
    """Run the trainer's code with tiny tensors in a process of its own, and return the results of all checks.

    UserError if the file does not exist, cannot be imported, or runs longer than `timeout_s`.
    """
    require_file(trainer)
    with tempfile.TemporaryDirectory(prefix="cvaeopt-doctor-") as folder:
        result, output = Path(folder) / "result.json", Path(folder) / "output.txt"
        code = _run([str(trainer.resolve()), str(result)], Path(folder), output, timeout_s)
        if code is None and not result.exists():
            raise UserError(
                f"{trainer} ran longer than {timeout_s:g} s.",
                "Expected: a file that trains only below `if __name__ == '__main__':`.",
                "Move the call of the training there, or give more time with --timeout.",
            )
        if not result.exists():
            said = output.read_text(errors="replace").strip()[-_TAIL:]
            raise UserError(
                f"{trainer} ended with code {code} while it was imported or built: {said or 'no message'}",
                "Expected: a file that Python can import, with the template's class.",
                "Run it with Python yourself, and mend the error.",
            )
        found = json.loads(result.read_text())
    if "raised" in found:
        raise UserError(
            f"{trainer} cannot be imported, or its class cannot be built: {found['raised']}.",
            "Expected: a file that Python can import, with the template's class.",
            "Mend the error, and run the command again.",
        )
    if "error" in found:
        reason = str(found["error"])
        return Diagnosis(tuple(Row(check, 0, "", reason) for check in COSTS), ())
    rows = [Row(**row) for row in found["checks"]]
    left = [check for check in COSTS if check not in {row.check for row in rows}]
    end = f"ran longer than {timeout_s:g} s (--timeout)" if code is None else f"ended the process with code {code}"
    whys = [f"its code {end}", *["an earlier check did not end"] * (len(left) - 1)]
    rows += [Row(check, 0, "", why) for check, why in zip(left, whys, strict=False)]
    return Diagnosis(tuple(rows), tuple(dict.fromkeys(found["missing"])))


def _run(arguments: list[str], folder: Path, output: Path, timeout_s: float) -> int | None:
    """The exit code of the process that drives the trainer; None if it ran too long. All its children are killed."""
    source = str(Path(__file__).parents[2])
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
    paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    with output.open("wb") as stream:
        child = subprocess.Popen(
            [sys.executable, "-m", "cvaeopt.outcome.trainer_checks", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()

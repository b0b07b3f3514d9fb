"""A comparison of the arms of an ablation study.

An ablation study is a grid search over the shape of the KL weight, the forcing ratio, or both. Each trial is an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cvaeopt.outcome.report_text import short_name
from cvaeopt.outcome.run_files import RunFiles
from cvaeopt.outcome.trials import TrialFacts
from cvaeopt.search.claims import measures
from cvaeopt.search.definition import Definition
from cvaeopt.text import short

_MAX_VARIANTS: Final = 8
_COMPARED: Final = ("kl_anneal_type", "tfr")


@dataclass(frozen=True)
class Variant:
    """One arm of an ablation. A figure is None if the run folder does not contain its data.

    value       the trial's value, dB
    best        highest validation PSNR of all epochs, dB
    late        validation PSNR of the late frames after the last epoch, dB
    loss, mse   training losses of the last epoch
    swing       mean absolute difference of the training loss between neighbouring epochs
    """

    label: str
    number: int
    value: float | None
    best: float | None
    late: float | None
    loss: float | None
    mse: float | None
    swing: float | None
    files: RunFiles


@dataclass(frozen=True)
class Ablation:
    """The arms of an ablation study. Both fields are empty for a study of another kind.

    varied   the settings that differ between the arms
    """

    varied: tuple[str, ...]
    variants: list[Variant]


def ablation(definition: Definition, known: Sequence[TrialFacts], folder: Path) -> Ablation:
    """The first complete trials of an ablation study as arms, eight at most. `folder` contains their run folders."""
    varied = tuple(name for name in _COMPARED if name in definition.search)
    if definition.sampler.kind != "grid" or not varied:
        return Ablation((), [])
    complete = [trial for trial in known if trial.state == "complete"][:_MAX_VARIANTS]
    return Ablation(varied, [_variant(trial, folder) for trial in complete])


def _variant(trial: TrialFacts, folder: Path) -> Variant:
    files = RunFiles.read(folder, trial.number)
    rows = files.history
    last = rows[-1] if rows else {}
    measured = measures(rows) if rows else {}
    return Variant(
        label=", ".join(f"{short_name(name)} {short(value)}" for name, value in trial.params.items()),
        number=trial.number,
        value=trial.value,
        best=measured.get("best_psnr"),
        late=measured.get("late_psnr"),
        loss=measured.get("loss"),
        mse=last.get("train_mse"),
        swing=measured.get("loss_swing"),
        files=files,
    )

"""Continue a complete trial of a study beyond its budget, from the trial's own checkpoint.

The continued run has a folder of its own. It begins with a copy of the trial's checkpoint: the weights, the state of
the optimizer, and the history. So it is the run that the trial would have become with more epochs. If the schedules of
both agree on the epochs of the trial, the two runs are equal bit for bit on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder, write_json
from cvaeopt.outcome.run_files import CONTINUED, RETRAIN
from cvaeopt.vae import checkpoint
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.schedules import SCHEDULES, first_differences

_KEPT: Final = ("F_dim", "L_dim", "N_dim", "D_out_dim", "frame_H", "frame_W", "optim")


def check(own: Config, config: Config, trained: int, trial: int) -> None:
    """Raise SettingsError if a run of `config` cannot continue a trial of the settings `own`.

    trained   number of epochs that the trial has trained
    """
    if config.num_epoch <= trained:
        raise SettingsError(
            f"Trial {trial} has trained {trained} epochs, and --epochs is {config.num_epoch}.",
            f"Expected: more than {trained}. --epochs is the number of all epochs, those of the trial included.",
            f"For 50 more: --epochs {trained + 50}.",
        )
    for name in _KEPT:
        theirs, mine = getattr(own, name), getattr(config, name)
        if theirs != mine:
            raise SettingsError(
                f"{name} = {mine}, and trial {trial} was trained with {theirs}.",
                "Expected: the network and the optimiser of the trial, whose state the run continues with.",
                "Leave it out; or begin a new run with the trial's weights: cvaeopt fetch, then cvaeopt train --from.",
            )


def departures(own: Config, config: Config, trained: int) -> list[str]:
    """One sentence for each schedule that differs between the two runs in the epochs that the trial has trained.

    A schedule that is a function of the whole run, such as the cosine of the learning rate, differs. The run then goes
    on as its own schedule says, although the trial did not begin with it.
    """
    said = []
    for name, epoch in first_differences(own, config, trained).items():
        what, value_at = SCHEDULES[name]
        said.append(
            f"The {what} of the longer run differs from the trial's from epoch {epoch} on. The trial trained epoch "
            f"{trained} with {value_at(own, trained - 1):.4g}; epoch {trained + 1} trains with "
            f"{value_at(config, trained):.4g}."
        )
    return said


def begun(folder: RunFolder, provenance: dict[str, Any]) -> Config | None:
    """The settings of the run in `folder` that continues the trial of `provenance`; None if the folder has no run.

    SettingsError if the folder holds another run.
    """
    if not folder.config.exists() and not folder.last.exists():
        return None
    try:
        facts = dict(json.loads((folder.root / RETRAIN).read_text()))
        config = Config.parse(json.loads(folder.config.read_text()), str(folder.config))
    except (OSError, ValueError, TypeError):
        facts, config = {}, Config()
    if any(facts.get(key) != provenance.get(key) for key in ("study", "trial")) or CONTINUED not in facts:
        raise SettingsError(
            f"{folder.root} holds another run.", "Expected: a new folder.", "Name another folder with --out."
        )
    return config


def start(source: Path, config: Config, data: Dataset, folder: RunFolder, provenance: dict[str, Any]) -> None:
    """Begin a run of `config` in `folder` with a copy of the checkpoint `source`.

    If the function is killed, the same call completes its work. CheckpointError if the checkpoint is damaged or belongs
    to other data. SettingsError if the folder holds another run.
    """
    saved = checkpoint.continuation(source)
    own = saved.own
    checkpoint.require_same_run(own, own.config, data.digest, source)
    begun(folder, provenance)
    payload = checkpoint.read(source)
    payload["cvaeopt"] |= {"config": config.plain(), "provenance": {**provenance, CONTINUED: own.epoch}}
    write_json(folder.root / RETRAIN, {"kind": "retrain", **provenance, CONTINUED: own.epoch})
    write_json(folder.config, config.plain())
    checkpoint.write(folder.best, payload)
    checkpoint.write(folder.last, payload)

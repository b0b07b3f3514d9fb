"""Snapshots: checkpoints of chosen epochs that a run keeps for good, with the PSNR of every validation frame.

snapshot.00050.pt   the checkpoint of epoch 50
snapshots.json      the epochs, and the PSNR of every validation frame in each of them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cvaeopt.errors import SettingsError
from cvaeopt.files import write_json

if TYPE_CHECKING:
    from cvaeopt.vae.trainer import Trainer

VALUES: Final = "snapshots.json"
_EVERY: Final = "every:"


def epochs_of(given: str | Sequence[int], last: int, where: str, *, later: bool = False) -> frozenset[int]:
    """The epochs whose checkpoints are kept.

    given   epochs, such as "50,130,499" or [50, 130, 499]; "every:50" stands for 50, 100, ...; "every:50,499" for both
    last    number of epochs of the run
    where   the place of `given`, for error messages
    later   whether epochs after the last one are left out, and are no error

    SettingsError if `given` is spelled wrong, or if an epoch is not in the run.
    """
    words = [word.strip() for word in given.split(",")] if isinstance(given, str) else [str(word) for word in given]
    epochs: set[int] = set()
    for word in words:
        number = word.removeprefix(_EVERY)
        if not number.isascii() or not number.isdecimal():
            raise SettingsError(
                f"{where}: {word!r}.", "Expected: epochs such as 50,130,499, or every:50 for every fiftieth epoch."
            )
        if later and int(number) > last:
            continue
        if not 1 <= int(number) <= last:
            raise SettingsError(f"{where}: {word}.", f"Expected: 1 to {last}, the epochs of the run.")
        epochs |= set(range(int(number), last + 1, int(number))) if word.startswith(_EVERY) else {int(number)}
    return frozenset(epochs)


def path_of(folder: Path, epoch: int) -> Path:
    """The path of the snapshot of `epoch` in a run's folder."""
    return folder / f"snapshot.{epoch:05d}.pt"


def keep(trainer: Trainer, folder: Path, provenance: dict[str, Any]) -> None:
    """Write the snapshot of the trainer's present epoch. OSError if the disk is full.

    Call this before the checkpoint of the epoch is saved. If the process is killed in between, the run trains the epoch
    again, and writes the same snapshot again.
    """
    trainer.save(path_of(folder, trainer.epoch), provenance)
    psnr = [round(float(value), 4) for value in trainer.validate(frames=False).psnr_frames]
    values = {**read(folder), trainer.epoch: psnr}
    write_json(folder / VALUES, {str(epoch): values[epoch] for epoch in sorted(values)})


def read(folder: Path) -> dict[int, list[float]]:
    """Epoch -> PSNR of every validation frame, dB, of the snapshots in a run's folder, in the order of epochs.

    Empty if there are none, or if the file is damaged.
    """
    try:
        stored = json.loads((folder / VALUES).read_text())
        return {int(epoch): [float(value) for value in values] for epoch, values in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}

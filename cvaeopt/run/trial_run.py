"""One trial: its training, its checkpoints, and the files and notes that people read.

`Trainable` is the interface that a worker uses, and `TrialRun` implements it. Tests of workers use another
implementation, which trains no network.
"""

from __future__ import annotations

import logging
import math
import platform
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore
from optuna.trial import Trial

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError
from cvaeopt.files import RunFolder, trouble, write_json
from cvaeopt.pictures import snapshots as snapshot_chart
from cvaeopt.pictures.run_pictures import trial_artifacts
from cvaeopt.run.dashboard_notes import attach, note_text, save_note
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.run.retention import delete_older
from cvaeopt.search.claims import MEASURES, measures
from cvaeopt.search.definition import Definition
from cvaeopt.store.identity import Identity
from cvaeopt.store.leases import Lease
from cvaeopt.store.optuna_private import trial_id_of
from cvaeopt.suggest.estimate import Estimate, estimate
from cvaeopt.text import settings_text
from cvaeopt.vae import checkpoint, snapshots
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.trainer import EpochResult, Trainer

log = logging.getLogger(__name__)

_UPLOAD_LIMIT_S = 60.0  # how long `settle` waits for the upload of the last checkpoint

SEED = "seed"
"""User attribute of a trial: its training seed."""


class Epoch(Protocol):
    """One finished epoch; `EpochResult` implements this interface."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs, including this epoch."""

    def row(self) -> dict[str, Any]:
        """The epoch's row in history.jsonl."""


class Trainable(Protocol):
    """One trial in training."""

    @property
    def epoch(self) -> int:
        """Number of finished epochs; above 0 after a resume."""

    @property
    def epochs(self) -> int:
        """Number of epochs of the whole trial."""

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per finished epoch, including epochs before a resume."""

    def value_of(self, row: dict[str, Any]) -> float:
        """The value that is reported for the epoch of this row."""

    def final_value(self) -> float:
        """The trial's value after all epochs are trained."""

    def run(self) -> Generator[Epoch, None, None]:
        """Train the remaining epochs."""

    def save(self) -> None:
        """Write a complete checkpoint or none; OSError if the disk is full."""

    def settle(self) -> None:
        """Wait, for a limited time, until the next owner can find the last checkpoint; never raises."""

    def finish(self, state: Literal["complete", "pruned", "failed"], reason: str) -> None:
        """Write the files and notes that people read; never raises."""


Factory = Callable[[Trial, Lease], Trainable]
"""A function that makes the training of a trial.

It suggests the trial's settings, opens the trial's folder and restores the trial's newest checkpoint.
"""


class TrialRun:
    """One trial in training, from its first epoch or from its newest checkpoint.

    folder    the run folder, with config.json, history.jsonl, checkpoints and pictures of the trial
    token     a number that rises with every owner of the trial. It is part of the checkpoint's name. Therefore an owner
              who lost the trial without knowing it cannot overwrite the files of the next owner.
    store     the store from which the dashboard serves pictures; None if there is no dashboard
    remote    the object store with copies of the checkpoints, for workers that do not see `folder`; None for no copies
    identity  the identity of the study. A checkpoint of a study with another identity is not continued, even if both
              studies have the same name.
    """

    def __init__(
        self,
        definition: Definition,
        config: Config,
        data: Dataset,
        device: str,
        folder: RunFolder,
        trial: Trial,
        token: int = 0,
        store: FileSystemArtifactStore | None = None,
        remote: Checkpoints | None = None,
        identity: Identity | None = None,
    ) -> None:
        self.definition = definition
        self.identity = identity or Identity(definition.name)
        self.trial = trial
        self.number = trial.number
        self.token = token
        self.folder = folder
        self.epochs = config.num_epoch
        self._store = store
        self._remote = remote
        self._saved_epoch = 0
        # A trial of an earlier version of the study may be shorter than the study's file says.
        kept = definition.service.snapshots or []
        self._snapshots = snapshots.epochs_of(kept, self.epochs, "[service] snapshots", later=True)
        self._checkpoint = folder.root / f"last.{token}.pt"
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
            write_json(folder.config, config.plain())
        except OSError as error:  # on a full disk the trial is trained without its files
            log.warning(
                "Trial %d: %s was not written: %s. It is trained all the same.",
                self.number,
                folder.config.name,
                trouble(folder.root, error),
            )
        self.trainer = Trainer(config, data, device)
        self.resumed_from = self._restore_newest()
        self._describe()

    def _restore_newest(self) -> Path | None:
        """Continue from this trial's newest checkpoint and return its path; None if there is no checkpoint.

        An earlier owner that was frozen inside `save` may wake up at any moment. It then writes its own checkpoint and
        deletes older ones, perhaps the checkpoint that is read here. The folder is searched again after a deletion.
        """
        while True:
            seen = _checkpoints_in(self.folder)
            path = self._newest_checkpoint()
            try:
                if path is not None:
                    self.trainer.restore(path, longer=True)
            except CheckpointError:
                if path is not None and path.exists():
                    raise
                continue
            if all(each.exists() for each in seen):
                return path

    def _newest_checkpoint(self) -> Path | None:
        """This trial's checkpoint with the most epochs, from the folder or the object store; None if there is none.

        If the study was extended by epochs, the checkpoint may be one of the shorter trial.
        """
        config, digest, accepted = self.trainer.config, self.trainer.data.digest, self.identity.accepted
        here = checkpoint.newest(_checkpoints_in(self.folder), config, digest, accepted, longer=True)
        if self._remote is None:
            return here
        # An object with the name of a local file was uploaded from that file, so the object cannot be newer.
        known = here.name if here else ""
        fetched = self._remote.fetch(self.identity.objects, self.number, self.folder.root, known)
        return checkpoint.newest([*fetched, *([here] if here else [])], config, digest, accepted, longer=True)

    def _describe(self) -> None:
        """Write device, versions, seed and digests into the attributes of the trial."""
        config = self.trainer.config
        attributes: dict[str, Any] = {
            SEED: config.seed,
            "settings_digest": config.digest(),
            "data_digest": self.trainer.data.digest,
            "versions": {
                "cvaeopt": __version__,
                "torch": torch.__version__,
                "optuna": optuna.__version__,
                "python": platform.python_version(),
            },
            "device": self._device_name,
            "host": socket.gethostname(),
        }
        if self._remote is not None:
            attributes["checkpoints"] = self._remote.of_trial(self.identity.objects, self.number)
        for key, value in attributes.items():
            self.trial.set_user_attr(key, value)

    @property
    def _device_name(self) -> str:
        device = self.trainer.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    @property
    def epoch(self) -> int:
        return self.trainer.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.trainer.history

    def run(self) -> Generator[EpochResult, None, None]:
        return self.trainer.run()

    def value_of(self, row: dict[str, Any]) -> float:
        return float(row[self.definition.metric])

    def estimate(self) -> Estimate:
        """The trial's value after the finished epochs, with the standard error of this value."""
        curve = [self.value_of(row) for row in self.history]
        return estimate(curve, self.definition.window, self.definition.seed_noise_db)

    def final_value(self) -> float:
        return self.estimate().value

    def save(self) -> None:
        """Write checkpoint and history, then delete earlier owners' checkpoints; OSError if the disk is full."""
        if self.epoch in self._snapshots:
            snapshots.keep(self.trainer, self.folder.root, self._provenance())
        self._save_checkpoint()
        self.folder.write_history(self.history)
        delete_older(self.folder.root, self.token)

    def _save_checkpoint(self) -> None:
        self.trainer.save(self._checkpoint, self._provenance())
        self._saved_epoch = self.epoch
        if self._remote is not None:
            self._remote.offer(self.identity.objects, self.number, self.token, self._checkpoint)

    def _provenance(self) -> dict[str, Any]:
        return {
            "study": self.definition.name,
            "identity": self.identity.value or None,
            "trial": self.number,
            "definition_digest": self.definition.digest(),
            "settings_digest": self.trainer.config.digest(),
            "data_digest": self.trainer.data.digest,
            "version": __version__,
            "seed": self.trainer.config.seed,
        }

    def settle(self) -> None:
        """Wait, at most one minute, until other machines can find the last checkpoint; never raises."""
        if self._remote is not None and not self._remote.flush(_UPLOAD_LIMIT_S):
            log.warning(
                "Trial %d: its last checkpoint (epoch %d) did not reach %s. On another machine the trial goes on from "
                "an older one, or from its first epoch.",
                self.number,
                self._saved_epoch,
                self._remote.of_trial(self.identity.objects, self.number),
            )

    def finish(self, state: Literal["complete", "pruned", "failed"], reason: str) -> None:
        """Write history, pictures, attributes and a note; errors are logged and never make the trial fail.

        The checkpoint of a complete trial is renamed to last.pt. The checkpoint of another trial stays until `tidy`
        deletes it. If this worker is killed before Optuna ends the trial, the next worker continues from the
        checkpoint.
        """
        try:
            self._finish(state, reason)
        except OSError as error:
            lost = state == "complete" and not self.folder.last.exists()
            log.warning(
                "Trial %d: %s: %s. Its value and settings are in the database. Make room there for the next trials.",
                self.number,
                "its checkpoint is lost" if lost else "not all of its files could be written",
                trouble(self.folder.root, error),
            )
        except Exception as error:  # an error in pictures or notes must not make the trial fail
            log.warning("Trial %d: not all of its files could be written (%s).", self.number, error)

    def _finish(self, state: str, reason: str) -> None:
        if state == "complete":  # this comes first, because a rename succeeds even on a full disk
            if self._saved_epoch != self.epoch:
                self._save_checkpoint()
            self._checkpoint.replace(self.folder.last)
            delete_older(self.folder.root, self.token)
        self.folder.write_history(self.history)
        if self.history:
            self._record_result()
        _save_note(self, state, reason)
        pictures = self._pictures(state) if self.history else []
        if self._store is not None:
            files = [*pictures, self.folder.config, self.folder.history]
            attach(self.trial, self._store, [path for path in files if path.exists()])

    def _record_result(self) -> None:
        """Write the trial's last scores, its estimate and its training time into its attributes."""
        last, value = self.history[-1], self.estimate()
        attributes: dict[str, Any] = {
            "val_psnr": last["val_psnr"],
            "val_psnr_late": last["val_psnr_late"],
            MEASURES: measures(self.history),
            "estimate_db": value.value,
            "estimate_epochs": value.epochs,
            "seconds": math.fsum(row["seconds"] for row in self.history),
        }
        if value.error is not None:
            attributes["standard_error_db"] = value.error
        for key, entry in attributes.items():
            self.trial.set_user_attr(key, entry)

    def _pictures(self, state: str) -> list[Path]:
        """Draw the curves into the run folder, and also the validation video unless the trial failed."""
        frames = psnr = None
        if state != "failed":
            validation = self.trainer.validate()
            frames, psnr = validation.frames, validation.psnr_frames.numpy()
        val = self.trainer.data.val
        title = f"{self.definition.name} / trial {self.number}"
        made = trial_artifacts(
            self.folder.root,
            self.history,
            psnr_frames=psnr,
            prediction=None if frames is None else frames.numpy(),
            truth=val.frames[1:],
            labels=val.labels[1:],
            title=title,
        )
        return [*made, *snapshot_chart.write(self.folder.root, title=title)]


def _checkpoints_in(folder: RunFolder) -> list[Path]:
    return sorted(folder.root.glob("last*.pt"))


def _save_note(run: TrialRun, state: str, reason: str) -> None:
    """Save the note that optuna-dashboard shows beside the trial."""
    settings = settings_text(run.trial.params)
    lines = [
        f"**{state}** after {run.epoch} of {run.epochs} epochs: {note_text(reason)}",
        f"Settings: {note_text(settings or 'the fixed ones')}.",
    ]
    if run.history:
        last = run.history[-1]
        lines.append(
            f"Validation PSNR of the last epoch {last['val_psnr']:.2f} dB, "
            f"{last['val_psnr_late']:.2f} dB over its late frames."
        )
    place = f"{run.folder.root.parent.name}/{run.folder.root.name}"
    where = f"{socket.gethostname()}, {run._device_name}"
    lines.append(f"Run on {note_text(where)}; its files are in {note_text(place)} of the artifact folder.")
    save_note(run.trial.study, trial_id_of(run.trial), "\n\n".join(lines) + "\n")

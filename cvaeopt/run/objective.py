"""One trial: suggest settings, train, report, prune, resume.

`Objective` is a plain Optuna objective (`study.optimize(Objective(...))` works from a notebook). The worker drives
the same `TrialRun` itself, because it also has leases, budgets and outages to think of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mimetypes
import platform
import re
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import optuna
import torch
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import Trial, TrialState

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import Diverged
from cvaeopt.files import RunFolder, trouble, write_json
from cvaeopt.pictures.run_pictures import trial_artifacts
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import key_of, suggest, trial_seed
from cvaeopt.store.identity import Identity, given, of
from cvaeopt.store.leases import CONSTRAINTS
from cvaeopt.suggest.estimate import Estimate, estimate
from cvaeopt.text import short
from cvaeopt.vae import checkpoint
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.trainer import EpochResult, Trainer

log = logging.getLogger(__name__)

_SETTLE_S = 60.0  # how long a trial that is left waits for the upload of its checkpoint

SEED = "seed"
"""User attribute of a trial: its training seed."""

DASHBOARD_STORE = "_dashboard"
"""Folder of the dashboard's artifacts under the artifact folder. Checkpoints are never put there: deleting a study
in the dashboard needs no password and deletes its artifacts. No study can have this name (they start with a letter
or a digit)."""


def artifact_store(artifacts: Path) -> FileSystemArtifactStore:
    """The store from which the dashboard serves pictures; its folder is made if missing."""
    folder = artifacts / DASHBOARD_STORE
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


def attach(trial: Trial, store: FileSystemArtifactStore, paths: Sequence[Path]) -> None:
    """Show files with `trial` in the dashboard; one of the same name that an earlier owner left is replaced.

    The file comes first and its entry second: an entry without its file is a broken picture, and keeps the dashboard
    from deleting the study.
    """
    storage = trial.study._storage
    shown = {one.filename: one.artifact_id for one in get_all_artifact_meta(trial, storage=storage)}
    for path in paths:
        artifact_id = shown.get(path.name, str(uuid.uuid4()))
        kind = "application/x-ndjson" if path.suffix == ".jsonl" else mimetypes.guess_type(path.name)[0]
        entry = ArtifactMeta(artifact_id, path.name, kind or "application/octet-stream", None)
        try:
            with path.open("rb") as stream:
                store.write(artifact_id, stream)
        except OSError:
            if path.name not in shown:
                with contextlib.suppress(ArtifactNotFound):
                    store.remove(artifact_id)
            raise
        storage.set_trial_system_attr(trial._trial_id, f"artifacts:{artifact_id}", json.dumps(asdict(entry)))


def note_text(text: str) -> str:
    """`text` in one line, as the dashboard's notes show it literally: they are Markdown, with HTML."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


class TrialRun:
    """One trial being trained, from its first epoch or from its newest checkpoint.

    folder    config.json, history.jsonl, checkpoints and pictures of the trial
    token     rises with every owner of the trial and is part of the checkpoint's name, so that an owner who lost
              the trial without knowing cannot spoil the files of the next one
    remote    where checkpoints are copied for workers that do not see `folder`; None: nowhere
    identity  of the study: checkpoints of another one are not continued, whatever its name was
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
        self.resumed_from: Path | None = None
        self._store = store
        self._remote = remote
        self._saved_epoch = 0
        self._checkpoint = folder.root / f"last.{token}.pt"
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
            write_json(folder.config, config.plain())
        except OSError as error:  # a full disk: the trial is trained all the same, without its files
            log.warning(
                "Trial %d: %s was not written: %s. It is trained all the same.",
                self.number,
                folder.config.name,
                trouble(folder.root, error),
            )
        self.trainer = Trainer(config, data, device)
        mine = self.identity.accepted
        found = checkpoint.newest(sorted(folder.root.glob("last*.pt")), config, data.digest, mine)
        if remote is not None:
            # What was uploaded under the token of a file that is here cannot be newer than the file.
            fetched = remote.fetch(self.identity.objects, self.number, folder.root, found.name if found else "")
            found = checkpoint.newest([*fetched, *([found] if found else [])], config, data.digest, mine)
        if found is not None:
            self.trainer.restore(found)
            self.resumed_from = found
        attributes = {
            SEED: config.seed,
            "settings_digest": config.digest(),
            "data_digest": data.digest,
            "versions": {
                "cvaeopt": __version__,
                "torch": torch.__version__,
                "optuna": optuna.__version__,
                "python": platform.python_version(),
            },
            "device": _device_name(device),
            "host": socket.gethostname(),
        }
        if remote is not None:
            attributes["checkpoints"] = remote.of_trial(self.identity.objects, self.number)
        for key, value in attributes.items():
            trial.set_user_attr(key, value)

    @property
    def epoch(self) -> int:
        """Epochs finished, those before a resume included."""
        return self.trainer.epoch

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per finished epoch, see `EpochResult`."""
        return self.trainer.history

    def run(self) -> Iterator[EpochResult]:
        """Train the epochs that are left."""
        return self.trainer.run()

    def value_of(self, row: dict[str, Any]) -> float:
        """What is reported to Optuna for this epoch, dB."""
        return float(row[self.definition.metric])

    def estimate(self) -> Estimate:
        """What the trial is worth after the epochs so far, with its standard error."""
        curve = [self.value_of(row) for row in self.history]
        return estimate(curve, self.definition.window, self.definition.seed_noise_db)

    def final_value(self) -> float:
        """The trial's value: mean of the metric over the last `window` epochs, dB."""
        return self.estimate().value

    def save(self) -> None:
        """Write checkpoint and history (OSError when the disk is full); older owners' checkpoints go."""
        self.trainer.save(self._checkpoint, self._provenance())
        self._saved_epoch = self.epoch
        if self._remote is not None:
            self._remote.offer(self.identity.objects, self.number, self.token, self._checkpoint)
        self.folder.write_history(self.history)
        self._forget_older()

    def settle(self) -> None:
        """Wait, for a minute at most, until the last checkpoint is where other machines find it; never raises."""
        if self._remote is not None and not self._remote.flush(_SETTLE_S):
            log.warning(
                "Trial %d: its last checkpoint (epoch %d) did not reach %s. On another machine the trial goes on from "
                "an older one, or from its first epoch.",
                self.number,
                self._saved_epoch,
                self._remote.of_trial(self.identity.objects, self.number),
            )

    def finish(self, state: Literal["complete", "pruned", "failed"], reason: str) -> None:
        """Leave what people want to see: history, pictures, attributes, a note. Never fails the trial.

        A complete trial's checkpoint becomes last.pt. Those that nobody needs are deleted by `tidy`, once the trial
        is told: a worker killed before that has left something to continue from.
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
        except Exception as error:  # pictures and notes are worth less than the trial
            log.warning("Trial %d: not all of its files could be written (%s).", self.number, error)

    def _finish(self, state: str, reason: str) -> None:
        if state == "complete":  # before anything else: on a full disk a rename still succeeds
            if self._saved_epoch != self.epoch:
                self.trainer.save(self._checkpoint, self._provenance())
                if self._remote is not None:
                    self._remote.offer(self.identity.objects, self.number, self.token, self._checkpoint)
            self._checkpoint.replace(self.folder.last)
            self._forget_older()
        self.folder.write_history(self.history)
        if self.history:
            last = self.history[-1]
            for key in ("val_psnr", "val_psnr_late"):
                self.trial.set_user_attr(key, last[key])
            worth = self.estimate()
            self.trial.set_user_attr("estimate_db", worth.value)
            self.trial.set_user_attr("estimate_epochs", worth.epochs)
            if worth.error is not None:
                self.trial.set_user_attr("standard_error_db", worth.error)
            self.trial.set_user_attr("seconds", math.fsum(row["seconds"] for row in self.history))
        self._note(state, reason)
        pictures: list[Path] = []
        if self.history:
            pictures = self._pictures(state)
        if self._store is not None:
            files = [*pictures, self.folder.config, self.folder.history]
            attach(self.trial, self._store, [path for path in files if path.exists()])

    def _pictures(self, state: str) -> list[Path]:
        """Draw what there is to see into the run folder."""
        frames = psnr = None
        if state != "failed":
            validation = self.trainer.validate()
            frames, psnr = validation.frames, validation.psnr_frames.numpy()
        val = self.trainer.data.val
        return trial_artifacts(
            self.folder.root,
            self.history,
            psnr_frames=psnr,
            prediction=None if frames is None else frames.numpy(),
            truth=val.frames[1:],
            labels=val.labels[1:],
            title=f"{self.definition.name} / trial {self.number}",
        )

    def _forget_older(self) -> None:
        """Delete the checkpoints of earlier owners; never a later one's, should this process have slept since."""
        for path in self.folder.root.glob("last.*.pt"):
            token = path.name.split(".")[1]
            if token.isdecimal() and int(token) < self.token:
                delete(path)

    def _note(self, state: str, reason: str) -> None:
        from optuna_dashboard import save_note

        settings = ", ".join(f"{name} {short(value)}" for name, value in self.trial.params.items())
        lines = [
            f"**{state}** after {self.epoch} of {self.epochs} epochs: {note_text(reason)}",
            f"Settings: {note_text(settings or 'the fixed ones')}.",
        ]
        if self.history:
            last = self.history[-1]
            lines.append(
                f"Validation PSNR of the last epoch {last['val_psnr']:.2f} dB, "
                f"{last['val_psnr_late']:.2f} dB over its late frames."
            )
        where = f"{socket.gethostname()}, {_device_name(str(self.trainer.device))}"
        lines.append(f"Run on {note_text(where)}; its files are in {note_text(self._place)} of the artifact folder.")
        save_note(self.trial, "\n\n".join(lines) + "\n")

    @property
    def _place(self) -> str:
        return f"{self.folder.root.parent.name}/{self.folder.root.name}"

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


class Objective:
    """Trains one configuration of `definition` and returns its value in dB.

    artifacts    run folders are made under it, one per trial
    remote       where checkpoints are copied for workers that do not see `artifacts`
    """

    def __init__(
        self,
        definition: Definition,
        data: Dataset,
        device: str = "cpu",
        artifacts: Path = Path("storage/artifacts"),
        remote: Checkpoints | None = None,
    ) -> None:
        self.definition = definition
        self.data = data
        self.device = device
        self.artifacts = artifacts
        self.remote = remote
        self._store = artifact_store(artifacts)

    def open(self, trial: Trial, token: int = 0) -> TrialRun:
        """The run of `trial`: settings suggested, folder made, newest checkpoint restored; others' files tidied."""
        tidy(trial.study, self.artifacts, self.definition.service.keep_best, self.remote)
        config = suggest(self.definition, trial)
        config = config.model_copy(update={"seed": self._seed(trial, config.seed)})
        identity = Identity(self.definition.name, given(trial.study).value)
        folder = RunFolder(identity.claim(self.artifacts) / f"{trial.number:05d}")
        return TrialRun(
            self.definition, config, self.data, self.device, folder, trial, token, self._store, self.remote, identity
        )

    def _seed(self, trial: Trial, usual: int) -> int:
        """The training seed: the first one of the study for settings that are new, the next one for a repeat of them.

        Equal settings and equal seed would train the same network twice. A trial taken over keeps the seed it had.
        """
        definition = self.definition
        if definition.seeds == "each" or "seed" in definition.fixed or "seed" in definition.search:
            return usual
        if SEED in trial.user_attrs:
            return int(trial.user_attrs[SEED])
        key = key_of(definition, trial.params)
        # Other names: other settings, or a trial whose settings are only half suggested yet, which may fit no Config.
        names = trial.params.keys()
        trials = trial.study.get_trials(deepcopy=False)
        earlier = [one for one in trials if one.number < trial.number and one.params.keys() == names]
        return trial_seed(definition.seed, sum(key_of(definition, one.params) == key for one in earlier))

    def __call__(self, trial: Trial) -> float:
        """The trial's value, dB; raises TrialPruned when the pruner, or a diverged loss, ends it."""
        run = self.open(trial)
        try:
            for result in run.run():
                run.save()
                trial.report(run.value_of(result.row()), result.epoch)
                if trial.should_prune() and result.epoch < run.epochs:
                    reason = f"pruned at epoch {result.epoch}"
                    self._close(run, "pruned", reason)
                    raise optuna.TrialPruned(reason)
        except Diverged as error:
            self._close(run, "failed", str(error), diverged=1.0)
            trial.set_user_attr("failed", "diverged")
            raise optuna.TrialPruned(str(error)) from error
        self._close(run, "complete", "all epochs trained")
        return run.final_value()

    def _close(self, run: TrialRun, state: Literal["complete", "pruned", "failed"], reason: str, **bad: float) -> None:
        for key in CONSTRAINTS:
            run.trial.set_constraint(key, bad.get(key, 0.0))
        run.trial.set_user_attr("epochs_done", run.epoch)
        run.trial.set_user_attr("reason", reason)
        run.finish(state, reason)


_kept: set[Path] = set()
"""Files that could not be deleted; each is named once by this process."""


def delete(path: Path) -> bool:
    """Whether `path` is gone; never raises.

    A file that may not be deleted, such as another user's, costs room and nothing else: no trial may fail of it.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if path not in _kept:
            log.warning(
                "%s is not needed any more and could not be deleted (%s). Delete it by hand.", path, error.strerror
            )
        _kept.add(path)
        return False
    return True


def tidy(study: optuna.Study, artifacts: Path, keep_best: int, remote: Checkpoints | None = None) -> list[Path]:
    """Delete the checkpoints of finished trials that are not among the best `keep_best`; the paths deleted.

    One that may not be deleted stays, see `delete`. Their copies in `remote` go soon afterwards.

    Pictures, settings and histories stay. A trial that is still running is never touched.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    kept = {trial.number for trial in sorted(complete, key=lambda trial: (-trial.values[0], trial.number))[:keep_best]}
    identity = of(study)
    deleted = []
    for trial in finished:
        if trial.number not in kept:
            for path in identity.run(artifacts, trial.number).root.glob("last*.pt"):
                if delete(path):
                    deleted.append(path)
    if remote is not None:
        remote.forget(identity.objects, {trial.number for trial in finished} - kept)
    return deleted


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return "cpu"

"""The place of a finished trial's checkpoint: this machine's artifact folder, an object store, or another machine."""

from __future__ import annotations

import contextlib
import json
import shlex
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError, StudyError
from cvaeopt.files import RunFolder
from cvaeopt.outcome.recipe import Recipe
from cvaeopt.outcome.trials import TrialFacts, best_of, facts
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import params_to_config
from cvaeopt.store.damage import named
from cvaeopt.store.identity import Identity, of
from cvaeopt.store.study import open_existing
from cvaeopt.vae import checkpoint

if TYPE_CHECKING:
    from cvaeopt.store.storage import Storage


@dataclass(frozen=True)
class Located:
    """The place of the checkpoint of complete trial `number`.

    path     the checkpoint's path on this machine; the file may be missing
    host     the machine that finished the trial
    store    the object store to which the checkpoint was copied, s3://BUCKET/PREFIX; '' if it was not copied
    objects  the part of the object's key between `store` and the trial's number
    recipe   the settings of the trial, and where they come from
    """

    number: int
    path: Path
    host: str
    store: str
    objects: str
    recipe: Recipe

    def elsewhere(self) -> CheckpointError:
        """The error for a checkpoint that is neither on this machine nor in an object store."""
        if self.host == socket.gethostname() and self.path.parent.is_dir():
            return CheckpointError(
                f"Trial {self.number} was finished on this machine and left no checkpoint: there is no {self.path}.",
                "Expected: a trial among the best (keep_best under [service]), with room on its disk when it ended.",
                "Name another artifact folder with --artifacts; or train its settings again, which are in the "
                f"database: {_again(self.recipe.settings)}",
            )
        if self.host == socket.gethostname():
            return CheckpointError(
                f"The checkpoint of trial {self.number} is not in {self.path.parent}.",
                "Expected: the artifact folder of the workers; the trial was finished on this machine.",
                "Name that folder with --artifacts, or an object store with --checkpoints.",
            )
        return CheckpointError(
            f"The checkpoint of trial {self.number} is not in {self.path.parent} on this machine.",
            f"Expected: the artifact folder of the workers (the trial was finished on {self.host}), or an object "
            "store to which they copied it.",
            f"Copy {self.path} from {self.host}, name its folder with --artifacts, or the store with --checkpoints.",
        )


@named
def locate(storage: Storage, name: str, number: int | None, artifacts: Path) -> Located:
    """The place of the checkpoint of complete trial `number`; None stands for the best trial.

    StudyError if the study has no such complete trial.
    """
    study, definition = open_existing(storage, name)
    known = facts(study.get_trials(deepcopy=False))
    trials = [trial for trial in known if trial.value is not None]
    chosen = best_of(trials if number is None else [trial for trial in trials if trial.number == number])
    if chosen is None:
        raise _not_complete(definition, number, known)
    identity = of(study)
    copied = str(chosen.attributes.get("checkpoints") or "")
    store = copied.removesuffix(f"/{identity.objects}/{chosen.number:05d}")
    host = str(chosen.attributes.get("host") or "another machine")
    path = identity.run(artifacts, chosen.number).last
    if not path.exists():
        path = _copied(identity, artifacts, chosen.number) or path
    origin = {"study": name, "trial": chosen.number, "value": chosen.value, "metric": definition.metric}
    recipe = Recipe(_settings(definition, chosen), {**origin, "study_seed": definition.seed})
    return Located(chosen.number, path, host, store, identity.objects, recipe)


def _settings(definition: Definition, trial: TrialFacts) -> Config:
    return params_to_config(definition, trial.params, trial.number, trial.attributes.get("seed"))


def _not_complete(definition: Definition, number: int | None, known: list[TrialFacts]) -> StudyError:
    """The error for a trial without a checkpoint, because it does not exist or is not complete."""
    there = ", ".join(str(trial.number) for trial in known if trial.value is not None) or "none"
    trial = next((trial for trial in known if trial.number == number), None)
    if number is None or trial is None:
        which = "no trial" if number is None else f"no trial {number}"
        return StudyError(f"Study '{definition.name}' has {which} that is complete.", f"Complete: {there}.")
    todo = "Wait for its end, or stop it with cvaeopt stop --trial."
    if trial.state in ("pruned", "failed") and trial.params:
        todo = f"To train its settings from the first epoch: {_again(_settings(definition, trial))}"
    return StudyError(
        f"Trial {number} of study '{definition.name}' is {trial.state}{f' ({trial.reason})' if trial.reason else ''}, "
        "so no checkpoint of it is kept.",
        f"Expected: a complete trial ({there}).",
        todo,
    )


def _again(config: Config) -> str:
    """The command that trains these settings from the first epoch."""
    plain, usual = config.plain(), Config().plain()
    words = ["cvaeopt", "train", "--epochs", str(config.num_epoch)]
    for name, value in plain.items():
        if value != usual[name] and name != "num_epoch":
            words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _copied(identity: Identity, artifacts: Path, number: int) -> Path | None:
    """The checkpoint in `artifacts/NAME`, if this study accepts the identity in its provenance; None otherwise.

    A user may have copied the checkpoint there. Such a folder has no `study.json`, so `Identity.run` may not find it.
    """
    path = RunFolder.of_trial(artifacts, identity.study, number).last
    with contextlib.suppress(CheckpointError):
        own = checkpoint.own_part(checkpoint.read(path), path)
        if own.provenance.get("identity") in identity.accepted:
            return path
    return None

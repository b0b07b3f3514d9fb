"""The place of a finished trial's checkpoint: this machine's artifact folder, an object store, or another machine."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvaeopt.errors import CheckpointError, StudyError
from cvaeopt.files import RunFolder
from cvaeopt.outcome.trials import best_of, facts
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
    """

    number: int
    path: Path
    host: str
    store: str
    objects: str

    def elsewhere(self) -> CheckpointError:
        """The error for a checkpoint that is neither on this machine nor in an object store."""
        if self.host == socket.gethostname() and self.path.parent.is_dir():
            return CheckpointError(
                f"Trial {self.number} was finished on this machine and left no checkpoint: there is no {self.path}.",
                "Expected: a trial among the best (keep_best under [service]), with room on its disk when it ended.",
                "Its settings are in the database: train the best ones again with cvaeopt export-best and cvaeopt "
                "retrain; or name another artifact folder with --artifacts.",
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
    study, _ = open_existing(storage, name)
    trials = [trial for trial in facts(study.get_trials(deepcopy=False)) if trial.value is not None]
    chosen = best_of(trials if number is None else [trial for trial in trials if trial.number == number])
    if chosen is None:
        which = "no trial" if number is None else f"no trial {number}"
        there = ", ".join(str(trial.number) for trial in trials) or "none"
        raise StudyError(f"Study '{name}' has {which} that is complete.", f"Complete: {there}.")
    identity = of(study)
    copied = str(chosen.attributes.get("checkpoints") or "")
    store = copied.removesuffix(f"/{identity.objects}/{chosen.number:05d}")
    host = str(chosen.attributes.get("host") or "another machine")
    path = identity.run(artifacts, chosen.number).last
    if not path.exists():
        path = _copied(identity, artifacts, chosen.number) or path
    return Located(chosen.number, path, host, store, identity.objects)


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

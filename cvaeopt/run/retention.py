"""Decide which files of a trial stay on the disk, and delete the others.

Settings, history and pictures of every trial stay. Other files are deleted at these times:

    checkpoints `last.*.pt` of earlier owners   as soon as a newer owner of the trial has saved a checkpoint
    scratch files and delivered reports         when the trial ends
    checkpoints of a finished trial             at the next `tidy`, unless the trial is among the study's best
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import optuna
from optuna.trial import TrialState

from cvaeopt.run.object_store import Checkpoints
from cvaeopt.store.identity import of
from cvaeopt.store.ranking import place, ranked
from cvaeopt.store.roles import HISTORY

log = logging.getLogger(__name__)

_undeletable: set[Path] = set()
"""Files that this process could not delete. Only one warning is logged for each file."""


def delete(path: Path) -> bool:
    """Delete `path`; returns whether the file is gone, and never raises.

    A file that may not be deleted, for example because it belongs to another user, must not make a trial fail.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if path not in _undeletable:
            log.warning(
                "%s is not needed any more and could not be deleted (%s). Delete it by hand.", path, error.strerror
            )
        _undeletable.add(path)
        return False
    return True


def delete_older(folder: Path, token: int) -> None:
    """Delete the checkpoints of owners before `token` from a trial's folder.

    The checkpoint of a later owner stays, because this process may have been frozen while that owner took over.
    """
    for path in folder.glob("last.*.pt"):
        owner = path.name.split(".")[1]
        if owner.isdecimal() and int(owner) < token:
            delete(path)


def delete_leftovers(folder: Path) -> None:
    """Delete the files that nobody needs after the end of a trial: delivered reports and scratch files."""
    for path in [*folder.glob("reports.*.jsonl"), *folder.glob(".*.part")]:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def tidy(study: optuna.Study, artifacts: Path, keep_best: int, remote: Checkpoints | None = None) -> list[Path]:
    """Delete the checkpoints of all finished trials except the best `keep_best` trials; returns the deleted paths.

    Of the trials that are history (`store.roles`), the best `keep_best` keep their checkpoints, too: a later version of
    the definition may count them again. Checkpoints of running trials stay. `remote` deletes its copies of the deleted
    checkpoints soon afterwards.
    """
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    valued = [(trial.user_attrs.get(HISTORY, {}).get("value"), trial.number) for trial in finished]
    history = sorted(place(value, number) for value, number in valued if value is not None)
    kept = {trial.number for trial in ranked(finished)[:keep_best]} | {number for _, number in history[:keep_best]}
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

"""What the dashboard shows beside Optuna's own charts: whose pictures stay, and the notes that sum a study up.

For people to look at. It may be late by a trial when two workers write at once, and it never fails or holds up a
trial: `keep_up` is called between two trials, asks the database a fixed number of questions, and forgets its errors.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import optuna
from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, TrialState

from cvaeopt.errors import StorageUnreachable
from cvaeopt.run.objective import artifact_store, note_text
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import FAILED, status
from cvaeopt.text import short

log = logging.getLogger(__name__)

BEST: Final = "**The best trial of the study so far**"
"""How the note of the best trial begins."""

BELOW: Final = "*cvaeopt keeps what stands above this line up to date; what you write below it stays.*"
"""What separates our part of the study's note from the user's."""

_PATIENCE_S: Final = 2.0
_LONGEST_REASON: Final = 160
_MOST_FAILURES: Final = 3
_NOTE_CHARACTERS: Final = 2000  # the dashboard writes longer notes in pieces, between which a reader can look
_FLOORS: Final = {"copy_first": "copy first", "train_mean": "mean frame", "nearest_pose": "nearest pose"}
_NAMES: Final = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_MOST_AT_ONCE: Final = 20  # trials that one call thins out, and explains: the next trial should begin


def keep_up(storage: Storage, study: optuna.Study, artifacts: Path, keep_pictures: int) -> None:
    """Bring pictures and notes of `study` up to date; never raises.

    keep_pictures   see `thin_out`
    """
    try:
        with storage.patience(_PATIENCE_S):
            thin_out(storage, study, artifact_store(artifacts), keep_pictures)
            write_notes(storage, study)
    except StorageUnreachable:  # the worker meets the same trouble, and says so
        pass
    except Exception as error:
        log.warning("The dashboard's notes and pictures could not be brought up to date (%s).", error)


def thin_out(storage: Storage, study: optuna.Study, store: FileSystemArtifactStore, keep: int) -> list[int]:
    """Take the pictures of old losing trials out of the dashboard's store, some at a time; the numbers of these trials.

    The best `keep` complete trials and the `keep` trials that ended last keep theirs. Settings, history and note of
    the others stay, and so do all files in their run folders. A file goes before its entry, so that whoever is killed
    between the two leaves what the next one finishes.
    """
    ended = study.get_trials(deepcopy=False, states=tuple(_NAMES))
    kept = _best(ended, keep) | _latest(ended, keep)
    losing = {trial._trial_id: trial for trial in ended if trial.number not in kept}
    if not losing:
        return []
    thinned: list[int] = []
    for trial_id, shown in storage.artifacts(study._study_id).items():
        pictures = [one for one, entry in shown.items() if str(entry["mimetype"]).startswith("image/")]
        if trial_id not in losing or not pictures or len(thinned) == _MOST_AT_ONCE:
            continue
        for picture in pictures:
            with contextlib.suppress(ArtifactNotFound):
                store.remove(picture)
        if storage.forget_artifacts(trial_id, pictures):  # of several workers one says so
            number = losing[trial_id].number
            thinned.append(number)
            body = _notes(storage.get_study_system_attrs(study._study_id)).get(trial_id, "")
            said = (
                f"Its pictures left the dashboard, which keeps those of the best {keep} and the latest {keep} trials; "
                "the files are still in its folder."
            )
            _save(storage, study, trial_id, f"{body}\n{said}\n")
    return thinned


def write_notes(storage: Storage, study: optuna.Study) -> None:
    """Bring the notes of the study and of its best trial up to date, and explain trials that ended without a note."""
    facts = status(storage, study.study_name)
    attributes = storage.get_study_system_attrs(study._study_id)
    notes = _notes(attributes)
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    best = by_number.get(facts["best"]["number"]) if facts["best"] else None
    explained = 0
    for trial in by_number.values():
        body = before = notes.get(trial._trial_id, "")
        if not body and trial.state in _NAMES and explained < _MOST_AT_ONCE:
            body = explanation(trial)
            explained += 1
        if body.startswith(BEST):
            body = body.partition("\n\n")[2]
        if best is not None and trial.number == best.number:
            body = f"{BEST}: {_of_baselines(facts)}.\n\n{body}"
        if body != before:
            _save(storage, study, trial._trial_id, body)
    before = notes.get(None, "")
    theirs = before.partition(BELOW)[2] if BELOW in before else (f"\n\n{before}" if before else "")
    body = f"{summary(facts, study._study_id)}\n\n---\n{BELOW}{theirs}"
    if body != before:
        _save(storage, study, None, body)


def summary(facts: Mapping[str, Any], study_id: int) -> str:
    """What a study has found, as Markdown.

    facts   what `status` says of it
    """
    best, trials, budget = facts["best"], facts["trials"], facts["budget"]
    lines = []
    if best is None:
        lines.append("### No trial is complete yet")
    else:
        link = f"/dashboard/studies/{study_id}/trials?numbers={best['number']}"
        lines.append(f"### Best so far: {best['value']:.2f} dB, trial [{best['number']}]({link})")
        lines.append(f"{_of_baselines(facts)}.")
        rows = "".join(f"\n| {note_text(name)} | {note_text(short(value))} |" for name, value in best["params"].items())
        if rows:
            lines.append(f"| setting | best trial |\n| --- | --- |{rows}")
    counted = ", ".join(f"{count} {state}" for state, count in trials.items() if count) or "none yet"
    whole = f" (of {budget['trials']})" if budget["trials"] else ""
    lines.append(f"Trials{whole}: {counted}. Epochs spent: {facts['epochs_spent']}.")
    last = facts["last"]
    if last is not None:
        lines.append(f"Last ended: trial {last['number']}, {last['state']}{_why(last['reason'])}.")
    failures: Sequence[Mapping[str, Any]] = facts["failures"]
    if failures:
        told = "; ".join(f"trial {one['number']}{_why(one['reason'])}" for one in failures[-_MOST_FAILURES:])
        lines.append(f"Failed: {told}{' (the latest)' if len(failures) > _MOST_FAILURES else ''}.")
    name = facts["study"]
    lines.append(
        f"`cvaeopt report --study {name} --out report` writes the analysis, "
        f"`cvaeopt export-best --study {name}` the settings."
    )
    text = "\n\n".join(lines)
    if len(text) > _NOTE_CHARACTERS - len(BELOW):  # many settings, long reasons: what is not needed goes
        text = "\n\n".join(line for line in lines if not line.startswith(("Failed:", "Last ended:", "| setting")))
    return text


def explanation(trial: FrozenTrial) -> str:
    """The note of a trial that ended without leaving one: given up, ended from outside, or on a full disk."""
    attributes = trial.user_attrs
    state = "failed" if attributes.get(FAILED) else _NAMES[trial.state]
    epochs = int(attributes.get("epochs_done") or trial.last_step or 0)
    where = ", ".join(str(attributes[key]) for key in ("host", "device") if key in attributes)
    text = f"**{state}** after {epochs} epoch{'' if epochs == 1 else 's'}{_why(str(attributes.get('reason', '')))}\n"
    return f"{text}\nRun on {note_text(where)}.\n" if where else text


def _of_baselines(facts: Mapping[str, Any]) -> str:
    """The best value against the hardest baseline, and of how many."""
    value = facts["best"]["value"]
    text = f"{value:.2f} dB, best of {facts['trials']['complete']} complete"
    known = {name: level for name, level in facts["baselines"].items() if level is not None}
    if known:
        name, level = max(known.items(), key=lambda item: item[1])
        side = "above" if value > level else "BELOW"
        text += f", {abs(value - level):.2f} dB {side} the hardest baseline ({_FLOORS.get(name, name)} {level:.2f})"
    return text


def _why(reason: str) -> str:
    short = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} ..."
    return f": {note_text(short).rstrip('.')}" if reason else ""


def _best(ended: Iterable[FrozenTrial], keep: int) -> set[int]:
    complete = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    return {trial.number for trial in sorted(complete, key=lambda one: (-one.values[0], one.number))[:keep]}


def _latest(ended: Iterable[FrozenTrial], keep: int) -> set[int]:
    dated = [trial for trial in ended if trial.datetime_complete is not None]
    dated.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return {trial.number for trial in dated[-keep:]}


def _notes(attributes: Mapping[str, Any]) -> dict[int | None, str]:
    """The dashboard's notes by trial id, the study's under None."""
    pieces: dict[int | None, dict[int, str]] = {}
    for key, value in attributes.items():
        if not key.startswith("dashboard:"):
            continue
        owner, found, piece = key.removeprefix("dashboard:").rpartition("note_str:")
        if found:
            pieces.setdefault(int(owner.rstrip(":")) if owner else None, {})[int(piece)] = str(value)
    return {owner: "".join(parts[index] for index in sorted(parts)) for owner, parts in pieces.items()}


def _save(storage: Storage, study: optuna.Study, trial_id: int | None, body: str) -> None:
    """Replace the note of a trial, finished or not, or the study's (None)."""
    from optuna_dashboard import save_note

    # What `save_note` asks of a trial; Optuna's own class would ask the sampler for settings first.
    trial = SimpleNamespace(storage=storage, study=study, _trial_id=trial_id)
    save_note(study if trial_id is None else trial, body)

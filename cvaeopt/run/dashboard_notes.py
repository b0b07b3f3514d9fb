"""Files of the trials, and notes about a study, that the dashboard shows beside Optuna's own charts.

Only people read the notes. If two workers write at the same time, a note may miss the latest trial. `keep_up` is called
between two trials. It sends a limited number of queries and only logs its errors, so that no trial fails because of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mimetypes
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import optuna
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore, get_all_artifact_meta
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import FrozenTrial, Trial, TrialState

from cvaeopt.errors import StorageUnreachable
from cvaeopt.store.optuna_private import id_of, storage_of, trial_id_of
from cvaeopt.store.ranking import ranked
from cvaeopt.store.status import FAILED, status
from cvaeopt.store.storage import Storage
from cvaeopt.text import BASELINES, STATES, count, short, version_text

log = logging.getLogger(__name__)

BEST: Final = "**The best trial of the study so far**"
"""The first words of the best trial's note."""

BELOW: Final = "*cvaeopt keeps what stands above this line up to date; what you write below it stays.*"
"""The line in the study's note between the text of this program and the text of the user."""

DASHBOARD_STORE: Final = "_dashboard"
"""The folder, in the artifact folder, from which the dashboard serves files.

Checkpoints are never stored there. The dashboard has no password, and whoever deletes a study in the dashboard also
deletes the study's files in this folder. No study can have this name, because names begin with a letter or a digit.
"""

_PATIENCE_S: Final = 2.0  # how long `keep_up` waits for a database that does not answer
_MAX_REASON_CHARACTERS: Final = 160
_MAX_FAILURES: Final = 3  # largest number of failures in the study's note
_MAX_NOTE_CHARACTERS: Final = 2000  # the dashboard splits longer notes, so a reader could see only a part of a note
_PIECE_CHARACTERS: Final = 2045  # largest number of characters of a note in one attribute
_MAX_TRIALS_AT_ONCE: Final = 20  # largest number of trials that one call changes; the next trial waits for this call
_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def artifact_store(artifacts: Path) -> FileSystemArtifactStore:
    """The store from which the dashboard serves files. The store's folder is made if it is missing."""
    folder = artifacts / DASHBOARD_STORE
    folder.mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder)


def attach(trial: Trial, store: FileSystemArtifactStore, paths: Sequence[Path]) -> None:
    """Show files with `trial` in the dashboard. A file replaces the file of the same name from an earlier owner.

    Each file is written before its entry in the database. An entry without a file shows a broken picture, and the
    dashboard cannot delete a study with such an entry.
    """
    storage = storage_of(trial.study)
    shown = {meta.filename: meta.artifact_id for meta in get_all_artifact_meta(trial, storage=storage)}
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
        storage.set_trial_system_attr(trial_id_of(trial), f"artifacts:{artifact_id}", json.dumps(asdict(entry)))


def note_text(text: str) -> str:
    """`text` in one line, escaped so that the dashboard shows it literally. Notes are Markdown with HTML."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(text.split()))


def keep_up(storage: Storage, study: optuna.Study, artifacts: Path, keep_pictures: int) -> None:
    """Update the pictures and notes of `study`; never raises.

    keep_pictures   see `thin_out`
    """
    try:
        with storage.patience(_PATIENCE_S):
            thin_out(storage, study, artifact_store(artifacts), keep_pictures)
            write_notes(storage, study)
    except StorageUnreachable:  # the worker meets the same outage and reports it
        pass
    except Exception as error:
        log.warning("The dashboard's notes and pictures could not be brought up to date (%s).", error)


def thin_out(storage: Storage, study: optuna.Study, store: FileSystemArtifactStore, keep: int) -> list[int]:
    """Delete the pictures of older, worse trials from the dashboard's store; returns the numbers of these trials.

    The best `keep` complete trials and the `keep` trials that ended last keep their pictures. The other trials keep
    their settings, history and note, and all files in their run folders. One call handles a limited number of trials.
    Each file is deleted before its entry. If the process is killed between these steps, the next call deletes the
    entry.
    """
    ended = study.get_trials(deepcopy=False, states=_FINISHED)
    kept = _best(ended, keep) | _latest(ended, keep)
    losing = {trial_id_of(trial): trial for trial in ended if trial.number not in kept}
    if not losing:
        return []
    thinned: list[int] = []
    for trial_id, shown in storage.artifacts(id_of(study)).items():
        pictures = [key for key, entry in shown.items() if str(entry["mimetype"]).startswith("image/")]
        if trial_id not in losing or not pictures or len(thinned) == _MAX_TRIALS_AT_ONCE:
            continue
        for picture in pictures:
            with contextlib.suppress(ArtifactNotFound):
                store.remove(picture)
        if storage.forget_artifacts(trial_id, pictures):  # True for only one of several workers
            thinned.append(losing[trial_id].number)
            body = _notes(storage.get_study_system_attrs(id_of(study))).get(trial_id, "")
            addition = (
                f"Its pictures left the dashboard, which keeps those of the best {keep} and the latest {keep} trials; "
                "the files are still in its folder."
            )
            save_note(study, trial_id, f"{body}\n{addition}\n")
    return thinned


def write_notes(storage: Storage, study: optuna.Study) -> None:
    """Update the notes of the study and of its best trial, and write a note for each ended trial that has no note."""
    facts = status(storage, study.study_name)
    attributes = storage.get_study_system_attrs(id_of(study))
    notes = _notes(attributes)
    by_number = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    best = by_number.get(facts["best"]["number"]) if facts["best"] else None
    explained = 0
    for trial in by_number.values():
        body = before = notes.get(trial_id_of(trial), "")
        if not body and trial.state in _FINISHED and explained < _MAX_TRIALS_AT_ONCE:
            body = explanation(trial)
            explained += 1
        if body.startswith(BEST):
            body = body.partition("\n\n")[2]
        if best is not None and trial.number == best.number:
            body = f"{BEST}: {_of_baselines(facts)}.\n\n{body}"
        if body != before:
            save_note(study, trial_id_of(trial), body)
    before = notes.get(None, "")
    theirs = before.partition(BELOW)[2] if BELOW in before else (f"\n\n{before}" if before else "")
    body = f"{summary(facts, id_of(study))}\n\n---\n{BELOW}{theirs}"
    if body != before:
        save_note(study, None, body)


def summary(facts: Mapping[str, Any], study_id: int) -> str:
    """The state of a study and its best trial, as Markdown.

    facts   the result of `status` for this study
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
    versions = facts.get("versions", [])
    if len(versions) > 1:
        newest = versions[-1]
        lines.append(f"Version {newest['version']} of the definition: {note_text(version_text(newest))}.")
    last = facts["last"]
    if last is not None:
        lines.append(f"Last ended: trial {last['number']}, {last['state']}{_why(last['reason'])}.")
    failures: Sequence[Mapping[str, Any]] = facts["failures"]
    if failures:
        listed = "; ".join(f"trial {entry['number']}{_why(entry['reason'])}" for entry in failures[-_MAX_FAILURES:])
        lines.append(f"Failed: {listed}{' (the latest)' if len(failures) > _MAX_FAILURES else ''}.")
    name = facts["study"]
    lines.append(
        f"`cvaeopt report --study {name} --out report` writes the analysis, "
        f"`cvaeopt export-best --study {name}` the settings."
    )
    text = "\n\n".join(lines)
    if len(text) > _MAX_NOTE_CHARACTERS - len(BELOW):  # many settings or long reasons: leave out the details
        text = "\n\n".join(line for line in lines if not line.startswith(("Failed:", "Last ended:", "| setting")))
    return text


def explanation(trial: FrozenTrial) -> str:
    """A note for a trial that ended without a note: it was given up, ended by somebody else, or the disk was full."""
    attributes = trial.user_attrs
    state = "failed" if attributes.get(FAILED) else STATES[trial.state.name]
    epochs = int(attributes.get("epochs_done") or trial.last_step or 0)
    where = ", ".join(str(attributes[key]) for key in ("host", "device") if key in attributes)
    text = f"**{state}** after {count(epochs, 'epoch')}{_why(str(attributes.get('reason', '')))}\n"
    return f"{text}\nRun on {note_text(where)}.\n" if where else text


def _of_baselines(facts: Mapping[str, Any]) -> str:
    """The best value, the number of complete trials, and the difference to the baseline with the highest PSNR."""
    value = facts["best"]["value"]
    text = f"{value:.2f} dB, best of {facts['trials']['complete']} complete"
    known = {name: level for name, level in facts["baselines"].items() if level is not None}
    if known:
        name, level = max(known.items(), key=lambda item: item[1])
        side = "above" if value > level else "BELOW"
        text += f", {abs(value - level):.2f} dB {side} the hardest baseline ({BASELINES.get(name, name)} {level:.2f})"
    return text


def _why(reason: str) -> str:
    cut = reason if len(reason) <= _MAX_REASON_CHARACTERS else f"{reason[:_MAX_REASON_CHARACTERS]} ..."
    return f": {note_text(cut).rstrip('.')}" if reason else ""


def _best(ended: Iterable[FrozenTrial], keep: int) -> set[int]:
    return {trial.number for trial in ranked(ended)[:keep]}


def _latest(ended: Iterable[FrozenTrial], keep: int) -> set[int]:
    dated = [trial for trial in ended if trial.datetime_complete is not None]
    dated.sort(key=lambda trial: (trial.datetime_complete, trial.number))
    return {trial.number for trial in dated[-keep:]}


def _notes(attributes: Mapping[str, Any]) -> dict[int | None, str]:
    """The dashboard's notes by trial id. The note of the study has the key None."""
    pieces: dict[int | None, dict[int, str]] = {}
    for key, value in attributes.items():
        if not key.startswith("dashboard:"):
            continue
        owner, is_note, piece = key.removeprefix("dashboard:").rpartition("note_str:")
        if is_note:
            pieces.setdefault(int(owner.rstrip(":")) if owner else None, {})[int(piece)] = str(value)
    return {owner: "".join(parts[index] for index in sorted(parts)) for owner, parts in pieces.items()}


def save_note(study: optuna.Study, trial_id: int | None, body: str) -> None:
    """Replace the note of a trial, which may have ended, or the note of the study if `trial_id` is None.

    The attributes are those that `optuna_dashboard.save_note` writes. Its import would load the dashboard's web server,
    which costs a worker more than a second, and it takes no trial that has ended.
    """
    storage, study_id = storage_of(study), id_of(study)
    prefix = "dashboard:" if trial_id is None else f"dashboard:{trial_id}:"
    before = storage.get_study_system_attrs(study_id)
    written = sum(key.startswith(f"{prefix}note_str:") for key in before)
    storage.set_study_system_attr(study_id, f"{prefix}note_ver", before.get(f"{prefix}note_ver", 0) + 1)
    for piece in range(max(written, -(-len(body) // _PIECE_CHARACTERS))):
        text = body[piece * _PIECE_CHARACTERS : (piece + 1) * _PIECE_CHARACTERS]
        storage.set_study_system_attr(study_id, f"{prefix}note_str:{piece}", text)

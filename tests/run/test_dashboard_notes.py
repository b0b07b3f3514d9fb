from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import Trial, TrialState
from optuna_dashboard import get_note, save_note

from cvaeopt.outcome.trials import facts
from cvaeopt.run import dashboard_notes
from cvaeopt.run.dashboard_notes import artifact_store, attach, note_text
from cvaeopt.store.leases import LeaseRegistry
from cvaeopt.store.opening import open_storage
from cvaeopt.store.status import status, without_worker
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import create_or_open, record_facts
from tests.support.made_up import BASELINES, definition

FILES = ("curves.png", "prediction.gif", "history.jsonl")


@pytest.fixture
def storage(ready_url: str) -> Iterator[Storage]:
    with open_storage(ready_url) as opened:
        yield opened


class Showroom:
    """A study whose trials end as they are told, each with pictures of a few bytes."""

    def __init__(self, storage: Storage, folder: Path) -> None:
        self.storage = storage
        self.folder = folder
        self.study = create_or_open(storage, definition())
        record_facts(storage, "made-up", "0123", lambda: BASELINES)
        self.store = artifact_store(folder)

    def end(self, value: float | None, state: TrialState = TrialState.COMPLETE, note: str = "as it was", **facts: Any):
        trial = self.study.ask()
        trial.suggest_float("lr", 1e-4, 1e-2, log=True)
        for name in FILES:
            (self.folder / name).write_bytes(f"{name} of {trial.number}".encode())
        attach(trial, self.store, [self.folder / name for name in FILES])
        if note:
            save_note(trial, note)
        for key, fact in facts.items():
            trial.set_user_attr(key, fact)
        self.study.tell(trial, value, state)

    def shown(self) -> dict[int, set[str]]:
        return {
            trial.number: {one.filename for one in get_all_artifact_meta(trial, storage=self.storage)}
            for trial in self.trials()
        }

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.storage.get_all_trials(self.study._study_id)

    def note(self, number: int) -> str:
        return get_note(Trial(self.study, self.trials()[number]._trial_id))

    def keep_up(self, keep: int = 50) -> None:
        dashboard_notes.keep_up(self.storage, self.study, self.folder, keep)


@pytest.fixture
def room(storage: Storage, tmp_path: Path) -> Showroom:
    return Showroom(storage, tmp_path)


def test_old_losing_trials_lose_their_pictures_and_keep_the_rest(room: Showroom) -> None:
    for value in (30.0, 10.0, 20.0, 25.0):
        room.end(value)
    room.end(None, TrialState.PRUNED)
    assert dashboard_notes.thin_out(room.storage, room.study, room.store, 1) == [1, 2, 3]
    everything = set(FILES)
    assert room.shown() == {0: everything, 1: {FILES[2]}, 2: {FILES[2]}, 3: {FILES[2]}, 4: everything}
    # Nothing points to a file that is gone, and nothing is there that nobody points to.
    named = {one.artifact_id for trial in room.trials() for one in get_all_artifact_meta(trial, storage=room.storage)}
    assert {path.name for path in Path(room.folder / "_dashboard").iterdir()} == named
    assert room.note(1).startswith("as it was\n") and "the latest 1 trials" in room.note(1)
    assert room.note(0) == "as it was"
    assert dashboard_notes.thin_out(room.storage, room.study, room.store, 1) == []  # said once


def test_a_worker_killed_between_a_picture_and_its_entry_leaves_what_the_next_one_finishes(room: Showroom) -> None:
    for value in (30.0, 10.0, 20.0):
        room.end(value)
    for entry in get_all_artifact_meta(room.trials()[1], storage=room.storage)[:2]:
        room.store.remove(entry.artifact_id)
    assert dashboard_notes.thin_out(room.storage, room.study, room.store, 1) == [1]
    assert room.shown()[1] == {"history.jsonl"}


def test_a_file_attached_again_replaces_the_one_that_an_earlier_owner_left(room: Showroom) -> None:
    trial = room.study.ask()
    for text in ("before the crash", "after it"):
        (room.folder / "curves.png").write_text(text)
        attach(trial, room.store, [room.folder / "curves.png"])
    (entry,) = get_all_artifact_meta(trial, storage=room.storage)
    assert (entry.filename, entry.mimetype) == ("curves.png", "image/png")
    with room.store.open_reader(entry.artifact_id) as stream:
        assert stream.read() == b"after it"


def test_a_file_that_cannot_be_stored_is_not_listed(room: Showroom) -> None:
    trial = room.study.ask()
    with pytest.raises(FileNotFoundError):
        attach(trial, room.store, [room.folder / "missing.png"])
    assert get_all_artifact_meta(trial, storage=room.storage) == []


def test_the_study_and_its_best_trial_carry_a_summary_that_follows_the_search(room: Showroom) -> None:
    room.keep_up()
    assert "No trial is complete yet" in get_note(room.study)
    room.end(30.0)
    room.end(None, TrialState.PRUNED, reason="pruned at epoch 4")
    room.keep_up()
    found = get_note(room.study)
    assert "Best so far: 30.00 dB, trial [0](" in found and "3.90 dB above the hardest baseline" in found
    assert "(of 30): 1 complete, 1 pruned" in found and "trial 1, pruned: pruned at epoch 4." in found
    assert room.note(0).startswith(dashboard_notes.BEST) and room.note(0).endswith("as it was")
    room.end(31.0)
    room.keep_up()
    assert "trial [2](" in get_note(room.study)
    assert room.note(0) == "as it was" and room.note(2).startswith(dashboard_notes.BEST)
    before = room.storage.get_study_system_attrs(room.study._study_id)
    room.keep_up()  # nothing new: nothing is written, so that nobody's edit in the dashboard is refused
    assert room.storage.get_study_system_attrs(room.study._study_id) == before


def test_what_a_person_writes_into_the_studys_note_stays(room: Showroom) -> None:
    save_note(room.study, "Mine, from before the first trial.")
    room.end(30.0)
    room.keep_up()
    above, below = get_note(room.study).split(dashboard_notes.BELOW)
    assert "30.00 dB" in above and below.strip() == "Mine, from before the first trial."
    save_note(room.study, get_note(room.study) + "\nMore.")
    room.end(31.0)
    room.keep_up()
    above, below = get_note(room.study).split(dashboard_notes.BELOW)
    assert "31.00 dB" in above and below.split() == ["Mine,", "from", "before", "the", "first", "trial.", "More."]


def test_a_trial_that_ended_without_a_note_gets_its_reason(room: Showroom) -> None:
    room.end(None, TrialState.PRUNED, note="", failed="crashed", reason="given up: <b>3</b> workers died", host="a_b")
    room.keep_up()
    assert room.note(0) == "**failed** after 0 epochs: given up: \\<b\\>3\\</b\\> workers died\n\nRun on a\\_b.\n"
    assert "\\<b\\>" in get_note(room.study)


def test_a_note_shows_what_it_is_given_and_nothing_of_it_is_markup() -> None:
    assert note_text("a <img src=x>\n| kl_norm *x* `y` [z](u) $k$ &lt; ~~s~~ \\") == (
        "a \\<img src=x\\> \\| kl\\_norm \\*x\\* \\`y\\` \\[z\\](u) \\$k\\$ \\&lt; \\~\\~s\\~\\~ \\\\"
    )


def test_a_long_summary_leaves_out_what_is_not_needed(room: Showroom) -> None:
    room.end(30.0)
    found = status(room.storage, "made-up")
    found["best"]["params"] = {f"a_setting_with_a_long_name_{index}": 0.12345 for index in range(60)}
    text = dashboard_notes.summary(found, 1)
    assert len(text) + len(dashboard_notes.BELOW) < 2045 and "30.00 dB" in text


@given(st.lists(st.tuples(st.integers(0, 5000), st.characters()), min_size=1, max_size=4), st.booleans())
def test_a_note_is_stored_as_the_dashboard_itself_stores_it(notes: list[tuple[int, str]], of_trial: bool) -> None:
    ours, theirs = (optuna.create_study() for _ in range(2))
    trials = [study.ask() for study in (ours, theirs)]
    for length, letter in notes:
        text = letter * length
        dashboard_notes.save_note(ours, trials[0]._trial_id if of_trial else None, text)
        save_note(trials[1] if of_trial else theirs, text)
        assert get_note(trials[0] if of_trial else ours) == text
    assert ours._storage.get_study_system_attrs(0) == theirs._storage.get_study_system_attrs(0)


def test_keeping_up_never_raises(room: Showroom, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(dashboard_notes, "write_notes", full)
    room.keep_up()
    assert "No space left on device" in caplog.text


def test_a_trial_without_a_worker_waits_in_every_view(room: Showroom) -> None:
    room.end(30.0)
    registry = LeaseRegistry(room.storage, "made-up")
    kept, given_back = registry.claim("a"), registry.claim("b")
    registry.release(given_back)
    assert without_worker(room.storage, "made-up") == {given_back.number}
    known = facts(room.trials(), without_worker(room.storage, "made-up"))
    states = {trial.number: trial.state for trial in known}
    assert states == {0: "complete", kept.number: "running", given_back.number: "waiting"}
    counted = {state: list(states.values()).count(state) for state in ("complete", "running", "waiting")}
    assert status(room.storage, "made-up")["trials"] == {**counted, "pruned": 0, "failed": 0}
    assert without_worker(room.storage, "unknown") == frozenset()
    room.keep_up()
    assert "1 complete, 1 running, 1 waiting" in get_note(room.study)

"""The results of commands: the same facts on a terminal of 80 columns, in a pipe and without colour."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from cvaeopt.errors import DataError
from cvaeopt.terminal import results
from cvaeopt.terminal.streams import Terminal
from cvaeopt.terminal.watch import watch
from tests.support.screens import EMPTY, FACTS, FRESH, Script, console, pipe, plain, terminal, written


@pytest.mark.parametrize("facts", [FACTS, EMPTY], ids=["full", "empty"])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_status_fits_its_terminal(facts: dict[str, Any], width: int) -> None:
    shown = console(lambda: terminal(width))
    results.status(shown, facts)
    lines = plain(written(shown.out)).splitlines()
    assert max(map(len, lines)) <= width


def test_status_says_everything_at_80_columns() -> None:
    shown = console(terminal)
    results.status(shown, FACTS)
    text = " ".join(plain(written(shown.out)).split())
    for said in (
        "60 trials of 100 epochs, 4000 epochs in all, 12 h; 2345 epochs spent",
        "12 complete, 30 pruned, 2 running, 7 failed",
        "33.10 dB, trial 17",
        "lr 0.001235, tfr 0, kl_anneal_type cyclical",
        "copy first 24.10, mean frame 21.90, nearest pose 26.00 dB",
        "trial 44 pruned: pruned at epoch 20",
        "trial 6: The training loss became nan in epoch 3.",
        "and 2 earlier ones",
        "1 s ago",
        "and 1 that stopped before",
    ):
        assert said in text
    assert "trial 0:" not in text


def test_status_says_what_else_ends_the_study() -> None:
    shown = console(pipe)
    results.status(shown, {**FACTS, "budget": {**FACTS["budget"], "target_db": 34.5, "patience_trials": 1}})
    assert "12 h, until 34.5 dB, until 1 trial in a row found nothing better; 2345" in " ".join(
        written(shown.out).split()
    )


@pytest.mark.parametrize(
    ("ended", "best", "verdict", "line"),
    [
        (2, None, "counts until every fresh run has ended", "best 33.10 dB (trial 17); 1 worker"),
        (6, None, "counts, as no fresh run came to its end", "best 33.10 dB (trial 17); 1 worker"),
        (
            6,
            {"number": 3, "value": 31.5},
            "what counts is the confirmed mean",
            "best 33.10 dB (trial 17), confirmed 31.50 dB (trial 3); 1 worker",
        ),
    ],
)
def test_status_says_which_of_two_bests_counts(
    ended: int, best: dict[str, Any] | None, verdict: str, line: str
) -> None:
    facts = {**FACTS, "confirmation": {**FRESH, "ended": ended, "best": best}}
    shown = console(pipe)
    results.status(shown, facts)
    text = " ".join(written(shown.out).split())
    assert f"33.10 dB, trial 17; the highest of the search; {verdict}" in text
    assert (": trial 3, 31.50 dB; see main.confirm" in text) == (best is not None)
    script = Script(facts)
    watch(shown, script.read, sleep=script.sleep)
    assert written(shown.out).splitlines()[-1].endswith(line)


def test_status_in_a_pipe_has_no_escapes_no_trailing_blanks_and_whole_names() -> None:
    shown = console(pipe)
    results.status(shown, FACTS)
    text = written(shown.out)
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "a-rather-long-host-name-0-4711-ab12  cuda:0  running     43      7" in text


def test_without_colour_there_is_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = console(lambda: terminal(color_system="standard"))
    results.status(shown, FACTS)
    shown.error(DataError("a", "b", "c"))
    codes = re.findall(r"\x1b\[([0-9;]*)m", written(shown.out) + written(shown.err))
    colours = {int(code) for group in codes for code in group.split(";") if code}
    assert not {code for code in colours if 30 <= code <= 49 or code >= 90}


def test_names_from_a_database_are_text_and_no_markup() -> None:
    shown = console(terminal)
    results.status(shown, {**FACTS, "failures": [{"number": 1, "reason": "[bold]x[/nonsense]"}]})
    assert "[bold]x[/nonsense]" in plain(written(shown.out))


def test_a_best_below_a_baseline_is_marked() -> None:
    shown = console(terminal)
    results.status(shown, {**FACTS, "best": {**FACTS["best"], "value": 22.0}})
    assert "22.00 dB, trial 17 (below copy first / nearest pose)" in plain(written(shown.out))
    assert "\x1b[33m22.00 dB" in written(shown.out)


def test_one_is_no_plural() -> None:
    shown = console(pipe)
    results.status(shown, {**FACTS, "budget": {"trials": 1, "epochs": 1}, "epochs_spent": 1})
    assert "1 trial of 1 epoch; 1 epoch spent" in written(shown.out)
    results.check_report(shown, {**REPORT, "problems": ["x"], "problem_count": 1, "ok": False})
    assert "\n1 problem: mend it first." in written(shown.out)


REPORT: dict[str, Any] = {
    "root": "/a" * 100,
    "clips": 2,
    "counts": {"val/val_img": 6},
    "sizes": {},
    "sequences": [],
    "baselines": None,
    "problems": [],
    "problem_count": 0,
    "ok": True,
}


@pytest.mark.parametrize("make", [terminal, pipe])
def test_a_long_path_is_never_folded(make: Callable[[], Terminal]) -> None:
    shown = console(make)
    results.check_report(shown, REPORT)
    assert plain(written(shown.out)).splitlines()[0] == f"{REPORT['root']}: 2 clips of 16 frames"
    shown = console(make)
    results.check_report(
        shown, {**REPORT, "counts": {"val/val_img": 0}, "ok": False, "problem_count": 1, "problems": ["x"]}
    )
    assert plain(written(shown.out)).split("\n")[:2] == ["- x", "1 problem: mend it first."]


@pytest.mark.parametrize(
    ("nearest", "said"),
    [
        (25.0, "That is 1.00 dB above the better of copying the first frame and showing the mean frame."),
        (28.0, "showing the mean frame, but 2.00 dB below the nearest pose."),
    ],
)
def test_a_score_says_also_when_the_nearest_pose_is_not_beaten(nearest: float, said: str) -> None:
    shown = console(pipe)
    explained = [{"text": "speed", "psnr_is": "lower"}, {"text": "drift", "psnr_is": "unknown"}]
    more = {"gain_over_baselines": 1.0, "public": {}, "worst_frames": [7, 3], "explained": explained}
    levels = {"copy_first": 25.0, "train_mean": 24.0, "nearest_pose": nearest}
    sheet = {"checkpoint": "x.pt", "epoch": 1, "val_psnr": 26.0, "val_psnr_late": 26.0, "baselines": levels}
    results.score(shown, {**sheet, **more})
    assert said in written(shown.out) and "- speed\n- drift\n" in written(shown.out)
    shown = console(pipe)
    results.score(shown, {**sheet, **more, "explained": explained[1:]})
    assert "No measure is clearly related" in written(shown.out) and "drift" not in written(shown.out)


def test_a_silent_worker_is_shown_with_the_time_until_its_trial_goes_to_others() -> None:
    worker = {**FACTS["workers"][0], "id": "vm-1-ab", "study": "main", "stopping": False, "beat_age_s": 85.0}
    for takeover_s, said in ((35.2, "goes to others in 35 s."), (0.0, "waits for another worker.")):
        silent = {**worker, "state": "silent", "takeover_s": takeover_s}
        shown = console(pipe)
        results.status(shown, {**FACTS, "workers": [silent]})
        results.workers(shown, [silent])
        assert written(shown.out).count(f"vm-1-ab is silent: its trial 43 {said}") == 2

"""What people see: the same facts on a terminal of 80 columns, in a pipe and without colour."""

from __future__ import annotations

import io
import logging
import math
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.errors import DataError, StorageUnreachable
from cvaeopt.terminal import results
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.streams import Output, Terminal
from cvaeopt.terminal.training import training
from cvaeopt.terminal.watch import watch
from cvaeopt.text import SPARKS, Advice, duration, short, sparkline
from tests.support.waiting import LONG_S, until


def terminal(width: int = 80, **options: Any) -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=True, width=width, height=24, highlight=False, **options)


def pipe() -> Terminal:
    return Terminal(file=io.StringIO(), force_terminal=False, highlight=False)


def written(to: Terminal) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def console(make: Callable[[], Terminal], **options: Any) -> Console:
    made = Console(**options)
    made.out, made.err = make(), make()
    return made


FACTS: dict[str, Any] = {
    "study": "main",
    "storage": "postgresql+psycopg://cvaeopt:***@db.example.org:5432/cvaeopt",
    "direction": "maximize",
    "metric": "val_psnr",
    "budget": {"trials": 60, "epochs": 100, "total_epochs": 4000, "wall_clock_h": 12.0},
    "trials": {"complete": 12, "pruned": 30, "running": 2, "waiting": 0, "failed": 7},
    "epochs_spent": 2345,
    "best": {"number": 17, "value": 33.1, "params": {"lr": 0.0012345678, "tfr": 0.0, "kl_anneal_type": "cyclical"}},
    "baselines": {"copy_first": 24.1, "train_mean": 21.9, "nearest_pose": 26.0},
    "last": {"number": 44, "state": "pruned", "value": None, "reason": "pruned at epoch 20"},
    "failures": [{"number": n, "reason": "The training loss became nan in epoch 3. " + "x" * 60} for n in range(7)],
    "stopped": None,
    "workers": [
        {
            "id": f"a-rather-long-host-name-{n}-4711-ab12",
            "host": "a-rather-long-host-name",
            "device": "cuda:0",
            "state": state,
            "trial": 43 if state == "running" else None,
            "epoch": 7 if state == "running" else None,
            "beat_age_s": 1.2 + n,
        }
        for n, state in enumerate(["running", "dead", "stopped", "stopped", "stopped", "stopped"])
    ],
}
EMPTY: dict[str, Any] = {
    **FACTS,
    "budget": {"trials": None, "epochs": 5, "total_epochs": None, "wall_clock_h": None},
    "trials": dict.fromkeys(FACTS["trials"], 0),
    "epochs_spent": 0,
    "best": None,
    "baselines": {},
    "last": None,
    "failures": [],
    "workers": [],
}


# ---- figures


@given(st.lists(st.floats(), max_size=60), st.integers(1, 40))
def test_a_sparkline_has_one_sign_for_each_of_the_newest_values(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(len(values), width)
    for sign, value in zip(line, values[-width:], strict=True):
        assert sign == "·" if not math.isfinite(value) else sign in SPARKS


def test_a_sparkline_rises_with_its_values() -> None:
    assert sparkline(list(range(8))) == SPARKS
    assert sparkline([1.0, math.nan, 3.0]) == "▁·█"
    assert sparkline([2.0, 2.0]) == "▁▁"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (48, "48 s"),
        (89.4, "89 s"),
        (120, "2 min"),
        (5000, "83 min"),
        (3 * 3600 + 300, "3 h 05"),
        (52 * 3600, "2 d 4 h"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_settings_are_short() -> None:
    assert [short(value) for value in (0.0012345678, 3, "cyclical", 0.0)] == ["0.001235", "3", "cyclical", "0"]


# ---- status


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


FRESH: dict[str, Any] = {"studies": ["main.confirm"], "runs": 6, "leaders": [{}, {}], "table": [{"trial": "17"}]}


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


def test_advice_is_given_in_the_users_words_everywhere() -> None:
    shown = console(pipe)
    shown.spell = lambda words: " ".join(["run", *words[:-1], f"dir/{words[-1]}.toml"])
    advice = Advice("Try", "worker", "--study", "main")
    shown.say(advice)
    shown.warn(advice)
    shown.result(advice)
    shown.error(DataError("error", todo=advice))
    assert written(shown.out) == "Try run worker --study dir/main.toml\n"
    assert written(shown.err).splitlines() == [
        "Try run worker --study dir/main.toml",
        "Warning: Try run worker --study dir/main.toml",
        "Error: error Try run worker --study dir/main.toml",
    ]


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


@pytest.mark.parametrize(
    ("nearest", "said"),
    [
        (25.0, "That is 1.00 dB above the better of copying the first frame and showing the mean frame."),
        (28.0, "showing the mean frame, but 2.00 dB below the nearest pose."),
    ],
)
def test_a_score_says_also_when_the_nearest_pose_is_not_beaten(nearest: float, said: str) -> None:
    shown = console(pipe)
    levels = {"copy_first": 25.0, "train_mean": 24.0, "nearest_pose": nearest}
    sheet = {"checkpoint": "x.pt", "epoch": 1, "val_psnr": 26.0, "val_psnr_late": 26.0, "baselines": levels}
    results.score(shown, {**sheet, "gain_over_baselines": 1.0, "public": {}})
    assert said in written(shown.out)


# ---- watching


class Script:
    """Facts, or errors, one after the other; Ctrl-C at their end."""

    def __init__(self, *steps: dict[str, Any] | Exception) -> None:
        self.steps = list(steps)

    def read(self) -> dict[str, Any]:
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def sleep(self, seconds: float) -> None:
        if not self.steps:
            raise KeyboardInterrupt


LATER = {**FACTS, "epochs_spent": 2400}
AWAY = StorageUnreachable("The database did not answer for 10 s.")


def test_watching_a_pipe_says_a_line_for_every_change() -> None:
    shown, script = console(pipe), Script(FACTS, FACTS, LATER, LATER)
    watch(shown, script.read, sleep=script.sleep)
    lines = written(shown.out).splitlines()
    assert lines == [
        f"main: 12 complete, 30 pruned, 2 running, 7 failed; {spent} epochs spent; best 33.10 dB (trial 17); 1 worker"
        for spent in (2345, 2400)
    ]


def test_watching_a_terminal_outlives_the_database_and_leaves_the_last_state_behind() -> None:
    shown, script = console(terminal), Script(FACTS, AWAY, LATER)
    watch(shown, script.read, sleep=script.sleep)
    text = written(shown.out)
    enter, leave = "\x1b[?1049h", "\x1b[?1049l"
    assert text.count(enter) == text.count(leave) == 1
    assert "did not answer for 10 s" in plain(text)
    assert "2400 epochs spent" in plain(text.partition(leave)[2])


def test_watching_a_pipe_outlives_the_database_and_says_so_once() -> None:
    shown, script = console(pipe), Script(FACTS, AWAY, AWAY, LATER, AWAY, LATER)
    watch(shown, script.read, sleep=script.sleep)
    assert [re.findall(r"\d+ epochs", line) for line in written(shown.out).splitlines()] == [
        ["2345 epochs"],
        ["2400 epochs"],
    ]
    outage = "Warning: The database did not answer for 10 s. Waiting for it."
    assert written(shown.err).splitlines() == [outage, outage]


def test_watching_ends_when_nobody_reads_any_more() -> None:
    shown = Console()
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        shown.out = Terminal(file=Output(stream))
        readings = 0

        def read() -> dict[str, Any]:
            nonlocal readings
            readings += 1
            if readings == 2:  # although there is nothing new to write
                os.close(reading)
            return FACTS

        watch(shown, read, sleep=lambda _: None)
    assert readings == 2


@pytest.mark.parametrize("make", [terminal, pipe])
def test_watching_what_is_not_there_is_an_error(make: Callable[[], Terminal]) -> None:
    shown, script = console(make), Script(AWAY)
    with pytest.raises(StorageUnreachable):
        watch(shown, script.read, sleep=script.sleep)


# ---- errors


def test_an_error_is_one_panel_on_stderr() -> None:
    shown = console(terminal)
    shown.error(DataError("train/train_img/3.png is missing.", "Expected: a picture for every label.", "Add it."))
    assert written(shown.out) == ""
    lines = plain(written(shown.err)).splitlines()
    assert lines[0].startswith("╭─ Error") and lines[-1].startswith("╰")
    assert [line.strip("│ ") for line in lines[1:-1]] == [
        "train/train_img/3.png is missing.",
        "Expected: a picture for every label.",
        "Add it.",
    ]


def test_an_error_in_a_pipe_is_one_line_also_when_quiet() -> None:
    shown = console(pipe, quiet=True)
    shown.error(DataError("found " + "x" * 200, "expected", "todo"))
    assert written(shown.err) == f"Error: found {'x' * 200} expected todo\n"


def test_verbose_adds_the_traceback() -> None:
    shown = console(pipe, verbose=True)
    try:
        raise DataError("found")
    except DataError as error:
        shown.error(error)
    assert written(shown.err).startswith("Traceback (most recent call last):")
    assert written(shown.err).endswith("Error: found\n")


@pytest.mark.parametrize("verbose", [False, True])
def test_what_is_concealed_is_never_shown(verbose: bool) -> None:
    shown = console(pipe, verbose=verbose)
    shown.conceal("sqlite:///geheim", "sqlite:///***")
    try:
        try:
            raise OSError("sqlite:///geheim?x=1")
        except OSError as cause:
            raise DataError("at sqlite:///geheim") from cause
    except DataError as error:
        shown.error(error)
    assert "geheim" not in written(shown.err)
    assert "sqlite:///***" in written(shown.err)


# ---- progress


def test_quiet_keeps_results_and_warnings_only() -> None:
    shown = console(pipe, quiet=True)
    shown.say("progress")
    with shown.progress() as progress:
        progress("decoding", 1, 1)
    shown.warn("careful")
    shown.result("result")
    assert written(shown.err) == "Warning: careful\n"
    assert written(shown.out) == "result\n"


def test_progress_in_a_pipe_is_a_line_at_the_end_of_each_step() -> None:
    shown = console(pipe)
    with shown.progress() as progress:
        for what in ("decoding", "checking"):
            for done in range(11):
                progress(what, done, 10)
        progress("checking", 10, 10)
    assert written(shown.err) == "decoding: 10 of 10\nchecking: 10 of 10\n"


def test_progress_on_a_terminal_leaves_nothing_behind() -> None:
    shown = console(terminal)
    with shown.progress() as progress:
        progress("decoding", 1, 2)
        progress("decoding", 2, 2)
    text = written(shown.err)
    assert "decoding" in text
    assert text.endswith("\x1b[2K")  # the line is cleared


ROWS = [
    {"epoch": epoch, "val_psnr": 20.0 + epoch, "train_loss": 0.1, "lr": 1e-3, "seconds": 2.0} for epoch in range(1, 5)
]


def test_a_retrain_in_a_pipe_says_a_line_an_epoch_and_knows_what_was_before() -> None:
    shown = console(pipe)
    with training(shown, "run", 4, [{**ROWS[0], "val_psnr": 30.0}, ROWS[1]]) as heard:
        heard(ROWS[2])
        heard(ROWS[3])
    assert written(shown.err).splitlines() == [
        f"run epoch {n}/4: {20 + n}.00 dB, best 30.00 (epoch 1), loss 0.1, lr 1.0e-03, 2.0 s, {left} s left"
        for n, left in ((3, 2), (4, 0))
    ]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_retrain_on_a_terminal_fits_and_ends_with_one_line(width: int) -> None:
    shown = console(lambda: terminal(width))
    with training(shown, "run", 4, []) as heard:
        for row in ROWS:
            heard(row)
        until(lambda: "▁▃▆█" in plain(written(shown.err)))
    text = written(shown.err)
    lines = plain(text).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert "▁▃▆█" in plain(text)
    left_behind = text.rpartition("\x1b[2K")[2]
    assert " ".join(left_behind.split()) == "run epoch 4/4: 24.00 dB, best 24.00 (epoch 4), loss 0.1, lr 1.0e-03"


def test_logged_warnings_are_said() -> None:
    shown = console(pipe)
    log = logging.getLogger("cvaeopt_test")
    shown.show_warnings(log.name)
    log.warning("a note could not be written (%s)", "disk full")
    log.info("nothing of interest")
    assert written(shown.err) == "Warning: a note could not be written (disk full)\n"


def test_slow_work_is_announced_and_quick_work_is_not() -> None:
    shown = console(pipe)
    with shown.announce("quick", after_s=30):
        pass
    said = threading.Event()
    shown.err.print = lambda *args, **options: said.set()  # type: ignore[method-assign]
    with shown.announce("slow", after_s=0):
        assert said.wait(LONG_S)
    assert written(shown.err) == ""

"""What a console shows on a terminal of 80 columns, in a pipe and without colour: lines, errors and progress."""

from __future__ import annotations

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvaeopt.errors import DataError
from cvaeopt.terminal.training import training
from cvaeopt.text import SPARKS, Advice, duration, short, sparkline
from tests.support.screens import console, pipe, plain, terminal, written
from tests.support.waiting import until

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

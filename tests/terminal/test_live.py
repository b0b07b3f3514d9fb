"""A worker's events, on a terminal of 80 columns and in a pipe."""

from __future__ import annotations

import pickle
import typing
from dataclasses import replace
from typing import Any

import pytest

from cvaeopt.run import events
from cvaeopt.store.outage import unreachable
from cvaeopt.terminal.live import WorkerView
from cvaeopt.terminal.worker_log import WorkerLog, time_left_s
from tests.support.screens import FACTS, console, pipe, plain, terminal, written

BASELINES = {"copy_first": 24.1, "train_mean": 21.9, "nearest_pose": 26.0}
PARAMS = {
    "lr": 0.0012345678,
    "tfr": 0.4431,
    "tfr_sde": 12,
    "tfr_d_step": 0.0712,
    "kl_anneal_type": "cyclical",
    "kl_anneal_cycle": 4,
    "kl_anneal_ratio": 0.6123,
}
STARTED = events.WorkerStarted("vm-4711-ab12", "main", "cuda:0")
TRIAL = events.TrialStarted(7, 0, 5, 1, PARAMS)
LONG = "something went wrong at great length " * 6


def epoch(number: int, value: float, seconds: float = 2.0, pending: bool = False) -> events.EpochDone:
    return events.EpochDone(7, number, 5, value, {"seconds": seconds}, pending)


OPENED = events.StudyOpened("main", BASELINES)
ALL: list[events.Event] = [
    OPENED,
    STARTED,
    events.StudyExtended("main", 1, 2, "anna@lab", ["budget.trials: 60 -> 100", LONG]),
    events.StudyRead(FACTS),
    events.LeaseTaken(7, 2, 1, 1),
    replace(TRIAL, epoch=1, attempt=2),
    epoch(2, 20.0),
    epoch(3, float("nan")),
    epoch(4, 27.5, pending=True),
    events.Outage(65.0, LONG),
    events.Recovered(120.0, 3),
    events.Stalled(7, 900.0),
    events.Warned(LONG),
    events.TrialEnded(7, "complete", "all epochs trained", 5, 27.5),
    events.TrialEnded(8, "pruned", "pruned at epoch 2", 2),
    events.TrialEnded(9, "failed", LONG, 1, failed="diverged"),
    events.Waiting(LONG),
    TRIAL,
    events.TrialLeft(7, 3, "SIGTERM received"),
    events.Stopping("SIGTERM received"),
    events.WorkerEnded("stopped", "SIGTERM received", 3),
]


def test_these_are_all_events() -> None:
    assert {type(event) for event in ALL} == set(typing.get_args(events.Event))


@pytest.mark.parametrize("width", [40, 80, 132])
def test_every_event_fits_its_terminal(width: int) -> None:
    shown = console(lambda: terminal(width))
    with WorkerView(shown) as view:
        for event in ALL:
            view.heard(event)
            shown.err.print(view.renderable())
    lines = plain(written(shown.err)).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= width
    assert written(shown.out) == ""


def test_the_live_lines_show_the_trial_its_curve_and_the_study() -> None:
    shown = console(terminal)
    with WorkerView(shown, clock=lambda: 0.0) as view:
        for event in (OPENED, STARTED, events.StudyRead(FACTS), TRIAL, epoch(1, 20.0), epoch(2, 25.0), epoch(3, 30.0)):
            view.heard(event)
        with shown.err.capture() as captured:
            shown.err.print(view.renderable())
    lines = plain(captured.get()).replace("\r", "\n").splitlines()
    text = " ".join(" ".join(lines).split())
    assert "trial 7 lr 0.001235, tfr 0.4431, tfr_sde 12, tfr_d_step 0.0712, kl_anneal_type cyclical" in text
    assert "epoch 3/5, 2.0 s each, 4 s left" in text
    assert "▁▅█ 30.00 dB, study's best 33.10 (-3.10), copy first 24.10 (+5.90)" in text
    assert "study main: 49 of 60 trials, 1 worker, best 33.10 dB (trial 17), 7 failed" in text
    assert max(map(len, lines)) <= 77


def test_a_pipe_gets_one_line_an_event_that_says_which_process_speaks() -> None:
    shown = console(pipe)
    with WorkerView(shown) as view:
        for event in (OPENED, STARTED, TRIAL, epoch(1, 20.0), epoch(2, 25.0, 4.0, pending=True)):
            view.heard(event)
        view.heard(events.TrialEnded(7, "complete", "all epochs trained", 5, 25.0))
        view.heard(epoch(1, 24.0))
        view.heard(events.WorkerEnded("finished", "all 60 trials are taken", 1))
    assert written(shown.err).splitlines() == [
        "[4711] worker vm-4711-ab12 on cuda:0 takes trials of study main",
        "[4711] baselines: copy first 24.10, mean frame 21.90, nearest pose 26.00 dB",
        "[4711] trial 7: lr 0.001235, tfr 0.4431, tfr_sde 12, tfr_d_step 0.0712, kl_anneal_type cyclical, "
        "kl_anneal_cycle 4, kl_anneal_ratio 0.6123",
        "[4711] trial 7 epoch 1/5: 20.00 dB, copy first 24.10 (-4.10), 2.0 s an epoch, 8 s left",
        "[4711] trial 7 epoch 2/5: 25.00 dB, copy first 24.10 (+0.90), 3.0 s an epoch, 9 s left "
        "(the report waits for the database)",
        "[4711] trial 7 complete 25.00 dB (the best so far) after 5 epochs: all epochs trained ▁█",
        "[4711] trial 7 epoch 1/5: 24.00 dB, study's best 25.00 (-1.00), copy first 24.10 (-0.10), 2.0 s an epoch, "
        "8 s left",
        "[4711] finished: all 60 trials are taken; 1 trial ended here",
    ]


def test_the_best_is_that_of_the_study_and_not_of_this_worker() -> None:
    shown = console(pipe)
    with WorkerView(shown) as view:
        view.heard(events.StudyRead(FACTS))
        view.heard(TRIAL)
        view.heard(events.TrialEnded(7, "complete", "all epochs trained", 5, 30.0))
        view.heard(epoch(1, 31.0))
        view.heard(events.TrialEnded(7, "complete", "all epochs trained", 5, 34.0))
        view.heard(epoch(1, 31.0))
    said = written(shown.err)
    assert "30.00 dB after 5 epochs" in said
    assert "31.00 dB, study's best 33.10 (-2.10)" in said
    assert "34.00 dB (the best so far)" in said
    assert "31.00 dB, study's best 34.00 (-3.00)" in said


def test_what_was_known_of_one_study_is_not_said_of_the_next_one() -> None:
    shown = console(pipe)
    with WorkerView(shown) as view:
        for event in (OPENED, STARTED, events.StudyRead(FACTS), TRIAL, epoch(1, 20.0)):
            view.heard(event)
        view.heard(events.StudyOpened("main.confirm", {}))
        view.heard(replace(STARTED, study="main.confirm"))
        view.heard(epoch(1, 21.0))
    assert written(shown.err).splitlines()[-2:] == [
        "[4711] worker vm-4711-ab12 on cuda:0 takes trials of study main.confirm",
        "[4711] trial 7 epoch 1/5: 21.00 dB, 2.0 s an epoch, 8 s left",
    ]


def test_quiet_workers_say_what_is_wrong_and_nothing_else() -> None:
    shown = console(terminal, quiet=True)
    with WorkerView(shown) as view:
        for event in (OPENED, STARTED, TRIAL, epoch(1, 20.0), events.Warned("the disk is nearly full")):
            view.heard(event)
    assert plain(written(shown.err)) == "Warning: the disk is nearly full\n"


def facts(ended: int, spent: int, running: list[int], **budget: Any) -> dict[str, Any]:
    return {
        "budget": {"trials": None, "epochs": 10, "total_epochs": None, **budget},
        "trials": {"complete": ended, "pruned": 0, "running": len(running), "waiting": 0, "failed": 0},
        "open_trials": [{"trial": 1, "epoch": done, "epochs": 10} for done in running],
        "epochs_spent": spent,
        "workers": [{"state": "running", "trial": 1, "epoch": done} for done in running],
    }


@pytest.mark.parametrize(
    ("known", "epochs_left"),
    [
        (facts(0, 0, [], trials=4), 40),
        (facts(0, 6, [3, 3], trials=4), (40 - 6) / 2),  # two workers share them
        (facts(2, 13, [3], trials=4), 7 + 5),  # trials that ended had 5 epochs each: most were pruned
        (facts(4, 40, [], trials=4), 0),
        (facts(1, 0, [], trials=4), None),  # how long the others take is not known
        (facts(4, 45, [5], total_epochs=100), 55),
        (facts(4, 45, [5]), None),
    ],
)
def test_the_time_left_of_a_study_follows_from_its_budget_and_pace(
    known: dict[str, Any], epochs_left: float | None
) -> None:
    assert time_left_s(known, 3.0) == (None if epochs_left is None else 3.0 * epochs_left)


def test_epochs_since_the_study_was_read_are_not_left() -> None:
    known = facts(3, 39, [9], trials=4)
    assert time_left_s(known, 2.0) == 2.0
    assert time_left_s(known, 2.0, since=1) == 0.0


def test_the_dead_do_not_help() -> None:
    known = facts(0, 4, [2, 2], trials=2)
    known["workers"][1]["state"] = "dead"
    assert time_left_s(known, 1.0) == 16


def test_a_trial_that_was_taken_over_is_counted_once_and_those_not_begun_too() -> None:
    known = facts(1, 10 + 6, [6], trials=4)  # one of 4 trials has ended, and two were not begun
    known["workers"].insert(0, {"state": "silent", "trial": 1, "epoch": 6})
    assert time_left_s(known, 2.0) == 2.0 * (4 + 2 * 10)


def test_a_study_never_ends_before_the_trial_in_training() -> None:
    log = WorkerLog()
    log.lines(TRIAL)
    log.lines(events.StudyRead({**facts(4, 40, [], trials=4), "best": None}))
    (line,) = log.lines(epoch(1, 20.0))
    assert "8 s left (about 8 s left for the study)" in line.text


def test_an_outage_is_said_once_in_one_sentence() -> None:
    """The reason is that of the driver alone: time and database are said before it."""
    driver = 'connection to server at "localhost" (127.0.0.1), port 5432 failed: Connection refused'
    error = unreachable("postgresql://lab:***@localhost/x", 5.0, driver)
    (line,) = WorkerLog().lines(events.Outage(5.0, error.reason))
    assert line.text == (
        f"training goes on without the database, which has not answered for 5 s: {driver}; "
        "reports are kept and delivered later"
    )
    assert pickle.loads(pickle.dumps(error)).reason == driver

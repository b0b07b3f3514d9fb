"""What this process is asked by signals: to stop after its epoch, and to stop at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cvaeopt.run.signals import STOP_SIGNALS, Stop, StopNow


@pytest.fixture(autouse=True)
def _handlers_come_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


@pytest.mark.parametrize("first", STOP_SIGNALS)
@pytest.mark.parametrize("second", STOP_SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_an_order(first: signal.Signals, second: signal.Signals) -> None:
    with Stop() as stop:
        assert not stop
        signal.raise_signal(first)
        assert stop and stop.name == first.name
        with pytest.raises(StopNow):
            signal.raise_signal(second)
    assert (stop.name, stop.count) == (first.name, 2)


def test_a_request_from_elsewhere_counts_once_and_before_a_signal() -> None:
    stop = Stop()
    stop.ask_once(signal.SIGTERM)
    stop.ask_once(signal.SIGINT)
    assert (stop.name, stop.count) == ("SIGTERM", 1)
    with pytest.raises(StopNow), stop:
        signal.raise_signal(signal.SIGUSR1)
    stop.ask_once(signal.SIGTERM)
    assert stop.count == 2


def test_a_supervisor_counts_signals_and_is_not_interrupted() -> None:
    with Stop(raise_at=None) as stop:
        for number in STOP_SIGNALS:
            signal.raise_signal(number)
    assert (stop.name, stop.count) == (STOP_SIGNALS[0].name, len(STOP_SIGNALS))


def test_blocks_may_be_nested_and_count_together() -> None:
    with Stop(raise_at=None) as stop:
        signal.raise_signal(signal.SIGTERM)
        with stop:
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.count == 3


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_what_has_no_epoch_ends_at_the_first_signal(number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), Stop(raise_at=1):
        signal.raise_signal(number)


def test_a_thread_hears_no_signals_and_changes_no_handler() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    inside: list[object] = []

    def work() -> None:
        with Stop(raise_at=1):
            inside.extend(signal.getsignal(number) for number in STOP_SIGNALS)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before


IGNORED = """
import signal
from cvaeopt.run.signals import Stop
for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
with Stop() as stop:
    signal.raise_signal(signal.SIGHUP)
    print(stop.name)
    signal.raise_signal(signal.SIGINT)
    print(stop.name)
"""


def test_under_nohup_a_lost_terminal_stops_nothing() -> None:
    said = subprocess.run([sys.executable, "-c", IGNORED], stdout=subprocess.PIPE, text=True, check=True)
    assert said.stdout == "\nSIGINT\n"  # a script's `&` ignores SIGINT, and a person who sends it means it

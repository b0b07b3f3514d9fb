"""Several workers on one device: what their parent does when they end, die, or are to stop."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as Terminal

from cvaeopt.run import events
from cvaeopt.run.processes import ParentProcess, Processes, memory_fraction, merged, supervise, threads_each
from cvaeopt.run.signals import STOP_SIGNALS
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.live import ProcessesView
from tests.support.command import STUDY, Shop
from tests.support.held import Gate
from tests.support.waiting import LONG_S, until

pytestmark = pytest.mark.usefixtures("uncharted_module")

# ---- arithmetic


@pytest.mark.parametrize(
    ("codes", "together"),
    [
        ([0, 0, 0], 0),
        ([0, 2, 75], 2),
        ([0, 1, 3], 1),
        ([3, 75, 137], 3),
        ([75, 137, 0], 75),
        ([0, 137, 139], 139),
        ([2, 130], 130),
    ],
)
def test_what_needs_a_person_comes_before_what_may_go_better_next_time(codes: list[int], together: int) -> None:
    assert merged(codes) == together == merged(codes[::-1])


@given(st.integers(1, 64), st.integers(1, 256))
def test_workers_share_the_cores_and_take_no_more_than_there_are(size: int, cores: int) -> None:
    each = threads_each(size, None, cores)
    assert each >= 1
    assert size * each <= max(cores, size)
    assert threads_each(size, 5, cores) == 5
    assert threads_each(size, None, cores, "1") == 1
    assert threads_each(size, None, cores, "1000") == threads_each(size, None, cores, "many") == each


@given(st.integers(1, 64), st.floats(2e9, 3e11))
def test_neighbours_cannot_take_a_devices_memory_from_each_other(size: int, total: float) -> None:
    fraction = memory_fraction(total, size)
    assert 0 < fraction * size < 1
    if total / size >= 1.2e9:  # then there is room for what each process takes for itself
        assert size * (fraction * total + 600e6) <= total * (1 + 1e-9)


# ---- made-up children

CHILD = """
import os, pathlib, socket, sys, time
descriptor, size = os.environ["CVAEOPT_PARENT"].split(",")
end, here = socket.socket(fileno=int(descriptor)), pathlib.Path(sys.argv[1])
def say(text):
    print(text, file=sys.stderr, flush=True)
def ready():
    end.sendall(b'{"event": "StudyOpened", "study": "tiny", "baselines": {}}\\n')
def order():
    try:
        return end.recv(1)
    except ConnectionResetError:  # the parent was killed before it had read what was said
        return b""
def born():
    "How many were started before this one."
    for number in range(100):
        try:
            os.close(os.open(here / f"born{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            pass
def wait_for(number):
    "Until so many others were started after the first."
    while not (here / f"born{number}").exists():
        time.sleep(0.02)
"""


class Heard:
    """Lines and warnings of children, as they come."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, slot: int, said: events.Event | str) -> None:
        match said:
            case events.Warned(message=message):
                self.lines.append(f"{slot} Warning: {message}")
            case str():
                self.lines.append(f"{slot} {said}")

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)


def together(folder: Path, life: str, size: int, heard: Heard | None = None, **limits: float) -> tuple[int, Heard]:
    """Exit code and lines of processes whose children live `life`."""
    heard = heard or Heard()
    command = [sys.executable, "-c", CHILD + life, str(folder)]
    return Processes(command, size, os.environ, heard, **{"pause_s": 0.05, **limits}).run(), heard  # type: ignore[arg-type]


def test_wrong_input_is_said_once(tmp_path: Path) -> None:
    code, heard = together(tmp_path, "say('Error: no such study.'); sys.exit(2)", 4)
    assert (code, heard.lines) == (2, ["0 Error: no such study."])


def test_the_others_start_when_the_first_is_ready(tmp_path: Path) -> None:
    life = """
me = born()
if me == 0:
    time.sleep(0.3)
    (here / "first").touch()
say(f"{me < 3} of {size}, the first is ready: {(here / 'first').exists()}")
ready()
"""
    code, heard = together(tmp_path, life, 3)
    assert code == 0
    assert sorted(heard.lines) == [f"{slot} True of 3, the first is ready: True" for slot in range(3)]


def test_a_killed_child_is_started_again_and_the_others_go_on(tmp_path: Path) -> None:
    life = "ready(); me = born(); say(f'born {me}'); os.kill(os.getpid(), 9) if me == 1 else wait_for(2)"
    code, heard = together(tmp_path, life, 2)
    assert code == 0
    assert heard.count("born ") == 3
    assert heard.count("killed by SIGKILL; started again in 0 s (1 of 5)") == 1


def test_a_device_fault_gets_a_fresh_process(tmp_path: Path) -> None:
    code, heard = together(tmp_path, "me = born(); ready(); sys.exit(75 if me == 0 else 0)", 2)
    assert code == 0
    assert heard.count("ended with code 75; started again") == 1


def test_a_child_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    life = "ready(); me = born(); os.kill(os.getpid(), 11) if me != 0 else wait_for(3)"
    code, heard = together(tmp_path, life, 2, max_restarts=2)
    assert code == 128 + signal.SIGSEGV
    assert heard.count("started again") == 2
    assert heard.count("killed by SIGSEGV, 3 times in a row; given up") == heard.count("given up") == 1


def test_a_first_child_that_always_dies_ends_all(tmp_path: Path) -> None:
    code, heard = together(tmp_path, "born(); os.kill(os.getpid(), 9)", 3, max_restarts=1)
    assert code == 128 + signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # the first and its one repetition
    assert heard.count("given up") == 1


def when(heard_of: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """`act()` in a thread, as soon as `heard_of()`."""

    def wait() -> None:
        until(heard_of)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


OBEDIENT = """
ready(); (here / f"up{born()}").touch()
while True:
    told = order()
    say(f"told {told.decode()}") if told else (here / f"told{os.getpid()}").touch()
    if told == b"n": sys.exit(130)
    if told == b"" or sys.argv[1].endswith("polite"): sys.exit(0)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_is_passed_on_once_and_ends_well(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "polite"
    folder.mkdir()
    up = when(lambda: len(list(folder.glob("up*"))) == 3, lambda: os.kill(os.getpid(), number))
    code, heard = together(folder, OBEDIENT, 3)
    up.join()
    assert code == 0
    assert sorted(heard.lines) == ["0 told s", "1 told s", "2 told s"]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    heard = Heard()

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: heard.count("told s") == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    up = when(lambda: len(list(tmp_path.glob("up*"))) == 2, twice)
    code, _ = together(tmp_path, OBEDIENT, 2, heard)
    up.join()
    assert code == 130
    assert heard.count("told s") == heard.count("told n") == 2


def test_children_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, sys
from cvaeopt.run.processes import Processes
Processes([sys.executable, "-c", {CHILD + OBEDIENT!r}, {str(tmp_path)!r}], 2, os.environ, lambda slot, line: None).run()
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    when(lambda: len(list(tmp_path.glob("up*"))) == 2, parent.kill).join()
    parent.wait()
    when(lambda: len(list(tmp_path.glob("told*"))) == 2, lambda: None).join()
    assert len(list(tmp_path.glob("told*"))) == 2


# ---- events and orders


def test_a_child_tells_events_and_takes_orders() -> None:
    ours, theirs = socket.socketpair()
    parent = ParentProcess(theirs, 2)
    orders: list[bool] = []
    parent.attach(orders.append)
    told = [events.StudyOpened("tiny", {"copy_first": 20.5}), events.Warned("a line\nand another ☃")]
    for event in told:
        parent.tell(event)
    with ours.makefile(encoding="utf-8") as lines:
        assert [events.from_json(next(lines)) for _ in told] == told
    ours.sendall(b"s")
    until(lambda: orders == [False])
    ours.sendall(b"n")
    until(lambda: orders == [False, True])
    ours.close()
    until(lambda: orders == [False, True, False])  # whoever started it is gone: stop after the epoch
    parent.tell(told[0])  # nobody hears it, and nothing fails
    theirs.close()


def test_children_are_told_to_stop_when_their_parent_fails(tmp_path: Path) -> None:
    processes = Processes([sys.executable, "-c", CHILD + OBEDIENT, str(tmp_path)], 1, os.environ, Heard())

    def fail_when_it_is_up() -> None:
        if list(tmp_path.glob("up*")):
            raise RuntimeError("a bug")

    processes._start_others = fail_when_it_is_up  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a bug"):
        processes.run()
    child = processes._slots[0].process
    assert child is not None and child.wait(LONG_S) == 0
    assert list(tmp_path.glob("told*"))


def test_half_an_event_of_a_killed_child_is_dropped(tmp_path: Path) -> None:
    life = """
ready()
if born() == 0:
    end.sendall(b'{"event": "Warned", "mess')
    os.kill(os.getpid(), 9)
"""
    code, heard = together(tmp_path, life, 1)
    assert (code, heard.lines) == (0, ["0 Warning: the worker was killed by SIGKILL; started again in 0 s (1 of 5)"])


def test_children_are_given_their_settings_where_nobody_can_read_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Noted:
        def __init__(self, command: list[str], size: int, environment: dict[str, str], heard: object) -> None:
            made.extend([command, size, environment])

        def run(self) -> int:
            return 3

    monkeypatch.setattr("cvaeopt.run.processes.Processes", Noted)
    monkeypatch.setenv("CVAEOPT_TRIALS_PER_GPU", "2")
    url = "postgresql://lab:geheim@db/x"
    variables = {"STORAGE": url, "CHECKPOINTS": None}
    assert supervise(["worker", "--study", "tiny"], 2, variables, 3, lambda slot, said: None) == 3
    command, size, environment = made
    assert command[3:] == ["worker", "--study", "tiny"] and size == 2 and "geheim" not in " ".join(command)
    assert (environment["CVAEOPT_STORAGE"], environment["CVAEOPT_THREADS"]) == (url, "3")
    assert "CVAEOPT_CHECKPOINTS" not in environment and "CVAEOPT_TRIALS_PER_GPU" not in environment


# ---- what is seen

OPENED = events.StudyOpened("main", {"copy_first": 20.76})


def epoch(trial: int, number: int, value: float) -> events.EpochDone:
    return events.EpochDone(trial, number, 4, value, {"seconds": 2.0}, False)


def test_a_line_has_its_slot_and_the_baselines_come_once(capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessesView(Console(), 2) as view:
        for slot in (0, 1):
            view.heard(slot, OPENED)
            view.heard(slot, events.WorkerStarted(f"vm-{slot}-ab12", "main", "cpu"))
            view.heard(slot, epoch(3, 1, 21.0))
        view.heard(1, events.Warned("the disk is full"))
        view.heard(0, "Error: no room")
    said = "trial 3 epoch 1/4: 21.00 dB, copy first 20.76 (+0.24), 2.0 s an epoch, 6 s left"
    assert capsys.readouterr().err.splitlines() == [
        "[0] worker vm-0-ab12 on cpu takes trials of study main",
        "[0] baselines: copy first 20.76 dB",
        f"[0] {said}",
        "[1] worker vm-1-ab12 on cpu takes trials of study main",
        f"[1] {said}",
        "[1] Warning: the disk is full",
        "[0] Error: no room",
    ]


def test_quiet_processes_say_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    with ProcessesView(Console(quiet=True), 1) as view:
        view.heard(0, epoch(3, 1, 21.0))
        view.heard(0, events.Warned("the disk is full"))
        view.heard(0, "Error: no room")
    assert capsys.readouterr().err == "[0] Warning: the disk is full\n[0] Error: no room\n"


def test_a_childs_words_hide_the_password_too(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.conceal("geheim", "***")
    view = ProcessesView(console, 1)
    view.heard(0, events.Warned("lab:geheim@db is away"))
    view.heard(0, "Error: lab:geheim@db")
    assert capsys.readouterr().err == "[0] Warning: lab:***@db is away\n[0] Error: lab:***@db\n"


def test_on_a_terminal_the_newest_epoch_of_each_child_stands_at_the_foot() -> None:
    console = Console()
    console.err = Terminal(file=io.StringIO(), force_terminal=True, width=80, height=24, highlight=False)
    view = ProcessesView(console, 3)
    for slot, event in [
        (0, epoch(3, 1, 21.0)),
        (2, epoch(4, 1, 19.0)),
        (0, epoch(3, 2, 22.0)),
        (2, events.TrialEnded(4, "pruned", "pruned at epoch 1", 1)),
    ]:
        view.heard(slot, event)
    console.err.print(view.renderable())
    assert isinstance(console.err.file, io.StringIO)
    assert [line.strip() for line in console.err.file.getvalue().splitlines()] == [
        "[2] trial 4 pruned after 1 epoch: pruned at epoch 1 ▁",
        "[0] trial 3 epoch 2/4: 22.00 dB, 2.0 s an epoch, 4 s left",
    ]


# ---- real ones

TRIALS, EPOCHS = 3, 5


def new_shop(root: Path, data: Path | None) -> Shop:
    shop = Shop.new(root, data)
    study = STUDY.replace("trials = 2", f"trials = {TRIALS}").replace("epochs = 1", f"epochs = {EPOCHS}")
    study = study.replace("tfr_sde = 0", "tfr_sde = 0\nframe_H = 8\nframe_W = 16")
    (shop.root / "studies" / "tiny.toml").write_text(study)
    return shop


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A folder in which one worker has trained the study."""
    shop = new_shop(tmp_path_factory.mktemp("alone"), None)
    threads = torch.get_num_threads()
    said = shop.run("worker", "--study", "tiny", "--threads", "1")
    torch.set_num_threads(threads)
    assert said.code == 0, said.err
    yield shop


def histories(shop: Shop) -> dict[str, list[dict[str, float]]]:
    """The rows of every trial, but for what a clock has measured."""
    found = {}
    for path in sorted((shop.root / "storage/artifacts/tiny").glob("*/history.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = [{**row, "seconds": 0.0} for row in rows]
    return found


class Running:
    """`cvaeopt worker --trials-per-gpu 2` in the background; each worker waits at the gate after its first epoch."""

    def __init__(self, shop: Shop, gate: Gate) -> None:
        self.lines: list[str] = []
        clean = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cvaeopt.cli", "worker", "--study", "tiny", "--trials-per-gpu", "2"],
            cwd=shop.root,
            env={
                **clean,
                **gate.environment,
                "CVAEOPT_DATA": str(shop.data),
                "CVAEOPT_GPU": "cpu",
                "CVAEOPT_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self.lines.extend(iter(lines.readline, ""))

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first line that has `pattern`."""
        found = until(lambda: next(filter(None, (re.search(pattern, line) for line in list(self.lines))), None))
        assert found is not None
        return found

    def ended(self) -> int:
        code = self.process.wait(LONG_S)
        self._reader.join()
        return code

    @property
    def text(self) -> str:
        return "".join(self.lines)


def frames_kb(pid: int) -> tuple[int, int]:
    """KB of decoded frames that a process has mapped, and its share of them; 0, 0 where /proc does not say it."""
    mapped = share = 0
    smaps = Path(f"/proc/{pid}/smaps")
    for mapping in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read_text() if smaps.exists() else ""):
        if ".npy" in mapping.partition("\n")[0]:
            mapped += int(re.findall(r"Rss: +(\d+)", mapping)[0])
            share += int(re.findall(r"Pss: +(\d+)", mapping)[0])
    return mapped, share


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_a_trial_is_what_it_is_alone_when_its_neighbour_is_killed(alone: Shop, tmp_path: Path) -> None:
    shop = new_shop(tmp_path / "together", alone.data)
    gate = Gate.new(tmp_path / "gate")
    running = Running(shop, gate)
    pid = int(running.wait_for(r"\[1\] worker \S+-(\d+)-\S+ on cpu")[1])
    lost = running.wait_for(r"\[1\] trial (\d+) epoch 1/")[1]
    until(lambda: len(gate.held()) == 2)
    mapped_kb, share_kb = frames_kb(pid)
    os.kill(pid, signal.SIGKILL)
    running.wait_for("killed by SIGKILL")
    gate.open()
    assert share_kb <= 0.55 * mapped_kb  # one copy of the decoded frames, mapped by both
    assert running.ended() == 0, running.text
    assert "[1] Warning: the worker was killed by SIGKILL; started again in 2 s (1 of 5)" in running.text
    assert len(re.findall(rf"trial {lost}: taken over", running.text)) == 1
    assert f"[0] trial {lost}" not in running.text.partition("SIGKILL")[0]  # and the neighbour kept its own
    assert running.text.count("baselines: ") == 1
    assert histories(shop) == histories(alone)
    assert len(histories(shop)) == TRIALS
    workers = json.loads(shop.run("status", "--study", "tiny", "--json").out)["workers"]
    assert [one["device"] for one in workers] == ["cpu"] * 3
    assert sorted(one["state"] for one in workers) == ["dead", "stopped", "stopped"]


@pytest.mark.slow
@pytest.mark.usefixtures("warm")
def test_workers_that_are_told_to_stop_leave_every_trial_to_whoever_comes_next(alone: Shop, tmp_path: Path) -> None:
    shop = new_shop(tmp_path / "together", alone.data)
    gate = Gate.new(tmp_path / "gate")
    running = Running(shop, gate)
    until(lambda: len(gate.held()) == 2, running.process)
    running.process.send_signal(signal.SIGTERM)
    until(lambda: len(gate.asked()) == 2)
    gate.open()
    assert running.ended() == 0, running.text
    assert len(re.findall(r"(?m)^\[[01]\] stopped: SIGTERM received", running.text)) == 2
    assert 0 < sum(map(len, histories(shop).values())) < TRIALS * EPOCHS
    facts = json.loads(shop.run("status", "--study", "tiny", "--json").out)
    assert facts["trials"]["failed"] == 0 and facts["trials"]["complete"] < TRIALS
    assert {one["state"] for one in facts["workers"]} == {"stopped"}
    threads = torch.get_num_threads()
    said = shop.run("worker", "--study", "tiny", "--threads", "1")
    torch.set_num_threads(threads)
    assert said.code == 0, said.err
    assert histories(shop) == histories(alone)


@pytest.mark.parametrize("size", ["0", "65", "two", "-1"])
def test_a_wrong_number_of_trials_is_one_message(alone: Shop, tmp_path: Path, size: str) -> None:
    shop = Shop.new(tmp_path / "shop", alone.data)
    for said in (
        shop.run("worker", "--study", "tiny", "--trials-per-gpu", size),
        shop.run("worker", "--study", "tiny", TRIALS_PER_GPU=size),
    ):
        assert said.code == 2
        assert said.text.count("Invalid value") == 1
        assert "'--trials-per-gpu'" in said.text
    assert not (shop.root / "storage").exists()


def test_what_every_worker_would_refuse_is_said_once(alone: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path / "shop", alone.data)
    said = shop.run("worker", "--study", "tiny", "--trials-per-gpu", "3", GPU="one")
    assert said.code == 2
    assert said.err.splitlines() == ["[0] Error: --gpu 'one'. Expected: an index such as 0, or cpu."]


def test_a_dry_run_says_how_many(alone: Shop, tmp_path: Path) -> None:
    shop = Shop.new(tmp_path / "shop", alone.data)
    before = shop.files()
    said = shop.run("worker", "--study", "tiny", "--trials-per-gpu", "4", "--dry-run")
    assert said.code == 0
    assert "\ntrials_per_gpu = 4\n" in said.out
    assert shop.files() == before

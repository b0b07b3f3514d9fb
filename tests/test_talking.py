"""Commands whose output cannot be written, and commands that a signal ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cvaeopt.run.signals import STOP_SIGNALS
from tests.support.broken_streams import closed_pipe, full_disk
from tests.support.command import Shop

pytestmark = pytest.mark.usefixtures("uncharted_module", "warm")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A folder in which the study `tiny` was run and exported."""
    shop = Shop.new(tmp_path_factory.mktemp("done"))
    threads = torch.get_num_threads()
    for line in (["worker", "--study", "tiny", "--threads", "1"], ["export-best", "--study", "tiny"]):
        said = shop.run(*line)
        assert said.code == 0, said.err
    torch.set_num_threads(threads)
    yield shop


def command(shop: Shop, *words: str, **streams: Any) -> subprocess.Popen[str]:
    """`cvaeopt WORDS` in the folder, as a process of its own."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CVAEOPT_")}
    given = {"CVAEOPT_DATA": str(shop.data), "CVAEOPT_GPU": "cpu", "CVAEOPT_THREADS": "1"}
    line = [sys.executable, "-m", "cvaeopt.cli", *words]
    return subprocess.Popen(line, cwd=shop.root, env={**clean, **given}, text=True, **streams)


WORKER = ["worker", "--study", "tiny"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "place"),
    [(WORKER, full_disk), ([*WORKER, "--trials-per-gpu", "2"], closed_pipe)],
    ids=["alone, full disk", "together, closed pipe"],
)
def test_a_worker_that_nobody_hears_trains_its_trials(done: Shop, tmp_path: Path, words: list[str], place: Any) -> None:
    shop = Shop.new(tmp_path / "shop", done.data)
    with place() as stream:
        process = command(shop, *words, stderr=stream, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    assert out.count("stderr cannot be written") == out.count("\n") == 1
    facts = json.loads(shop.run("status", "--study", "tiny", "--json").out)
    assert facts["trials"]["complete"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("place", [closed_pipe, full_disk])
def test_a_retrain_that_nobody_hears_ends_as_any_other(done: Shop, tmp_path: Path, place: Any) -> None:
    line = ["retrain", "studies/best/tiny.toml", "--epochs", "2", "--out", str(tmp_path / "run")]
    with place() as stream:
        assert command(done, *line, stderr=stream, stdout=stream).wait(500) == 0
    rows = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert len(rows) == 2 and (tmp_path / "run" / "score.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["status", "--study", "tiny"],
        ["status", "--study", "tiny", "--json"],
        ["status", "--study", "tiny", "--watch", "--json"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_lost_results_are_no_success_and_a_reader_may_have_enough(done: Shop, words: list[str]) -> None:
    with full_disk() as stream:
        full = command(done, *words, stdout=stream, stderr=subprocess.PIPE)
        _, said = full.communicate(timeout=200)
    assert full.returncode == 2
    assert "What was written to stdout is lost (No space left on device)" in said and said.count("\n") == 1
    with closed_pipe() as stream:
        closed = command(done, *words, stdout=stream, stderr=subprocess.PIPE)
        _, said = closed.communicate(timeout=200)
    assert (closed.returncode, said) == (0, "")


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_view_ends_well_with_any_signal(done: Shop, number: signal.Signals) -> None:
    process = command(
        done, "status", "--study", "tiny", "--watch", "-q", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert "2 complete" in process.stdout.readline()
    process.send_signal(number)
    _, said = process.communicate(timeout=200)
    assert (process.returncode, said) == (0, "")

"""Terminals and pipes that remember what was written to them, and the facts of a study to show on them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from cvaeopt.terminal.console import Console
from cvaeopt.terminal.streams import Terminal


def terminal(width: int = 80, **options: Any) -> Terminal:
    """A terminal of 24 lines."""
    return Terminal(file=io.StringIO(), force_terminal=True, width=width, height=24, highlight=False, **options)


def pipe() -> Terminal:
    """A stream that is no terminal."""
    return Terminal(file=io.StringIO(), force_terminal=False, highlight=False)


def written(to: Terminal) -> str:
    """All that was written to a terminal or pipe of this module."""
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def plain(text: str) -> str:
    """`text` without escape sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def console(make: Callable[[], Terminal], **options: Any) -> Console:
    """A console whose stdout and stderr are made by `make`."""
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
    "open_trials": [{"trial": 43, "epoch": 7, "epochs": 100}, {"trial": 44, "epoch": 20, "epochs": 100}],
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
            "takeover_s": None,
        }
        for n, state in enumerate(["running", "dead", "stopped", "stopped", "stopped", "stopped"])
    ],
}
EMPTY: dict[str, Any] = {
    **FACTS,
    "budget": {"trials": None, "epochs": 5, "total_epochs": None, "wall_clock_h": None},
    "trials": dict.fromkeys(FACTS["trials"], 0),
    "open_trials": [],
    "epochs_spent": 0,
    "best": None,
    "baselines": {},
    "last": None,
    "failures": [],
    "workers": [],
}
FRESH: dict[str, Any] = {"studies": ["main.confirm"], "runs": 6, "leaders": [{}, {}], "table": [{"trial": "17"}]}


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

"""Several processes at once, started quickly: they fork from a server that has imported what they need."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

from tests.support.waiting import LONG_S

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.fakes", "torch"])


def race(task: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """What `task(index, *arguments)` returned in each of `count` processes that began together, by index.

    AssertionError with the first traceback if one of them failed.
    """
    barrier = context.Barrier(count)
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_enter, args=(task, index, barrier, answers, arguments)) for index in range(count)
    ]
    for process in processes:
        process.start()
    found = {}
    for _ in processes:
        index, answer, failure = answers.get(timeout=LONG_S)
        assert failure is None, failure
        found[index] = answer
    for process in processes:
        process.join(timeout=LONG_S)
    answers.close()
    answers.join_thread()
    return [found[index] for index in range(count)]


def _enter(task: Callable[..., Any], index: int, barrier: Any, answers: Any, arguments: tuple[Any, ...]) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        barrier.wait(timeout=LONG_S)
        answers.put((index, task(index, *arguments), None))
    except BaseException:
        answers.put((index, None, traceback.format_exc()))

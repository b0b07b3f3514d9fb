"""Studies in simulated time: workers run side by side, and every epoch costs the same.

An epoch lasts equally long in all trials, except for 10 % between trials. A trial that is still running when the budget
ends does not count. The samplers and pruners are the real ones, on a storage in memory.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from cvaeopt.suggest.estimate import estimate


@dataclass(frozen=True)
class Method:
    """One way of searching.

    sampler   makes the sampler for a seed
    pruner    makes the pruner for a problem
    window    a trial's value is the mean of this many last epochs
    confirm   the leaders are trained again at the end, as many as `confirmation` says; these epochs count
    block     epochs between two decisions
    learns    diverged trials are told as pruned with a constraint, not as failed
    """

    sampler: Callable[[int], BaseSampler]
    pruner: Callable[[Any], BasePruner] = lambda problem: NopPruner()
    window: int = 1
    confirm: bool = False
    block: int = 10
    learns: bool = False


@dataclass
class Run:
    """A simulated trial; `value` is that of a complete one."""

    number: int
    point: list[float]
    curve: np.ndarray
    pace: float
    trial: Trial
    epoch: int = 0
    value: float = math.nan


@dataclass
class Reading:
    """What a method would recommend at one moment: the best complete trial."""

    best: Run | None
    complete: list[Run]
    runs: int


class Study:
    """One simulated study. A subclass says what a new trial trains.

    epochs    of a trial
    grid      epochs between two readings
    finished  epochs of finished blocks
    spent     epochs trained so far, with those of unfinished blocks
    """

    def __init__(self, method: Method, pruner: BasePruner, workers: int, seed: int, epochs: int, grid: int) -> None:
        self.method = method
        self.workers = workers
        self.seed = seed
        self.epochs = epochs
        self.grid = grid
        self.generator = np.random.default_rng([seed, workers, 77])
        self.finished = 0
        self.spent = 0.0
        self.complete: list[Run] = []
        self.begun = 0
        self.study = optuna.create_study(
            direction="maximize", sampler=method.sampler(seed), pruner=pruner, study_name=f"s{seed}"
        )

    def new(self) -> Run | None:
        """The next trial; None if no trial is left to begin."""
        raise NotImplementedError

    def begin(self, trial: Trial, point: list[float], curve: np.ndarray) -> Run:
        """The run of a trial that trains `curve`, at a pace of its own."""
        self.begun += 1
        return Run(trial.number, point, curve, float(self.generator.lognormal(0, 0.1)), trial)

    def go(self, budget: int, read: Callable[[int, Reading], None]) -> None:
        """Search until the budget is spent; `read(epochs, reading)` is called at every multiple of `grid`.

        The search ends early if no trial is left to begin.
        """
        queue: list[tuple[float, int, Run]] = []
        for worker in range(self.workers):
            self._start(queue, worker * 1e-6)
        mark = self.grid
        while self.spent < budget and queue:
            now, _, run = heapq.heappop(queue)
            self.finished += self._ahead(run)
            self.spent = self.finished + sum(self._ahead(other) - (end - now) / other.pace for end, _, other in queue)
            while mark <= budget and mark < self.spent:  # passed within the block: what ends with it came too late
                read(mark, self.reading())
                mark += self.grid
            over = self._advance(run)
            while mark <= min(self.spent, budget):
                read(mark, self.reading())
                mark += self.grid
            if over:
                self._start(queue, now)
            else:
                self._push(queue, now, run)

    def reading(self) -> Reading:
        """The recommendation now."""
        best = max(self.complete, key=lambda run: (run.value, -run.number), default=None)
        return Reading(best, list(self.complete), self.begun)

    def _start(self, queue: list[tuple[float, int, Run]], now: float) -> None:
        run = self.new()
        if run is not None:
            self._push(queue, now, run)

    def _push(self, queue: list[tuple[float, int, Run]], now: float, run: Run) -> None:
        heapq.heappush(queue, (now + self._ahead(run) * run.pace, run.number, run))

    def _ahead(self, run: Run) -> int:
        """Epochs of the block that the run is in; fewer if it ends or diverges within the block."""
        length = min(self.method.block, self.epochs - run.epoch)
        bad = np.flatnonzero(~np.isfinite(run.curve[run.epoch : run.epoch + length]))
        return int(bad[0]) + 1 if len(bad) else length

    def _advance(self, run: Run) -> bool:
        """Train a block of epochs; True when the worker is free again."""
        method, trial = self.method, run.trial
        until = run.epoch + self._ahead(run)
        pruning = not isinstance(self.study.pruner, NopPruner)
        if not math.isfinite(run.curve[until - 1]):
            run.epoch = until
            if method.learns:
                trial.set_constraint("diverged", 1.0)
            self.study.tell(trial, state=TrialState.PRUNED if method.learns else TrialState.FAIL)
            return True
        if pruning or method.learns:
            for epoch in range(run.epoch + 1, until + 1):
                trial.report(float(run.curve[epoch - 1]), epoch)
        run.epoch = until
        complete = run.epoch == self.epochs
        if not complete and not (pruning and trial.should_prune()):
            return False
        if method.learns:
            trial.set_constraint("diverged", 0.0)
        if complete:
            run.value = estimate(run.curve, method.window).value
            self.study.tell(trial, run.value)
            self.complete.append(run)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        return True

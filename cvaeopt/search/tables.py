"""The tables of a study's TOML file with fixed keys. In [fixed], [search] and [[enqueue]] the keys are settings."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cvaeopt.spelling import Table

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""The form of a study's name. A file, a folder and a row of the database get this name."""


class StudyTable(Table):
    """The table [study]: how trials are measured and seeded."""

    description: str = Field("", description="what the study asks; shown in reports, free to change")
    metric: Literal["val_psnr", "val_psnr_late"] = Field(
        "val_psnr", description="validation PSNR over all frames, or over the last third of them, dB"
    )
    window: int = Field(1, ge=1, description="a trial's value is the mean of the metric over its last epochs")
    seed_noise_db: float = Field(
        0.35, ge=0, description="standard deviation between training seeds, part of a trial's standard error, dB"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="the seed that every random draw of the study derives from")
    seeds: Literal["each", "common"] = Field(
        "each", description="a training seed for each trial, or one for all: its luck then drops out of comparisons"
    )
    confirms: str | None = Field(
        None,
        pattern=rf"^{NAME.pattern}@[0-9a-f]{{12}}$",
        description="study (and its identity, or its definition's digest) that is trained again; seed is then searched",
    )


class Budget(Table):
    """The table [budget]: the study ends when the first of these limits is met."""

    trials: int | None = Field(None, ge=1, lt=2**31, description="trials of the study, enqueued ones included")
    epochs: int = Field(ge=1, lt=2**31, description="epochs of one trial: its num_epoch")
    total_epochs: int | None = Field(None, ge=1, lt=2**31, description="epochs of all trials together")
    wall_clock_h: float | None = Field(None, gt=0, description="hours from the start of its first trial")
    target_db: float | None = Field(None, description="a complete trial's value that ends the study, dB")
    patience_trials: int | None = Field(
        None, ge=1, lt=2**31, description="trials ended since the best one that end the study"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.trials is None and self.total_epochs is None and self.wall_clock_h is None:
            raise ValueError("no limit: one of trials, total_epochs and wall_clock_h is needed")
        if self.total_epochs is not None and self.total_epochs < self.epochs:
            raise ValueError(f"total_epochs = {self.total_epochs} is less than one trial's epochs = {self.epochs}")
        return self


class TpeSampler(Table):
    """Tree-structured Parzen estimator, multivariate, as in Optuna 5."""

    kind: Literal["tpe"] = "tpe"
    n_startup_trials: int = Field(10, ge=0, description="finished trials before the model is used")
    n_ei_candidates: int = Field(24, ge=1, description="candidates of which the most promising is taken")
    constant_liar: bool = Field(
        True, description="count running trials as poor ones, so that workers do not repeat each other"
    )


class RandomSampler(Table):
    """Random points. Every trial is independent of all others."""

    kind: Literal["random"] = "random"


class GridSampler(Table):
    """Every point of the grid once. Settings vary in the order of [search]; the last setting varies fastest."""

    kind: Literal["grid"] = "grid"


class QmcSampler(Table):
    """Scrambled Halton points, which cover the search space more evenly than random points."""

    kind: Literal["qmc"] = "qmc"


class GpSampler(Table):
    """Gaussian process with a standard error for every value. Pruned, running and diverged trials train it, too."""

    kind: Literal["gp"] = "gp"
    n_startup_trials: int = Field(6, ge=2, description="trials that say something before the model is used")
    tpe_every: int = Field(2, ge=0, description="every so many trials TPE suggests instead; 0: never")


class NoPruner(Table):
    """Every trial runs all of its epochs."""

    kind: Literal["none"] = "none"


class _Comparing(Table):
    n_startup_trials: int = Field(ge=0, description="finished trials before the first one is pruned")
    warmup_epochs: int = Field(ge=0, description="epochs of a trial before it can be pruned")
    interval_epochs: int = Field(ge=1, lt=2**31, description="epochs between two decisions")
    n_min_trials: int = Field(1, ge=1, description="finished trials that must have reached the epoch")


class MedianPruner(_Comparing):
    """Stops a trial whose best epoch so far is below the median of the finished trials at the same epoch."""

    kind: Literal["median"]


class PercentilePruner(_Comparing):
    """Like `MedianPruner`, but with a percentile instead of the median."""

    kind: Literal["percentile"]
    percentile: float = Field(gt=0, lt=100, description="share of the finished trials that is kept, per cent")


class HalvingPruner(Table):
    """Asynchronous successive halving: at each rung the best of every `reduction_factor` trials continues."""

    kind: Literal["halving"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial at the first rung")
    reduction_factor: int = Field(ge=2, description="epochs grow, and trials shrink, by this factor a rung")


class HyperbandPruner(Table):
    """Several successive halvings whose first rungs differ."""

    kind: Literal["hyperband"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial at the first rung of the keenest bracket")
    reduction_factor: int = Field(ge=2, description="epochs grow, and trials shrink, by this factor a rung")


class ForecastPruner(Table):
    """Stops a trial that is less likely to become a leader than a new trial. Forecasts give the probabilities."""

    kind: Literal["forecast"]
    warmup_epochs: int = Field(ge=1, lt=2**31, description="epochs of a trial before it can be pruned")
    interval_epochs: int = Field(ge=1, lt=2**31, description="epochs between two decisions")
    n_startup_trials: int = Field(3, ge=2, description="complete trials that the forecast is learned from, at least")
    keep: float = Field(0.0, ge=0, le=1, description="share of the complete trials that count as leaders")
    odds: float = Field(1.0, gt=0, description="stops what is less than so many times as likely as a fresh trial")


class WarmStart(Table):
    """The table [warm_start]: points of an earlier study that are trained again, after the enqueued points."""

    study: str = Field(description="an earlier study in the same storage")
    top: int = Field(5, ge=1, description="its best trials whose points are taken")


class ServiceTable(Table):
    """The table [service]: where the study runs, and which files it keeps. Its keys do not change the digest.

    Flags and environment variables have priority over this table.
    """

    storage: str | None = Field(None, description="URL of the SQL storage")
    data: str | None = Field(None, description="data folder in the lab's layout")
    artifacts: str | None = Field(None, description="folder of the run folders")
    checkpoints: str | None = Field(None, description="object store for copies of the checkpoints, s3://BUCKET/PREFIX")
    gpu: Annotated[int, Field(ge=0)] | Literal["cpu"] | None = Field(None, description="index of the GPU, or cpu")
    keep_best: int = Field(5, ge=1, description="complete trials whose checkpoints are kept")
    keep_pictures: int = Field(
        50, ge=1, description="best trials, and as many latest ones, that keep their pictures in the dashboard"
    )
    notify: str | None = Field(
        None, min_length=1, description="command that gets news of the study as JSON on its stdin"
    )
    snapshots: Annotated[str, Field(strict=True)] | list[int] | None = Field(
        None, description="epochs of every trial whose checkpoints are kept: [50, 130], or every:50"
    )


Sampler = TpeSampler | RandomSampler | GridSampler | QmcSampler | GpSampler
Pruner = NoPruner | MedianPruner | PercentilePruner | HalvingPruner | HyperbandPruner | ForecastPruner

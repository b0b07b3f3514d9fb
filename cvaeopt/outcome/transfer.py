"""The schedules of a short run, carried over to a run of another length.

A winner found at 100 epochs is retrained for 500. What should `tfr_sde = 10` mean then: the tenth epoch, or a
tenth of the run? Both are useful, and both are here:

    proportional   fractions of the run stay: the curve of the long run is the short one, stretched
    absolute       epochs stay: the curve of the long run begins as the short one did (seeds 000 and 001)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at

Transfer = Literal["proportional", "absolute"]

# Undecided by an experiment (its figures are in studies/README.md): forcing that falls did better absolute,
# cyclical KL better proportional. Proportional keeps the shape that was searched, and absolute freezes
# MultiStepLR's lr after the first hundredth of a long run. One constant, so that more evidence can change it.
DEFAULT_TRANSFER: Transfer = "proportional"


def transfer(config: Config, epochs: int, mode: Transfer = DEFAULT_TRANSFER) -> Config:
    """The same settings for a run of `epochs` epochs, with its schedules carried over.

    proportional   forcing decay, milestones, KL cycles and ExponentialLR keep their fractions of the run
    absolute       they keep their epochs; cycles that are counted over the run become more of them, of the same
                   length as nearly as whole numbers allow

    Two things cannot be kept by any setting and are stated here: the cosine schedule is a function of the whole
    run, so it is stretched in both modes; and what does not fit into a shorter run (a ramp longer than the run,
    a decay of more than 1 an epoch) ends at the setting's limit.
    """
    if epochs < 1:
        raise SettingsError(f"epochs = {epochs}.", "Expected: at least 1.")
    if epochs == config.num_epoch:
        return config
    if mode == "proportional":
        changes = _proportional(config, epochs)
    elif mode == "absolute":
        changes = _absolute(config, epochs)
    else:
        raise SettingsError(f"transfer = {mode!r}.", "Expected: 'proportional' or 'absolute'.")
    return Config.parse({**config.plain(), **changes, "num_epoch": epochs}, f"The run of {epochs} epochs")


def _proportional(config: Config, epochs: int) -> dict[str, Any]:
    stretch = epochs / config.num_epoch
    changes: dict[str, Any] = {
        "tfr_d_step": min(1.0, config.tfr_d_step / stretch),
        "milestones": _rising([max(1, round(m * stretch)) if m else 0 for m in config.milestones]),
    }
    if config.tfr_formula == "seed003":  # it falls from tfr_sde - 1 on, and never before epoch 1
        changes["tfr_sde"] = round((max(config.tfr_sde, 1) - 1) * stretch) + 1
    else:
        changes["tfr_sde"] = round(config.tfr_sde * stretch)
    if config.lr_scheduler == "ExponentialLR":
        changes["gamma"] = config.gamma ** (1 / stretch)
    if config.kl_anneal_type != "none":
        changes |= _proportional_kl(config, stretch)
    return changes


def _proportional_kl(config: Config, stretch: float) -> dict[str, Any]:
    cyclical = config.kl_anneal_type == "cyclical"
    cycle, ratio = config.kl_anneal_cycle, config.kl_anneal_ratio
    if config.kl_formula in ("fu", "seed001"):
        return {}  # already functions of the fraction of the run
    if config.kl_formula == "seed003":  # a slope an epoch: per period (cyclical) or over the run (monotonic)
        return {"kl_anneal_ratio": ratio / stretch}
    if config.kl_formula not in ("seed000", "seed004"):
        raise AssertionError(config.kl_formula)
    longer = max(1, round(cycle * stretch))
    if config.kl_formula == "seed000" and not cyclical:
        # beta = ratio t (t + 1) / (2 cycle), a parabola: it must meet 1 at the same fraction of the run.
        meets = (math.sqrt(1 + 8 * cycle / ratio) - 1) / 2 * stretch
        return {"kl_anneal_cycle": longer, "kl_anneal_ratio": 2 * longer / (meets * (meets + 1))}
    return {"kl_anneal_cycle": longer}


def _absolute(config: Config, epochs: int) -> dict[str, Any]:
    cyclical = config.kl_anneal_type == "cyclical"
    cycle, ratio = config.kl_anneal_cycle, config.kl_anneal_ratio
    if config.kl_anneal_type == "none" or config.kl_formula in ("seed000", "seed004"):
        return {}  # epochs of one cycle, slopes an epoch: nothing depends on the length of the run
    more = epochs / config.num_epoch
    if cyclical:
        return {"kl_anneal_cycle": max(1, round(cycle * more))}
    if config.kl_formula == "fu":  # one ramp over `ratio` of the run
        return {"kl_anneal_ratio": min(1.0, ratio / more)}
    if config.kl_formula == "seed001":  # beta = t cycle / (ratio epochs): the slope an epoch stays
        cycles = max(1, math.floor(cycle * more))  # rounded down, so that the ratio never rises above its limit
        return {"kl_anneal_cycle": cycles, "kl_anneal_ratio": min(1.0, ratio * cycles / (cycle * more))}
    if config.kl_formula == "seed003":  # monotonic: a slope an epoch
        return {}
    raise AssertionError(config.kl_formula)


def _rising(milestones: list[int]) -> list[int]:
    """The milestones, moved up where shrinking made two of them equal."""
    for index in range(1, len(milestones)):
        milestones[index] = max(milestones[index], milestones[index - 1] + 1)
    return milestones


@dataclass(frozen=True)
class Landmarks:
    """Where the schedules of a run turn, in finished epochs; None where it never happens.

    decay_starts    first epoch whose forcing ratio is below `tfr`
    decay_ends      first epoch whose forcing ratio is 0
    beta_full       first epoch whose KL weight is 1
    cycle           first epoch at which the KL weight falls: the length of the first cycle
    lr_end          learning rate of the last epoch
    """

    epochs: int
    decay_starts: int | None
    decay_ends: int | None
    beta_full: int | None
    cycle: int | None
    lr_end: float

    def plain(self) -> dict[str, Any]:
        """The landmarks as JSON values."""
        return asdict(self)


def landmarks(config: Config) -> Landmarks:
    """Where the schedules of `config` turn, read off the schedules themselves."""
    span = range(config.num_epoch)
    tfr = [tfr_at(config, epoch) for epoch in span]
    beta = [beta_at(config, epoch) for epoch in span]
    return Landmarks(
        epochs=config.num_epoch,
        decay_starts=next((epoch for epoch in span if tfr[epoch] < config.tfr), None),
        decay_ends=next((epoch for epoch in span if tfr[epoch] == 0), None),
        beta_full=next((epoch for epoch in span if beta[epoch] >= 1), None),
        cycle=next((epoch for epoch in span[1:] if beta[epoch] < beta[epoch - 1]), None),
        lr_end=lr_at(config, config.num_epoch - 1),
    )

"""Transfer of the schedules of a run to a run of another length.

For example, the best trial of a search at 100 epochs is trained again for 500 epochs. In the long run, `tfr_sde = 10`
can mean the tenth epoch, or a tenth of the run. Both meanings are useful, so there are two transfers:

    proportional   the fractions of the run are kept: the curve of the short run is stretched to the long run
    absolute       the epochs are kept: the curve of the long run begins like the curve of the short run, as in the
                   seed reports 000 and 001
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, assert_never

from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at

Transfer = Literal["proportional", "absolute"]

# An experiment did not decide which transfer is better (its figures are in studies/README.md). A falling forcing ratio
# did better with the absolute transfer, and cyclical KL did better with the proportional transfer. The proportional
# transfer is the default for two reasons. It keeps the shape of the schedules that was searched. With the absolute
# transfer and the default milestones, MultiStepLR lowers lr only in the first hundredth of a run of 500 epochs.
DEFAULT_TRANSFER: Transfer = "proportional"


def transfer(config: Config, epochs: int, mode: Transfer = DEFAULT_TRANSFER) -> Config:
    """The settings of `config` for a run of `epochs` epochs, with the schedules carried over.

    proportional   forcing decay, milestones, KL cycles and ExponentialLR keep their fractions of the run
    absolute       forcing decay, milestones, KL cycles and ExponentialLR keep their epochs. If the setting is the
                   number of cycles in the run, this number changes with the length of the run. It is rounded to a
                   whole number, so a cycle has almost the same length as before.

    There are two exceptions. The cosine schedule is a function of the whole run, so it is stretched in both modes. If
    a value does not fit into a shorter run (a ramp longer than the run, a decay of more than 1 an epoch), the setting
    gets its limit instead.

    SettingsError if `epochs` < 1, or for an unknown `mode`.
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
    if config.tfr_formula == "seed003":  # The decay starts after epoch tfr_sde - 1; tfr_sde = 0 means the same as 1.
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
    if config.kl_formula == "fu" or config.kl_formula == "seed001":
        return {}  # These formulas are functions of the fraction of the run already.
    if config.kl_formula == "seed003":  # beta depends on the product of `ratio` and a number of epochs.
        return {"kl_anneal_ratio": ratio / stretch}
    longer = max(1, round(cycle * stretch))
    if config.kl_formula == "seed000" and not cyclical:
        # beta = ratio t (t + 1) / (2 cycle) must reach 1 at the same fraction of the run as before.
        meets = (math.sqrt(1 + 8 * cycle / ratio) - 1) / 2 * stretch
        return {"kl_anneal_cycle": longer, "kl_anneal_ratio": 2 * longer / (meets * (meets + 1))}
    if config.kl_formula == "seed000" or config.kl_formula == "seed004":
        return {"kl_anneal_cycle": longer}
    assert_never(config.kl_formula)


def _absolute(config: Config, epochs: int) -> dict[str, Any]:
    cyclical = config.kl_anneal_type == "cyclical"
    cycle, ratio = config.kl_anneal_cycle, config.kl_anneal_ratio
    if config.kl_anneal_type == "none" or config.kl_formula == "seed000" or config.kl_formula == "seed004":
        return {}  # These settings are epochs of a cycle or slopes per epoch. They do not depend on the run's length.
    more = epochs / config.num_epoch
    if cyclical:
        return {"kl_anneal_cycle": max(1, round(cycle * more))}
    if config.kl_formula == "fu":  # `ratio` is the fraction of the run in which beta rises.
        return {"kl_anneal_ratio": min(1.0, ratio / more)}
    if config.kl_formula == "seed001":  # beta = t cycle / (ratio epochs) must keep its slope per epoch.
        cycles = max(1, math.floor(cycle * more))  # rounded down: more cycles could need a ratio above its limit
        return {"kl_anneal_cycle": cycles, "kl_anneal_ratio": min(1.0, ratio * cycles / (cycle * more))}
    if config.kl_formula == "seed003":  # `ratio` is the slope of beta per epoch.
        return {}
    assert_never(config.kl_formula)


def _rising(milestones: list[int]) -> list[int]:
    """The milestones, changed in place so that each is larger than the one before. Rounding can make two equal."""
    for index in range(1, len(milestones)):
        milestones[index] = max(milestones[index], milestones[index - 1] + 1)
    return milestones


@dataclass(frozen=True)
class Landmarks:
    """The turning points of a run's schedules, in finished epochs. A turning point that never happens is None.

    decay_starts    first epoch whose forcing ratio is below `tfr`
    decay_ends      first epoch whose forcing ratio is 0
    beta_full       first epoch whose KL weight is 1
    cycle           first epoch at which the KL weight falls, which is the length of the first cycle
    lr_end          learning rate of the last epoch
    """

    epochs: int
    decay_starts: int | None
    decay_ends: int | None
    beta_full: int | None
    cycle: int | None
    lr_end: float

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def landmarks(config: Config) -> Landmarks:
    """The turning points of the schedules of `config`, found in the values of the schedules at every epoch."""
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

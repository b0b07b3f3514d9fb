"""Teacher forcing, KL weight and learning rate as pure functions of (epoch, epochs).

`epoch` is the number of finished epochs, 0 <= epoch < epochs. The value is used during the next epoch. Teacher forcing
and the KL weight each have one canonical formula, and the formulas of the seed reports under the reports' names. The
seed reports disagree: `kl_anneal_cycle` is a number of cycles in some reports, and a length in epochs in others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, assert_never

from cvaeopt.config import Config, KlAnnealType, KlFormula, TfrFormula


def teacher_forcing_ratio(
    epoch: int, tfr: float, tfr_sde: int, tfr_d_step: float, formula: TfrFormula = "linear"
) -> float:
    """The probability of teacher forcing in this epoch, in [0, 1].

    linear    the ratio is `tfr` up to and including epoch `tfr_sde`; then it falls by `tfr_d_step` every epoch
    seed000   equal to linear: the template tests `epoch > tfr_sde` after it has counted the finished epoch
    seed001   equal to linear: the report describes the template's test
    seed003   the test is `epoch >= tfr_sde`, so the ratio falls one epoch earlier, but never before epoch 1
    """
    if formula == "seed003":
        falls = max(0, min(epoch, epoch - tfr_sde + 1))
    else:
        falls = max(0, epoch - tfr_sde)
    return max(0.0, tfr - tfr_d_step * falls)


def kl_beta(epoch: int, epochs: int, kind: KlAnnealType, cycle: int, ratio: float, formula: KlFormula = "fu") -> float:
    """The weight of the KL term in this epoch, in [0, 1].

    kind      'cyclical', 'monotonic' or 'none'; 'none' gives 1, except that seed003 gives 0 in the first epoch
    cycle     fu, seed001, seed003: number of cycles over the run; seed000, seed004: length of a cycle in epochs
    ratio     fu, seed001: fraction of a cycle in which the weight rises, 0 < ratio <= 1; seed000, seed003: a factor of
              the formula; seed004: not used

    The canonical formula `fu` divides the run into `cycle` equal cycles. In the first `ratio` of each cycle the weight
    rises linearly from 0 to 1, and then it stays at 1. 'monotonic' is the case of a single cycle. The code of report
    003 starts with the weight 0, and evaluates its formula before it counts the finished epoch. So every value comes
    one epoch later than in the formula.

    Source: Fu et al. 2019, arXiv:1903.10145 (fu); seed reports 000, 001, 003, 004.
    """
    if formula == "seed003":
        if epoch == 0:
            return 0.0
        epoch -= 1
    if kind == "none":
        return 1.0
    if kind != "cyclical" and kind != "monotonic":
        assert_never(kind)
    cyclical = kind == "cyclical"
    if formula == "fu":
        cycles = cycle if cyclical else 1
        beta = epoch * cycles % epochs / epochs / ratio  # integers first, so that a cycle starts at exactly 0
    elif formula == "seed000":
        if cyclical:
            beta = ratio * (epoch % cycle) / cycle
        else:  # the sum of ratio * t / cycle over t = 1 .. epoch
            beta = ratio * epoch * (epoch + 1) / 2 / cycle
    elif formula == "seed001":
        if cyclical:
            beta = epoch % math.ceil(epochs / cycle) / (epochs / cycle) / ratio
        else:
            beta = epoch * cycle / (ratio * epochs)
    elif formula == "seed003":
        if cyclical:
            beta = epoch * cycle % epochs / epochs / (epochs / cycle * ratio)
        else:
            beta = epoch * ratio
    elif formula == "seed004":
        beta = 2 * (epoch % cycle) / cycle if cyclical else epoch / cycle
    else:
        assert_never(formula)
    return min(1.0, beta)


def learning_rate(
    epoch: int, epochs: int, kind: str, lr: float, milestones: tuple[int, ...], gamma: float, lr_min: float
) -> float:
    """The learning rate in this epoch.

    MultiStepLR     lr * gamma^n, where n is the number of milestones <= epoch
    ExponentialLR   lr * gamma^epoch
    cosine          half a cosine wave from lr at epoch 0 to lr_min at epoch `epochs`, which is after the last epoch
    constant        lr
    """
    if kind == "MultiStepLR":
        return lr * gamma ** sum(epoch >= milestone for milestone in milestones)
    if kind == "ExponentialLR":
        return float(lr * gamma**epoch)
    if kind == "cosine":
        return lr_min + (lr - lr_min) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    if kind == "constant":
        return lr
    raise ValueError(kind)


def tfr_at(config: Config, epoch: int) -> float:
    """`teacher_forcing_ratio` for the settings of a run."""
    return teacher_forcing_ratio(epoch, config.tfr, config.tfr_sde, config.tfr_d_step, config.tfr_formula)


def beta_at(config: Config, epoch: int) -> float:
    """`kl_beta` for the settings of a run."""
    return kl_beta(
        epoch,
        config.num_epoch,
        config.kl_anneal_type,
        config.kl_anneal_cycle,
        config.kl_anneal_ratio,
        config.kl_formula,
    )


def lr_at(config: Config, epoch: int) -> float:
    """`learning_rate` for the settings of a run."""
    return learning_rate(
        epoch,
        config.num_epoch,
        config.lr_scheduler,
        config.lr,
        config.milestones,
        config.gamma,
        config.lr_min,
    )


SCHEDULES: Final[dict[str, tuple[str, Callable[[Config, int], float]]]] = {
    "lr": ("learning rate", lr_at),
    "tfr": ("teacher forcing ratio", tfr_at),
    "beta": ("KL weight", beta_at),
}
"""The schedules of a run: name -> (the name in words, the value by settings and finished epochs)."""


def first_differences(one: Config, other: Config, epochs: int) -> dict[str, int]:
    """The first epoch, counted from 1, in which a schedule of two runs has different values: name -> epoch.

    Only the first `epochs` epochs are compared. A schedule that agrees on all of them is left out.
    """
    found = {}
    for name, (_, value_at) in SCHEDULES.items():
        epoch = next((epoch for epoch in range(epochs) if value_at(one, epoch) != value_at(other, epoch)), None)
        if epoch is not None:
            found[name] = epoch + 1
    return found

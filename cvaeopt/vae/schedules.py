"""Teacher forcing, KL weight and learning rate as pure functions of (epoch, epochs).

`epoch` is the number of finished epochs, 0 <= epoch < epochs; the value holds during the next epoch. Each setting has
one canonical formula. The formulas of the seed reports are kept beside it under their names, because
`kl_anneal_cycle` is a number of cycles in some reports and a length in epochs in others.
"""

from __future__ import annotations

import math
from typing import assert_never

from cvaeopt.config import Config, KlFormula, TfrFormula


def teacher_forcing_ratio(
    epoch: int, tfr: float, tfr_sde: int, tfr_d_step: float, formula: TfrFormula = "linear"
) -> float:
    """The probability of teacher forcing in this epoch, in [0, 1].

    linear    `tfr` up to and including epoch `tfr_sde`, then `tfr_d_step` less every epoch
    seed000   the same: the template tests `epoch > tfr_sde` after it has counted the epoch
    seed001   the same: its report describes that line
    seed003   the test with `>=`: one epoch earlier (never before epoch 1, when it is first run)
    """
    if formula == "seed003":
        falls = max(0, min(epoch, epoch - tfr_sde + 1))
    else:
        falls = max(0, epoch - tfr_sde)
    return max(0.0, tfr - tfr_d_step * falls)


def kl_beta(epoch: int, epochs: int, kind: str, cycle: int, ratio: float, formula: KlFormula = "fu") -> float:
    """The weight of the KL term in this epoch, in [0, 1].

    kind      'cyclical', 'monotonic' or 'none' (always 1; seed003: 0 in the first epoch)
    cycle     fu, seed001, seed003: number of cycles over the run; seed000, seed004: epochs of one cycle
    ratio     fu, seed001: fraction of a cycle spent climbing, 0 < ratio <= 1; otherwise a slope

    Source: Fu et al. 2019, arXiv:1903.10145 (fu); seed reports 000, 001, 003, 004. The canonical `fu` climbs
    linearly over the first `ratio` of each of `cycle` equal cycles, then holds 1; monotonic is its one-cycle case.
    The class of report 003 starts at 0, and its update evaluates the formula before it counts the finished epoch:
    every value comes one epoch later than the formula says.
    """
    if formula == "seed003":
        if epoch == 0:
            return 0.0
        epoch -= 1
    if kind == "none":
        return 1.0
    cyclical = kind == "cyclical"
    if formula == "fu":
        cycles = cycle if cyclical else 1
        beta = epoch * cycles % epochs / epochs / ratio  # whole numbers first: exact at every cycle's start
    elif formula == "seed000":
        if cyclical:
            beta = ratio * (epoch % cycle) / cycle
        else:  # beta <- beta + ratio * t / cycle at every t = 1 .. epoch
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
    """Learning rate in this epoch.

    MultiStepLR     lr * gamma^(milestones passed); a milestone acts from its own epoch on
    ExponentialLR   lr * gamma^epoch
    cosine          half a cosine from lr (epoch 0) to lr_min (epoch `epochs`, which is never run)
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
    """`teacher_forcing_ratio` of a run's settings."""
    return teacher_forcing_ratio(epoch, config.tfr, config.tfr_sde, config.tfr_d_step, config.tfr_formula)


def beta_at(config: Config, epoch: int) -> float:
    """`kl_beta` of a run's settings."""
    return kl_beta(
        epoch,
        config.num_epoch,
        config.kl_anneal_type,
        config.kl_anneal_cycle,
        config.kl_anneal_ratio,
        config.kl_formula,
    )


def lr_at(config: Config, epoch: int) -> float:
    """`learning_rate` of a run's settings."""
    return learning_rate(
        epoch,
        config.num_epoch,
        config.lr_scheduler,
        config.lr,
        config.milestones,
        config.gamma,
        config.lr_min,
    )

"""Claims about the arms of a study, and the measures of a run that claims compare.

A claim says that some arms of a grid are better than others by a measure. An arm is one point of the grid. Claims do
not change what is trained, so they are no part of the definition's digest: a user may add claims at any time.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field

from cvaeopt.config import check_names
from cvaeopt.errors import SettingsError
from cvaeopt.search import space
from cvaeopt.search.parsing import as_setting, parse_table
from cvaeopt.search.space import Scalar, Values
from cvaeopt.spelling import Table

Measure = Literal["final_psnr", "best_psnr", "late_psnr", "psnr_swing", "loss", "loss_swing"]

MEASURES: Final = "measures"
"""User attribute of a complete trial: its value of every measure, see `measures`."""

HIGHER_IS_BETTER: Final[tuple[Measure, ...]] = ("final_psnr", "best_psnr", "late_psnr")
"""The measures whose higher value is better. Of the losses and swings, the lower value is better."""

MEASURED_IN_DB: Final[tuple[Measure, ...]] = (*HIGHER_IS_BETTER, "psnr_swing")
"""The measures in dB. The losses have no unit."""


class Claim(Table):
    """One table [[claims]]: the arms of each table in `better` are better by `measure` than those in `worse`.

    A table of settings stands for the mean of all arms that have these settings.
    """

    text: str = Field(min_length=1, description="the claim in words")
    better: list[dict[str, Scalar]] = Field(min_length=1, description="settings of the arms that are said to be better")
    worse: list[dict[str, Scalar]] = Field(min_length=1, description="settings of the arms that are said to be worse")
    measure: Measure = Field("final_psnr", description="what is compared")

    @property
    def pairs(self) -> list[tuple[Values, Values]]:
        """Every table of `better` with every table of `worse`. The claim is true if it is true for each pair."""
        return list(itertools.product(self.better, self.worse))


def measures(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Every measure of a run, from the rows of its history. A swing needs two epochs and is left out otherwise.

    final_psnr, late_psnr   validation PSNR after the last epoch, of all frames and of the last third of them, dB
    best_psnr               highest validation PSNR of all epochs, dB
    loss                    training loss of the last epoch
    psnr_swing, loss_swing  mean absolute difference between neighbouring epochs
    """
    psnr, loss = ([float(row[key]) for row in history] for key in ("val_psnr", "train_loss"))
    found = {
        "final_psnr": psnr[-1],
        "best_psnr": max(psnr),
        "late_psnr": float(history[-1]["val_psnr_late"]),
        "loss": loss[-1],
    }
    return found if len(history) < 2 else {**found, "psnr_swing": swing(psnr), "loss_swing": swing(loss)}


def swing(curve: Sequence[float]) -> float:
    """Mean absolute difference between neighbouring values; at least two values are needed."""
    return statistics.fmean(abs(after - before) for before, after in itertools.pairwise(curve))


def parse_claims(given: Any, search: space.Search, fixed: Mapping[str, Any], where: str) -> list[Claim]:
    """The claims of a grid. SettingsError if a claim names settings that no arm has, or one arm on both sides.

    where   the place of the claims, for error messages
    """
    if not isinstance(given, list) or not all(isinstance(table, dict) for table in given):
        raise SettingsError(f"{where} is no list of tables.", "Expected: [[claims]], in double brackets.")
    claims = []
    for index, table in enumerate(given, start=1):
        here = f"{where} {index}"
        sides = {side: _side(table[side], search, f"{here} {side}") for side in ("better", "worse") if side in table}
        claim = parse_table(Claim, {**table, **sides}, here)
        for pair in claim.pairs:
            better, worse = (arms_with(settings, search, fixed) for settings in pair)
            if not better or not worse:
                raise SettingsError(
                    f"{here}: no arm has {side_text(pair[1] if better else pair[0])}.",
                    "Expected: settings of at least one point of the grid.",
                )
            if any(arm in worse for arm in better):
                raise SettingsError(f"{here}: an arm is in better and in worse.", "Expected: different arms.")
        claims.append(claim)
    return claims


def arms_with(settings: Mapping[str, Any], search: space.Search, fixed: Mapping[str, Any]) -> list[Values]:
    """The points of the grid that have these `settings`. A setting that a point does not search has its default."""
    defaults = {**space.settled({}, {}), **fixed}
    return [
        point
        for point in space.grid(search, fixed)
        if all(space.same({**defaults, **point}[name], value) for name, value in settings.items())
    ]


def side_text(settings: Mapping[str, Any]) -> str:
    """The settings of one side of a claim in words."""
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _side(given: Any, search: space.Search, where: str) -> Any:
    """The tables of one side, with values in the settings' types. A single table is a list with one table."""
    tables = [given] if isinstance(given, dict) else given
    if not isinstance(tables, list) or not all(isinstance(table, dict) and table for table in tables):
        raise SettingsError(f"{where} = {given!r}.", "Expected: a table of settings, or a list of such tables.")
    for table in tables:
        check_names(table, list(search), where, kind="searched setting")
    return [{name: as_setting(name, value) for name, value in table.items()} for table in tables]

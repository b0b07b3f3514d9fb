"""Tests of the claims about a study's arms: each claim holds, is reversed, or cannot be told from its seeds.

All arms are trained with the same seeds, so two arms are compared seed by seed. The 95 % interval of a pair is
Student's, from the differences of this pair alone. So it equals the interval of the two-way analysis (`two_way`) of
these two arms. The other arms are left out on purpose: arms differ in their noise, above all in how much a loss swings,
and a standard deviation that is pooled over all arms is then too small for the noisy arms.

How the error rate is held:

- A claim with several pairs *holds* if every pair does; so its p value is the largest one of its pairs, and no
  correction is needed (intersection-union test). It is *reversed* if any pair is reversed; the smallest p value of its
  pairs is multiplied by the number of pairs (Bonferroni). Each direction has half of the error rate.
- The p values of all claims of a study are adjusted together by Holm's method. So with a probability of at least 95 %,
  not a single verdict "holds" or "reversed" of the study is wrong. An interval is of its pair alone and not adjusted.

This is true for a number of seeds that was fixed before: a user who adds seeds until a claim holds is wrong more often.

Sources: Berger, Technometrics 24 (1982), for the intersection-union test; Holm, Scandinavian Journal of Statistics 6
(1979). The number of seeds that would decide a claim comes from the noncentral t distribution.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from optuna.trial import FrozenTrial
from scipy.special import nctdtr, stdtr, stdtrit

from cvaeopt.outcome.intervals import CONFIDENCE, Interval, interval
from cvaeopt.outcome.trials import facts
from cvaeopt.search.claims import (
    HIGHER_IS_BETTER,
    MEASURED_IN_DB,
    MEASURES,
    Claim,
    arms_with,
    side_text,
)
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import Values, key_of
from cvaeopt.store.claims import arms, fresh_runs, recorded
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import stored_definition

Verdict = Literal["holds", "reversed", "open"]

POWER: Final = 0.8
"""The probability with which the stated number of seeds would decide a claim, if the differences are as they look."""

MAX_SEEDS: Final = 1000
"""The largest number of seeds that is stated."""

_ERROR: Final = 1 - CONFIDENCE


@dataclass(frozen=True)
class Judgement:
    """The test of one claim.

    verdict   "open": cannot be told
    p         the claim's p value, adjusted for all claims of the study
    pairs     for each pair, how much the better arm is better, with its 95 % interval; None without a common seed
    seeds     the number of common seeds of each pair
    needed    number of seeds that would decide an open claim; None if the claim is decided, or if it is not known or
              above MAX_SEEDS
    """

    verdict: Verdict
    p: float
    pairs: tuple[Interval | None, ...]
    seeds: tuple[int, ...]
    needed: int | None


@dataclass(frozen=True)
class Tested:
    """The claims of a study and their tests.

    arms       number of arms
    runs       number of fresh runs that are registered
    ended      number of fresh runs that are over
    without    number of fresh runs that ended without a measure: they diverged or were lost
    """

    claims: tuple[Claim, ...]
    judged: tuple[Judgement, ...]
    arms: int
    runs: int
    ended: int
    without: int

    @property
    def sentences(self) -> list[str]:
        """A sentence for each claim: its text, its measure and its verdict."""
        return [
            f"{claim.text} ({claim.measure}): {verdict_text(one)}"
            for claim, one in zip(self.claims, self.judged, strict=True)
        ]

    @property
    def table(self) -> list[dict[str, str]]:
        """A row of text for each pair. The number of the claim and its seeds stand in its first row only."""
        rows = []
        for number, (claim, one) in enumerate(zip(self.claims, self.judged, strict=True), start=1):
            for place, ((better, worse), pair) in enumerate(zip(claim.pairs, one.pairs, strict=True)):
                rows.append(
                    {
                        "claim": str(number) if place == 0 else "",
                        "pair": f"{side_text(better)} over {side_text(worse)}",
                        "better by": "-" if pair is None else f"{pair.mean:.3g}{unit_of(claim)}",
                        "95 %": "-" if pair is None or pair.low is None else f"{pair.low:.3g} to {pair.high:.3g}",
                        "seeds": str(one.seeds[place]),
                        "would decide": needed_text(one) if place == 0 else "",
                    }
                )
        return rows

    def plain(self) -> dict[str, Any]:
        """The tests as JSON values."""
        return {
            "arms": self.arms,
            "runs": self.runs,
            "ended": self.ended,
            "without_measure": self.without,
            "claims": [
                {
                    **claim.model_dump(mode="json"),
                    "verdict": "cannot be told" if one.verdict == "open" else one.verdict,
                    "p": round(one.p, 6),
                    "seeds": min(one.seeds),
                    "seeds_needed": one.needed,
                    "pairs": [
                        {
                            "better": better,
                            "worse": worse,
                            "seeds": seeds,
                            "difference": pair and _rounded(pair.mean),
                            "low": pair and _rounded(pair.low),
                            "high": pair and _rounded(pair.high),
                        }
                        for (better, worse), pair, seeds in zip(claim.pairs, one.pairs, one.seeds, strict=True)
                    ],
                }
                for claim, one in zip(self.claims, self.judged, strict=True)
            ],
        }


def judge(claims: Sequence[Sequence[Sequence[float]]]) -> list[Judgement]:
    """The tests of the claims, as one family.

    claims   for each claim and each of its pairs: how much the better arm is better, for each common seed
    """
    tests = [[_Pair.of(differences) for differences in pairs] for pairs in claims]
    holds = [max(pair.above for pair in pairs) for pairs in tests]
    reversed_ = [min(1.0, len(pairs) * min(pair.below for pair in pairs)) for pairs in tests]
    adjusted = _holm([min(1.0, 2 * min(both)) for both in zip(holds, reversed_, strict=True)])
    judged = []
    for pairs, up, down, p in zip(tests, holds, reversed_, adjusted, strict=True):
        verdict: Verdict = "open" if p > _ERROR else "holds" if up < down else "reversed"
        needed = _needed(pairs, _ERROR / len(tests)) if verdict == "open" else None
        judged.append(
            Judgement(verdict, p, tuple(pair.interval for pair in pairs), tuple(pair.seeds for pair in pairs), needed)
        )
    return judged


def seeds_needed(mean: float, spread: float, error: float) -> int | None:
    """The smallest number of seeds with which a two-sided t test finds this difference with probability POWER.

    mean, spread   mean and standard deviation of the differences between two arms, over seeds
    error          error rate of the test
    """
    if mean == 0:
        return None

    def suffice(seeds: int) -> bool:
        quantile = stdtrit(seeds - 1, 1 - error / 2)
        return spread == 0 or 1 - nctdtr(seeds - 1, math.sqrt(seeds) * abs(mean) / spread, quantile) >= POWER

    place = bisect.bisect_left(range(2, MAX_SEEDS + 1), True, key=suffice)
    return 2 + place if 2 + place <= MAX_SEEDS else None


def assess(storage: Storage, name: str, claims: Sequence[Claim] | None = None) -> Tested | None:
    """The claims about the study `name`, tested with all fresh runs so far; None without claims.

    claims   None for the claims that are stored with the study
    """
    definition = stored_definition(storage, name)
    if claims is None:
        claims = recorded(storage, definition)
    if not claims:
        return None
    keys = [arm.key for arm in arms(definition)]
    found = {key: fresh for key, fresh in fresh_runs(storage, definition).items() if key in keys}
    measured = {key: _measured(fresh) for key, fresh in found.items()}
    known = facts(trial for fresh in found.values() for trial in fresh.values())
    ended = sum(one.state not in ("running", "waiting") for one in known)
    return Tested(
        tuple(claims),
        tuple(judge([[_differences(definition, claim, pair, measured) for pair in claim.pairs] for claim in claims])),
        len(keys),
        len(known),
        ended,
        ended - sum(len(values) for values in measured.values()),
    )


def verdict_text(one: Judgement) -> str:
    """The verdict in words."""
    if one.verdict == "open":
        seeds = min(one.seeds)
        return f"cannot be told from {seeds} seed{'' if seeds == 1 else 's'}"
    return one.verdict


def needed_text(one: Judgement) -> str:
    """How many seeds would decide the claim, in words."""
    if one.verdict != "open":
        return "decided"
    if all(pair is not None and pair.standard_error is not None for pair in one.pairs):
        return f"about {one.needed}" if one.needed is not None else f"over {MAX_SEEDS}"
    return "unknown before 2 seeds"


def unit_of(claim: Claim) -> str:
    """The unit of the claim's measure with a space before it; '' if it has none."""
    return " dB" if claim.measure in MEASURED_IN_DB else ""


@dataclass(frozen=True)
class _Pair:
    """The test of one pair.

    above, below   one-sided p values: that the difference is not above 0, and that it is not below 0
    """

    interval: Interval | None
    seeds: int
    spread: float
    above: float
    below: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> _Pair:
        seeds = len(differences)
        if seeds < 2:
            return cls(interval(differences) if seeds else None, seeds, math.nan, 1.0, 1.0)
        found = interval(differences)
        assert found.standard_error is not None
        if found.standard_error == 0:  # equal in every seed: no difference, or a difference without any noise
            above, below = (float(found.mean <= 0), float(found.mean >= 0))
        else:
            below = float(stdtr(seeds - 1, found.mean / found.standard_error))
            above = float(stdtr(seeds - 1, -found.mean / found.standard_error))
        return cls(found, seeds, found.standard_error * math.sqrt(seeds), above, below)


def _holm(p_values: Sequence[float]) -> list[float]:
    """The p values, adjusted by Holm's method."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _needed(pairs: Sequence[_Pair], error: float) -> int | None:
    """The number of seeds that would decide a claim in the direction in which it looks now; None if unknown."""
    if any(pair.interval is None or pair.seeds < 2 for pair in pairs):
        return None
    means = [pair.interval.mean for pair in pairs if pair.interval is not None]
    if min(means) >= 0:  # the claim may hold: every pair must be decided
        each = [seeds_needed(mean, pair.spread, error) for mean, pair in zip(means, pairs, strict=True)]
        known = [seeds for seeds in each if seeds is not None]
        return max(known) if len(known) == len(each) else None
    each = [
        seeds_needed(mean, pair.spread, error / len(pairs)) for mean, pair in zip(means, pairs, strict=True) if mean < 0
    ]
    return min((seeds for seeds in each if seeds is not None), default=None)


def _measured(fresh: Mapping[int, FrozenTrial]) -> dict[int, Mapping[str, float]]:
    """The measures of the complete runs of one arm, by seed."""
    found = {}
    for seed, trial in fresh.items():
        (fact,) = facts([trial])
        if fact.state == "complete" and isinstance(fact.attributes.get(MEASURES), dict):
            found[seed] = fact.attributes[MEASURES]
    return found


def _differences(
    definition: Definition,
    claim: Claim,
    pair: tuple[Values, Values],
    measured: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> list[float]:
    """How much the better side of a pair is better, for each seed that all arms of both sides have."""
    sign = 1 if claim.measure in HIGHER_IS_BETTER else -1
    better, worse = (
        [measured.get(key_of(definition, arm), {}) for arm in arms_with(side, definition.search, definition.fixed)]
        for side in pair
    )
    common = set.intersection(
        *({seed for seed, values in arm.items() if claim.measure in values} for arm in (*better, *worse))
    )
    return [sign * (_mean(better, seed, claim.measure) - _mean(worse, seed, claim.measure)) for seed in sorted(common)]


def _mean(side: Sequence[Mapping[int, Mapping[str, float]]], seed: int, measure: str) -> float:
    return statistics.fmean(arm[seed][measure] for arm in side)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)

"""What the confirmations of a study say: its leaders ranked by fresh runs alone.

The values of the search do not count here: they were selected for being high. Of fresh runs, each leader has a mean
and a 95 % t interval. The scatter of one run is pooled over all leaders, because three repeats tell little about it
and fifteen a lot; the intervals are not widened for having looked at several leaders.

All leaders are trained from the same seeds, and most of what a seed does it does to all of them alike. So leaders are
compared seed by seed, as far as their runs allow it (`LEAST_FREEDOM`): that tells them apart where intervals overlap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from cvaeopt.outcome.intervals import Interval, Paired, around, paired, pooled_spread, t_quantile
from cvaeopt.outcome.trials import facts
from cvaeopt.search.space import key_of
from cvaeopt.store.confirmation import Leader, confirmations, leaders
from cvaeopt.store.damage import damaged, named
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import ENQUEUED, stored_definition

LEAST_FREEDOM = 3
"""Degrees of freedom that a comparison seed by seed needs. With fewer its t interval is wider than what pairing saves
where seeds matter, and leaders are compared as if their seeds had nothing in common."""

_SAME_DB = 1e-6  # what rounding leaves of no difference


@dataclass(frozen=True)
class Confirmed:
    """One leader with its fresh runs.

    values            of the fresh runs that came to their end, dB
    seeds             training seed of each of them; empty if they are not known
    diverged, lost    fresh runs that did not: for the settings' fault (NaN), or another's (memory, a crash)
    open              fresh runs that are not over
    mean, standard_error, low, high    of `values`, dB; error and 95 % interval need a repeat, of any leader
    behind            how much lower it is than the first one, with its 95 % interval, dB; None for the first one
    tied              whether noise does not tell it from the first one
    """

    leader: Leader
    values: tuple[float, ...]
    diverged: int = 0
    lost: int = 0
    open: int = 0
    mean: float | None = None
    standard_error: float | None = None
    low: float | None = None
    high: float | None = None
    behind: Interval | None = None
    tied: bool = False
    seeds: tuple[int, ...] = ()

    def plain(self) -> dict[str, Any]:
        """The leader as JSON values, dB rounded to 0.0001."""
        return {
            "trials": list(self.leader.trials),
            "searched": round(self.leader.searched, 4),
            "mean": _rounded(self.mean),
            "standard_error": _rounded(self.standard_error),
            "low": _rounded(self.low),
            "high": _rounded(self.high),
            "values": [round(value, 4) for value in self.values],
            "diverged": self.diverged,
            "lost": self.lost,
            "open": self.open,
            "behind_first": None
            if self.behind is None
            else {
                "value": _rounded(self.behind.mean),
                "low": _rounded(self.behind.low),
                "high": _rounded(self.behind.high),
            },
            "tied_with_first": self.tied,
            "params": self.leader.params,
        }


@dataclass(frozen=True)
class Confirmation:
    """All fresh runs of a study's leaders.

    studies   the names of the confirmations
    ranked    leaders without a diverged run first, then by mean; those without a value last
    spread    standard deviation of one run's value among runs of the same settings, dB; None without a repeat
    freedom   degrees of freedom of `spread`
    paired    whether leaders are compared seed by seed
    """

    studies: tuple[str, ...]
    ranked: tuple[Confirmed, ...]
    spread: float | None
    freedom: int
    paired: bool = False

    @property
    def runs(self) -> int:
        """Fresh runs that are registered."""
        return self.ended + sum(one.open for one in self.ranked)

    @property
    def ended(self) -> int:
        """Fresh runs that are over."""
        return sum(len(one.values) + one.diverged + one.lost for one in self.ranked)

    @property
    def over(self) -> bool:
        """Whether every registered run is over; False while there is none."""
        return 0 < self.runs == self.ended

    @property
    def best(self) -> Confirmed | None:
        """The first leader, once every run is over and it has a value."""
        first = next(iter(self.ranked), None)  # none: none of the leaders has the settings of a run any more
        return first if first is not None and self.over and first.mean is not None else None

    def plain(self) -> dict[str, Any]:
        """The confirmation as JSON values; `best` is what counts in place of the search's best, once there is one."""
        best = self.best
        return {
            "studies": list(self.studies),
            "runs": self.runs,
            "ended": self.ended,
            "best": None if best is None else {"number": best.leader.trials[0], "value": _rounded(best.mean)},
            "spread_db": _rounded(self.spread),
            "paired": self.paired,
            "leaders": [one.plain() for one in self.ranked],
        }


@named
def confirmation(storage: Storage, name: str) -> Confirmation | None:
    """What the confirmations of study `name` say so far; None if there is none. StudyError for an unknown study."""
    definition = stored_definition(storage, name)
    known = confirmations(storage, definition)
    if not known:
        return None
    found = {leader.key: Confirmed(leader, ()) for leader in leaders(definition, _trials(storage, name))}
    for one in known:
        points = one.points()
        trials = _trials(storage, one.name)
        for trial, fact in zip(trials, facts(trials), strict=True):
            # By its place in the queue: a run that was given up at once has no parameters yet.
            place: int | None = trial.system_attrs.get(ENQUEUED)
            if place is not None and (type(place) is not int or place not in range(len(points))):
                raise damaged(
                    one.name,
                    f", trial {trial.number}",
                    "trial_system_attributes",
                    f"{ENQUEUED!r} = {place!r}",
                    f"a number below {len(points)}, the runs that are registered",
                )
            key = None if place is None else key_of(one, points[place])
            if place is None or key not in found:
                continue
            so_far = found[key]
            if fact.value is not None:
                seeds = (*so_far.seeds, points[place]["seed"])
                found[key] = replace(so_far, values=(*so_far.values, fact.value), seeds=seeds)
            elif fact.state in ("running", "waiting"):
                found[key] = replace(so_far, open=so_far.open + 1)
            elif fact.attributes.get("failed") == "diverged":
                found[key] = replace(so_far, diverged=so_far.diverged + 1)
            else:
                found[key] = replace(so_far, lost=so_far.lost + 1)
    return rank([one.name for one in known], found.values())


def rank(names: Sequence[str], counted: Iterable[Confirmed]) -> Confirmation:
    """The confirmation with these studies and these leaders' runs: means, intervals and ranks."""
    asked = [one for one in counted if one.values or one.diverged or one.lost or one.open]
    spread, freedom = pooled_spread([one.values for one in asked])
    judged = [_judged(one, spread, freedom) for one in asked]
    blocks = _by_seed(judged)
    levels = _levels(judged, blocks)
    order = sorted(
        range(len(judged)),
        key=lambda place: (
            judged[place].mean is None,
            judged[place].diverged > 0,
            -levels[place],
            -judged[place].leader.searched,
        ),
    )

    def compared(place: int) -> Confirmed:
        one, first = judged[place], judged[order[0]]
        if one is first or one.mean is None or first.mean is None:
            return one
        apart = blocks.difference(order[0], place) if blocks else None
        if blocks and apart:
            return _compared(one, *apart, blocks.freedom)
        error = spread * math.sqrt(1 / len(one.values) + 1 / len(first.values))
        return _compared(one, first.mean - one.mean, error, freedom)

    ranked = tuple(compared(place) for place in order)
    return Confirmation(tuple(names), ranked, spread if freedom else None, freedom, blocks is not None)


def _levels(judged: Sequence[Confirmed], blocks: Paired | None) -> list[float]:
    """By what leaders are ranked: their means, less what these owe to their seeds where some have lost a run."""
    means = [0.0 if one.mean is None else one.mean for one in judged]
    known = [place for place, one in enumerate(judged) if one.mean is not None]
    if blocks is None:
        return means
    apart = {place: blocks.difference(place, known[0]) for place in known}
    if any(found is None for found in apart.values()):
        return means
    return [round(found[0], 9) if (found := apart.get(place)) else 0.0 for place in range(len(judged))]


def _by_seed(judged: Sequence[Confirmed]) -> Paired | None:
    """The comparison of the leaders seed by seed; None where it would rest on too little, or seeds are unknown."""
    if any(len(one.seeds) != len(one.values) or len(set(one.seeds)) != len(one.seeds) for one in judged):
        return None
    found = paired([dict(zip(one.seeds, one.values, strict=True)) for one in judged])
    return found if found.freedom >= LEAST_FREEDOM else None


def table(found: Confirmation) -> list[dict[str, str]]:
    """The ranking in words, one row a leader: trial, confirmed mean and interval, runs, value in the search."""
    rows = []
    for one in found.ranked:
        mean = "-" if one.mean is None else f"{one.mean:.2f}"
        within = "-" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        counts = {"diverged": one.diverged, "lost": one.lost, "to come": one.open}
        runs = [str(len(one.values)), *(f"{number} {what}" for what, number in counts.items() if number)]
        first = one is found.ranked[0] and one.mean is not None
        behind = "-" if one.behind is None else f"{one.behind.mean:.2f}"
        if one.behind is not None and one.behind.low is not None and one.behind.high is not None:
            behind += f" ({one.behind.low:.2f} to {one.behind.high:.2f})"
        rows.append(
            {
                "trial": ", ".join(map(str, one.leader.trials)),
                "confirmed, dB": mean,
                "95 %": within,
                "behind, dB": behind,
                "runs": ", ".join(runs),
                "searched, dB": f"{one.leader.searched:.2f}",
                "": "first" if first else "within noise" if one.tied else "",
            }
        )
    return rows


@named
def _trials(storage: Storage, name: str) -> list[FrozenTrial]:
    found = storage.get_all_trials(storage.get_study_id_from_name(name), deepcopy=False)
    return sorted(found, key=lambda trial: trial.number)


def _judged(one: Confirmed, spread: float, freedom: int) -> Confirmed:
    if not one.values:
        return one
    mean = math.fsum(one.values) / len(one.values)
    if not freedom:
        return replace(one, mean=mean)
    found = around(mean, spread, len(one.values), freedom)
    return replace(one, mean=mean, standard_error=found.standard_error, low=found.low, high=found.high)


def _compared(one: Confirmed, behind: float, error: float, freedom: int) -> Confirmed:
    """`one`, which is `behind` the first by so much (dB, with its standard error), with its tie."""
    if not freedom:  # one run each, and no run repeated: nothing can tell them apart
        return replace(one, behind=Interval(behind, None, None, None), tied=True)
    half = t_quantile(freedom) * error
    return replace(
        one, behind=Interval(behind, error, behind - half, behind + half), tied=abs(behind) <= half + _SAME_DB
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

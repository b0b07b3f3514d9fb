"""The results of a study's confirmations: the leaders of the search, ranked by their fresh runs alone.

The values of the search do not count here, because the leaders were selected for their high values. All leaders are
trained with the same seeds, so the runs form a table of settings and seeds. `two_way` analyses this table. It estimates
the true value of each leader, with a 95 % interval, and compares the leaders seed by seed. The estimates are shrunk, so
that the estimate of the first leader is not optimistic.

If there are too few runs for this analysis, a leader's estimate is the mean of its runs. Its t interval uses a standard
deviation that is pooled over all leaders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from cvaeopt.outcome.intervals import Interval, mean_interval, pooled_spread, t_interval
from cvaeopt.outcome.trials import facts
from cvaeopt.outcome.two_way import TwoWay, two_way
from cvaeopt.search.space import key_of
from cvaeopt.store.confirmation import Leader, confirmations, later_runs, leaders, runs
from cvaeopt.store.damage import named
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import stored_definition

_SAME_DB = 1e-6  # tolerance for rounding errors, dB


@dataclass(frozen=True)
class RankedLeader:
    """One leader with its fresh runs.

    values            values of the complete fresh runs, dB
    seeds             training seed of each run in `values`; empty if the seeds are not known
    diverged          number of fresh runs that diverged (NaN)
    lost              number of fresh runs that ended without a value for another reason, such as memory or a crash
    open              number of fresh runs that are not over
    mean              mean of `values`, dB
    estimate          estimate of the true value, dB
    standard_error    standard error of `estimate`, dB; None if no leader has two runs
    low, high         95 % interval of the true value, dB; None if no leader has two runs
    behind            how much lower this leader is than the first leader, dB, with a 95 % interval; None for the first
    tied              whether the difference from the first leader is within noise
    """

    leader: Leader
    values: tuple[float, ...]
    diverged: int = 0
    lost: int = 0
    open: int = 0
    mean: float | None = None
    estimate: float | None = None
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
            "estimate": _rounded(self.estimate),
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
    ranked    the leaders in this order: without a diverged run, with a diverged run, without a value; the first two
              groups are sorted by estimate
    spread    standard deviation of the values of runs with the same settings, dB; None if no leader has two runs
    freedom   degrees of freedom of `spread`
    paired    whether the runs are analysed as a table of settings and seeds, and leaders are compared seed by seed
    later     number of runs in the second stage of a successive confirmation that are not registered yet
    """

    studies: tuple[str, ...]
    ranked: tuple[RankedLeader, ...]
    spread: float | None
    freedom: int
    paired: bool = False
    later: int = 0

    @property
    def runs(self) -> int:
        """The number of fresh runs that are registered or will be registered."""
        return self.ended + sum(one.open for one in self.ranked) + self.later

    @property
    def ended(self) -> int:
        """The number of fresh runs that are over."""
        return sum(len(one.values) + one.diverged + one.lost for one in self.ranked)

    @property
    def over(self) -> bool:
        """Whether every fresh run is over; False if there is no fresh run."""
        return 0 < self.runs == self.ended

    @property
    def best(self) -> RankedLeader | None:
        """The first leader, if every run is over and this leader has a value; None otherwise."""
        first = next(iter(self.ranked), None)  # None if no leader has the settings of a fresh run any more
        return first if first is not None and self.over and first.estimate is not None else None

    def plain(self) -> dict[str, Any]:
        """The confirmation as JSON values. If `best` is not null, it replaces the best trial of the search."""
        best = self.best
        return {
            "studies": list(self.studies),
            "runs": self.runs,
            "ended": self.ended,
            "best": None if best is None else {"number": best.leader.trials[0], "value": _rounded(best.estimate)},
            "spread_db": _rounded(self.spread),
            "paired": self.paired,
            "leaders": [one.plain() for one in self.ranked],
        }


@named
def confirmation(storage: Storage, name: str) -> Confirmation | None:
    """The present state of all confirmations of study `name`; None if the study has no confirmation.

    StudyError for an unknown study.
    """
    definition = stored_definition(storage, name)
    known = confirmations(storage, definition)
    if not known:
        return None
    found = {leader.key: RankedLeader(leader, ()) for leader in leaders(definition, _trials(storage, name))}
    for one in known:
        ran = runs(storage, one)
        for (point, _), fact in zip(ran, facts(trial for _, trial in ran), strict=True):
            key = key_of(one, point)
            if key not in found:
                continue
            so_far = found[key]
            if fact.value is not None:
                seeds = (*so_far.seeds, point["seed"])
                found[key] = replace(so_far, values=(*so_far.values, fact.value), seeds=seeds)
            else:
                ended = "diverged" if fact.attributes.get("failed") == "diverged" else "lost"
                kind = "open" if fact.state in ("running", "waiting") else ended
                found[key] = replace(so_far, **{kind: getattr(so_far, kind) + 1})
    return rank([one.name for one in known], found.values(), later_runs(storage, definition))


def rank(names: Sequence[str], counted: Iterable[RankedLeader], later: int = 0) -> Confirmation:
    """The confirmation with the estimate, the interval and the rank of each leader in `counted`.

    names     the names of the confirmations
    counted   leaders with their fresh runs; a leader without a fresh run is left out
    later     see `Confirmation`
    """
    asked = [one for one in counted if one.values or one.diverged or one.lost or one.open]
    spread, freedom = pooled_spread([one.values for one in asked])
    valued = [one for one in asked if one.values]
    table_of_runs = two_way([dict(zip(one.seeds, one.values, strict=True)) for one in valued])
    judged = [
        _judged(one, table_of_runs.values[place] if table_of_runs else mean_interval(one.values, spread, freedom))
        for place, one in enumerate(valued)
    ]
    order = sorted(
        range(len(judged)),
        key=lambda place: (
            judged[place].diverged > 0,
            -round(judged[place].estimate or 0.0, 9),
            -judged[place].leader.searched,
        ),
    )
    ranked = [_compared(judged, order[0], place, table_of_runs, (spread, freedom)) for place in order]
    without = sorted((one for one in asked if not one.values), key=lambda one: (one.diverged > 0, -one.leader.searched))
    return Confirmation(
        tuple(names), (*ranked, *without), spread if freedom else None, freedom, table_of_runs is not None, later
    )


def table(found: Confirmation) -> list[dict[str, str]]:
    """The ranking as text, a row for each leader. The keys of a row are the columns' titles."""
    rows = []
    for one in found.ranked:
        estimate = "-" if one.estimate is None else f"{one.estimate:.2f}"
        within = "-" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        counts = {"diverged": one.diverged, "lost": one.lost, "to come": one.open}
        runs = [str(len(one.values)), *(f"{number} {what}" for what, number in counts.items() if number)]
        first = one is found.ranked[0] and one.estimate is not None
        behind = "-" if one.behind is None else f"{one.behind.mean:.2f}"
        if one.behind is not None and one.behind.low is not None and one.behind.high is not None:
            behind += f" ({one.behind.low:.2f} to {one.behind.high:.2f})"
        rows.append(
            {
                "trial": ", ".join(map(str, one.leader.trials)),
                "confirmed, dB": estimate,
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


def _judged(one: RankedLeader, found: Interval) -> RankedLeader:
    return replace(
        one,
        mean=math.fsum(one.values) / len(one.values),
        estimate=found.mean,
        standard_error=found.standard_error,
        low=found.low,
        high=found.high,
    )


def _compared(
    judged: Sequence[RankedLeader], first: int, place: int, runs: TwoWay | None, pooled: tuple[float, int]
) -> RankedLeader:
    """The leader at `place`, with `behind` and `tied` relative to the leader at `first`."""
    one, best = judged[place], judged[first]
    if place == first:
        return one
    behind = runs.difference(first, place) if runs else None
    if behind is None:
        apart = math.fsum(best.values) / len(best.values) - math.fsum(one.values) / len(one.values)
        spread, freedom = pooled
        if not freedom:  # No leader has two runs, so the noise is unknown and no leader can be called worse.
            return replace(one, behind=Interval(apart, None, None, None), tied=True)
        error = spread * math.sqrt(1 / len(one.values) + 1 / len(best.values))
        behind = t_interval(apart, error, freedom)
    assert behind.low is not None
    return replace(one, behind=behind, tied=abs(behind.mean) <= behind.mean - behind.low + _SAME_DB)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

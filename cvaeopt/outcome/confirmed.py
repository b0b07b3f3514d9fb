"""What the confirmations of a study say: its leaders ranked by fresh runs alone.

The values of the search do not count here: they were selected for being high. Of fresh runs, each leader has a mean
and a 95 % t interval. The scatter of one run is pooled over all leaders, because three repeats tell little about it
and fifteen a lot; the intervals are not widened for having looked at several leaders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial

from cvaeopt.outcome.noise import around, pooled_spread, t_quantile
from cvaeopt.outcome.trials import facts
from cvaeopt.search.confirmation import Leader, confirmations, leaders
from cvaeopt.search.space import key_of
from cvaeopt.search.storage import Storage
from cvaeopt.search.study import ENQUEUED, stored_definition


@dataclass(frozen=True)
class Confirmed:
    """One leader with its fresh runs.

    values            of the fresh runs that came to their end, dB
    diverged, lost    fresh runs that did not: for the settings' fault (NaN), or another's (memory, a crash)
    open              fresh runs that are not over
    mean, standard_error, low, high    of `values`, dB; error and 95 % interval need a repeat, of any leader
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
    tied: bool = False

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
    """

    studies: tuple[str, ...]
    ranked: tuple[Confirmed, ...]
    spread: float | None
    freedom: int

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
        """Whether every registered run is over."""
        return self.ended == self.runs

    @property
    def best(self) -> Confirmed | None:
        """The first leader, once every run is over and it has a value."""
        first = self.ranked[0]
        return first if self.over and first.mean is not None else None

    def plain(self) -> dict[str, Any]:
        """The confirmation as JSON values; `best` is what counts in place of the search's best, once there is one."""
        best = self.best
        return {
            "studies": list(self.studies),
            "runs": self.runs,
            "ended": self.ended,
            "best": None if best is None else {"number": best.leader.trials[0], "value": _rounded(best.mean)},
            "spread_db": _rounded(self.spread),
            "leaders": [one.plain() for one in self.ranked],
        }


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
            place = trial.system_attrs.get(ENQUEUED)
            key = None if place is None else key_of(one, points[place])
            if key not in found:
                continue
            so_far = found[key]
            if fact.value is not None:
                found[key] = replace(so_far, values=(*so_far.values, fact.value))
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
    judged.sort(
        key=lambda one: (one.mean is None, one.diverged > 0, -(one.mean or 0.0), -one.leader.searched),
    )
    if judged and judged[0].mean is not None:
        judged = [judged[0], *(_compared(one, judged[0], spread, freedom) for one in judged[1:])]
    return Confirmation(tuple(names), tuple(judged), spread if freedom else None, freedom)


def table(found: Confirmation) -> list[dict[str, str]]:
    """The ranking in words, one row a leader: trial, confirmed mean and interval, runs, value in the search."""
    rows = []
    for one in found.ranked:
        mean = "-" if one.mean is None else f"{one.mean:.2f}"
        within = "-" if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"
        counts = {"diverged": one.diverged, "lost": one.lost, "to come": one.open}
        runs = [str(len(one.values)), *(f"{number} {what}" for what, number in counts.items() if number)]
        first = one is found.ranked[0] and one.mean is not None
        rows.append(
            {
                "trial": ", ".join(map(str, one.leader.trials)),
                "confirmed, dB": mean,
                "95 %": within,
                "runs": ", ".join(runs),
                "searched, dB": f"{one.leader.searched:.2f}",
                "": "first" if first else "within noise" if one.tied else "",
            }
        )
    return rows


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


def _compared(one: Confirmed, first: Confirmed, spread: float, freedom: int) -> Confirmed:
    """`one` with its tie: two means differ by chance with the scatter of both."""
    if one.mean is None or first.mean is None:
        return one
    if not freedom:  # one run each, and no run repeated: nothing can tell them apart
        return replace(one, tied=True)
    error = spread * math.sqrt(1 / len(one.values) + 1 / len(first.values))
    return replace(one, tied=abs(first.mean - one.mean) <= t_quantile(freedom) * error)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)

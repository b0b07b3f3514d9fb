"""The texts of a report: the verdict, the turning points of the schedules, and the values of settings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cvaeopt.config import Config
from cvaeopt.outcome.export import beaten_baselines
from cvaeopt.outcome.leaders import Confirmation
from cvaeopt.outcome.transfer import landmarks
from cvaeopt.outcome.trials import Axis, TrialFacts
from cvaeopt.text import BASELINES_LONG, short


def verdict(best: TrialFacts | None, baselines: Mapping[str, float]) -> str:
    """A sentence with the result of the study: the best trial compared with the baselines, in dB."""
    if best is None or best.value is None:
        return "No trial is complete yet, so there is nothing to recommend."
    if not baselines:
        return f"Trial {best.number} reached {best.value:.2f} dB; the study knows no baselines to compare it with."
    lost = beaten_baselines(best.value, baselines)
    if lost:
        names = " and ".join(BASELINES_LONG.get(name, name) for name in lost)
        # The nearest pose is not a trivial baseline: it finds the frame with the nearest pose in the training video.
        doing = "copying the nearest training frame is worth" if lost == ["nearest_pose"] else "doing nothing is worth"
        return (
            f"The best trial, number {best.number} with {best.value:.2f} dB, does NOT beat {names}: "
            f"these settings have learnt less than {doing}."
        )
    name, level = max(baselines.items(), key=lambda item: item[1])
    return (
        f"Trial {best.number} reached {best.value:.2f} dB, {best.value - level:.2f} dB above the hardest baseline "
        f"({BASELINES_LONG.get(name, name)})."
    )


def fresh_text(fresh: Confirmation) -> str:
    """A text that explains the table of fresh runs."""
    text = (
        f"{fresh.ended} of {fresh.runs} fresh runs of the leaders are over. They rank by these runs alone, because the "
        "search's own values were selected for being high."
    )
    if fresh.spread is None:
        return text
    text += f" One run scatters by {fresh.spread:.2f} dB (standard deviation, {fresh.freedom} degrees of freedom)."
    if not fresh.paired:
        return text
    return text + (
        " Leaders are compared seed by seed, because a seed changes all of them alike. Each value is drawn towards the "
        "leaders' mean by as much as noise can explain, so that the first one's is not optimistic."
    )


def marks(config: Config) -> list[tuple[str, str]]:
    """The turning points of a run's schedules: (name of the point, its time as text)."""
    turns = landmarks(config)
    when = {
        "teacher forcing starts to fall": turns.decay_starts,
        "teacher forcing reaches 0": turns.decay_ends,
        "KL weight first reaches 1": turns.beta_full,
        "KL weight first falls back": turns.cycle,
    }
    return [(what, _when(epoch)) for what, epoch in when.items()]


def _when(epoch: int | None) -> str:
    if epoch is None:
        return "never"
    return f"after {epoch} epoch{'' if epoch == 1 else 's'}" if epoch else "from the start"


def tally(values: Sequence[Any], axis: Axis) -> str:
    """A text with the number of times that each choice of a categorical setting occurs; '-' for no value."""
    found = [(choice, values.count(choice)) for choice in axis.choices]
    return ", ".join(f"{short(choice)} {count}x" for choice, count in found if count) or "-"


def spread(values: Sequence[float]) -> str:
    """A text with the smallest, the largest and the median value of a numeric setting; '-' for no value."""
    if not values:
        return "-"
    low, middle, high = (short(at(values)) for at in (min, statistics.median, max))
    return f"{low} to {high}, median {middle}"


def duration(seconds: float | None) -> str | None:
    """The time as text: in minutes below one hour, in hours otherwise; None for None."""
    if seconds is None:
        return None
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def short_name(name: str) -> str:
    """A setting's short name for the labels of an ablation."""
    return {"kl_anneal_type": "KL", "tfr": "forcing"}.get(name, name)

"""Functions that print the plan and the results of the command claims on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cvaeopt.terminal.console import Console
from cvaeopt.terminal.layout import grid
from cvaeopt.text import count, settings_text


def planned(console: Console, facts: Mapping[str, Any]) -> None:
    """Print the runs that `claims` would register."""
    runs = f"{count(facts['new_runs'], 'run')} of {count(facts['epochs'], 'epoch')}"
    console.result(f"Would register {runs} as {facts['new']}." if facts["new"] else "Every run is registered already.")
    console.result(f"{count(len(facts['arms']), 'arm')}, each with the seeds {', '.join(map(str, facts['seeds']))}:")
    for arm in facts["arms"]:
        console.result("- " + settings_text(arm))
    console.result(f"{count(len(facts['claims']), 'claim')}:")
    for number, claim in enumerate(facts["claims"], start=1):
        console.result(f"{number}. {claim['text']} ({claim['measure']})")


def tested(console: Console, sentences: Sequence[str], rows: Sequence[Mapping[str, str]], without: int) -> None:
    """Print the verdicts on the claims, and the table of their pairs.

    without   number of runs that ended without a value
    """
    for number, sentence in enumerate(sentences, start=1):
        console.result(f"{number}. {sentence}")
    console.result("")
    shown = ("claim", "pair", "better by", "95 %", "seeds", "would decide")
    console.show(grid(shown, [[row[name] for name in shown] for row in rows], (4,)))
    if without:
        console.result(f"{count(without, 'run')} ended without a value, so that seed is missing in some pairs.")
    console.result(
        "Pairs are compared seed by seed. With a probability of 95 %, no verdict here is wrong (Holm's method)."
    )

"""The command doctor, which checks a user's own trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvaeopt.commands.opening import open_console
from cvaeopt.commands.options import DryRun, Json, Quiet, Verbose
from cvaeopt.text import count


def doctor(
    trainer: Annotated[Path, typer.Argument(help="The file of your trainer, in the shape of the lab's template.")],
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Longest time of the whole check, seconds.")] = 120,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Check your own Trainer.py for known faults.

    This runs your code in a process of its own, with tiny tensors and no data. It looks for ten faults of published
    trainers, and names the line of each and what it costs. The exit code is 2 if there is a fault, or if nothing could
    be checked.
    """
    from cvaeopt.outcome.doctor import COSTS, diagnose, require_file

    console = open_console(verbose, quiet)
    require_file(trainer)
    if dry_run:
        console.result(f"Would run the code of {trainer} in a process of its own, at most {timeout:g} s, and check:")
        console.result("\n".join(f"- {check}" for check in COSTS))
        return
    console.warn(f"This runs the code of {trainer} on this machine, with your rights. Check only code that you trust.")
    found = diagnose(trainer, timeout)
    unchecked = sum(map(len, found.unchecked.values()))
    if as_json:
        console.json({"trainer": str(trainer), "missing": found.missing, "checks": [row.plain() for row in found.rows]})
    else:
        for row in found.findings:
            line = f":{row.line}" if row.line else ""
            console.result(f"{trainer}{line}: {row.found} ({row.check}).\n  {COSTS[row.check]}")
        for reason, checks in found.unchecked.items():
            every = len(checks) == len(found.rows)
            what = "Nothing could be checked" if every else f"{', '.join(checks)} could not be checked"
            console.result(f"{what}: {reason}.")
        if found.missing:
            console.result(f"Stand-ins were used for: {', '.join(found.missing)}.")
        clean = len(found.rows) - len(found.findings) - unchecked
        console.result(f"{count(len(found.findings), 'finding')}, {count(clean, 'check')} without one.")
    if found.findings or unchecked == len(found.rows):
        raise typer.Exit(2)

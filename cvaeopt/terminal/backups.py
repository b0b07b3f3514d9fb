"""Functions that print what a backup holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cvaeopt.terminal.console import Console
from cvaeopt.terminal.layout import grid
from cvaeopt.terminal.results import trial_numbers

_MAX_HOSTS: Final = 5


def missing_files(study: str, hosts: Mapping[int, str], where: str) -> str:
    """A text about trials whose files are missing, such as 'main, trial 1: its files are not WHERE (it ran on HOST)'.

    hosts   number of each trial, and the host that trained it; '' if unknown
    """
    names = sorted(set(hosts.values()) - {""})
    ran_on = ", ".join(names[:_MAX_HOSTS]) + (" ..." if len(names) > _MAX_HOSTS else "") or "another machine"
    its, they = ("its", "it") if len(hosts) == 1 else ("their", "they")
    return f"{study}, {trial_numbers(list(hosts))}: {its} files are not {where} ({they} ran on {ran_on})"


def backup_table(console: Console, file: Path, manifest: Mapping[str, Any]) -> None:
    """Print the studies of a backup, and the trials without files; `manifest` as `restore.contents` returns it."""
    kept = "with checkpoints" if manifest["checkpoints"] else "without checkpoints"
    console.result(f"{file}: written {manifest['made_at']} from {manifest['storage']}, {kept}")
    rows = []
    for study, facts in manifest["studies"].items():
        missing = len(facts["trials_without_files"])
        rows.append((study, facts["trials"], facts["files"], facts["objects"], missing or "-"))
    console.show(grid(("study", "trials", "files", "objects", "trials without files"), rows, (1, 2, 3, 4)))
    for study, facts in manifest["studies"].items():
        hosts = {missing["trial"]: missing["host"] for missing in facts["trials_without_files"]}
        if hosts:
            console.result(f"{missing_files(study, hosts, 'in this backup')}.")

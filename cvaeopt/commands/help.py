"""The groups and examples in the help of commands, and the study names for the completion of the shell."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from cvaeopt.commands.places import DEFAULT_STORAGE

EXAMPLES: dict[str, tuple[str, ...]] = {
    "worker": (
        "worker --study main --gpu 0 --data data",
        "worker --study main --gpu cpu --dry-run",
        "worker --study main --gpu 0 --trials-per-gpu 4 --storage postgresql://user@host/cvaeopt",
    ),
    "status": ("status --study main", "status --study main --watch"),
    "enqueue": (
        "enqueue --study main --set lr=0.001 --set tfr=0",
        "enqueue --study main --set lr=1e-3 --set lr=3e-3",
        "enqueue --study main --file points.toml --dry-run",
    ),
    "stop": ("stop --study main", "stop --study main --worker host-4711-ab12", "stop --study main --trial 17"),
    "extend": ("extend --study main --trials 100", "extend --study main --file studies/main.toml --dry-run"),
    "confirm": ("confirm --study main --top 5 --seeds 3", "confirm --study main --gpu 0"),
    "claims": ("claims --study seed000-tfr --seeds 5 --dry-run", "claims --study seed000-tfr --seeds 5 --gpu 0"),
    "export-best": ("export-best --study main", "export-best --study main --out best.toml --lab"),
    "fetch": ("fetch --study main", "fetch --study main --trial 42"),
    "report": (
        "report --study main --out report",
        "report storage/retrain/main-500",
        "report --study main --study wide storage/retrain/main-500 --out compared",
    ),
    "export-runs": (
        "export-runs --study main --to csv runs",
        "export-runs --study main --to tensorboard runs --overwrite",
    ),
    "retrain": (
        "retrain studies/best/main.toml --epochs 500 --gpu 0",
        "retrain studies/best/main.toml --set lr=0.001 --dry-run",
        "retrain --study main --trial 17 --epochs 150",
    ),
    "train": ("train --set lr=0.001 --epochs 100 --gpu 0", "train my-recipe.toml --data data --dry-run"),
    "predict": ("predict storage/retrain/main-500/best.pt --out predictions",),
    "score": ("score storage/retrain/main-500/best.pt --data data", "score best.pt --public --json"),
    "recalibrate": ("recalibrate epoch=42.ckpt --data data",),
    "hand-in": (
        "hand-in --study main --checkpoint storage/retrain/main-500/best.pt --out hand-in",
        "hand-in --check submission.csv --data data",
    ),
    "show": ("show studies/best/main.toml", "show storage/retrain/main-500/best.pt"),
    "init": ("init", "init my-search"),
    "demo-data": ("demo-data demo/data",),
    "doctor": ("doctor Trainer.py", "doctor Trainer.py --json"),
    "check-data": ("check-data demo/data",),
    "workers": ("workers", "workers --storage postgresql://user@host/cvaeopt --json"),
    "dashboard": ("dashboard", "dashboard --study main --port 9000 --read-only"),
    "smoke": ("smoke",),
    "admin backup": ("admin backup backup.tar", "admin backup main.tar --study main --no-checkpoints"),
    "admin restore": ("admin restore backup.tar --list", "admin restore backup.tar --keep-files"),
    "admin move": ("admin move --from sqlite:///storage/cvaeopt.db --to postgresql://user@host/cvaeopt",),
    "admin delete": ("admin delete main --archive main.tar",),
    "admin upgrade": ("admin upgrade before-the-upgrade.db", "admin upgrade --no-copy"),
}
"""Command -> examples of its use. The command's help shows the examples below the options."""


def examples(command: str) -> str:
    """The text below the options in a command's help."""
    return "\n".join(["\b", "Examples:", *(f"  cvaeopt {line}" for line in EXAMPLES[command])])


class Grouped(TyperGroup):
    """Lists the commands in the panels that they name. The panels are in the order of their first commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. If --study is missing, the error names the studies that there are."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if type(error).__name__ == "MissingParameter" and getattr(error.param, "name", "") == "study":
                error.message = f"There are: {', '.join(study_names(ctx, '')) or 'none'}."
            raise

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panel = command.rich_help_panel
            rows = panels.setdefault(panel if isinstance(panel, str) else "Commands", [])
            rows.append((name, command.get_short_help_str(formatter.width)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def study_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """The names of studies that begin with `incomplete`, from the files in studies/ and from an SQLite database.

    Other databases are not read, because they may answer slowly. The function raises and prints nothing, because the
    shell would show that text in the middle of the line that the user is typing.
    """
    names = {path.stem for path in Path("studies").glob("*.toml")}
    url = str(ctx.params.get("storage") or DEFAULT_STORAGE)
    path = Path(url.removeprefix("sqlite:///").partition("?")[0])
    with contextlib.suppress(sqlite3.Error, OSError, ValueError):
        if url.startswith("sqlite:///") and path.is_file():
            uri = f"{path.absolute().as_uri()}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=0.2)) as connection:
                names |= {str(name) for (name,) in connection.execute("SELECT name FROM cvaeopt_study")}
    return sorted(name for name in names if name.startswith(incomplete))

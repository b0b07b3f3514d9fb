"""Shared options. If a place is not given, `places.Places.resolve` falls back to the study and the default.

A place is a storage, a folder, an object store or a device. The study's file names its places in the table [service].
If a command does not read this file, only the default remains. The data folder and the object store have no default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cvaeopt.commands.help import study_names
from cvaeopt.commands.places import DEFAULT_ARTIFACTS, DEFAULT_STORAGE
from cvaeopt.errors import SettingsError

Study = Annotated[
    str, typer.Option("--study", help="Name (studies/NAME.toml) or path of a study.", autocompletion=study_names)
]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", envvar="CVAEOPT_GPU", help="Index of the GPU, or cpu. Default: the first GPU, else cpu."),
]
GpuHere = Annotated[
    str | None, typer.Option("--gpu", help="Train the runs here, too, on this GPU (or cpu). Default: plan only.")
]
"""Not read from CVAEOPT_GPU: a variable that was exported for workers must not start training here."""
StorageUrl = Annotated[
    str | None,
    typer.Option("--storage", envvar="CVAEOPT_STORAGE", help=f"URL of the SQL storage. Default: {DEFAULT_STORAGE}."),
]
Price = Annotated[
    float | None, typer.Option("--price", min=0, help="Price of one hour of a GPU, to say what more trials cost.")
]
Data = Annotated[Path | None, typer.Option("--data", envvar="CVAEOPT_DATA", help="Data folder in the lab's layout.")]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", envvar="CVAEOPT_ARTIFACTS", help=f"Folder of the trials' files. Default: {DEFAULT_ARTIFACTS}."
    ),
]
CheckpointStore = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        envvar="CVAEOPT_CHECKPOINTS",
        help="Object store for copies of the checkpoints, s3://BUCKET/PREFIX, where workers share no folder.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", envvar="CVAEOPT_THREADS", min=1, help="CPU threads. Default: its fair share of the cores."
    ),
]
TrialsPerGpu = Annotated[
    int,
    typer.Option(
        "--trials-per-gpu",
        envvar="CVAEOPT_TRIALS_PER_GPU",
        min=1,
        max=64,
        help="Trials trained at once on the device, each by a process of its own.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks with errors.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results only, no progress.")]
NoiseKind = Annotated[
    Literal["prior", "zero", "scaled"] | None,
    typer.Option("--noise", help="z of the roll-out. Default: what the checkpoint's validation used."),
]
NoiseScale = Annotated[float, typer.Option("--noise-scale", min=0, help="Standard deviation of z for --noise scaled.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of z.")]
Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint, ours or the lab's.")]
OutputKind = Annotated[
    Literal["linear", "sigmoid", "clamp"] | None,
    typer.Option(
        "--output",
        help="How frames are made of the checkpoint's network. Default: as it says, or as fits the validation video.",
    ),
]
IgnoreExtra = Annotated[
    bool, typer.Option("--ignore-extra", help="Leave out tensors of the checkpoint that this network has not.")
]


def shown(**values: Any) -> dict[str, str]:
    """The options as a dry run shows them. An option that was not given is described in words."""
    missing = {
        "data": "none given",
        "checkpoints": "in no object store",
        "gpu": "the first, else cpu",
        "start": "fresh weights",
    }
    return {name: str(value) if value is not None else missing[name] for name, value in values.items()}


def assignments(given: Sequence[str]) -> list[tuple[str, Any]]:
    """The settings in the texts of --set: `lr=0.001` gives ("lr", 0.001). A value that is not TOML is a string.

    Truth values may also be spelled as Python spells them: True, False.
    """
    import tomllib

    found: list[tuple[str, Any]] = []
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}.", "Expected: NAME=VALUE, such as lr=0.001.")
        try:
            found.append((name.strip(), tomllib.loads(f"value = {value}")["value"]))
        except tomllib.TOMLDecodeError:
            word = value.strip()
            found.append((name.strip(), {"True": True, "False": False}.get(word, word)))
    return found

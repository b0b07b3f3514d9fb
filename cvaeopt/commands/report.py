"""The command report, which writes one page about a study or a run, or about several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from cvaeopt.commands.failure import writing
from cvaeopt.commands.help import study_names
from cvaeopt.commands.opening import load_data, open_console, open_study
from cvaeopt.commands.options import Artifacts, Data, DryRun, Gpu, Json, Price, Quiet, StorageUrl, Verbose
from cvaeopt.commands.places import Flags, Places
from cvaeopt.errors import UserError
from cvaeopt.terminal.console import Console

if TYPE_CHECKING:
    from cvaeopt.outcome.comparison import Comparison
    from cvaeopt.outcome.run_summary import RunSummary
    from cvaeopt.outcome.score import ScoreSheet

_NEEDS: Final = ("storage", "artifacts")
_KINDS: Final[dict[str, tuple[Literal["pdf", "svg"], ...]]] = {"pdf": ("pdf",), "svg": ("svg",), "all": ("pdf", "svg")}


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Run folders and checkpoints.", show_default=False)
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(
            "--study", help="Name (studies/NAME.toml) or path of a study; may be repeated.", autocompletion=study_names
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the page. Default: report/NAME, or RUN/report.")] = None,
    charts: Annotated[
        Literal["pdf", "svg", "all"] | None, typer.Option(help="Write every chart as such a file, or as both, too.")
    ] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    data: Data = None,
    gpu: Gpu = None,
    price: Price = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about studies and runs.

    One study or one run has a page of its own; several are compared. A checkpoint without a score is rolled out on the
    validation video of --data.
    """
    from cvaeopt.outcome import comparison
    from cvaeopt.outcome.report import report as of_study
    from cvaeopt.outcome.run_report import run_report
    from cvaeopt.pictures.curves import copies_as

    console, now = open_console(verbose, quiet), datetime.now(UTC)
    paths, studies = runs or [], study or []
    target = _target(paths, studies, out)
    if dry_run:
        _show_plan(console, studies, paths, Flags(None, storage, artifacts=artifacts), target, as_json)
        return
    found: Comparison | None = None
    with writing(target, folder=True), copies_as(_KINDS[charts] if charts else ()):
        if not paths and len(studies) == 1:
            places, store = open_study(console, Flags(studies[0], storage, artifacts=artifacts), _NEEDS)
            made = of_study(store, places.study, target, artifacts=places.artifact_folder(), now=now, price=price)
        elif not studies and len(paths) == 1:
            (run,) = _summaries(console, paths, data, gpu, target)
            made = run_report(run, target, now=now)
        else:
            found = _compared(console, studies, paths, Flags(None, storage, data, artifacts, gpu=gpu), target)
            made = comparison.write(found, target, now=now)
    if as_json:
        files = {"page": str(made.page), "pictures": [str(picture) for picture in made.pictures]}
        console.json(files if found is None else {**files, **found.plain()})
        return
    console.result(str(made.page))
    if found is not None:
        console.say(found.verdict)


def _target(paths: Sequence[Path], studies: Sequence[str], out: Path | None) -> Path:
    """The folder of the page. UserError if nothing was named, if a run does not exist, or if the folder is missing."""
    if not paths and not studies:
        raise UserError(
            "No study and no run was named.", "Expected: --study NAME, the folder of a run, or a checkpoint."
        )
    if missing := next((path for path in paths if not path.exists()), None):
        raise UserError(
            f"{missing} does not exist.",
            "Expected: the folder of a run, or a checkpoint.",
            "Name a study with --study.",
        )
    if out is not None:
        return out
    if len(studies) == 1 and not paths:
        return Path("report") / Places.resolve(Flags(studies[0]), {}).study
    if studies or len(paths) > 1 or not paths[0].is_dir():
        raise UserError("No folder was named for the page.", "Expected: --out DIR.")
    return paths[0] / "report"


def _show_plan(
    console: Console, studies: Sequence[str], paths: Sequence[Path], flags: Flags, out: Path, as_json: bool
) -> None:
    """Show what the page would be about. StudyError if a study does not exist."""
    from cvaeopt.store.study import stored_definition

    for study in studies:
        places, store = open_study(console, replace(flags, study=study), _NEEDS)
        stored_definition(store, places.study)
    named = [*(f"study {study}" for study in studies), *map(str, paths)]
    if as_json:
        console.json({"page": str(out / "report.html"), "of": named, "written": False})
    else:
        console.result(f"Would write {out / 'report.html'} about {', '.join(named)}.")


def _compared(console: Console, studies: Sequence[str], paths: Sequence[Path], flags: Flags, out: Path) -> Comparison:
    """The comparison of the studies and of the runs, in this order."""
    from cvaeopt.outcome.comparison import comparison

    runs = _summaries(console, paths, flags.data, flags.gpu, out)
    from cvaeopt.outcome.report import read
    from cvaeopt.outcome.study_summary import study_summary

    found: list[RunSummary] = []
    searches = []
    for study in studies:
        places, store = open_study(console, replace(flags, study=study), _NEEDS)
        facts = read(store, places.study)
        if any(one.name == places.study for one in found):
            raise UserError(f"Study {places.study} is given twice.", "Expected: each study once.", "Leave one out.")
        summary, search = study_summary(*facts, artifacts=places.artifact_folder(), now=datetime.now(UTC))
        found.append(summary)
        searches.append(search)
    taken = {one.name for one in found}
    runs = [replace(run, name=f"{run.name} (run)") if run.name in taken else run for run in runs]
    return comparison([*found, *runs], searches)


def _summaries(
    console: Console, paths: Sequence[Path], data: Path | None, gpu: str | None, out: Path
) -> list[RunSummary]:
    """The facts of each run folder and checkpoint, under a name of its own.

    A checkpoint without a score beside it is rolled out if there is a data folder. If it is the only path, the pictures
    of this roll-out are written into `out`.
    """
    from cvaeopt.outcome.run_summary import of_checkpoint, of_path, unique_names
    from cvaeopt.vae import device as devices

    names = unique_names(paths)
    # The device is chosen before torch is loaded.
    device = devices.use(gpu) if data is not None and any(path.is_file() for path in paths) else "cpu"
    found = []
    for path in paths:
        run = of_path(path)
        if run.kind == "checkpoint" and not run.files.psnr:
            if data is None:
                console.warn(f"{path} has no score beside it: its PSNR per frame needs --data DIR.")
            else:
                pictures = out if len(paths) == 1 else None
                run = of_checkpoint(path, _score(console, path, data, device, pictures), pictures)
        found.append(run)
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)]


def _score(console: Console, path: Path, root: Path, device: str, pictures: Path | None) -> ScoreSheet:
    """The score of a checkpoint on the validation video of `root`; its pictures are written into `pictures`."""
    from cvaeopt.outcome import score
    from cvaeopt.outcome.rolling import frame_size
    from cvaeopt.vae.checkpoint import load_model

    data = load_data(console, root, frame_size(load_model(path, ignore_extra=True).config))
    sheet = score.score(path, data, device=device, ignore_extra=True)
    for note in sheet.notes:
        console.warn(note)
    if pictures is not None:
        score.write(sheet, data, pictures)
    return sheet

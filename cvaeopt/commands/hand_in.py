"""The command hand-in: the folder that is graded, and the check of a submission."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cvaeopt.commands import options as opt
from cvaeopt.commands.checkpoints import noise_of, shown_output
from cvaeopt.commands.failure import writing
from cvaeopt.commands.help import study_names
from cvaeopt.commands.opening import data_folder, load_data, open_console, open_study, require_checkpoint
from cvaeopt.commands.places import Flags
from cvaeopt.errors import DataError, Interrupted, UserError
from cvaeopt.run.signals import Stop, StopNow
from cvaeopt.terminal import results as show
from cvaeopt.terminal.console import Console
from cvaeopt.text import count

if TYPE_CHECKING:
    from cvaeopt.outcome.hand_in_study import StudyPart


def hand_in(
    study: Annotated[
        str | None,
        typer.Option("--study", help="Also show the search of this study.", autocompletion=study_names),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="The checkpoint to hand in.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write: new, or written by hand-in and unchanged.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", metavar="FILE", help="Only check this submission.csv.")
    ] = None,
    without_submission: Annotated[
        bool, typer.Option("--without-submission", help="Write the folder although there is no test set.")
    ] = False,
    data: opt.Data = None,
    noise: opt.NoiseKind = None,
    noise_scale: opt.NoiseScale = 0.5,
    seed: opt.Seed = 0,
    average: Annotated[int, typer.Option(min=1, help="Roll-outs whose frames are averaged.")] = 1,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    storage: opt.StorageUrl = None,
    artifacts: opt.Artifacts = None,
    gpu: opt.Gpu = None,
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write the folder that is graded.

    The folder has the submission, the GIFs, the checkpoint in the lab's format, and a skeleton of the report. Without a
    test set nothing is written, and the exit code is 2. With --check, only a submission is checked: its first faults
    are shown with row and column, and the exit code is 2.
    """
    console = open_console(verbose, quiet)
    if check is not None:
        if checkpoint is not None or out is not None:
            raise UserError("--check checks one file, and writes nothing.", todo="Leave --checkpoint and --out out.")
        _check(console, check, data, as_json)
        return
    if checkpoint is None or out is None:
        raise UserError(
            f"No {'--checkpoint' if checkpoint is None else '--out'} was given.",
            "Expected: --checkpoint FILE --out DIR, or --check FILE.",
            "retrain writes storage/retrain/NAME-EPOCHS/best.pt; fetch prints the checkpoint of a trial.",
        )
    options = _Options(
        noise, noise_scale, seed, average, output, ignore_extra, without_submission, gpu, threads, dry_run, as_json
    )
    _hand_in(console, checkpoint, out, Flags(study, storage, data, artifacts), options)


@dataclass(frozen=True)
class _Options:
    """The options of the prediction and of the command, as the user gave them."""

    noise: Literal["prior", "zero", "scaled"] | None
    noise_scale: float
    seed: int
    average: int
    output: Literal["linear", "sigmoid", "clamp"] | None
    ignore_extra: bool
    without_submission: bool
    gpu: str | None
    threads: int | None
    dry_run: bool
    as_json: bool


def _hand_in(console: Console, checkpoint: Path, out: Path, flags: Flags, options: _Options) -> None:
    from cvaeopt.vae import device as devices

    require_checkpoint(checkpoint)
    places = store = None
    if flags.study is not None:
        places, store = open_study(console, flags, needs=("storage", "artifacts", "data"))
    root = places.data_folder() if places is not None else data_folder(flags.data)
    device = "cpu" if options.dry_run else devices.use(options.gpu, options.threads)
    from cvaeopt.outcome import hand_in as folders
    from cvaeopt.outcome.rolling import frame_size
    from cvaeopt.vae.checkpoint import load_model
    from cvaeopt.vae.sequences import count_test_sequences

    folders.require_free(out)
    if not (count_test_sequences(root) or options.without_submission):
        raise DataError(
            f"{root} has no test sequences, so there is no submission to hand in.",
            "Expected: a data folder with test/test_img and test/test_label.",
            "Name one with --data, or write the other files with --without-submission.",
        )
    loaded = load_model(checkpoint, output=options.output, ignore_extra=options.ignore_extra)
    part: StudyPart | None = None
    if places is not None and store is not None:
        from cvaeopt.outcome.hand_in_study import study_part

        part = study_part(store, places.study, places.artifact_folder(), datetime.now(UTC))
    if options.dry_run:
        sequences = count(count_test_sequences(root), "test sequence")
        run = {"checkpoint": str(checkpoint), "epoch": loaded.epoch, "output": shown_output(loaded), "data": str(root)}
        found = {"study": part.facts["name"], "trials": part.facts["trials"]} if part else {"study": "none given"}
        show.resolved(console, f"Would write {out} with {sequences}.", {"run": run, "report": found})
        return
    z = noise_of(options.noise, options.noise_scale, options.seed)
    chosen = folders.Options(z, options.average, options.output, options.ignore_extra)
    try:
        with Stop(raise_at=1), writing(out, folder=True):
            data = load_data(console, root, frame_size(loaded.config))
            with console.progress() as progress:
                made = folders.make(checkpoint, data, out, device=device, options=chosen, study=part, progress=progress)
    except StopNow:
        raise Interrupted("Stopped; nothing was written.", todo="The same command starts again.") from None
    if options.as_json:
        console.json(made.plain())
        return
    for text in (*made.missing, *made.notes):
        console.warn(text)
    console.result(f"{out}: {count(len(made.files), 'file')}; README.md says what each file is.")
    console.say(f"Now fill in what AUTHOR marks in {out / 'report.md'} or {out / 'report.tex'}.")


def _check(console: Console, file: Path, data: Path | None, as_json: bool) -> None:
    from cvaeopt.outcome import submission

    if data is not None and not data.is_dir():
        raise DataError(f"{data} is no folder.", "Expected: a data folder.", "Name another one with --data.")
    checked = submission.check(file, submission.Expected.of(data))
    if as_json:
        console.json(checked.plain())
    else:
        for fault in checked.faults:
            console.result(f"- {fault.text}")
        hidden = checked.fault_count - len(checked.faults)
        if hidden:
            console.result(f"- and {count(hidden, 'fault')} more")
        if checked.ok:
            against = "compared with the given frames" if checked.firsts else "without given frames to compare with"
            shown = f"{count(checked.rows, 'row')} of {count(checked.sequences or 0, 'sequence')}"
            console.result(f"{file}: {shown}, {against}. It has the format.")
        else:
            console.result(f"{file} does not have the format.")
    if not checked.ok:
        raise typer.Exit(2)

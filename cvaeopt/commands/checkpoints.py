"""The commands that use one checkpoint: predict, score and recalibrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvaeopt.commands import options as opt
from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import data_folder, load_data, open_console, require_checkpoint
from cvaeopt.terminal import results as show
from cvaeopt.terminal.console import Console
from cvaeopt.text import count

if TYPE_CHECKING:
    from cvaeopt.outcome.predict import Prediction
    from cvaeopt.outcome.rolling import Noise
    from cvaeopt.vae.checkpoint import Loaded
    from cvaeopt.vae.dataset import Dataset


def predict(
    checkpoint: opt.Checkpoint,
    out: Annotated[Path, typer.Option(help="Folder of submission.csv and the GIFs.")],
    data: opt.Data = None,
    noise: opt.NoiseKind = None,
    noise_scale: opt.NoiseScale = 0.5,
    seed: opt.Seed = 0,
    average: Annotated[int, typer.Option(min=1, help="Roll-outs whose frames are averaged.")] = 1,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    gpu: opt.Gpu = None,
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Predict the test sequences of a data folder.

    The command writes submission.csv and one GIF for each sequence.
    """
    console = open_console(verbose, quiet)
    root, device = _data_and_device(checkpoint, data, gpu, threads)
    from cvaeopt.outcome import predict as predictions

    z = noise_of(noise, noise_scale, seed)
    if dry_run:
        from cvaeopt.vae.checkpoint import load_model
        from cvaeopt.vae.sequences import count_test_sequences

        model = load_model(checkpoint, output=output, ignore_extra=ignore_extra)
        run: dict[str, Any] = {"checkpoint": str(checkpoint), "epoch": model.epoch, "device": device}
        run |= {"average": average, "output": shown_output(model)}
        show.resolved(
            console,
            f"Would predict {count(count_test_sequences(root), 'sequence')} of {root} into {out}.",
            {"run": run, "noise": vars(z or predictions.Noise.of(model.config))},
        )
        return
    with writing(out, folder=True), console.progress() as progress:
        made = predictions.predict(
            checkpoint,
            root,
            out,
            device=device,
            z=z,
            average=average,
            progress=progress,
            output=output,
            ignore_extra=ignore_extra,
        )
    for note in made.notes:
        console.warn(note)
    _show_predictions(console, made, out, as_json)


def _show_predictions(console: Console, made: Prediction, out: Path, as_json: bool) -> None:
    if as_json:
        console.json(
            {
                "submission": str(made.submission),
                "rows": made.rows,
                "sequences": [vars(sequence) for sequence in made.sequences],
                "public_db": made.public_db,
                "seconds": round(made.seconds, 2),
                **made.output,
            }
        )
        return
    console.result(f"{made.submission}: {count(made.rows, 'row')} of {count(len(made.sequences), 'sequence')}")
    for sequence in made.sequences:
        score = "" if sequence.public_db is None else f"  {sequence.public_db:.2f} dB"
        console.result(f"{out / sequence.gif}: {count(sequence.frames, 'frame')}{score}")


def score(
    checkpoint: opt.Checkpoint,
    data: opt.Data = None,
    out: Annotated[Path | None, typer.Option(help="Also write score.json and the pictures here.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The competition's score, where true frames are known.")
    ] = False,
    noise: opt.NoiseKind = None,
    noise_scale: opt.NoiseScale = 0.5,
    seed: opt.Seed = 0,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    gpu: opt.Gpu = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Score a checkpoint on the validation video.

    The command shows the score and the baselines of the data.
    """
    console = open_console(verbose, quiet)
    root, device = _data_and_device(checkpoint, data, gpu, threads)
    from cvaeopt.outcome import score as scores

    loaded = _load_for(console, checkpoint, root, ignore_extra)
    sheet = scores.score(
        checkpoint,
        loaded,
        device=device,
        z=noise_of(noise, noise_scale, seed),
        public=public,
        output=output,
        ignore_extra=ignore_extra,
    )
    for note in sheet.notes:
        console.warn(note)
    if out is not None:
        with writing(out, folder=True):
            scores.write(sheet, loaded, out)
    if as_json:
        console.json(sheet.plain())
    else:
        show.score(console, sheet.plain())


def recalibrate(
    checkpoint: opt.Checkpoint,
    data: opt.Data = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New checkpoint. Default: NAME.recalibrated.ckpt (or .pt, as the given one ends) beside it."),
    ] = None,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    gpu: opt.Gpu = None,
    threads: opt.Threads = None,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Recompute a checkpoint's BatchNorm statistics.

    The statistics are measured on the training labels. This often raises the PSNR by many dB without training.
    """
    console = open_console(verbose, quiet)
    root, device = _data_and_device(checkpoint, data, gpu, threads)
    from cvaeopt.outcome import score as scores

    target = out or checkpoint.with_name(f"{checkpoint.stem}.recalibrated{checkpoint.suffix}")
    loaded = _load_for(console, checkpoint, root, ignore_extra)
    with writing(target):
        made = scores.recalibrate(checkpoint, loaded, target, device=device, output=output, ignore_extra=ignore_extra)
    for note in made.notes:
        console.warn(note)
    if as_json:
        console.json(made.plain())
    else:
        console.result(f"{made.written}: {made.before:.2f} dB before, {made.after:.2f} dB after")


# ---- functions that these commands share


def _data_and_device(checkpoint: Path, data: Path | None, gpu: str | None, threads: int | None) -> tuple[Path, str]:
    """The data folder and the device for `checkpoint`. The checkpoint is checked first. Torch is not loaded yet."""
    from cvaeopt.vae import device as devices

    require_checkpoint(checkpoint)
    root = data_folder(data)
    return root, devices.use(gpu, threads)


def _load_for(console: Console, checkpoint: Path, root: Path, ignore_extra: bool) -> Dataset:
    """The data of folder `root`, with frames of the size that the checkpoint's network needs."""
    from cvaeopt.outcome.rolling import frame_size
    from cvaeopt.vae.checkpoint import load_model

    return load_data(console, root, frame_size(load_model(checkpoint, ignore_extra=ignore_extra).config))


def noise_of(kind: Literal["prior", "zero", "scaled"] | None, scale: float, seed: int) -> Noise | None:
    """The noise that the options name; None if --noise was not given."""
    from cvaeopt.outcome.rolling import Noise

    return None if kind is None else Noise(kind, scale, seed)


def shown_output(loaded: Loaded) -> str:
    """The output kind of a checkpoint, in the words of a dry run."""
    return "as the validation video decides" if loaded.output_from == "assumed" else loaded.output

"""The commands train and retrain. They train one run without a search."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvaeopt.commands import continuing
from cvaeopt.commands import options as opt
from cvaeopt.commands.checkpoints import shown_output
from cvaeopt.commands.continuing import TrialToContinue
from cvaeopt.commands.failure import writing
from cvaeopt.commands.help import study_names
from cvaeopt.commands.opening import data_folder, load_data, open_console, require_checkpoint
from cvaeopt.commands.places import Flags
from cvaeopt.errors import DataError, Interrupted, SettingsError
from cvaeopt.run.signals import Stop
from cvaeopt.terminal import results as show
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.training import training
from cvaeopt.text import count

if TYPE_CHECKING:
    from cvaeopt.config import Config
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome.recipe import Recipe
    from cvaeopt.outcome.retrain import Retraining
    from cvaeopt.outcome.transfer import Transfer


Override = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Train with this value, whatever --epochs is: --set lr=0.001"),
]
StartFrom = Annotated[Path | None, typer.Option("--from", help="Start from the weights of this checkpoint.")]
Snapshots = Annotated[
    str | None, typer.Option("--snapshots", help="Keep the checkpoints of these epochs: 50,130,499 or every:50.")
]
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")]


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe; what its [settings] lacks has the template's value.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the run, as num_epoch.")] = None,
    gpu: opt.Gpu = None,
    data: opt.Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: storage/train/NAME-EPOCHS-DIGEST.")] = None,
    start: StartFrom = None,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    patience: Patience = None,
    snapshots: Snapshots = None,
    override: Override = None,
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train once, without a search.

    Without a recipe, the settings are those of the template, with the changes from --set. If --epochs changes the
    length of the run, the schedules are not adapted to it. The same command continues an interrupted run.
    """
    from cvaeopt.config import Config
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes

    console = open_console(verbose, quiet, results=as_json or dry_run)
    chosen = recipes.Recipe(Config()) if recipe is None else recipes.read(recipe, partial=True)
    changes = dict(opt.assignments(override or []))
    recipes.require_one_length(epochs, changes)
    changes |= {} if epochs is None else {"num_epoch": epochs}
    options = _Options(data, gpu, threads, start, output, ignore_extra, patience, snapshots, dry_run, as_json)
    file = recipe or Path("template")
    plan = _plan(file, chosen, options, None, "absolute", changes)
    name = f"{file.stem}-{plan.config.num_epoch}-{plan.config.digest()[:6]}"
    folder = RunFolder(out or Path("storage") / "train" / name)
    _run(console, plan, folder)


def retrain(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe, as export-best writes it.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the whole run. Default: the recipe's.")] = None,
    study: Annotated[
        str | None, typer.Option("--study", help="Continue a trial of this study.", autocompletion=study_names)
    ] = None,
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="The number of the trial.")] = None,
    gpu: opt.Gpu = None,
    data: opt.Data = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder. Default: storage/retrain/NAME-EPOCHS, or STUDY-TRIAL-EPOCHS.")
    ] = None,
    storage: opt.StorageUrl = None,
    artifacts: opt.Artifacts = None,
    checkpoints: opt.CheckpointStore = None,
    transfer: Annotated[
        Literal["proportional", "absolute"] | None,
        typer.Option(help="How schedules carry over to another number of epochs: fractions of the run, or epochs."),
    ] = None,
    start: StartFrom = None,
    output: opt.OutputKind = None,
    ignore_extra: opt.IgnoreExtra = False,
    patience: Patience = None,
    snapshots: Snapshots = None,
    override: Override = None,
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a recipe, or a finished trial, for longer.

    The run folder receives the best and the last checkpoint and a score sheet. The same command continues an
    interrupted run. With --study and --trial, the run goes on from the checkpoint of that trial, with its optimiser.
    """
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes
    from cvaeopt.outcome.transfer import DEFAULT_TRANSFER

    console = open_console(verbose, quiet, results=as_json or dry_run)
    options = _Options(data, gpu, threads, start, output, ignore_extra, patience, snapshots, dry_run, as_json)
    changes = dict(opt.assignments(override or []))
    if study is not None or trial is not None:
        continuing.require_alone(recipe, start, output)
        flags = Flags(study, storage, data, artifacts, checkpoints, gpu)
        begun = continuing.locate_trial(console, flags, trial, epochs, out, dry_run=dry_run)
        _continue_trial(console, begun, options, epochs, transfer or "absolute", changes)
        return
    if recipe is None:
        raise SettingsError(
            "No recipe was given.",
            "Expected: a recipe, or --study and --trial.",
            "Write a recipe with cvaeopt export-best, or train without one: cvaeopt train.",
        )
    plan = _plan(recipe, recipes.read(recipe), options, epochs, transfer or DEFAULT_TRANSFER, changes)
    folder = RunFolder(out or Path("storage") / "retrain" / f"{recipe.stem}-{plan.config.num_epoch}")
    _run(console, plan, folder)


def _continue_trial(
    console: Console,
    begun: TrialToContinue,
    options: _Options,
    epochs: int | None,
    mode: Transfer,
    changes: dict[str, Any],
) -> None:
    options = replace(options, data=begun.data, gpu=begun.gpu)
    plan = _plan(Path(begun.name), begun.recipe, options, epochs, mode, changes)
    begun.check(console, plan.config)
    _run(console, replace(plan, begun=begun), begun.folder)


@dataclass(frozen=True)
class _Options:
    """The options that train and retrain share, with the values that the user gave."""

    data: Path | None
    gpu: str | None
    threads: int | None
    start: Path | None
    output: Literal["linear", "sigmoid", "clamp"] | None
    ignore_extra: bool
    patience: int | None
    snapshots: str | None
    dry_run: bool
    as_json: bool


def _run(console: Console, plan: _Plan, folder: RunFolder) -> None:
    """Train `plan` in `folder`, and show the score at the end. Epochs that `folder` already has are skipped."""
    if plan.options.dry_run:
        _show_plan(console, plan, folder)
        return
    run = _retraining(console, plan, folder)
    _say_where_it_stands(console, run)
    _train(console, run)
    if not run.finished:
        epoch, last = run.epoch, run.config.num_epoch
        if plan.options.as_json:
            console.json({"kind": "stopped", "folder": str(folder.root), "epoch": epoch, "epochs": last})
        else:
            console.result(f"Stopped after epoch {epoch} of {last}; the same command continues {folder.root}.")
        return
    with writing(folder.root, folder=True):
        sheet = run.finish()
    if plan.options.as_json:
        console.json(sheet.plain())
    else:
        show.score(console, sheet.plain())
    console.say(f"{folder.best} is the best epoch; {folder.root} holds the curves and the score sheet.")


@dataclass(frozen=True)
class _Plan:
    """The plan of a run.

    file      path of the recipe
    root      data folder
    device    device that trains the run; "cpu" in a dry run, which does not look for a GPU
    mode      how the schedules of the recipe are adapted to another number of epochs
    carried   the recipe's settings for the new number of epochs; without a new number, the recipe's settings unchanged
    changes   settings from the command line
    config    the settings of the run: `carried` with `changes`
    kept      the epochs whose checkpoints are kept
    begun     the trial that the run continues; None for any other run
    """

    file: Path
    recipe: Recipe
    options: _Options
    root: Path
    device: str
    mode: Transfer
    carried: Config
    changes: dict[str, Any]
    config: Config
    kept: frozenset[int]
    begun: TrialToContinue | None = None


def _plan(
    file: Path, recipe: Recipe, options: _Options, epochs: int | None, mode: Transfer, changes: dict[str, Any]
) -> _Plan:
    """The plan of a run. The device is chosen before torch is loaded.

    CheckpointError if the checkpoint to start from is missing, DataError if no data folder was given, SettingsError if
    the settings are wrong.
    """
    from cvaeopt.vae import device as devices

    output = options.output
    if options.start is not None:
        require_checkpoint(options.start)
    device = "cpu" if options.dry_run else devices.use(options.gpu, options.threads)
    from cvaeopt.outcome.retrain import resolve
    from cvaeopt.vae.snapshots import epochs_of

    carried = resolve(recipe, epochs, mode)
    if output is not None and options.start is None:
        raise SettingsError(
            f"--output {output} says how the network of --from makes frames, and there is no --from.",
            todo=f"Use --set output={output} for a run with fresh weights.",
        )
    changes = {**({"output": output} if output else {}), **changes}
    config = resolve(recipe, epochs, mode, changes)
    given = options.snapshots
    kept = frozenset[int]() if given is None else epochs_of(given, config.num_epoch, "--snapshots")
    root = data_folder(options.data)  # last: a wrong setting is named without data, too
    return _Plan(file, recipe, options, root, device, mode, carried, changes, config, kept)


def _show_plan(console: Console, plan: _Plan, folder: RunFolder) -> None:
    from cvaeopt.outcome.retrain import differences, require_widths
    from cvaeopt.vae.checkpoint import load_model

    options = plan.options
    if not plan.root.is_dir():
        raise DataError(f"{plan.root} is no folder.", "Expected: a data folder.", "Name another one with --data.")
    tables: dict[str, dict[str, Any]] = {"run": opt.shown(data=options.data, gpu=options.gpu, start=options.start)}
    if options.start is not None:
        loaded = load_model(options.start, output=options.output, ignore_extra=options.ignore_extra)
        require_widths(loaded, plan.config, options.start)
        tables["weights"] = {"epoch": loaded.epoch, "output": shown_output(loaded)}
    tables["provenance"] = {key: value for key, value in plan.recipe.origin.items() if value is not None}
    if plan.carried.num_epoch != plan.recipe.settings.num_epoch:
        tables[f"carried over ({plan.mode})"] = differences(plan.recipe.settings, plan.carried)
    settings = plan.config.plain()
    if plan.changes:
        tables["set"] = {name: settings[name] for name in plan.changes}
    if plan.kept:
        tables["snapshots"] = {"epochs": sorted(plan.kept)}
    tables["settings"] = settings
    show.resolved(console, f"Would train {count(plan.config.num_epoch, 'epoch')} into {folder.root}.", tables)


def _retraining(console: Console, plan: _Plan, folder: RunFolder) -> Retraining:
    """The new or continued run of `plan` in `folder`. Its data are loaded."""
    from cvaeopt.outcome.retrain import Retraining, with_output_of

    config, options = plan.config, plan.options
    loaded = load_data(console, plan.root, (config.frame_H, config.frame_W))
    if "output" not in plan.changes:
        config, notes = with_output_of(options.start, config, loaded, folder, ignore_extra=options.ignore_extra)
        for note in notes:
            console.warn(note)
    if plan.begun is not None:
        plan.begun.start(config, loaded)
    return Retraining(
        config,
        loaded,
        folder,
        device=plan.device,
        start=options.start,
        ignore_extra=options.ignore_extra,
        patience=options.patience,
        kept=plan.kept,
        metric=str(plan.recipe.provenance.get("metric", "val_psnr")),
        provenance={"recipe": plan.file.name, **plan.recipe.origin},
    )


def _say_where_it_stands(console: Console, run: Retraining) -> None:
    last, folder = run.config.num_epoch, run.folder.root
    if run.finished:
        why = f"has all {count(last, 'epoch')}"
        if run.epoch < last:
            why = f"ended after epoch {run.epoch} of {last} (--patience {run.patience})"
        console.say(f"{folder} already {why}; nothing to train; a longer run: another --epochs or --out.")
    elif run.resumed_at:
        console.say(f"Continuing {folder} after epoch {run.resumed_at}.")
    if missed := run.missed:
        console.warn(f"--snapshots: no checkpoint of {', '.join(map(str, missed))} was kept when the run trained it.")


def _train(console: Console, run: Retraining) -> None:
    """Train the remaining epochs. After a signal, stop at the end of the epoch. Interrupted after a second signal."""
    last, folder = run.config.num_epoch, run.folder.root
    try:
        with (
            writing(folder, folder=True),
            _announced_stop(console) as stop,
            training(console, str(folder), last, run.trainer.history, run.metric) as heard,
        ):
            for result in run.run():
                heard(result.row())
                if stop:
                    break
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped in epoch {run.epoch + 1} of {last}.",
            todo=f"The same command continues {folder} after its last saved epoch.",
        ) from None


@contextlib.contextmanager
def _announced_stop(console: Console) -> Iterator[Stop]:
    """Inside the block, signals ask this process to stop. After the first signal, the console shows a line."""
    stop, closed = Stop(), threading.Event()

    def announce() -> None:  # in a thread, because a signal may interrupt a write to the same stream
        while not closed.wait(0.1):
            if stop:
                console.say("Stopping after this epoch; a second signal stops at once.", "yellow")
                return

    threading.Thread(target=announce, name="stopping", daemon=True).start()
    try:
        with stop:
            yield stop
    finally:
        closed.set()

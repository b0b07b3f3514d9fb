"""The commands train and retrain: one run without a search, and a recipe trained for longer."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvaeopt.commands.checkpoints import shown_output
from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import data_folder, load_data, open_console, require_checkpoint
from cvaeopt.commands.options import Data, DryRun, Gpu, IgnoreExtra, Json, OutputKind, Quiet, Threads, Verbose, shown
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
Patience = Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")]


def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe; what its [settings] lacks has the template's value.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the run, as num_epoch.")] = None,
    gpu: Gpu = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: storage/train/NAME-EPOCHS-DIGEST.")] = None,
    start: StartFrom = None,
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    patience: Patience = None,
    override: Override = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train once, without a search.

    Without a recipe the settings are the template's, changed by --set. No schedule is carried over to another number
    of epochs: every value is trained as it stands. A run that was interrupted is continued by the same command.
    """
    from cvaeopt.config import Config
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes

    console = open_console(verbose, quiet, results=as_json or dry_run)
    chosen = recipes.Recipe(Config()) if recipe is None else recipes.read(recipe, partial=True)
    changes = _overrides(override or [])
    if epochs is not None and "num_epoch" in changes:
        raise SettingsError(f"num_epoch is set beside --epochs {epochs}.", "Expected: the number of epochs once.")
    changes |= {} if epochs is None else {"num_epoch": epochs}
    options = _Options.checked(start, data, gpu, threads, patience, dry_run, as_json)
    file = recipe or Path("template")
    plan = _plan(file, chosen, _Start(start, output, ignore_extra), None, "absolute", changes)
    name = f"{file.stem}-{plan.config.num_epoch}-{plan.config.digest()[:6]}"
    folder = RunFolder(out or Path("storage") / "train" / name)
    _run(console, plan, folder, options)


def retrain(
    recipe: Annotated[Path, typer.Argument(help="A recipe, as export-best writes it.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the run. Default: the recipe's.")] = None,
    gpu: Gpu = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Run folder. Default: storage/retrain/NAME-EPOCHS.")] = None,
    transfer: Annotated[
        Literal["proportional", "absolute"] | None,
        typer.Option(help="How schedules carry over to another number of epochs: fractions of the run, or epochs."),
    ] = None,
    start: StartFrom = None,
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    patience: Patience = None,
    override: Override = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe for longer.

    The run folder receives the best and the last checkpoint and a score sheet. A run that was interrupted is continued
    by the same command.
    """
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes
    from cvaeopt.outcome.transfer import DEFAULT_TRANSFER

    console = open_console(verbose, quiet, results=as_json or dry_run)
    chosen, begun = recipes.read(recipe), _Start(start, output, ignore_extra)
    options = _Options.checked(start, data, gpu, threads, patience, dry_run, as_json)
    plan = _plan(recipe, chosen, begun, epochs, transfer or DEFAULT_TRANSFER, _overrides(override or []))
    folder = RunFolder(out or Path("storage") / "retrain" / f"{recipe.stem}-{plan.config.num_epoch}")
    _run(console, plan, folder, options)


@dataclass(frozen=True)
class _Options:
    """How a run is done and shown.

    given    options on the command line, as a dry run shows them
    root     the data folder
    device   where it trains; a dry run chooses none
    """

    given: dict[str, Any]
    root: Path
    device: str
    patience: int | None
    dry_run: bool
    as_json: bool

    @classmethod
    def checked(
        cls,
        start: Path | None,
        data: Path | None,
        gpu: str | None,
        threads: int | None,
        patience: int | None,
        dry_run: bool,
        as_json: bool,
    ) -> _Options:
        """The options, the device chosen before torch is loaded. CheckpointError or DataError for what is missing."""
        from cvaeopt.vae import device as devices

        if start is not None:
            require_checkpoint(start)
        root = data_folder(data)
        device = "cpu" if dry_run else devices.use(gpu, threads)
        return cls({"data": data, "gpu": gpu, "start": start}, root, device, patience, dry_run, as_json)


def _run(console: Console, plan: _Plan, folder: RunFolder, options: _Options) -> None:
    """Do what was planned in `folder`, from where it stands, and show the score at its end."""
    if options.dry_run:
        _show_plan(console, plan, options.root, folder, options.given)
        return
    run = _retraining(console, plan, options.root, folder, options.device, options.patience)
    _say_where_it_stands(console, run)
    _train(console, run)
    if not run.finished:
        epoch, last = run.epoch, run.config.num_epoch
        if options.as_json:
            console.json({"kind": "stopped", "folder": str(folder.root), "epoch": epoch, "epochs": last})
        else:
            console.result(f"Stopped after epoch {epoch} of {last}; the same command continues {folder.root}.")
        return
    with writing(folder.root, folder=True):
        sheet = run.finish()
    if options.as_json:
        console.json(sheet.plain())
    else:
        show.score(console, sheet.plain())
    console.say(f"{folder.best} is the best epoch; {folder.root} holds the curves and the score sheet.")


@dataclass(frozen=True)
class _Start:
    """The checkpoint whose weights a run starts from, None for fresh weights; and how it is to be read."""

    path: Path | None
    output: Literal["linear", "sigmoid", "clamp"] | None
    ignore_extra: bool


@dataclass(frozen=True)
class _Plan:
    """What a retrain will do.

    file      where the recipe is
    mode      how schedules carry over to another number of epochs
    carried   the recipe's settings for the new number of epochs; the recipe's own where none was given
    changes   settings that were given on the command line
    config    the settings of the run: `carried` with `changes`
    """

    file: Path
    recipe: Recipe
    start: _Start
    mode: Transfer
    carried: Config
    changes: dict[str, Any]
    config: Config


def _plan(
    file: Path, recipe: Recipe, start: _Start, epochs: int | None, mode: Transfer, changes: dict[str, Any]
) -> _Plan:
    from cvaeopt.outcome.retrain import resolve

    carried = resolve(recipe, epochs, mode)
    if start.output is not None and start.path is None:
        raise SettingsError(
            f"--output {start.output} says how the network of --from makes frames, and there is no --from.",
            todo=f"Use --set output={start.output} for a run with fresh weights.",
        )
    changes = {**({"output": start.output} if start.output else {}), **changes}
    return _Plan(file, recipe, start, mode, carried, changes, resolve(recipe, epochs, mode, changes))


def _overrides(given: Sequence[str]) -> dict[str, Any]:
    """`lr=0.001` -> {"lr": 0.001}; values are TOML, or plain words."""
    import tomllib

    changes: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}.", "Expected: NAME=VALUE, such as lr=0.001.")
        try:
            changes[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[name.strip()] = value.strip()
    return changes


def _show_plan(console: Console, plan: _Plan, root: Path, folder: RunFolder, given: dict[str, Any]) -> None:
    """What `retrain --dry-run` prints."""
    from cvaeopt.outcome.retrain import differences
    from cvaeopt.vae.checkpoint import load_model

    if not root.is_dir():
        raise DataError(f"{root} is no folder.", "Expected: a data folder.", "Name another one with --data.")
    tables: dict[str, dict[str, Any]] = {"run": shown(**given)}
    if plan.start.path is not None:
        loaded = load_model(plan.start.path, output=plan.start.output, ignore_extra=plan.start.ignore_extra)
        tables["weights"] = {"epoch": loaded.epoch, "output": shown_output(loaded)}
    tables["provenance"] = {key: value for key, value in plan.recipe.origin.items() if value is not None}
    if plan.carried.num_epoch != plan.recipe.settings.num_epoch:
        tables[f"carried over ({plan.mode})"] = differences(plan.recipe.settings, plan.carried)
    settings = plan.config.plain()
    if plan.changes:
        tables["set"] = {name: settings[name] for name in plan.changes}
    tables["settings"] = settings
    show.resolved(console, f"Would train {count(plan.config.num_epoch, 'epoch')} into {folder.root}.", tables)


def _retraining(
    console: Console, plan: _Plan, root: Path, folder: RunFolder, device: str, patience: int | None
) -> Retraining:
    """The run of `plan` in `folder`, with its data loaded; new, or continued."""
    from cvaeopt.outcome.retrain import Retraining, with_output_of

    config, start = plan.config, plan.start
    loaded = load_data(console, root, (config.frame_H, config.frame_W))
    if "output" not in plan.changes:
        config, notes = with_output_of(start.path, config, loaded, folder, ignore_extra=start.ignore_extra)
        for note in notes:
            console.warn(note)
    return Retraining(
        config,
        loaded,
        folder,
        device=device,
        start=start.path,
        ignore_extra=start.ignore_extra,
        patience=patience,
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


def _train(console: Console, run: Retraining) -> None:
    """Train what is left, until a signal asks to stop after the epoch; Interrupted by a second one."""
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
    """What signals ask of this process inside the block; the first one is answered with a line."""
    stop, closed = Stop(), threading.Event()

    def announce() -> None:  # in a thread: the line that a signal interrupts may be writing to the same stream
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

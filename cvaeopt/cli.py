"""The command line: the only place that parses, prints or exits.

Heavy libraries are imported inside the commands, so that `--help` answers at once and `--gpu` can choose the visible
device before torch is loaded.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from cvaeopt import __version__
from cvaeopt.console import Console
from cvaeopt.errors import CvaeoptError, SettingsError

if TYPE_CHECKING:
    from cvaeopt.outcome.predict import Noise
    from optuna.trial import Trial

    from cvaeopt.search.definition import Definition
    from cvaeopt.search.fleet import Lease
    from cvaeopt.search.storage import Storage
    from cvaeopt.vae.dataset import Dataset

app = typer.Typer(
    name="cvaeopt",
    help="Find good settings for a pose-conditioned video CVAE, on every GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Study = Annotated[str, typer.Option("--study", help="Name (studies/NAME.toml) or path of a study.")]
Gpu = Annotated[
    str | None,
    typer.Option("--gpu", envvar="CVAEOPT_GPU", help="Index of the GPU, or cpu. Default: the first GPU, else cpu."),
]
StorageUrl = Annotated[
    str | None,
    typer.Option(
        "--storage", envvar="CVAEOPT_STORAGE", help="URL of the SQL storage. Default: sqlite:///storage/cvaeopt.db."
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", envvar="CVAEOPT_DATA", help="Data folder in the lab's layout.")
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", envvar="CVAEOPT_ARTIFACTS", help="Folder of the trials' files. Default: storage/artifacts."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", envvar="CVAEOPT_THREADS", min=1, help="CPU threads of this process. Default: all cores."),
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


# ---- data


@app.command("demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal videos.")] = 0,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw a small data set in the lab's layout: a moving figure and its skeleton."""
    from cvaeopt.vae import demonstration

    console = _console(verbose, quiet)
    with console.progress() as progress:
        demonstration.write(folder, seed=seed, progress=progress)
    console.say(f"{folder} is ready. Look at it with: cvaeopt check-data {folder}")


@app.command("check-data")
def check_data(
    folder: Annotated[Path, typer.Argument(help="Data folder to check.")],
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Count and check the files of a data folder; exit code 0 if it can be used, else 2."""
    from cvaeopt.vae import dataset

    console = _console(verbose, quiet)
    with console.progress() as progress:
        report = dataset.check(folder, progress=progress)
    if as_json:
        _print_json(report.plain())
    else:
        console.check_report(report.plain())
    if not report.ok:
        raise typer.Exit(2)


# ---- search


@app.command()
def worker(
    study: Study,
    gpu: Gpu = None,
    storage: StorageUrl = None,
    data: Data = None,
    artifacts: Artifacts = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Take trials of a study on this device until its budget is met."""
    from cvaeopt.search.definition import load_definition

    console = _console(verbose, quiet)
    definition = load_definition(study)
    url = _storage_url(storage, definition)
    root = _data_folder(data, definition)
    folder = _artifact_folder(artifacts, definition)
    if dry_run:
        from cvaeopt.search.storage import mask

        title = f"Would take trials of study {definition.name} ({definition.digest()}) in {mask(url)}, data {root}, files {folder}"
        console.settings(definition.plain(), title)
        return
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.config import Config
    from cvaeopt.search.objective import Objective, TrialRun, tidy
    from cvaeopt.search.storage import open_storage
    from cvaeopt.search.study import create_or_open, record_facts
    from cvaeopt.search.worker import Worker
    from cvaeopt.vae.metrics import baselines
    from cvaeopt.watching import WorkerView

    shape = {**Config().plain(), **definition.fixed}
    loaded = _load_data(console, root, (shape["frame_H"], shape["frame_W"]))
    store = open_storage(url)
    opened = create_or_open(store, definition)
    known = record_facts(
        store,
        definition.name,
        loaded.digest,
        lambda: baselines(loaded.train, loaded.val).plain(),
    )
    objective = Objective(definition, loaded, device, folder)
    view = WorkerView(console, known)

    def open_trial(trial: Trial, lease: Lease) -> TrialRun:
        # A checkpoint that is not among the best any more goes as soon as the next trial begins.
        tidy(opened, folder, definition.service.keep_best)
        return objective.open(trial, lease.token)

    with view:
        Worker(opened, store, open_trial, device=device, artifacts=folder, listener=view.heard).run()
    tidy(opened, folder, definition.service.keep_best)


@app.command()
def status(
    study: Study,
    storage: StorageUrl = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show a study: trials by state, the best so far against the baselines, its workers."""
    from cvaeopt.search.study import status as read_status

    console = _console(verbose, False)
    name, store = _existing(study, storage)
    if as_json:
        _print_json(read_status(store, name))
    elif watch:
        console.watch(lambda: read_status(store, name))
    else:
        console.status(read_status(store, name))


@app.command()
def stop(
    study: Study,
    worker: Annotated[str | None, typer.Option("--worker", help="Only this worker (its id in `status`).")] = None,
    storage: StorageUrl = None,
    verbose: Verbose = False,
) -> None:
    """Ask workers to stop after their current epoch; their trials go on when a worker starts again."""
    from cvaeopt.search.fleet import ask_stop
    from cvaeopt.search.study import stored_definition

    console = _console(verbose, False)
    name, store = _existing(study, storage)
    stored_definition(store, name)
    asked = ask_stop(store, name, worker)
    console.result("\n".join(f"{one} stops after its epoch" for one in asked) or "No worker runs for this study.")


@app.command()
def dashboard(
    study: Annotated[str | None, typer.Option("--study", help="Take storage and artifacts from this study.")] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    verbose: Verbose = False,
) -> None:
    """Serve optuna-dashboard for the storage, with the trials' pictures."""
    from optuna_dashboard import run_server

    from cvaeopt.search.objective import artifact_store
    from cvaeopt.search.storage import open_storage

    console = _console(verbose, False)
    definition = _definition(study) if study else None
    url = _storage_url(storage, definition)
    store = open_storage(url)
    if host not in ("127.0.0.1", "localhost", "::1"):
        console.warn(
            f"The dashboard has no password, and on {host} others can reach it: whoever does can change and delete "
            "studies. Better: leave it on 127.0.0.1 and use `ssh -L 8080:127.0.0.1:8080`."
        )
    console.say(f"{store.url} at http://{host}:{port}/  (Ctrl-C ends it)")
    try:
        run_server(store, host=host, port=port, artifact_store=artifact_store(_artifact_folder(artifacts, definition)))
    except OSError as error:
        raise SettingsError(
            f"The dashboard cannot listen on {host}:{port} ({error.strerror}).", todo="Name another one with --port."
        ) from None


@app.command("export-best")
def export_best(
    study: Study,
    storage: StorageUrl = None,
    out: Annotated[Path | None, typer.Option(help="Recipe to write. Default: studies/best/NAME.toml.")] = None,
    lab: Annotated[bool, typer.Option("--lab", help="Keep to what the lab's own tester can apply.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write the settings of the best trial, with where they come from, as a recipe."""
    from cvaeopt.outcome import export

    console = _console(verbose, False)
    name, store = _existing(study, storage)
    target = out or Path("studies") / "best" / f"{name}.toml"
    written = export.export_best(store, name, target, now=_now(), lab=lab)
    for warning in written.warnings:
        console.warn(warning)
    facts = written.recipe.provenance
    if as_json:
        _print_json({"written": str(target), "warnings": list(written.warnings), "provenance": facts})
    else:
        console.result(f"{target}: trial {facts['trial']}, {facts['value']:.2f} dB ({facts['estimated']})")


# ---- outcome


@app.command()
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
    start: Annotated[Path | None, typer.Option("--from", help="Start from the weights of this checkpoint.")] = None,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="Replace a setting: --set lr=0.001")] = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe for longer: resumable, with best and last checkpoints and a score sheet."""
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes
    from cvaeopt.outcome.retrain import Retraining, resolve
    from cvaeopt.outcome.transfer import DEFAULT_TRANSFER

    console = _console(verbose, quiet)
    chosen = recipes.read(recipe)
    config = resolve(chosen, epochs, transfer or DEFAULT_TRANSFER, _overrides(override or []))
    folder = RunFolder(out or Path("storage") / "retrain" / f"{recipe.stem}-{config.num_epoch}")
    root = _data_folder(data, None)
    if dry_run:
        console.settings(config.plain(), f"Would train {config.num_epoch} epochs on {root} into {folder.root}")
        return
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    loaded = _load_data(console, root, (config.frame_H, config.frame_W))
    run = Retraining(
        config,
        loaded,
        folder,
        device=device,
        start=start,
        patience=patience,
        metric=str(chosen.provenance.get("metric", "val_psnr")),
        provenance={"recipe": recipe.name, **chosen.provenance},
    )
    if run.resumed_at:
        console.say(f"Continuing {folder.root} after epoch {run.resumed_at}.")
    with console.training(config.num_epoch, run.epoch, str(folder.root)) as show:
        for result in run.run():
            show(result.row())
    sheet = run.finish()
    console.score(sheet.plain())
    console.say(f"{folder.best} is the best epoch; {folder.root} holds the curves and the score sheet.")


@app.command()
def predict(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Folder of submission.csv and the GIFs.")],
    data: Data = None,
    noise: NoiseKind = None,
    noise_scale: NoiseScale = 0.5,
    seed: Seed = 0,
    average: Annotated[int, typer.Option(min=1, help="Roll-outs whose frames are averaged.")] = 1,
    gpu: Gpu = None,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Predict the test sequences: submission.csv and a GIF for each."""
    console = _console(verbose, quiet)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome.predict import predict as run

    with console.progress() as progress:
        made = run(
            checkpoint,
            root,
            out,
            device=device,
            z=_noise(noise, noise_scale, seed),
            average=average,
            progress=progress,
        )
    if as_json:
        _print_json(
            {
                "submission": str(made.submission),
                "rows": made.rows,
                "sequences": [vars(sequence) for sequence in made.sequences],
                "public_db": made.public_db,
                "seconds": round(made.seconds, 2),
            }
        )
        return
    console.result(f"{made.submission}: {made.rows} rows of {len(made.sequences)} sequences")
    for sequence in made.sequences:
        score = "" if sequence.public_db is None else f"  {sequence.public_db:.2f} dB"
        console.result(f"{out / sequence.gif}: {sequence.frames} frames{score}")


@app.command()
def score(
    checkpoint: Checkpoint,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Also write score.json and the pictures here.")] = None,
    public: Annotated[bool, typer.Option("--public", help="The competition's score, where true frames are known.")] = False,
    noise: NoiseKind = None,
    noise_scale: NoiseScale = 0.5,
    seed: Seed = 0,
    gpu: Gpu = None,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a checkpoint on the validation video, beside the baselines."""
    console = _console(verbose, quiet)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome import score as scores
    from cvaeopt.outcome.predict import frame_size
    from cvaeopt.vae.checkpoint import load_model

    loaded = _load_data(console, root, frame_size(load_model(checkpoint).config))
    sheet = scores.score(checkpoint, loaded, device=device, z=_noise(noise, noise_scale, seed), public=public)
    if out is not None:
        scores.write(sheet, loaded, out)
    if as_json:
        _print_json(sheet.plain())
    else:
        console.score(sheet.plain())


@app.command()
def recalibrate(
    checkpoint: Checkpoint,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="New checkpoint. Default: NAME.recalibrated.pt beside it.")] = None,
    gpu: Gpu = None,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Recompute a checkpoint's BatchNorm statistics over the training labels: often many dB, without training."""
    console = _console(verbose, quiet)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome import score as scores
    from cvaeopt.outcome.predict import frame_size
    from cvaeopt.vae.checkpoint import load_model

    target = out or checkpoint.with_suffix(".recalibrated.pt")
    loaded = _load_data(console, root, frame_size(load_model(checkpoint).config))
    made = scores.recalibrate(checkpoint, loaded, target, device=device)
    if as_json:
        _print_json(made.plain())
    else:
        console.result(f"{made.written}: {made.before:.2f} dB before, {made.after:.2f} dB after")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A recipe, a checkpoint, a prediction folder or submission.csv.")],
    verbose: Verbose = False,
) -> None:
    """Print the provenance of a file as JSON."""
    from cvaeopt.outcome.score import show as provenance

    _console(verbose, False)
    _print_json(provenance(file))


@app.command()
def report(
    study: Study,
    out: Annotated[Path, typer.Option(help="Folder of report.html and its pictures.")],
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    verbose: Verbose = False,
) -> None:
    """Write one HTML page about a study, and the pictures it shows."""
    from cvaeopt.outcome import report as reports

    console = _console(verbose, False)
    definition = _definition(study)
    name, store = _existing(study, storage)
    reports.report(store, name, out, artifacts=_artifact_folder(artifacts, definition), now=_now())
    console.result(str(out / reports.PAGE))


@app.command()
def smoke(
    folder: Annotated[Path | None, typer.Option(help="Keep the files here. Default: a scratch folder.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a tiny study end to end on the CPU: data, two workers, export, retrain, predict, report."""
    from cvaeopt import smoke as smoke_test

    console = _console(verbose, quiet)
    for step in smoke_test.run(folder):
        console.say(step)
    console.result("smoke study: ok")


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        sys.stdout.write(f"cvaeopt {__version__}\n")
        raise typer.Exit


def main() -> NoReturn:
    """The entry point of the command `cvaeopt`."""
    try:
        app(prog_name="cvaeopt")
    except CvaeoptError as error:
        if _LATEST.verbose:
            _LATEST.err.print_exception()
        _LATEST.error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our stdout went away: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


# ---- what the commands share


_LATEST = Console()
"""The console of the running command: where `main` shows its error."""


def _console(verbose: bool, quiet: bool) -> Console:
    global _LATEST
    _LATEST = Console(quiet=quiet, verbose=verbose)
    return _LATEST


def _definition(study: str) -> Definition:
    from cvaeopt.search.definition import load_definition

    return load_definition(study)


def _storage_url(given: str | None, definition: Definition | None) -> str:
    """Flag or environment, then the study's [service], then the default."""
    from cvaeopt.search.storage import DEFAULT_URL

    return given or (definition.service.storage if definition else None) or DEFAULT_URL


def _artifact_folder(given: Path | None, definition: Definition | None) -> Path:
    stated = definition.service.artifacts if definition else None
    return given or Path(stated or "storage/artifacts")


def _data_folder(given: Path | None, definition: Definition | None) -> Path:
    stated = definition.service.data if definition else None
    if given is None and stated is None:
        raise SettingsError(
            "No data folder was given.",
            "Expected: --data DIR, CVAEOPT_DATA, or data under [service] in the study.",
            "Draw one to try with: cvaeopt demo-data demo/data",
        )
    return given or Path(str(stated))


def _existing(study: str, storage: str | None) -> tuple[str, Storage]:
    """Name and storage of a study that was created before.

    Its definition file is not needed for that, so that a study can be watched from any folder and any machine.
    """
    from cvaeopt.search.definition import check_name
    from cvaeopt.search.storage import open_storage

    path = Path(study) if study.endswith(".toml") else Path("studies") / f"{study}.toml"
    definition = _definition(study) if path.exists() else None
    name = definition.name if definition else path.stem
    check_name(name, "--study")
    return name, open_storage(_storage_url(storage, definition), create=False)


def _load_data(console: Console, root: Path, size: tuple[int, int]) -> Dataset:
    from cvaeopt.vae import dataset

    with console.progress() as progress:
        return dataset.load(root, *size, progress=progress)


def _noise(kind: Literal["prior", "zero", "scaled"] | None, scale: float, seed: int) -> Noise | None:
    from cvaeopt.outcome.predict import Noise

    return None if kind is None else Noise(kind, scale, seed)


def _overrides(given: list[str]) -> dict[str, Any]:
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


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    main()

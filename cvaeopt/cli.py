"""The command line: the only place that parses, prints or exits.

Heavy libraries are imported inside the commands, so that `--help` answers at once and `--gpu` can choose the visible
device before torch is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from cvaeopt import __version__
from cvaeopt.errors import (
    CheckpointError,
    CvaeoptError,
    DataError,
    Interrupted,
    SettingsError,
    StorageUnreachable,
    TryAgain,
    UserError,
)
from cvaeopt.run import signals
from cvaeopt.run.signals import Stop
from cvaeopt.terminal.console import Console
from cvaeopt.terminal.streams import Output
from cvaeopt.text import count

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

    from cvaeopt.outcome.leaders import Confirmation
    from cvaeopt.outcome.rolling import Noise
    from cvaeopt.run.events import WorkerEnded
    from cvaeopt.run.object_store import Checkpoints
    from cvaeopt.run.processes import Tether
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.leases import Lease
    from cvaeopt.store.storage import Storage
    from cvaeopt.vae.checkpoint import Loaded
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
Data = Annotated[Path | None, typer.Option("--data", envvar="CVAEOPT_DATA", help="Data folder in the lab's layout.")]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        "--artifacts", envvar="CVAEOPT_ARTIFACTS", help="Folder of the trials' files. Default: storage/artifacts."
    ),
]
Store = Annotated[
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
Together = Annotated[
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


# ---- data


@app.command("demo-data")
def demo_data(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal videos.")] = 0,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw a small data set in the lab's layout: a moving figure and its skeleton."""
    from cvaeopt.demo_data import writer

    console = _console(verbose, quiet)
    with console.progress() as progress:
        writer.write(folder, seed=seed, progress=progress)
    console.say(f"{folder} is ready. Look at it with: cvaeopt check-data {shlex.quote(str(folder))}")


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
    checkpoints: Store = None,
    threads: Threads = None,
    trials_per_gpu: Together = 1,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Take trials of a study on this device until its budget is met."""
    from cvaeopt.run import processes
    from cvaeopt.search.definition import load_definition

    console = _console(verbose, quiet, results=False)
    definition = load_definition(study)
    if gpu is None and definition.service.gpu is not None:
        gpu = str(definition.service.gpu)
    url = _storage_url(storage, definition)
    folder = _artifact_folder(artifacts, definition)
    shared = checkpoints or definition.service.checkpoints
    advised = _advise_as_typed(console, study, definition.name, storage)
    if dry_run:
        console.results = True
        _show_worker(console, definition, url, data, folder, shared, gpu, trials_per_gpu)
        return
    root = _data_folder(data, definition)
    if trials_per_gpu > 1:
        places = {"STORAGE": url, "DATA": str(root), "ARTIFACTS": str(folder), "CHECKPOINTS": shared, "GPU": gpu}
        variables = {name: value for name, value in places.items() if value}
        if advised is not None:
            variables[_ADVISED] = advised
        flags = [*(["--verbose"] if verbose else []), *(["--quiet"] if quiet else [])]
        arguments = ["worker", "--study", study, *flags]
        from cvaeopt.terminal.live_processes import supervise

        raise typer.Exit(supervise(console, arguments, trials_per_gpu, variables, threads, on_cpu=gpu == "cpu"))
    tether = processes.Tether.inherited()
    remote = _object_store(console, shared)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    tether.share(device)
    from cvaeopt.store.study import create_or_open

    loaded = _load_data(console, root, definition.frame_size)
    store = _open(console, url, start_limit_s=_START_LIMIT_S)
    seat = _Seat(console, store, loaded, device, folder, remote, tether)
    opened = create_or_open(store, definition)
    with seat.taken():
        if _work(seat, opened, definition).kind == "finished":
            _confirm(seat, definition)


@app.command()
def confirm(
    study: Study,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="Leaders of the search: different settings.")] = 5,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Fresh runs of each, the same seeds for all.")
    ] = 3,
    gpu: Annotated[  # of no environment variable: what is exported for workers must not make this command train
        str | None, typer.Option("--gpu", help="Train the runs here, too, on this GPU (or cpu). Default: plan only.")
    ] = None,
    storage: StorageUrl = None,
    data: Data = None,
    artifacts: Artifacts = None,
    checkpoints: Store = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train the leaders of a search again from fresh seeds, shared among all workers of the study.

    Without --gpu the runs are only registered: whoever runs `cvaeopt worker --study NAME` takes them. More leaders
    or seeds can be asked for later; what was trained is kept.
    """
    from cvaeopt.outcome.leaders import confirmation
    from cvaeopt.store import confirmation as confirmations
    from cvaeopt.store.study import create_or_open, record_facts, stored_definition

    console = _console(verbose, quiet, results=as_json or dry_run or gpu is None)
    name, store = _existing(console, study, storage)
    planned = confirmations.plan(store, name, top, seeds)
    facts = planned.plain()
    if len(planned.leaders) < top:
        have = count(len(planned.leaders), "leader")
        console.warn(f"--top {top}: the search has {have} (different settings of complete trials), and all are taken.")
    if dry_run:
        if as_json:
            _print_json({**facts, "dry_run": True})
        else:
            console.planned(facts)
        return
    definition = stored_definition(store, name)
    if _definition_path(study).exists():
        given = _definition(str(_definition_path(study)))
        if given.name == name:
            create_or_open(store, given)  # a file that has changed since is refused, as by the workers
        definition = definition.model_copy(update={"service": given.service})
    root = None if gpu is None else _data_folder(data, definition)
    device = ""
    if gpu is not None:
        from cvaeopt.vae import device as devices

        device = devices.use(gpu, threads)
    loaded = None if root is None else _load_data(console, root, definition.frame_size)
    seat = None
    if loaded is not None:
        record_facts(store, name, loaded.digest, lambda: _baselines(loaded))
        remote = _object_store(console, checkpoints or definition.service.checkpoints)
        seat = _Seat(console, store, loaded, device, _artifact_folder(artifacts, definition), remote)
    if not planned.over:
        console.warn("The search is not over: run this again when it is, in case its leaders change.")
    confirmations.register(store, planned)
    if planned.definition is not None:
        runs = count(planned.new_runs, "run")
        console.say(f"Registered {runs} of {count(planned.epochs, 'epoch')} as {planned.definition.name}.")
    if seat is not None:
        with seat.taken():
            _confirm(seat, definition)
    found = confirmation(store, name)
    assert found is not None  # at least the one that was registered above
    if as_json:
        _print_json({**facts, "confirmation": found.plain()})
        return
    if found.ended:
        console.confirmed(_ranking(found), found.spread, found.paired)
    if not found.over:
        console.result(
            f"{found.ended} of {count(found.runs, 'run')} ended. A worker takes the others: "
            f"cvaeopt worker --study {name} --gpu 0"
        )
    elif found.best is not None:
        console.result(f"All {count(found.runs, 'run')} ended; next: cvaeopt export-best --study {name}")


@app.command()
def status(
    study: Study,
    storage: StorageUrl = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show a study: trials by state, the best so far against the baselines, its workers."""
    from cvaeopt.outcome.leaders import confirmation
    from cvaeopt.store.study import status as read_status

    console = _console(verbose, quiet)
    name, store = _existing(console, study, storage)

    def read() -> dict[str, Any]:
        found = confirmation(store, name)
        said = None if found is None else {**found.plain(), "table": _ranking(found)}
        return {**read_status(store, name), "confirmation": said}

    if watch:
        with signals.heard(signals.interrupt):
            if as_json:
                _stream_json(console, read)
            else:
                console.watch(read)
    elif as_json:
        _print_json(read())
    else:
        console.status(read())


@app.command()
def workers(
    storage: StorageUrl = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the workers of all studies in a storage: where they run, what they train, when they last gave a sign."""
    from cvaeopt.store.leases import workers as read_workers

    console = _console(verbose, quiet)
    url = _storage_url(storage, None)
    store = _open(console, url, create=False, limit_s=_READ_LIMIT_S, start_limit_s=_READ_LIMIT_S)
    fleet = [asdict(row) for row in read_workers(store)]
    if as_json:
        _print_json({"storage": store.url, "workers": fleet})
    else:
        console.fleet(fleet)


@app.command()
def stop(
    study: Study,
    worker: Annotated[str | None, typer.Option("--worker", help="Only this worker (its id in `status`).")] = None,
    storage: StorageUrl = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Ask workers to stop after their current epoch; their trials go on when a worker starts again."""
    from cvaeopt.store.confirmation import stop as stop_workers

    console = _console(verbose, quiet)
    name, store = _existing(console, study, storage)
    asked = stop_workers(store, name, worker)
    if as_json:
        _print_json({"study": name, "asked": asked})
    else:
        console.result("\n".join(f"{one} stops after its epoch" for one in asked) or "No worker runs for this study.")


@app.command()
def dashboard(
    study: Annotated[str | None, typer.Option("--study", help="Take storage and artifacts from this study.")] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", envvar="CVAEOPT_ALLOW_HOST", help="Another name or address it has; repeatable."),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", envvar="CVAEOPT_READ_ONLY", help="Refuse every change.")
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Serve optuna-dashboard for the storage, with the trials' pictures."""
    console = _console(verbose, quiet)
    path = _definition_path(study) if study else None
    definition = _definition(str(path)) if path is not None and path.exists() else None
    url = _storage_url(storage, definition)
    folder = _artifact_folder(artifacts, definition)
    if study and definition is None:  # its file is not needed where the storage has the study
        from cvaeopt.store.study import stored_definition

        name, store = _existing(console, study, storage)
        stored_definition(store, name)
        store.close()
    if host not in ("127.0.0.1", "localhost", "::1"):
        can = "read every study" if read_only else "change and delete studies"
        console.warn(
            f"The dashboard has no password, and on {host} others can reach it: whoever does can {can}. "
            f"Better: leave it on 127.0.0.1 and use `ssh -L {port}:127.0.0.1:{port}`."
        )
    from cvaeopt.run.dashboard import Server, application
    from cvaeopt.run.objective import artifact_store
    from cvaeopt.run.rename_guard import refuse_renames

    with Server(host, port) as server:
        store = _open(console, url, start_limit_s=_READ_LIMIT_S)
        server.set_app(
            application(
                store,
                artifact_store(folder),
                bound=host,
                names=allow_host or (),
                read_only=read_only,
                layers=[lambda inner: refuse_renames(inner, store)],
            )
        )
        console.say(f"{store.url} at http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C ends it)")
        # A service manager ends it with SIGTERM; an ending that was asked for is no failure.
        with contextlib.suppress(KeyboardInterrupt), signals.heard(signals.interrupt):
            server.serve_forever()


@app.command("export-best")
def export_best(
    study: Study,
    storage: StorageUrl = None,
    out: Annotated[Path | None, typer.Option(help="Recipe to write. Default: studies/best/NAME.toml.")] = None,
    lab: Annotated[bool, typer.Option("--lab", help="Keep to what the lab's own tester can apply.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the settings of the best trial, with where they come from, as a recipe."""
    from cvaeopt.outcome import export

    console = _console(verbose, quiet)
    name, store = _existing(console, study, storage)
    target = out or Path("studies") / "best" / f"{name}.toml"
    with _writing(target):
        written = export.export_best(store, name, target, now=_now(), lab=lab)
    for warning in written.warnings:
        console.warn(warning)
    facts = written.recipe.provenance
    if as_json:
        _print_json({"written": str(target), "warnings": list(written.warnings), "provenance": facts})
        return
    low, high = facts.get("low"), facts.get("high")
    within = "" if low is None else f", 95 % interval {low:.2f} to {high:.2f} dB"
    console.result(f"{target}: trial {facts['trial']}, {facts['value']:.2f} dB ({facts['estimated']}{within})")
    if written.confirmed is not None:
        console.confirmed(_ranking(written.confirmed), written.confirmed.spread, written.confirmed.paired)
    else:
        for one in facts["runners_up"]:
            console.result(f"within noise: trial {one['trial']}, {one['value']:.2f} dB")
    console.say(f"Its checkpoint, if it is wanted: cvaeopt fetch --study {name} --trial {facts['trial']}")


@app.command()
def fetch(
    study: Study,
    trial: Annotated[int | None, typer.Option("--trial", min=0, help="Number of a trial. Default: the best.")] = None,
    storage: StorageUrl = None,
    artifacts: Artifacts = None,
    checkpoints: Store = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Print where a trial's checkpoint is on this machine; copy it from the object store if it is not here yet."""
    from cvaeopt.outcome.fetch import locate

    console = _console(verbose, quiet)
    name, store = _existing(console, study, storage)
    path = _definition_path(study)
    definition = _definition(str(path)) if path.exists() else None
    found = locate(store, name, trial, _artifact_folder(artifacts, definition))
    if not found.path.exists():
        url = checkpoints or (definition.service.checkpoints if definition else None) or found.store
        remote = _object_store(console, url)
        if remote is None:
            raise found.elsewhere()
        with _writing(found.path):
            remote.download(found.objects, found.number, found.path)
    if as_json:
        _print_json({"study": name, "trial": found.number, "checkpoint": str(found.path)})
    else:
        console.result(str(found.path))


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
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    patience: Annotated[int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")] = None,
    override: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Train with this value, whatever --epochs is: --set lr=0.001"),
    ] = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe for longer: resumable, with best and last checkpoints and a score sheet."""
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import recipe as recipes
    from cvaeopt.outcome.transfer import DEFAULT_TRANSFER
    from cvaeopt.vae import device as devices

    console = _console(verbose, quiet, results=as_json or dry_run)
    chosen = recipes.read(recipe)
    if start is not None:
        _require_checkpoint(start)
    root = _data_folder(data, None)
    device = "cpu" if dry_run else devices.use(gpu, threads)
    from cvaeopt.outcome.retrain import Retraining, differences, resolve, with_output_of
    from cvaeopt.vae.checkpoint import load_model

    changes, mode = _overrides(override or []), transfer or DEFAULT_TRANSFER
    carried = resolve(chosen, epochs, mode)
    if output is not None and start is None:
        raise SettingsError(
            f"--output {output} says how the network of --from makes frames, and there is no --from.",
            todo=f"Use --set output={output} for a run with fresh weights.",
        )
    changes = {**({"output": output} if output else {}), **changes}
    config = resolve(chosen, epochs, mode, changes)
    folder = RunFolder(out or Path("storage") / "retrain" / f"{recipe.stem}-{config.num_epoch}")
    if dry_run:
        if not root.is_dir():
            raise DataError(f"{root} is no folder.", "Expected: a data folder.", "Name another one with --data.")
        origin = {key: value for key, value in chosen.origin.items() if value is not None}
        if start is not None:
            begun = load_model(start, output=output, ignore_extra=ignore_extra)
            weights = {"epoch": begun.epoch, "output": _output_of(begun)}
        console.resolved(
            f"Would train {count(config.num_epoch, 'epoch')} into {folder.root}.",
            {
                "run": _given(data=data, gpu=gpu, start=start),
                **({"weights": weights} if start else {}),
                "provenance": origin,
                **({f"carried over ({mode})": differences(chosen.settings, carried)} if epochs else {}),
                **({"set": {name: config.plain()[name] for name in changes}} if changes else {}),
                "settings": config.plain(),
            },
        )
        return
    loaded = _load_data(console, root, (config.frame_H, config.frame_W))
    if "output" not in changes:
        config, said = with_output_of(start, config, loaded, folder, ignore_extra=ignore_extra)
        _warn_of(console, said)
    metric = str(chosen.provenance.get("metric", "val_psnr"))
    run = Retraining(
        config,
        loaded,
        folder,
        device=device,
        start=start,
        ignore_extra=ignore_extra,
        patience=patience,
        metric=metric,
        provenance={"recipe": recipe.name, **chosen.origin},
    )
    if run.finished:
        why = f"has all {count(config.num_epoch, 'epoch')}"
        if run.epoch < config.num_epoch:
            why = f"ended after epoch {run.epoch} of {config.num_epoch} (--patience {patience})"
        console.say(f"{folder.root} already {why}; nothing to train; a longer run: another --epochs or --out.")
    elif run.resumed_at:
        console.say(f"Continuing {folder.root} after epoch {run.resumed_at}.")
    try:
        with (
            _writing(folder.root, folder=True),
            _announced_stop(console) as stop,
            console.training(str(folder.root), config.num_epoch, run.trainer.history, metric) as show,
        ):
            for result in run.run():
                show(result.row())
                if stop:
                    break
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped in epoch {run.epoch + 1} of {config.num_epoch}.",
            todo=f"The same command continues {folder.root} after its last saved epoch.",
        ) from None
    if not run.finished:
        if as_json:
            _print_json({"kind": "stopped", "folder": str(folder.root), "epoch": run.epoch, "epochs": config.num_epoch})
        else:
            console.result(
                f"Stopped after epoch {run.epoch} of {config.num_epoch}; the same command continues {folder.root}."
            )
        return
    with _writing(folder.root, folder=True):
        sheet = run.finish()
    if as_json:
        _print_json(sheet.plain())
    else:
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
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    gpu: Gpu = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Predict the test sequences: submission.csv and a GIF for each."""
    console = _console(verbose, quiet)
    _require_checkpoint(checkpoint)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome import predict as predictions

    if dry_run:
        from cvaeopt.vae.checkpoint import load_model
        from cvaeopt.vae.dataset import count_test_sequences

        model = load_model(checkpoint, output=output, ignore_extra=ignore_extra)
        z = _noise(noise, noise_scale, seed) or predictions.Noise.of(model.config)
        console.resolved(
            f"Would predict {count(count_test_sequences(root), 'sequence')} of {root} into {out}.",
            {
                "run": {
                    "checkpoint": str(checkpoint),
                    "epoch": model.epoch,
                    "device": device,
                    "average": average,
                    "output": _output_of(model),
                },
                "noise": vars(z),
            },
        )
        return
    with _writing(out, folder=True), console.progress() as progress:
        made = predictions.predict(
            checkpoint,
            root,
            out,
            device=device,
            z=_noise(noise, noise_scale, seed),
            average=average,
            progress=progress,
            output=output,
            ignore_extra=ignore_extra,
        )
    _warn_of(console, made.notes)
    if as_json:
        _print_json(
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


@app.command()
def score(
    checkpoint: Checkpoint,
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Also write score.json and the pictures here.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The competition's score, where true frames are known.")
    ] = False,
    noise: NoiseKind = None,
    noise_scale: NoiseScale = 0.5,
    seed: Seed = 0,
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    gpu: Gpu = None,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a checkpoint on the validation video, beside the baselines."""
    console = _console(verbose, quiet)
    _require_checkpoint(checkpoint)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome import score as scores
    from cvaeopt.outcome.rolling import frame_size
    from cvaeopt.vae.checkpoint import load_model

    loaded = _load_data(console, root, frame_size(load_model(checkpoint, ignore_extra=ignore_extra).config))
    sheet = scores.score(
        checkpoint,
        loaded,
        device=device,
        z=_noise(noise, noise_scale, seed),
        public=public,
        output=output,
        ignore_extra=ignore_extra,
    )
    _warn_of(console, sheet.notes)
    if out is not None:
        with _writing(out, folder=True):
            scores.write(sheet, loaded, out)
    if as_json:
        _print_json(sheet.plain())
    else:
        console.score(sheet.plain())


@app.command()
def recalibrate(
    checkpoint: Checkpoint,
    data: Data = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New checkpoint. Default: NAME.recalibrated.ckpt (or .pt, as the given one ends) beside it."),
    ] = None,
    output: OutputKind = None,
    ignore_extra: IgnoreExtra = False,
    gpu: Gpu = None,
    threads: Threads = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Recompute a checkpoint's BatchNorm statistics over the training labels: often many dB, without training."""
    console = _console(verbose, quiet)
    _require_checkpoint(checkpoint)
    root = _data_folder(data, None)
    from cvaeopt.vae import device as devices

    device = devices.use(gpu, threads)
    from cvaeopt.outcome import score as scores
    from cvaeopt.outcome.rolling import frame_size
    from cvaeopt.vae.checkpoint import load_model

    target = out or checkpoint.with_name(f"{checkpoint.stem}.recalibrated{checkpoint.suffix}")
    loaded = _load_data(console, root, frame_size(load_model(checkpoint, ignore_extra=ignore_extra).config))
    with _writing(target):
        made = scores.recalibrate(checkpoint, loaded, target, device=device, output=output, ignore_extra=ignore_extra)
    _warn_of(console, made.notes)
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
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one HTML page about a study, and the pictures it shows."""
    from cvaeopt.outcome import report as reports

    console = _console(verbose, quiet)
    name, store = _existing(console, study, storage)
    path = _definition_path(study)
    definition = _definition(str(path)) if artifacts is None and path.exists() else None
    with _writing(out, folder=True):
        made = reports.report(store, name, out, artifacts=_artifact_folder(artifacts, definition), now=_now())
    if as_json:
        _print_json({"page": str(made.page), "pictures": [str(picture) for picture in made.pictures]})
    else:
        console.result(str(made.page))


@app.command()
def smoke(
    folder: Annotated[Path | None, typer.Option(help="Keep the files here. Default: a scratch folder.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a tiny study end to end on the CPU: data, two workers, export, retrain, predict, report."""
    from cvaeopt.run import smoke as smoke_test

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


_OPENED = contextlib.ExitStack()
"""What the command has opened; `main` closes it when the command ends."""


def main() -> NoReturn:
    """The entry point of the command `cvaeopt`."""
    sys.stdout = Output(sys.stdout)
    sys.stderr = Output(sys.stderr, patience_s=5.0, on_loss=_say_on_stdout)
    code = _run()
    lost = _LATEST.lost
    if lost is not None and lost.errno != errno.EPIPE:  # who closes a pipe has read enough
        what = f"What was written to stdout is lost ({lost.strerror})"
        if _LATEST.results and code == 0:
            problem = UserError(f"{what}.", "Expected: room for the results.", "Run it again with stdout elsewhere.")
            _LATEST.error(problem)
            code = problem.exit_code
        else:
            _LATEST.warn(f"{what}; the work itself is done.")
    sys.exit(code)


def _run() -> int:
    """The exit code of the command line, with its error shown."""
    try:
        with _OPENED:
            app(prog_name="cvaeopt")
    except SystemExit as ended:
        return int(ended.code or 0)
    except CvaeoptError as error:
        shown = error
    except Exception as error:
        shown = _explained(error)
    _LATEST.error(shown)
    return shown.exit_code


def _say_on_stdout(error: OSError) -> None:
    """Say that stderr is lost, to a person, or where nobody expects results."""
    if _LATEST.out.is_terminal or not _LATEST.results:
        _LATEST.result(
            f"Warning: stderr cannot be written ({error.strerror}). What is said there is dropped; the work goes on."
        )


def _explained(error: Exception) -> CvaeoptError:
    """What no room below expected, in the same three parts; its cause is `error`, for the traceback."""
    name, message = type(error).__name__, str(error).strip()
    shown: CvaeoptError
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({_target(error.filename)})" if error.filename else ""
        shown = UserError(
            f"The disk is full{where}: {error.strerror}.",
            "Expected: room for what this command writes.",
            "Make room, then run the same command again; what was written before is whole.",
        )
    elif isinstance(error, OSError) and error.filename is not None and error.errno in _WRONG_PATH:
        taken = error.errno in (errno.EEXIST, errno.ENOTDIR)
        shown = UserError(
            f"{_target(error.filename)}: {error.strerror}.",
            "Expected: a folder." if taken else "Expected: a path that this command can read or write.",
            "Name another one." if taken else "Name another one, or change its permissions.",
        )
    elif isinstance(error, UnicodeEncodeError):
        shown = UserError(
            f"A name or path has characters that this environment cannot spell ({error.reason}).",
            "Expected: names in UTF-8, and an environment that uses it.",
            "Set LC_ALL=C.UTF-8, then run the same command again.",
        )
    elif name == "OutOfMemoryError" or isinstance(error, MemoryError):
        shown = CvaeoptError(
            f"Out of memory ({(message or name).splitlines()[0]}).",
            todo="Use a device with more memory, or a smaller batch_size.",
        )
    elif name == "AcceleratorError" or "CUDA error" in message:
        shown = TryAgain(f"The device failed ({message.splitlines()[0]}).", todo="Run the same command again.")
    else:
        shown = CvaeoptError(
            f"{name}: {message}" if message else f"{name}.",
            todo="This looks like a bug; run again with -v to see where it happened, and report it.",
        )
    shown.__cause__ = error
    return shown


def _target(path: str) -> str:
    """The file that a scratch file of `files.whole` would have become; other paths as they are."""
    folder, slash, name = path.rpartition("/")
    scratch = re.fullmatch(r"\.(.+)\.[^.]+\.part", name)
    return f"{folder}{slash}{scratch[1]}" if scratch else path


_WRONG_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


# ---- what the commands share


_LATEST = Console()
"""The console of the running command: where `main` shows its error."""

_READ_LIMIT_S = 10.0
"""How long a command that only looks waits for the database, seconds."""

_START_LIMIT_S = 60.0
"""How long a worker waits for the database before it begins, seconds (afterwards an outage may be longer)."""


def _console(verbose: bool, quiet: bool, *, results: bool = True) -> Console:
    global _LATEST
    _LATEST = Console(quiet=quiet, verbose=verbose, results=results)
    _LATEST.hear("cvaeopt")
    return _LATEST


@dataclass(frozen=True)
class _Seat:
    """Where this process trains: with which data, on which device, and where its files go.

    remote   holds copies of the checkpoints for workers that share no folder
    tether   of a worker that is one of several on its device
    """

    console: Console
    store: Storage
    loaded: Dataset
    device: str
    folder: Path
    remote: Checkpoints | None = None
    tether: Tether | None = None
    stop: Stop = field(default_factory=Stop)

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Inside the block this process trains; however it ends, what is on its way to the object store arrives there.

        Signals count from here to the end of the uploads: one that comes while no worker runs is obeyed by the next.
        """
        with signals.heard(self.stop.ask):
            try:
                yield
            finally:
                if self.stop.count < 2:  # a second signal waits for nothing
                    self._leave()

    def _leave(self) -> None:
        if self.remote is not None and not self.remote.close():
            self.console.warn(
                f"not all checkpoints reached {self.remote.url}; they are in {self.folder} on this machine"
            )


def _work(seat: _Seat, opened: optuna.Study, definition: Definition) -> WorkerEnded:
    """Take trials of one study until its budget is met, or until asked to stop."""
    from cvaeopt.run import dashboard_notes
    from cvaeopt.run.objective import Objective, TrialRun, tidy
    from cvaeopt.run.worker import Worker
    from cvaeopt.store.study import record_facts
    from cvaeopt.store.study import status as read_status
    from cvaeopt.terminal.live import WorkerView

    store, folder, service = seat.store, seat.folder, definition.service
    known = record_facts(store, definition.name, seat.loaded.digest, lambda: _baselines(seat.loaded))
    objective = Objective(definition, seat.loaded, seat.device, folder, seat.remote)

    def tidy_up() -> None:
        try:
            with store.patience(2.0):
                tidy(opened, folder, service.keep_best, seat.remote)
        except StorageUnreachable:  # the worker meets the same trouble, and says so
            return
        dashboard_notes.keep_up(store, opened, folder, service.keep_pictures)

    def open_trial(trial: Trial, lease: Lease) -> TrialRun:
        return objective.open(trial, lease.token)

    def whole_study() -> dict[str, Any]:
        with store.patience(2.0):
            return read_status(store, definition.name)

    tidy_up()  # what a worker left that could not tidy up itself
    with WorkerView(seat.console, known["baselines"], whole_study) as view:
        one = Worker(
            opened,
            store,
            open_trial,
            device=seat.device,
            artifacts=folder,
            listener=view.heard,
            stop=seat.stop,
            after_trial=tidy_up,
        )
        if seat.tether is not None:
            seat.tether.attach(one.stop)
        ended = one.run()
    tidy_up()
    return ended


def _confirm(seat: _Seat, parent: Definition) -> None:
    """Take the runs of all confirmations of `parent`, also of those that are registered meanwhile."""
    from cvaeopt.store.confirmation import unfinished
    from cvaeopt.store.study import open_existing

    worked: set[str] = set()
    while not seat.stop and (left := [one.name for one in unfinished(seat.store, parent) if one.name not in worked]):
        worked.add(left[0])
        opened, definition = open_existing(seat.store, left[0])
        definition = definition.model_copy(update={"service": parent.service})
        if _work(seat, opened, definition).kind != "finished":
            return


def _baselines(loaded: Dataset) -> dict[str, float]:
    from cvaeopt.vae.metrics import baselines

    return baselines(loaded.train, loaded.val).plain()


def _ranking(found: Confirmation) -> list[dict[str, str]]:
    from cvaeopt.outcome.leaders import table

    return table(found)


def _definition(study: str) -> Definition:
    from cvaeopt.search.definition import load_definition

    return load_definition(study)


def _definition_path(study: str) -> Path:
    """The file of a study; a confirmation, which has none, is served where the study it belongs to is."""
    from cvaeopt.search.definition import definition_path

    path = definition_path(study)
    parent = path.with_name(re.sub(r"\.confirm(-\d+)?\.toml$", ".toml", path.name))
    return path if path.exists() else parent


def _storage_url(given: str | None, definition: Definition | None) -> str:
    """Flag or environment, then the study's [service], then the default."""
    from cvaeopt.store.storage import DEFAULT_URL

    return given or (definition.service.storage if definition else None) or DEFAULT_URL


def _artifact_folder(given: Path | None, definition: Definition | None) -> Path:
    """Flag or environment, then the study's [service], then the default; UserError if a file is in its way."""
    stated = definition.service.artifacts if definition else None
    folder = given or Path(stated or "storage/artifacts")
    if (taken := next((place for place in (folder, *folder.parents) if place.exists()), folder)).is_file():
        above = "" if taken == folder else f" (in the path {folder})"
        raise UserError(
            f"{taken}{above} is a file.",
            "Expected: the folder of the trials' files, or one that can be made.",
            "Name a folder with --artifacts.",
        )
    return folder


def _object_store(console: Console, url: str | None) -> Checkpoints | None:
    """The object store at `url`; UserError if it never can be used, a warning if it does not answer now."""
    if not url:
        return None
    from cvaeopt.run.object_store import open_checkpoints

    remote = open_checkpoints(url)
    silent = remote.check()
    if silent:
        console.warn(f"{remote.url} does not answer ({silent}); checkpoints stay on this machine until it does")
    return remote


def _data_folder(given: Path | None, definition: Definition | None) -> Path:
    stated = definition.service.data if definition else None
    if given is None and stated is None:
        raise DataError(
            "No data folder was given.",
            "Expected: --data DIR, CVAEOPT_DATA, or data under [service] in the study.",
            "Draw one to try with: cvaeopt demo-data demo/data",
        )
    return given or Path(str(stated))


def _require_checkpoint(path: Path) -> None:
    """CheckpointError if there is nothing at `path`: said before anybody looks for data, or loads torch."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", "Expected: a checkpoint (.pt, .ckpt, .pth).")


def _open(console: Console, url: str, *, create: bool = True, limit_s: float = 900.0, start_limit_s: float) -> Storage:
    """The storage at `url`, closed when the command ends; says so when it has to be waited for."""
    import optuna

    from cvaeopt.store.storage import mask, open_storage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console.hear("optuna")  # what it says of trials holds texts from the database
    shown = mask(url)
    # Whatever an error says of the URL, also of one that cannot be parsed: from the first colon to the last @.
    password = re.match(r"\w*(?:\+\w+)?:/*[^:]*(:.*@)", url)
    console.conceal(url, shown)
    console.conceal(password[1] if password else "", ":***@")
    with console.announce(f"{shown} has not answered yet; waiting up to {start_limit_s:.0f} s ..."):
        store = open_storage(url, create=create, limit_s=limit_s, start_limit_s=start_limit_s)
    return _OPENED.enter_context(store)


def _existing(console: Console, study: str, storage: str | None) -> tuple[str, Storage]:
    """Name and storage of a study that was created before.

    Its definition file is needed only where it names the storage, so that a study can be watched from any folder and
    any machine.
    """
    from cvaeopt.search.definition import check_name

    path = _definition_path(study)
    name = Path(study).stem if study.lower().endswith(".toml") else study
    check_name(name, "--study")
    definition = _definition(str(path)) if storage is None and path.exists() else None
    url = _storage_url(storage, definition)
    _advise_as_typed(console, study, name, storage)
    return name, _open(console, url, create=False, limit_s=_READ_LIMIT_S, start_limit_s=_READ_LIMIT_S)


_ADVISED = "ADVISED_STORAGE"
"""Of a child of a crew: what advice says for --storage, as CVAEOPT_STORAGE holds the URL that its parent was given."""


def _advise_as_typed(console: Console, study: str, name: str, storage: str | None) -> str | None:
    """Let every command that is advised be one that works here: with the study's path, and --storage, as given.

    What came from the environment stays there for the next command, too. Returns what is advised for --storage.
    """
    from cvaeopt.store.storage import mask

    path = Path(study)
    parent = re.sub(r"\.confirm(-\d+)?$", "", name)
    typed = study.lower().endswith(".toml") and path.with_name(f"{parent}.toml").exists()
    url = os.environ.get(f"CVAEOPT_{_ADVISED}")
    if storage is not None and storage != os.environ.get("CVAEOPT_STORAGE"):
        # A masked password must not be copied with the command.
        url = storage if mask(storage) == storage else "URL"

    def said(match: re.Match[str]) -> str:
        shown = str(path.with_name(f"{match[1]}.toml")) if typed else match[1]
        return f"--study {shlex.quote(shown)}" + (f" --storage {shlex.quote(url)}" if url is not None else "")

    if typed or url is not None:
        console.rephrase(rf"--study ({re.escape(parent)}(?:\.confirm(?:-\d+)?)?)(?![\w-]|\.\w)", said)
    return url


def _load_data(console: Console, root: Path, size: tuple[int, int]) -> Dataset:
    from cvaeopt.vae import dataset

    with console.progress() as progress:
        return dataset.load(root, *size, progress=progress)


def _show_worker(
    console: Console,
    definition: Definition,
    url: str,
    data: Path | None,
    artifacts: Path,
    checkpoints: str | None,
    gpu: str | None,
    trials_per_gpu: int,
) -> None:
    """What `worker --dry-run` says: where it would run, and every setting of its trials."""
    from cvaeopt.search.space import settled
    from cvaeopt.store.storage import mask

    tables = definition.plain()
    root = data or (Path(definition.service.data) if definition.service.data else None)
    console.resolved(
        f"Would take trials of study {definition.name}, definition {definition.digest()}.",
        {
            "service": {
                "storage": mask(url),
                **_given(data=root, artifacts=artifacts, checkpoints=checkpoints and mask(checkpoints), gpu=gpu),
                "trials_per_gpu": trials_per_gpu,
                "keep_best": definition.service.keep_best,
                "keep_pictures": definition.service.keep_pictures,
            },
            "study": tables["study"],
            "budget": tables["budget"],
            "settings of every trial": {
                **settled(definition.search, definition.fixed),
                "num_epoch": definition.epochs,
                "seed": definition.fixed.get("seed", _training_seed(definition)),
            },
            "search": tables["search"],
            "sampler": tables["sampler"],
            "pruner": tables["pruner"],
            **{f"enqueue {index}": point for index, point in enumerate(tables["enqueue"])},
            **({"warm_start": tables["warm_start"]} if "warm_start" in tables else {}),
        },
    )


def _training_seed(definition: Definition) -> str:
    if definition.seeds == "common":
        return "one for all, from the study's seed; repeats of settings take the next"
    return "from the study's seed and the trial's number"


def _output_of(loaded: Loaded) -> str:
    """The output of a checkpoint as a dry run shows it."""
    return "as the validation video decides" if loaded.output_from == "assumed" else loaded.output


def _warn_of(console: Console, notes: tuple[str, ...]) -> None:
    for note in notes:
        console.warn(note)


def _given(**values: Any) -> dict[str, str]:
    """Options as they are shown in a dry run."""
    missing = {
        "data": "none given",
        "checkpoints": "in no object store",
        "gpu": "the first, else cpu",
        "start": "fresh weights",
    }
    return {name: str(value) if value is not None else missing[name] for name, value in values.items()}


def _noise(kind: Literal["prior", "zero", "scaled"] | None, scale: float, seed: int) -> Noise | None:
    from cvaeopt.outcome.rolling import Noise

    return None if kind is None else Noise(kind, scale, seed)


@contextlib.contextmanager
def _writing(target: Path, *, folder: bool = False) -> Iterator[None]:
    """Names `target` in the error of a full disk, and takes away the empty folders that a failed block has made."""
    inner = target if folder else target.parent
    made = [place for place in (inner, *inner.parents) if not place.exists()]
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
            error.filename = str(target)
        for place in made:
            with contextlib.suppress(OSError):  # not empty, or never made
                place.rmdir()
        raise


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
        with signals.heard(stop.ask):
            yield stop
    finally:
        closed.set()


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


def _stream_json(console: Console, read: Callable[[], dict[str, Any]]) -> None:
    """One JSON object a line, again and again until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        for facts in console.states(read):
            sys.stdout.write(_json(facts) + "\n")


def _print_json(value: Any) -> None:
    sys.stdout.write(_json(value, indent=2, default=str) + "\n")


def _json(value: Any, **options: Any) -> str:
    # JSON writes every other control character as \u....
    return json.dumps(value, allow_nan=False, **options).replace("\x7f", "\\u007f")


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    main()

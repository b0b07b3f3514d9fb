"""The commands that train trials: worker and confirm."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Annotated

import typer

from cvaeopt.commands import opening
from cvaeopt.commands import options as opt
from cvaeopt.commands.opening import (
    conceal_password,
    load_data,
    open_console,
    open_object_store,
    open_or_create,
    open_study,
)
from cvaeopt.commands.places import Flags, Places, definition_file
from cvaeopt.terminal import results as show
from cvaeopt.terminal.console import Console
from cvaeopt.text import Advice, count

if TYPE_CHECKING:
    from cvaeopt.outcome.leaders import Confirmation
    from cvaeopt.run.events import Listener
    from cvaeopt.run.worker_process import WorkerProcess
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.confirmation import Plan
    from cvaeopt.store.storage import Storage


def worker(
    study: opt.Study,
    gpu: opt.Gpu = None,
    storage: opt.StorageUrl = None,
    data: opt.Data = None,
    artifacts: opt.Artifacts = None,
    checkpoints: opt.CheckpointStore = None,
    threads: opt.Threads = None,
    trials_per_gpu: opt.TrialsPerGpu = 1,
    dry_run: opt.DryRun = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train trials of a study until its budget is met."""
    from cvaeopt.run import processes
    from cvaeopt.search.definition import definition_path, is_shipped, load_definition

    console = open_console(verbose, quiet, results=dry_run)
    file = definition_path(study)
    definition = load_definition(str(file))
    parent = processes.ParentProcess.inherited()
    if is_shipped(file) and parent is None:  # if there is a parent, it has already printed this line
        console.say(f"There is no studies/{study}.toml here: this is the study {study} that comes with cvaeopt.")
    flags = Flags(study, storage, data, artifacts, checkpoints, gpu)
    places = Places.resolve(flags, os.environ, definition.service)
    console.spell = places.command
    folder = places.artifact_folder()
    if dry_run:
        _show_worker(console, definition, places, trials_per_gpu)
        return
    root = places.data_folder()
    if trials_per_gpu > 1:
        switches = [*(["--verbose"] if verbose else []), *(["--quiet"] if quiet else [])]
        arguments = ["worker", "--study", study, *switches]
        raise typer.Exit(_work_together(console, places, arguments, trials_per_gpu, threads))
    remote = open_object_store(console, places.checkpoints)
    from cvaeopt.vae import device as devices

    device = devices.use(places.device, threads)
    from cvaeopt.run.worker_process import WorkerProcess
    from cvaeopt.terminal.live import WorkerView

    loaded = load_data(console, root, definition.frame_size)
    store = open_or_create(console, places.storage, opening.START_LIMIT_S)
    with contextlib.ExitStack() as view:
        listener = view.enter_context(WorkerView(console)).heard if parent is None else parent.tell
        WorkerProcess(store, loaded, device, folder, listener, remote, parent, reads_study=not quiet).work(definition)


def _work_together(
    console: Console, places: Places, arguments: list[str], trials_per_gpu: int, threads: int | None
) -> int:
    """Run several workers on one device, each in its own process, and return their common exit code."""
    from cvaeopt.run.processes import supervise
    from cvaeopt.terminal.live import ProcessesView

    variables = {
        "STORAGE": places.storage,
        "DATA": str(places.data),
        "ARTIFACTS": str(places.artifacts),
        "CHECKPOINTS": places.checkpoints,
        "GPU": places.device,
    }
    conceal_password(console, places.storage)
    with ProcessesView(console, trials_per_gpu) as view:
        return supervise(arguments, trials_per_gpu, variables, threads, view.heard)


def _show_worker(console: Console, definition: Definition, places: Places, trials_per_gpu: int) -> None:
    """Print the output of `worker --dry-run`: the places of the worker, and every setting of its trials."""
    from cvaeopt.search.space import settled, without_effect
    from cvaeopt.store.urls import mask

    tables = definition.plain()
    store, service = places.checkpoints and mask(places.checkpoints), definition.service
    one_seed = definition.seeds == "common"
    seed = "one for all, from the study's seed; repeats of settings take the next" if one_seed else ""
    seed = seed or "from the study's seed and the trial's number"
    settings = {**settled(definition.search, definition.fixed), "num_epoch": definition.epochs}
    idle = without_effect(definition.search, settings)
    show.resolved(
        console,
        f"Would take trials of study {definition.name}, definition {definition.digest()}.",
        {
            "service": {
                "storage": mask(places.storage),
                **opt.shown(data=places.data, artifacts=places.artifacts, checkpoints=store, gpu=places.device),
                "trials_per_gpu": trials_per_gpu,
                "keep_best": service.keep_best,
                "keep_pictures": service.keep_pictures,
                "notify": "nobody" if service.notify is None else "the command in the study's file",
                "snapshots": "none" if service.snapshots is None else service.snapshots,
            },
            "study": tables["study"],
            "budget": tables["budget"],
            "settings of every trial": {
                **{name: value for name, value in settings.items() if name not in idle},
                "seed": definition.fixed.get("seed", seed),
                **({"without effect here": ", ".join(sorted(idle))} if idle else {}),
            },
            "search": tables["search"],
            "sampler": tables["sampler"],
            "pruner": tables["pruner"],
            **{f"enqueue {index}": point for index, point in enumerate(tables["enqueue"])},
            **({"warm_start": tables["warm_start"]} if "warm_start" in tables else {}),
        },
    )


def confirm(
    study: opt.Study,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="Leaders of the search: different settings.")] = 5,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, max=100, help="Runs of each. Default: one of each, then the best two twice."),
    ] = None,
    gpu: opt.GpuHere = None,
    storage: opt.StorageUrl = None,
    data: opt.Data = None,
    artifacts: opt.Artifacts = None,
    checkpoints: opt.CheckpointStore = None,
    threads: opt.Threads = None,
    dry_run: opt.DryRun = False,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train the best settings again with new seeds.

    Each leader is trained once. Then the best two leaders are trained twice more. With --seeds N, every leader is
    trained N times. All workers of the study share these runs. Without --gpu, the runs are only registered. Workers
    that were started with `cvaeopt worker --study NAME` then train the runs. You can ask for more leaders or seeds
    later. Finished runs are kept.
    """
    from cvaeopt.outcome.leaders import confirmation
    from cvaeopt.store import confirmation as confirmations
    from cvaeopt.terminal.live import WorkerView

    console = open_console(verbose, quiet, results=as_json or dry_run or gpu is None)
    flags = Flags(study, storage, data, artifacts, checkpoints, gpu)
    places, store = open_study(console, flags)
    planned = confirmations.plan(store, places.study, top, seeds)
    if len(planned.leaders) < top:
        have = count(len(planned.leaders), "leader")
        console.warn(f"--top {top}: the search has {have} (different settings of complete trials), and all are taken.")
    if dry_run:
        if as_json:
            console.json({**planned.plain(), "dry_run": True})
        else:
            show.planned(console, planned.plain())
        return
    definition = _confirmed_definition(store, study, places.study)
    if gpu is None:
        _register(console, store, planned)
    else:
        view = WorkerView(console)
        process = open_process(console, store, definition, flags, threads, view.heard)
        process.baselines(definition.name)
        _register(console, store, planned)
        with view:
            process.confirm(definition)
    fresh = confirmation(store, places.study)
    assert fresh is not None  # `_register` has stored a confirmation above
    if as_json:
        console.json({**planned.plain(), "confirmation": fresh.plain()})
    else:
        _show_confirmation(console, fresh, places.study)


def _confirmed_definition(store: Storage, study: str, name: str) -> Definition:
    """The definition of a stored study, with the table [service] of the study's file.

    If the file has changed since the study was created, `create_or_open` raises an error.
    """
    from cvaeopt.search.definition import is_shipped, load_definition
    from cvaeopt.store.study import create_or_open, stored_definition

    definition = stored_definition(store, name)
    file = definition_file(study)
    if file.exists():
        given = load_definition(str(file))
        if given.name == name and not is_shipped(file):  # the study may come from another file than the shipped one
            create_or_open(store, given)
        definition = definition.model_copy(update={"service": given.service})
    return definition


def open_process(
    console: Console, store: Storage, definition: Definition, flags: Flags, threads: int | None, listener: Listener
) -> WorkerProcess:
    """A worker in this process for an option --gpu. Its data, device and stores are ready, or an error is raised."""
    from cvaeopt.vae import device as devices

    places = Places.resolve(flags, os.environ, definition.service)
    root = places.data_folder()
    device = devices.use(places.device, threads)
    from cvaeopt.run.worker_process import WorkerProcess

    loaded = load_data(console, root, definition.frame_size)
    remote = open_object_store(console, places.checkpoints)
    return WorkerProcess(
        store, loaded, device, places.artifact_folder(), listener, remote, reads_study=not console.quiet
    )


def _register(console: Console, store: Storage, planned: Plan) -> None:
    from cvaeopt.store.confirmation import register

    if not planned.over:
        console.warn("The search is not over: run this again when it is, in case its leaders change.")
    register(store, planned)
    if planned.definition is not None:
        runs = count(planned.new_runs, "run")
        console.say(f"Registered {runs} of {count(planned.epochs, 'epoch')} as {planned.definition.name}.")
    if planned.later_runs:
        console.say(
            f"When they have ended, the best leaders are trained again: {count(planned.later_runs, 'run')} more."
        )


def _show_confirmation(console: Console, fresh: Confirmation, name: str) -> None:
    from cvaeopt.outcome.leaders import table

    if fresh.ended:
        show.confirmed(console, table(fresh), fresh.spread, fresh.paired)
    runs = count(fresh.runs, "run")
    if not fresh.over:
        text = f"{fresh.ended} of {runs} ended. A worker takes the others:"
        console.result(Advice(text, "worker", "--study", name, "--gpu", "0"))
    elif fresh.best is not None:
        console.result(Advice(f"All {runs} ended; next:", "export-best", "--study", name))

"""The commands that train trials: worker and confirm."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvaeopt.commands import opening
from cvaeopt.commands.opening import load_data, open_console, open_object_store, open_or_create, open_study
from cvaeopt.commands.options import (
    Artifacts,
    CheckpointStore,
    Data,
    DryRun,
    Gpu,
    Json,
    Quiet,
    StorageUrl,
    Study,
    Threads,
    TrialsPerGpu,
    Verbose,
    shown,
)
from cvaeopt.commands.places import Flags, Places, definition_file
from cvaeopt.errors import StorageUnreachable
from cvaeopt.run.signals import Stop
from cvaeopt.terminal.console import Console
from cvaeopt.text import Advice, count

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

    from cvaeopt.outcome.leaders import Confirmation
    from cvaeopt.run.events import WorkerEnded
    from cvaeopt.run.object_store import Checkpoints
    from cvaeopt.run.processes import Tether
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.confirmation import Plan
    from cvaeopt.store.leases import Lease
    from cvaeopt.store.storage import Storage
    from cvaeopt.vae.dataset import Dataset


def worker(
    study: Study,
    gpu: Gpu = None,
    storage: StorageUrl = None,
    data: Data = None,
    artifacts: Artifacts = None,
    checkpoints: CheckpointStore = None,
    threads: Threads = None,
    trials_per_gpu: TrialsPerGpu = 1,
    dry_run: DryRun = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train trials of a study until its budget is met."""
    from cvaeopt.run import processes
    from cvaeopt.search.definition import is_shipped, load_definition

    console = open_console(verbose, quiet, results=dry_run)
    definition = load_definition(study)
    if is_shipped(definition_file(study)):
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
    tether = processes.Tether.inherited()
    remote = open_object_store(console, places.checkpoints)
    from cvaeopt.vae import device as devices

    device = devices.use(places.device, threads)
    tether.share(device)
    from cvaeopt.store.study import create_or_open

    loaded = load_data(console, root, definition.frame_size)
    store = open_or_create(console, places.storage, opening.START_LIMIT_S)
    seat = _Seat(console, store, loaded, device, folder, remote, tether)
    opened = create_or_open(store, definition)
    with seat.taken():
        if _work(seat, opened, definition).kind == "finished":
            _confirm(seat, definition)


def _work_together(
    console: Console, places: Places, arguments: list[str], trials_per_gpu: int, threads: int | None
) -> int:
    """The exit code of several workers on one device, each a process of its own."""
    from cvaeopt.terminal.live_processes import supervise

    given = {
        "STORAGE": places.storage,
        "DATA": str(places.data),
        "ARTIFACTS": str(places.artifacts),
        "CHECKPOINTS": places.checkpoints,
        "GPU": places.device,
    }
    variables = {name: value for name, value in given.items() if value}
    return supervise(console, arguments, trials_per_gpu, variables, threads, on_cpu=places.device == "cpu")


def _show_worker(console: Console, definition: Definition, places: Places, trials_per_gpu: int) -> None:
    """What `worker --dry-run` prints: where it would run, and every setting of its trials."""
    from cvaeopt.search.space import settled
    from cvaeopt.store.urls import mask

    tables = definition.plain()
    store, service = places.checkpoints and mask(places.checkpoints), definition.service
    one_seed = definition.seeds == "common"
    seed = "one for all, from the study's seed; repeats of settings take the next" if one_seed else ""
    seed = seed or "from the study's seed and the trial's number"
    console.resolved(
        f"Would take trials of study {definition.name}, definition {definition.digest()}.",
        {
            "service": {
                "storage": mask(places.storage),
                **shown(data=places.data, artifacts=places.artifacts, checkpoints=store, gpu=places.device),
                "trials_per_gpu": trials_per_gpu,
                "keep_best": service.keep_best,
                "keep_pictures": service.keep_pictures,
            },
            "study": tables["study"],
            "budget": tables["budget"],
            "settings of every trial": {
                **settled(definition.search, definition.fixed),
                "num_epoch": definition.epochs,
                "seed": definition.fixed.get("seed", seed),
            },
            "search": tables["search"],
            "sampler": tables["sampler"],
            "pruner": tables["pruner"],
            **{f"enqueue {index}": point for index, point in enumerate(tables["enqueue"])},
            **({"warm_start": tables["warm_start"]} if "warm_start" in tables else {}),
        },
    )


def confirm(
    study: Study,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="Leaders of the search: different settings.")] = 5,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Fresh runs of each, the same seeds for all.")
    ] = 3,
    gpu: Annotated[  # Not read from CVAEOPT_GPU: a variable that was exported for workers must not start training here.
        str | None, typer.Option("--gpu", help="Train the runs here, too, on this GPU (or cpu). Default: plan only.")
    ] = None,
    storage: StorageUrl = None,
    data: Data = None,
    artifacts: Artifacts = None,
    checkpoints: CheckpointStore = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train the best settings again with new seeds.

    All workers of the study share these runs. Without --gpu the runs are only registered, and whoever runs
    `cvaeopt worker --study NAME` takes them. More leaders or seeds can be asked for later; what was trained is kept.
    """
    from cvaeopt.outcome.leaders import confirmation
    from cvaeopt.store import confirmation as confirmations

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
            console.planned(planned.plain())
        return
    definition = _confirmed_definition(store, study, places.study)
    seat = None if gpu is None else _seat(console, store, definition, flags, threads)
    _register(console, store, planned)
    if seat is not None:
        with seat.taken():
            _confirm(seat, definition)
    fresh = confirmation(store, places.study)
    assert fresh is not None  # at least the one that was registered above
    if as_json:
        console.json({**planned.plain(), "confirmation": fresh.plain()})
    else:
        _show_confirmation(console, fresh, places.study)


def _confirmed_definition(store: Storage, study: str, name: str) -> Definition:
    """The definition of a stored study; [service] as its file says. A file that has changed since is refused."""
    from cvaeopt.search.definition import is_shipped, load_definition
    from cvaeopt.store.study import create_or_open, stored_definition

    definition = stored_definition(store, name)
    file = definition_file(study)
    if file.exists():
        given = load_definition(str(file))
        if given.name == name and not is_shipped(file):  # who has no file here may have begun the study with another
            create_or_open(store, given)
        definition = definition.model_copy(update={"service": given.service})
    return definition


def _register(console: Console, store: Storage, planned: Plan) -> None:
    from cvaeopt.store.confirmation import register

    if not planned.over:
        console.warn("The search is not over: run this again when it is, in case its leaders change.")
    register(store, planned)
    if planned.definition is not None:
        runs = count(planned.new_runs, "run")
        console.say(f"Registered {runs} of {count(planned.epochs, 'epoch')} as {planned.definition.name}.")


def _show_confirmation(console: Console, fresh: Confirmation, name: str) -> None:
    from cvaeopt.outcome.leaders import table

    if fresh.ended:
        console.confirmed(table(fresh), fresh.spread, fresh.paired)
    runs = count(fresh.runs, "run")
    if not fresh.over:
        text = f"{fresh.ended} of {runs} ended. A worker takes the others:"
        console.result(Advice(text, "worker", "--study", name, "--gpu", "0"))
    elif fresh.best is not None:
        console.result(Advice(f"All {runs} ended; next:", "export-best", "--study", name))


# ---- training


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
        with self.stop:
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


def _seat(console: Console, store: Storage, definition: Definition, flags: Flags, threads: int | None) -> _Seat:
    """The seat of `confirm --gpu`."""
    from cvaeopt.store.study import record_facts
    from cvaeopt.vae import device as devices

    places = Places.resolve(flags, os.environ, definition.service)
    root = places.data_folder()
    device = devices.use(places.device, threads)
    loaded = load_data(console, root, definition.frame_size)
    record_facts(store, definition.name, loaded.digest, lambda: _baselines(loaded))
    remote = open_object_store(console, places.checkpoints)
    return _Seat(console, store, loaded, device, places.artifact_folder(), remote)


def _work(seat: _Seat, opened: optuna.Study, definition: Definition) -> WorkerEnded:
    """Take trials of one study until its budget is met, or until asked to stop."""
    from cvaeopt.run import dashboard_notes
    from cvaeopt.run.objective import Objective, TrialRun, tidy
    from cvaeopt.run.worker import Worker
    from cvaeopt.store.status import status as read_status
    from cvaeopt.store.study import record_facts
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

"""The commands that watch studies and control workers: status, workers, stop, dashboard and smoke."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvaeopt.commands import opening
from cvaeopt.commands.help import study_names
from cvaeopt.commands.opening import open_console, open_existing, open_or_create, open_study, stated_service
from cvaeopt.commands.options import Artifacts, DryRun, Json, Price, Quiet, StorageUrl, Study, Verbose
from cvaeopt.commands.places import Flags, Places
from cvaeopt.errors import UserError
from cvaeopt.run.signals import Stop
from cvaeopt.terminal import results as show
from cvaeopt.terminal.watch import stream_json
from cvaeopt.terminal.watch import watch as watch_study
from cvaeopt.text import count

if TYPE_CHECKING:
    from cvaeopt.store.steering import TrialStop
    from cvaeopt.store.storage import Storage


def status(
    study: Study,
    storage: StorageUrl = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    more: Annotated[
        int | None, typer.Option("--more", min=1, max=200, help="Say what so many more trials may be expected to gain.")
    ] = None,
    price: Price = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show a study: its trials, best and workers.

    The best value is compared with the baselines of the data. When a study has ended, its status says what more trials
    may be expected to gain; --more says it earlier.
    """
    if watch and more is not None:
        raise UserError("--more and --watch were given.", "Expected: one of them, as --more takes seconds.")
    console = open_console(verbose, quiet)
    places, store = open_study(console, Flags(study, storage))

    def read() -> dict[str, Any]:
        facts = _facts(store, places.study)
        if more is not None or (facts["over"] and not watch):
            facts["gain"] = _gain(store, places.study, more, price)
        return facts

    if watch:
        with Stop(raise_at=1):
            if as_json:
                stream_json(console, read)
            else:
                watch_study(console, read)
    elif as_json:
        console.json(read())
    else:
        show.status(console, read())


def _facts(store: Storage, name: str) -> dict[str, Any]:
    """The facts that `status` shows about a study and its confirmation."""
    from cvaeopt.outcome.bounds import BEST, at_bounds
    from cvaeopt.outcome.leaders import confirmation, table
    from cvaeopt.store.status import best_trials
    from cvaeopt.store.status import status as read_status
    from cvaeopt.store.study import stored_definition

    fresh = confirmation(store, name)
    shown = None if fresh is None else {**fresh.plain(), "table": table(fresh)}
    bounds = at_bounds(stored_definition(store, name), best_trials(store, name, BEST))
    return {**read_status(store, name), "confirmation": shown, "bounds": bounds}


def _gain(store: Storage, name: str, more: int | None, price: float | None) -> dict[str, Any] | None:
    """What more trials may be expected to gain, as numbers and as `text`; None if the trials do not tell it."""
    from cvaeopt.outcome.gain import default_more, expected_gain
    from cvaeopt.store.study import open_existing

    study, definition = open_existing(store, name)
    trials = study.get_trials(deepcopy=False)
    found = expected_gain(definition, trials, [more or default_more(trials)])
    return {**found[0].plain(price), "text": found[0].text(price)} if found else None


def workers(
    storage: StorageUrl = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Show the workers of all studies in a storage.

    The list shows the device, the trial and the time of the last heartbeat of each worker.
    """
    from cvaeopt.store.workers import workers as read_workers

    console = open_console(verbose, quiet)
    store = open_existing(console, Places.resolve(Flags(storage=storage), os.environ).storage)
    rows = [asdict(row) for row in read_workers(store)]
    if as_json:
        console.json({"storage": store.url, "workers": rows})
    else:
        show.workers(console, rows)


def stop(
    study: Study,
    worker: Annotated[str | None, typer.Option("--worker", help="Only this worker (its id in `status`).")] = None,
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, help="End this trial as pruned, and leave the workers running.")
    ] = None,
    storage: StorageUrl = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Stop workers, or one trial, after their epoch.

    The trials of stopped workers continue when a worker starts again. With --trial, the trial itself ends: its worker,
    on whatever machine, ends it after its epoch and takes the next trial. A trial that waits ends at once.
    """
    from cvaeopt.store.confirmation import stop as stop_workers
    from cvaeopt.store.steering import stop_trial

    console = open_console(verbose, quiet)
    if trial is not None and worker is not None:
        raise UserError("--trial is given beside --worker.", "Expected: one of them.", "Leave one out.")
    places, store = open_study(console, Flags(study, storage))
    planned = {"dry_run": True} if dry_run else {}
    if trial is not None:
        answer = stop_trial(store, places.study, trial, dry_run=dry_run)
        if as_json:
            console.json({**answer.plain(), **planned})
        else:
            console.result(_of_stop(answer, dry_run))
        return
    asked = stop_workers(store, places.study, worker, dry_run=dry_run)
    if as_json:
        console.json({"study": places.study, "asked": asked, **planned})
    else:
        will = "would stop" if dry_run else "stops"
        console.result(
            "\n".join(f"{name} {will} after its epoch" for name in asked) or "No worker runs for this study."
        )


def _of_stop(answer: TrialStop, dry_run: bool) -> str:
    """One sentence about the trial that was stopped or will stop."""
    trial = f"Trial {answer.trial}"
    if answer.ended:
        will = "would end" if dry_run else "is stopped by hand"
        return f"{trial} {will}, after {count(answer.epochs_done, 'epoch')}."
    will = "would end" if dry_run else "ends"
    reported = f"{count(answer.epochs_done, 'epoch')} reported so far"
    return f"{trial} {will} after its present epoch ({reported}; worker {answer.worker} has it)."


def dashboard(
    study: Annotated[
        str | None,
        typer.Option("--study", help="Take storage and artifacts from this study.", autocompletion=study_names),
    ] = None,
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
    """Serve optuna-dashboard with the trials' pictures."""
    console = open_console(verbose, quiet)
    flags = Flags(study, storage, artifacts=artifacts)
    service = stated_service(study)
    places = Places.resolve(flags, os.environ, service)
    folder = places.artifact_folder()
    if study and service is None:  # without its file, the study must be in the storage
        from cvaeopt.store.study import stored_definition

        places, existing = open_study(console, flags)
        stored_definition(existing, places.study)
        existing.close()
    if host not in ("127.0.0.1", "localhost", "::1"):
        can = "read every study" if read_only else "change and delete studies"
        console.warn(
            f"The dashboard has no password, and on {host} others can reach it: whoever does can {can}. "
            f"Better: leave it on 127.0.0.1 and use `ssh -L {port}:127.0.0.1:{port}`."
        )
    from cvaeopt.run.dashboard import Server, application, refuse_renames
    from cvaeopt.run.dashboard_notes import artifact_store

    with Server(host, port) as server:
        store = open_or_create(console, places.storage, opening.READ_LIMIT_S)
        begun = {one.study_name for one in store.get_all_studies()}
        if places.study not in begun if places.study else not begun:
            what = f"Study {places.study} has not begun" if places.study else "There is no study yet"
            console.say(f"{what}: the page is empty until a worker starts.")
        names, guard = allow_host or (), [lambda inner: refuse_renames(inner, store)]
        files = artifact_store(folder)
        server.set_app(application(store, files, bound=host, names=names, read_only=read_only, layers=guard))
        console.say(f"{store.url} at http://{f'[{host}]' if ':' in host else host}:{port}/  (Ctrl-C ends it)")
        # A service manager ends the dashboard with SIGTERM. Such an end is not a failure.
        with contextlib.suppress(KeyboardInterrupt), Stop(raise_at=1):
            server.serve_forever()


def smoke(
    folder: Annotated[Path | None, typer.Option(help="Keep the files here. Default: a scratch folder.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run a tiny study end to end on the CPU.

    The steps are: draw data, run two workers, export, retrain, predict, and write a report.
    """
    from cvaeopt.run import smoke as smoke_test

    console = open_console(verbose, quiet)
    for step in smoke_test.run(folder):
        console.say(step)
    console.result("smoke study: ok")

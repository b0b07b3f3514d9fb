"""The command claims, which tests what a report says about the arms of a study."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvaeopt.commands import opening
from cvaeopt.commands import options as opt
from cvaeopt.commands.opening import open_console, open_existing, open_or_create, open_study
from cvaeopt.commands.places import Flags, Places, definition_file
from cvaeopt.commands.search import open_process
from cvaeopt.errors import StudyError
from cvaeopt.terminal import claims as show
from cvaeopt.terminal.console import Console
from cvaeopt.text import Advice, count

if TYPE_CHECKING:
    from cvaeopt.outcome.claims import Tested
    from cvaeopt.search.definition import Definition
    from cvaeopt.store.confirmation import Plan


def claims(
    study: opt.Study,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=2, max=100, help="Runs of each arm. Default: those registered, or 5 at first."),
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
    """Test what a report claims about a study's arms.

    The claims are the [[claims]] tables of the study's file. Every arm of its grid is trained with the same new seeds,
    by all workers of the study. Then each claim holds, is reversed, or cannot be told from so many seeds. Without
    --gpu, the runs are only registered. Type the command again to see the verdicts.
    """
    from cvaeopt.outcome.claims import assess
    from cvaeopt.store import claims as stored
    from cvaeopt.store.confirmation import register
    from cvaeopt.store.study import create_or_open
    from cvaeopt.terminal.live import WorkerView

    console = open_console(verbose, quiet, results=as_json or dry_run or gpu is None)
    flags = Flags(study, storage, data, artifacts, checkpoints, gpu)
    definition, places = _definition(console, flags, study)
    console.spell = places.command
    if dry_run:
        _show_plan(console, definition, places, seeds, as_json)
        return
    store = open_or_create(console, places.storage, opening.START_LIMIT_S)
    view = WorkerView(console)
    process = None if gpu is None else open_process(console, store, definition, flags, threads, view.heard)
    create_or_open(store, definition)
    if process is not None:
        process.baselines(definition.name)
    stored.record(store, definition)
    planned = stored.plan(store, definition, seeds)
    register(store, planned)
    if planned.definition is not None:
        runs = count(planned.new_runs, "run")
        console.say(f"Registered {runs} of {count(planned.epochs, 'epoch')} as {planned.definition.name}.")
    if process is not None:
        with view:
            process.confirm(definition)
    found = assess(store, definition.name, definition.claims)
    assert found is not None  # `_definition` requires claims
    if as_json:
        console.json({**_facts(definition, planned, len(planned.seeds)), **found.plain()})
    else:
        _show(console, found, definition.name)


def _show_plan(console: Console, definition: Definition, places: Places, seeds: int | None, as_json: bool) -> None:
    from cvaeopt.store.claims import SEEDS

    facts = _facts(definition, _planned(console, definition, places, seeds), seeds or SEEDS)
    if as_json:
        console.json({**facts, "dry_run": True})
    else:
        show.planned(console, facts)


def _definition(console: Console, flags: Flags, study: str) -> tuple[Definition, Places]:
    """The study's definition with its claims, from its file or else from the database, and the places."""
    from cvaeopt.search.definition import load_definition
    from cvaeopt.store.claims import recorded, require_claims
    from cvaeopt.store.study import stored_definition

    file = definition_file(study)
    if file.exists():
        definition = load_definition(str(file))
        places = Places.resolve(flags, os.environ, definition.service)
        if definition.name == places.study:
            require_claims(definition, str(file))
            return definition, places
    places, store = open_study(console, flags)
    definition = stored_definition(store, places.study)
    known = [] if definition.confirms is not None else recorded(store, definition)
    definition = definition.model_copy(update={"claims": known})
    require_claims(definition, f"The study '{places.study}' in {store.url}")
    return definition, places


def _planned(console: Console, definition: Definition, places: Places, seeds: int | None) -> Plan | None:
    """The plan of a dry run; None if the study does not exist yet. Nothing is written."""
    from cvaeopt.store import claims as stored
    from cvaeopt.store.study import create_or_open, names

    try:
        store = open_existing(console, places.storage)
    except StudyError:  # there is no database yet
        return None
    if definition.name not in names(store):
        return None
    create_or_open(store, definition)  # refuses a definition that has changed
    return stored.plan(store, definition, seeds)


def _facts(definition: Definition, planned: Plan | None, seeds: int) -> dict[str, Any]:
    """The arms, the runs and the claims as JSON values. `planned` is None if the study does not exist yet."""
    from cvaeopt.store.claims import arms
    from cvaeopt.store.confirmation import fresh_seed

    params = [arm.params for arm in arms(definition)]
    new: str | None = f"{definition.name}.confirm"
    if planned is not None:
        new = None if planned.definition is None else planned.definition.name
    return {
        "study": definition.name,
        "arms": params,
        "seeds": [fresh_seed(definition.seed, index) for index in range(seeds)] if planned is None else planned.seeds,
        "epochs": definition.epochs,
        "registered": [] if planned is None else planned.registered,
        "new": new,
        "new_runs": len(params) * seeds if planned is None else planned.new_runs,
        "claims": [claim.model_dump(mode="json") for claim in definition.claims],
    }


def _show(console: Console, found: Tested, name: str) -> None:
    show.tested(console, found.sentences, found.table, found.without)
    if found.ended < found.runs:
        text = f"{found.ended} of {count(found.runs, 'run')} ended. A worker takes the others:"
        console.result(Advice(text, "worker", "--study", name, "--gpu", "0"))

"""The command line. It lists the commands, protects stdout and stderr, shows errors and sets the exit code.

Heavy libraries are imported inside the commands. Therefore `--help` answers at once, and `--gpu` can choose the visible
device before torch is loaded.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from cvaeopt import __version__
from cvaeopt.commands import (
    admin,
    checkpoints,
    claims,
    data,
    doctor,
    extend,
    hand_in,
    project,
    report,
    results,
    retrain,
    search,
    service,
    steering,
    trackers,
)
from cvaeopt.commands.failure import explained
from cvaeopt.commands.help import Grouped, examples
from cvaeopt.commands.opening import OPENED, latest_console
from cvaeopt.errors import UserError
from cvaeopt.terminal.streams import Output

app = typer.Typer(
    name="cvaeopt",
    cls=Grouped,
    help="Find good settings for a pose-conditioned video CVAE, on every GPU you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Search": (
        search.worker,
        service.status,
        steering.enqueue,
        service.stop,
        extend.extend,
        search.confirm,
        claims.claims,
    ),
    "Results": (
        results.export_best,
        results.fetch,
        report.report,
        trackers.export_runs,
        retrain.retrain,
        retrain.train,
        checkpoints.predict,
        checkpoints.score,
        checkpoints.recalibrate,
        hand_in.hand_in,
        results.show,
    ),
    "Data": (project.init, data.demo_data, data.check_data, doctor.doctor),
    "Service": (service.workers, service.dashboard, service.smoke),
}
for panel, commands in PANELS.items():
    for command in commands:
        name = command.__name__.replace("_", "-")
        app.command(name, rich_help_panel=panel, epilog=examples(name))(command)
app.add_typer(admin.app, name="admin", rich_help_panel="Service")


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        sys.stdout.write(f"cvaeopt {__version__}\n")
        raise typer.Exit


def main() -> NoReturn:
    """The entry point of the command `cvaeopt`."""
    sys.stdout = Output(sys.stdout)
    sys.stderr = Output(sys.stderr, patience_s=5.0, on_loss=_say_on_stdout)
    code = _run()
    console = latest_console()
    lost = console.lost
    if lost is not None and lost.errno != errno.EPIPE:  # EPIPE: the reader needs no more text
        what = f"What was written to stdout is lost ({lost.strerror})"
        if console.results and code == 0:
            problem = UserError(f"{what}.", "Expected: room for the results.", "Run it again with stdout elsewhere.")
            console.error(problem)
            code = problem.exit_code
        else:
            console.warn(f"{what}; the work itself is done.")
    sys.exit(code)


def _run() -> int:
    """Run the command line, show its error if there is one, and return the exit code."""
    try:
        with OPENED:
            app(prog_name="cvaeopt")
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:
        shown = explained(error)
        latest_console().error(shown)
        return shown.exit_code
    return 0


def _say_on_stdout(error: OSError) -> None:
    """Print on stdout that stderr cannot be written, if stdout is a terminal or the command prints no results there."""
    console = latest_console()
    if console.out.is_terminal or not console.results:
        console.result(
            f"Warning: stderr cannot be written ({error.strerror}). What is said there is dropped; the work goes on."
        )


if __name__ == "__main__":
    main()

"""One self-contained HTML page per study, and the pictures it shows as files beside it.

The page opens without a network: every picture is a data URI, there is no script, and its own content security
policy forbids both. Names and reasons come from a database that other programs may write, so the template escapes
them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.trial import FrozenTrial

from cvaeopt.files import write_bytes, write_text
from cvaeopt.outcome.importance import at_bounds, importances
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.outcome.report_data import report_data
from cvaeopt.outcome.report_pictures import report_pictures
from cvaeopt.outcome.report_text import setting_text
from cvaeopt.search.definition import Definition
from cvaeopt.store.damage import named
from cvaeopt.store.identity import of
from cvaeopt.store.status import status, without_worker
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing

PAGE: Final = "report.html"


@dataclass(frozen=True)
class Report:
    """What `report` wrote."""

    page: Path
    pictures: tuple[Path, ...]


@named
def report(storage: Storage, name: str, out: Path, *, artifacts: Path, now: datetime) -> Report:
    """Write `out`/report.html and its pictures for study `name`; StudyError for an unknown study.

    artifacts   folder of the trials' run folders; what is missing there is said on the page
    now         the date on the page
    """
    study, definition = open_existing(storage, name)
    overview = {
        **status(storage, name),
        "left": without_worker(storage, name),
        "confirmation": confirmation(storage, name),
        "identity": of(study),
    }
    return write(definition, study.get_trials(deepcopy=False), overview, out, artifacts=artifacts, now=now)


def write(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    out: Path,
    *,
    artifacts: Path,
    now: datetime,
) -> Report:
    """The same as `report`, of trials that were read already; `overview` as `report_data` takes it."""
    data = report_data(definition, trials, overview, artifacts=artifacts, now=now)
    shown = report_pictures(data, importances(definition, trials))
    environment = Environment(
        loader=PackageLoader("cvaeopt.outcome"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for picture in shown.all:
        write_bytes(out / picture.name, picture.data)
    page = environment.get_template("report.html.j2").render(
        data=data, shown=shown, text=setting_text, bounds=at_bounds(definition, trials)
    )
    write_text(out / PAGE, page)
    return Report(out / PAGE, tuple(out / picture.name for picture in shown.all))

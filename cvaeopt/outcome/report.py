"""The report of a study: one self-contained HTML page, and a file beside it for each of its pictures.

The page needs no network. Every picture is a data URI, and there is no script. The page's own content security policy
forbids network access and scripts. Names and reasons come from a database that other programs may write to, so the
template escapes all of them.
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
    """The paths of the files that `report` wrote."""

    page: Path
    pictures: tuple[Path, ...]


@named
def report(storage: Storage, name: str, out: Path, *, artifacts: Path, now: datetime) -> Report:
    """Write `out`/report.html and its pictures for study `name`. StudyError for an unknown study.

    artifacts   folder of the studies' run folders; the page names the files of the best trial that are missing there
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
    """Write the report of a study from `trials` that were read before.

    overview          as in `report_data`
    artifacts, now    as in `report`
    """
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

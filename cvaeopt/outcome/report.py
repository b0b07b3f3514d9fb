"""The report of a study: one self-contained HTML page, and a file beside it for each of its pictures.

The page needs no network. Every picture is a data URI, and there is no script. The page's own content security policy
forbids network access and scripts. Names and reasons come from a database that other programs may write to, so the
template escapes all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from cvaeopt.outcome.bounds import at_bounds
from cvaeopt.outcome.claims import assess
from cvaeopt.outcome.gain import MAX_MORE, default_more, expected_gain
from cvaeopt.outcome.importance import importances
from cvaeopt.outcome.leaders import confirmation
from cvaeopt.outcome.page import Report, write_page
from cvaeopt.outcome.report_data import report_data
from cvaeopt.outcome.report_pictures import report_pictures
from cvaeopt.search.definition import Definition
from cvaeopt.store.damage import named
from cvaeopt.store.identity import of
from cvaeopt.store.status import status, without_worker
from cvaeopt.store.storage import Storage
from cvaeopt.store.study import open_existing


@named
def report(
    storage: Storage, name: str, out: Path, *, artifacts: Path, now: datetime, price: float | None = None
) -> Report:
    """Write `out`/report.html and its pictures for study `name`. StudyError for an unknown study.

    artifacts   folder of the studies' run folders; the page names the files of the best trial that are missing there
    now         the date on the page
    price       of one hour of a device, in any currency
    """
    return write(*read(storage, name), out, artifacts=artifacts, now=now, price=price)


@named
def read(storage: Storage, name: str) -> tuple[Definition, list[FrozenTrial], dict[str, Any]]:
    """The definition of study `name`, its trials, and the overview for `report_data`. StudyError for no such study."""
    study, definition = open_existing(storage, name)
    overview = {
        **status(storage, name),
        "left": without_worker(storage, name),
        "confirmation": confirmation(storage, name),
        "claims": assess(storage, name),
        "identity": of(study),
    }
    return definition, study.get_trials(deepcopy=False), overview


def write(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    out: Path,
    *,
    artifacts: Path,
    now: datetime,
    price: float | None = None,
) -> Report:
    """Write the report of a study from `trials` that were read before.

    overview                as in `report_data`
    artifacts, now, price   as in `report`
    """
    data = report_data(definition, trials, overview, artifacts=artifacts, now=now)
    shown = report_pictures(data, importances(definition, trials))
    bounds = at_bounds(definition, trials)
    some = default_more(trials)
    gains = [gain.text(price) for gain in expected_gain(definition, trials, sorted({5, some, min(2 * some, MAX_MORE)}))]
    return write_page("report.html.j2", out, shown.all, data=data, shown=shown, bounds=bounds, gains=gains)

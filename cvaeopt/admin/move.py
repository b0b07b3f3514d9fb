"""Copy studies from one database to another, such as from SQLite to PostgreSQL."""

from __future__ import annotations

from cvaeopt.admin import studies
from cvaeopt.admin.rows import copy
from cvaeopt.errors import UserError
from cvaeopt.store.storage import Storage


def move(source: Storage, target: Storage, wanted: list[str]) -> dict[str, dict[str, int]]:
    """Copy the studies `wanted` and their confirmations; returns the number of rows by study and table.

    wanted   names of studies; if empty, all studies

    Either all of these studies are copied or none. UserError if workers of these studies run.
    """
    if source.engine.url == target.engine.url:
        raise UserError(f"{source.url} is both ends of the move.", "Expected: two databases.", "Change --from or --to.")
    with studies.snapshot(source) as rows:
        names = studies.with_confirmations(rows, wanted, source.url)
        for name in names:
            studies.refuse_live_workers(source, name)
        return target.write(lambda connection: {name: copy(rows, connection, name, target.url) for name in names})

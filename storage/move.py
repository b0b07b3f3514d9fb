"""Copy studies from one database to another, such as from SQLite to PostgreSQL when a second machine comes.

  python storage/move.py --from sqlite:///storage/cvaeopt.db --to postgresql://cvaeopt@db/cvaeopt
  python storage/move.py --from ... --to ... --study main     with its confirmations

Stop the workers first (cvaeopt stop --study main). Trial numbers, values, parameters, curves, attributes, notes,
leases and waiting trials are kept, and compared afterwards; the files of the trials stay where they are, and so
do the objects of an object store. The source is left as it is: start workers with the new --storage only, and remove
the old database when you trust the new one.
"""

from __future__ import annotations

import shlex

import care

from cvaeopt.errors import UserError
from cvaeopt.store.storage import Storage


def main(arguments: list[str] | None = None) -> None:
    """Parse, copy, say what was done."""
    options = care.parser(__doc__ or "")
    options.add_argument("--from", dest="source", required=True, help="URL of the database that has the studies")
    options.add_argument("--to", dest="target", required=True, help="URL of the database that shall have them")
    options.add_argument("--study", action="append", default=[], help="only this study; may be repeated")
    given = options.parse_args(arguments)
    with care.opened(given.source) as source, care.opened(given.target, create=True) as target:
        if source.url == target.url:
            raise UserError(
                f"{source.url} is both ends of the move.", "Expected: two databases.", "Change --from or --to."
            )
        for name, rows in move(source, target, given.study).items():
            care.say(
                f"{name}: {rows['trials']} trials and {rows['trial_intermediate_values']} reports are in {target.url}, "
                "and equal"
            )
        secret = target.url != target.engine.url.render_as_string(hide_password=False)
        url = "the URL that you gave as --to (its password is not shown)" if secret else shlex.quote(target.url)
        care.say(f"Now start workers with --storage, or CVAEOPT_STORAGE: {url}")


def move(source: Storage, target: Storage, wanted: list[str]) -> dict[str, dict[str, int]]:
    """Rows by study and table; all studies arrive or none. UserError while workers run."""
    with care.snapshot(source) as rows:
        studies = care.chosen(rows, wanted, source.url)
        for name in studies:
            care.refuse_live(source, name, "")

        def put() -> dict[str, dict[str, int]]:
            with target.transaction() as connection:
                return {name: care.copy(rows, connection, name, target.url) for name in studies}

        return target.retry(put)


if __name__ == "__main__":
    care.run(main)

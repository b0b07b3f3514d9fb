"""The database's password from a file, as container platforms hand out their secrets."""

from __future__ import annotations

import os
from pathlib import Path

from cvaeopt.errors import UserError

VARIABLE = "PGPASSWORD_FILE"
"""Names the file. libpq's own PGPASSFILE needs another form, and a file that nobody else may read; the files of
`docker compose` secrets keep the owner and the permissions that they have outside, and must suit several users."""


def from_file() -> str | None:
    """The password in the file that PGPASSWORD_FILE names; None if that, or PGPASSWORD, says otherwise.

    Line ends behind it do not count, as for the PostgreSQL image. UserError if it cannot be read.
    """
    path = os.environ.get(VARIABLE)
    if not path or os.environ.get("PGPASSWORD"):
        return None
    todo = f"Correct {VARIABLE}, or let this user read the file (chmod 644)."
    try:
        password = Path(path).read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise UserError(f"{VARIABLE}: {path} is not UTF-8 text.", "Expected: the password alone.", todo) from None
    except OSError as error:
        raise UserError(
            f"{VARIABLE}: {path} cannot be read ({error.strerror}).", "Expected: a file that holds the password.", todo
        ) from None
    if not password:
        raise UserError(f"{VARIABLE}: {path} is empty.", "Expected: the password alone.", "Write it into the file.")
    return password

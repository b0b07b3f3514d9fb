"""The database's password from a file, as container platforms hand out their secrets."""

from __future__ import annotations

import os
from pathlib import Path

from cvaeopt.errors import UserError

VARIABLE = "PGPASSWORD_FILE"
"""The environment variable that names the file. libpq's own PGPASSFILE needs another format, and a file that nobody
else may read. The secrets of `docker compose` keep the owner and the permissions that they have on the host, and
several users must read them."""


def from_file() -> str | None:
    """The password in the file that PGPASSWORD_FILE names; None without that variable, or if PGPASSWORD is set.

    Line ends after the password are ignored, as the PostgreSQL image does. UserError if the file cannot be read.
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

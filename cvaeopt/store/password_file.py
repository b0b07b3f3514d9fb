"""Read the database's password from a file. Container platforms give secrets to a program in such files.

This module only reads password files; `urls.mask` hides passwords.
"""

from __future__ import annotations

import os
from pathlib import Path

from cvaeopt.errors import UserError

VARIABLE = "PGPASSWORD_FILE"
"""The environment variable that names the file. libpq's own PGPASSFILE is not used: that file has another format, and
only its owner may be able to read it. A secret of `docker compose` keeps its owner and its permissions from the host,
and several users must be able to read this secret."""


def from_file() -> str | None:
    """The password in the file that PGPASSWORD_FILE names; None if this variable is not set, or PGPASSWORD is set.

    Line ends after the password are removed, as in the PostgreSQL image. UserError if the file cannot be read, is
    empty or is not UTF-8.
    """
    path = os.environ.get(VARIABLE)
    if not path or os.environ.get("PGPASSWORD"):
        return None
    todo = f"Correct {VARIABLE}, or write the password into the file."
    try:
        password = Path(path).read_text(encoding="utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise UserError(f"{VARIABLE}: {path} is not UTF-8 text.", "Expected: the password alone.", todo) from None
    except FileNotFoundError:
        raise UserError(
            f"{VARIABLE}: {path} does not exist.", "Expected: a file that holds the password.", todo
        ) from None
    except OSError as error:
        if isinstance(error, PermissionError):
            todo = f"Make the file this user's own (chown, chmod 600), or correct {VARIABLE}."
        raise UserError(
            f"{VARIABLE}: {path} cannot be read ({error.strerror}).", "Expected: a file that holds the password.", todo
        ) from None
    if not password:
        raise UserError(f"{VARIABLE}: {path} is empty.", "Expected: the password alone.", "Write it into the file.")
    return password

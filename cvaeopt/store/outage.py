"""Decide whether an error of the database is an outage or a refusal.

After an outage the same call may succeed. After a refusal the call fails again until somebody corrects the cause. This
module only classifies errors; `retries.repeat` repeats a call during an outage.
"""

from __future__ import annotations

import re
import sqlite3

import sqlalchemy
from optuna.exceptions import StorageInternalError

from cvaeopt.errors import StorageRefused, StorageUnreachable

_SQLITE_OUTAGES = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
# Classes and codes of SQLSTATE: connection lost (08); serialisation failure (40001) and deadlock (40P01); read-only,
# while a standby is promoted (25006); idle transaction ended (25P03); no resources (53); lock time-out (55P03);
# statement time-out, shutdown and start (57); system error, such as the server's disk (58).
_POSTGRES_OUTAGES = ("08", "40001", "40P01", "25006", "25P03", "53", "55P03", "57", "58")
# Authorization (28), unknown database (3D000), missing right (42501); statements that were prepared on another
# connection of a pooler (26000, 42P05).
_POSTGRES_REFUSALS = ("28", "3D000", "42501", "26000", "42P05")

# If no connection was made, libpq gives a text but no SQLSTATE. An unknown text counts as an outage. So a refusal in
# another language is repeated until the time limit, but no worker ends because the server is still starting.
_REFUSED_WORDS = re.compile(
    r"authentication failed|no password supplied|does not exist|no pg_hba\.conf entry|pg_hba\.conf rejects"
    r"|unsupported startup parameter|unrecognized configuration parameter|invalid value for parameter"
    r"|permission denied (?:for|to)|not permitted to log in|not currently accepting connections"
    r"|does not support SSL|SSL (?:is |connection is )?required|requires? SSL|certificate verify failed"
    r"|server certificate for|valid client certificate|certificate file|private key file"
    r"|channel binding|GSSAPI (?:encryption )?(?:was |is )?required|authentication method requirement"
    r"|no such (?:database|user)|bouncer config error"
    r"|invalid (?:\w+ )*value|invalid (?:connection option|port number|command-line argument)"
    r"|unsupported frontend protocol|session is not read-only|unsupported protocol",
    re.IGNORECASE,
)
_PASSING_WORDS = re.compile(
    r"starting up|shutting down|recovery mode|not yet accepting connections|too many (?:clients|connections)"
    r"|connection slots|no more connections",
    re.IGNORECASE,
)


def cause_of(error: BaseException) -> BaseException:
    """The original error, if Optuna has wrapped it in a StorageInternalError; otherwise `error`."""
    if isinstance(error, StorageInternalError) and error.__cause__ is not None:
        return error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """The most informative line of the driver's message, without SQL and parameters."""
    cause = cause_of(error)
    if isinstance(cause, sqlalchemy.exc.DBAPIError) and cause.orig is not None:
        cause = cause.orig
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    # If the host has several addresses, the message has a line for each. A line with a refusal is a server's answer.
    return next((line for line in lines if _REFUSED_WORDS.search(line)), lines[0]).rstrip(".")


def is_outage(error: BaseException) -> bool:
    """True if the same call may succeed later, such as after a lost connection, a restart, a lock or a full disk."""
    cause = cause_of(error)
    if isinstance(cause, (sqlalchemy.exc.DisconnectionError, sqlalchemy.exc.TimeoutError)):
        return True
    if not isinstance(cause, sqlalchemy.exc.DBAPIError) or is_refusal(error):
        return False
    if cause.connection_invalidated:
        return True
    origin = cause.orig
    if isinstance(origin, sqlite3.Error):
        code = getattr(origin, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_OUTAGES
    state = getattr(origin, "sqlstate", None)
    if state is not None:  # PostgreSQL
        return str(state).startswith(_POSTGRES_OUTAGES)
    return isinstance(cause, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError))


def is_refusal(error: BaseException) -> bool:
    """True if the server, a pooler or the driver refuses this call, and would refuse the same call later, too."""
    cause = cause_of(error)
    if not isinstance(cause, sqlalchemy.exc.DBAPIError) or isinstance(cause.orig, sqlite3.Error):
        return False
    state = getattr(cause.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRES_REFUSALS)
    said = str(cause.orig)
    return bool(_REFUSED_WORDS.search(said)) and not _PASSING_WORDS.search(said)


def refused(url: str, said: str) -> StorageRefused:
    """The error for a refusal.

    url    the URL of the database, with its password masked
    said   the database's message
    """
    todo = "Check user, password, database, rights and --storage."
    if "startup parameter" in said:
        todo = "Behind PgBouncer, set ignore_startup_parameters = options in its settings."
    elif "password" in said:
        todo = "Correct the password: in --storage, PGPASSWORD, ~/.pgpass or the file that PGPASSWORD_FILE names."
    elif "prepared statement" in said:
        todo = "Behind a pooler leave prepare_threshold out of --storage."
    return StorageRefused(f"The database {url} refused: {said}.", todo=todo)


def unreachable(url: str, outage_s: float, said: str) -> StorageUnreachable:
    """The error for an outage.

    url        the URL of the database, with its password masked
    outage_s   how long the database did not answer, seconds
    said       the database's last message
    """
    if re.search(r"disk is full|No space left", said):
        return StorageUnreachable(
            f"The database {url} could not be written for {outage_s:.0f} s ({said}).",
            todo="Make room on its disk; then run the same command again.",
            reason=said,
        )
    return StorageUnreachable(
        f"The database {url} did not answer for {outage_s:.0f} s ({said}).",
        todo="Bring it back, or check --storage; then run the same command again.",
        reason=said,
    )

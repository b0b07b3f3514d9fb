"""Outages are waited for, refusals are answered at once: what servers, poolers and drivers really say."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError

from cvaeopt.errors import StorageRefused, StorageUnreachable
from cvaeopt.store.opening import open_storage
from cvaeopt.store.outage import first_line, is_outage, is_refusal


@contextlib.contextmanager
def server_that_says(words: str, state: str) -> Iterator[str]:
    """The URL of a PostgreSQL server that answers every start of a connection with this error."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client, contextlib.suppress(OSError):
                while True:
                    (length,) = struct.unpack("!i", client.recv(4, socket.MSG_WAITALL))
                    (code,) = struct.unpack("!i", client.recv(length - 4, socket.MSG_WAITALL)[:4])
                    if code == 196608:  # the protocol's version 3.0: a start, not a request for encryption
                        break
                    client.sendall(b"N")
                fields = "".join(f"{key}{value}\0" for key, value in (("S", "FATAL"), ("C", state), ("M", words)))
                body = fields.encode() + b"\0"
                client.sendall(b"E" + struct.pack("!i", len(body) + 4) + body)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"postgresql://me@127.0.0.1:{listener.getsockname()[1]}/x"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


REFUSALS = [
    ("28P01", 'password authentication failed for user "me"'),
    ("28000", 'no pg_hba.conf entry for host "10.0.0.1", user "me", database "x", no encryption'),
    ("28000", 'role "me" does not exist'),
    ("28000", 'role "me" is not permitted to log in'),
    ("28000", "connection requires a valid client certificate"),
    ("28000", 'Peer authentication failed for user "me"'),
    ("3D000", 'database "x" does not exist'),
    ("42501", 'permission denied for database "x"'),
    ("55000", 'database "x" is not currently accepting connections'),
    ("42704", 'unrecognized configuration parameter "nonsense"'),
    ("22023", 'invalid value for parameter "lock_timeout": "x"'),
    ("08P01", "unsupported startup parameter: options"),
    ("08P01", "unsupported startup parameter in options: lock_timeout"),
    ("08P01", "SSL required"),
    ("08P01", "no such database: x"),
    ("08P01", "bouncer config error"),
    ("08P01", "SASL authentication failed"),
]
OUTAGES = [
    ("57P03", "the database system is starting up"),
    ("57P03", "the database system is shutting down"),
    ("57P03", "the database system is not yet accepting connections"),
    ("57P03", "das Datenbanksystem startet"),
    ("53300", "sorry, too many clients already"),
    ("53300", 'too many connections for role "me"'),
    ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute"),
    ("57P01", "terminating connection due to administrator command"),
    ("08P01", "query_wait_timeout"),
    ("08P01", "no more connections allowed (max_client_conn)"),
    ("08P01", "server login has been failing, try again later (server_login_retry)"),
    ("08P01", "pgbouncer cannot connect to server"),
]


@pytest.mark.parametrize(("state", "words"), REFUSALS)
def test_a_refusal_is_answered_at_once_in_the_servers_words(state: str, words: str) -> None:
    with server_that_says(words, state) as url, pytest.raises(StorageRefused) as caught:
        open_storage(url, start_limit_s=1e9)
    assert words in str(caught.value)
    assert caught.value.exit_code == 2
    assert ("PGPASSWORD_FILE" in str(caught.value.todo)) == ("password" in words)


@pytest.mark.parametrize(("state", "words"), OUTAGES)
def test_a_server_that_will_come_back_is_waited_for(state: str, words: str) -> None:
    with server_that_says(words, state) as url, pytest.raises(StorageUnreachable) as caught:
        open_storage(url, start_limit_s=0.0)
    assert words in str(caught.value)


def test_of_two_addresses_the_one_that_answered_is_quoted() -> None:
    with server_that_says("no pg_hba.conf entry for host", "28000") as url:
        port = url.rpartition(":")[2].partition("/")[0]
        with pytest.raises(StorageRefused, match=r"no pg_hba\.conf entry"):
            open_storage(f"postgresql://me@/x?host=127.0.0.1,127.0.0.1&port={port},1", start_limit_s=1e9)


def test_errors_with_a_state_are_told_apart_whatever_the_language() -> None:
    def wrapped(origin: Exception) -> sqlalchemy.exc.DBAPIError:
        return sqlalchemy.exc.OperationalError("SELECT 1", {}, origin)

    refusals = [
        psycopg.errors.InsufficientPrivilege("keine Berechtigung"),
        psycopg.errors.InvalidPassword("x"),
        psycopg.errors.InvalidSqlStatementName("prepared statement does not exist"),
    ]
    for origin in refusals:
        assert is_refusal(wrapped(origin))
        assert not is_outage(wrapped(origin))
    for passing in (psycopg.errors.CannotConnectNow("x"), psycopg.errors.ReadOnlySqlTransaction("does not exist")):
        assert is_outage(wrapped(passing))
        assert not is_refusal(wrapped(passing))
    by_optuna = StorageInternalError("wrapped")
    by_optuna.__cause__ = wrapped(psycopg.OperationalError("server closed the connection unexpectedly\n\tmore"))
    assert is_outage(by_optuna)
    assert first_line(by_optuna) == "server closed the connection unexpectedly"

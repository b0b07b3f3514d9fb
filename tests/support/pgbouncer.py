"""A throw-away PgBouncer in transaction mode before a test's PostgreSQL server."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def pgbouncer(sockets: Path, database: str, *settings: str) -> Iterator[str]:
    """The URL of `database` through a PgBouncer with three connections to the server and these `settings`.

    As root it runs as the owner of the server's socket, since PgBouncer refuses to run as root.
    """
    assert PROGRAM is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    home = Path(tempfile.mkdtemp(prefix="cvaeopt-pgbouncer-"))
    home.chmod(0o755)
    lines = [
        "[databases]",
        f"{database} = host={sockets} dbname={database} user=postgres",
        "[pgbouncer]",
        "listen_addr = 127.0.0.1",
        f"listen_port = {port}",
        "unix_socket_dir =",
        "auth_type = any",
        "pool_mode = transaction",
        "default_pool_size = 3",
        "max_client_conn = 100",
        *settings,
    ]
    (home / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
    user = ["-u", next(sockets.glob(".s.PGSQL.*[0-9]")).owner()] if os.geteuid() == 0 else []
    with (home / "log").open("w") as log:
        process = subprocess.Popen([PROGRAM, *user, str(home / "pgbouncer.ini")], stdout=log, stderr=log)
    try:
        _wait_for(port, process, home / "log")
        yield f"postgresql://postgres@127.0.0.1:{port}/{database}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home, ignore_errors=True)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if process.poll() is not None:
            raise RuntimeError(f"pgbouncer ended: {log.read_text()}")
        time.sleep(0.05)

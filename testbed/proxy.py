"""A TCP proxy in front of a database that does what networks, poolers and frozen servers do.

It freezes (accepts and acknowledges, passes nothing on), and at the statements that a test names it loses the answer or
resets the connection when the server has already done what was asked.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

Fault = Literal["drop", "reset"]


class Proxy:
    """Listens on `port` of 127.0.0.1 until it is closed and passes everything on to the Unix socket `upstream`."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._moving = threading.Event()
        self._moving.set()
        self._lock = threading.Lock()
        self._armed: list[tuple[Fault, bytes]] = []
        self._links: set[_Link] = set()
        self.on_request: Callable[[bytes], None] = lambda data: None
        self.struck = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, database: str, user: str = "postgres") -> str:
        """The URL of a database behind the proxy."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def freeze(self) -> None:
        """From now on nothing is passed on in either direction; new connections are accepted."""
        self._moving.clear()

    def thaw(self) -> None:
        """Pass on what has waited."""
        self._moving.set()

    def arm(self, fault: Fault, at: bytes = b"COMMIT", times: int = 1) -> None:
        """At the next `times` requests that contain `at`: lose the server's answers from there on ("drop"), or reset
        the connection when the first of them comes ("reset")."""
        with self._lock:
            self._armed += [(fault, at)] * times

    def disarm(self) -> None:
        """Forget the faults that were not met yet."""
        with self._lock:
            self._armed.clear()

    def reset(self) -> None:
        """Reset every connection."""
        for link in self._copy():
            link.reset()

    def close(self) -> None:
        """End every connection and listen no longer."""
        self.thaw()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def _copy(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                server.connect(str(self._upstream))
            except OSError:  # the server is stopped
                server.close()
                client.close()
                continue
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            threading.Thread(target=self._ask, args=(link,), daemon=True).start()
            threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _ask(self, link: _Link) -> None:
        for data in link.read(link.client):
            self.on_request(data)
            self._moving.wait()
            with self._lock:
                strikes = next((one for one in self._armed if one[1] in data), None)
                if strikes is not None:
                    self._armed.remove(strikes)
                    link.fault = strikes[0]
                    self.struck += 1
            link.write(link.server, data)
        self._end(link)

    def _answer(self, link: _Link) -> None:
        for data in link.read(link.server):
            self._moving.wait()
            if link.fault == "reset":
                link.reset()
            elif link.fault is None:
                link.write(link.client, data)
        self._end(link)

    def _end(self, link: _Link) -> None:
        link.close()
        with self._lock:
            self._links.discard(link)


class _Link:
    """A client's connection and ours to the server on its behalf."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.fault: Fault | None = None

    @staticmethod
    def read(side: socket.socket) -> Iterator[bytes]:
        with contextlib.suppress(OSError):
            while data := side.recv(65536):
                yield data

    @staticmethod
    def write(side: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            side.sendall(data)

    def reset(self) -> None:
        """End the client's connection as a crashed machine does, not with an orderly close."""
        with contextlib.suppress(OSError):
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        for side in (self.server, self.client):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RD)  # wakes the thread that reads
            side.close()

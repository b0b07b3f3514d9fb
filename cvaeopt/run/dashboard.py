"""Serve optuna-dashboard behind checks: who may send requests, what requests may change, and how files are sent."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, ClassVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from sqlalchemy import select

from cvaeopt.errors import SettingsError
from cvaeopt.store.tables import study_table

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from optuna.artifacts import FileSystemArtifactStore
    from optuna.storages import BaseStorage

    from cvaeopt.store.storage import Storage

Layer = Callable[["WSGIApplication"], "WSGIApplication"]
"""A WSGI middleware. It gets each request before the application, and may answer the request itself."""

log = logging.getLogger(__name__)

_IDLE_S = 30.0  # a connection that has no traffic for this long is closed
_READING = ("GET", "HEAD", "OPTIONS")
_NETLOC = re.compile(r"(?:\[([0-9a-f:.%]+)\]|([\w.-]+))(?::\d*)?", re.IGNORECASE)
_LOCAL_ADDRESS = "cvaeopt.local_address"
# Paths of the dashboard's own pages and data. All other paths belong to uploaded files.
_OWN = re.compile(r"/|/favicon\.ico|/(?:dashboard|static|api|csv|incompatible-rdb-schema)(?:/.*)?", re.DOTALL)
_RENAME = re.compile(r"/api/studies/(\d+)/rename/?")
# Media types that no browser runs as a page. Browsers show these files instead of downloading them. Parameters that
# were stored with the type are removed.
_SHOWN = re.compile(r"image/(?:png|jpeg|gif|webp|bmp)|audio/[\w.+-]+|video/[\w.+-]+")
_SHOWN_TEXTS = ("text/plain", "text/csv", "application/json", "application/x-ndjson", "application/jsonl")


def application(
    storage: BaseStorage,
    pictures: FileSystemArtifactStore,
    *,
    bound: str,
    names: Sequence[str] = (),
    read_only: bool = False,
    layers: Sequence[Layer] = (),
) -> WSGIApplication:
    """optuna-dashboard for `storage`, behind all checks.

    bound       the address at which the server listens
    names       other host names under which browsers reach the server
    layers      more middlewares. They get only requests that passed the checks. The last middleware gets them first.
    """
    from optuna_dashboard import wsgi

    inner: WSGIApplication = wsgi(storage, artifact_store=pictures)
    checks: list[Layer] = [
        safe_answers,
        *([without_writing] if read_only else []),
        lambda app: for_own_pages(app, bound, names),
    ]
    for layer in (*layers, *checks):
        inner = layer(inner)
    return inner


class Server(ThreadingMixIn, WSGIServer):
    """A server with one thread per request. It listens at `host` and `port` as soon as it is made.

    SettingsError if the server cannot listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.address_family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
            super().__init__((str(address[0]), int(address[1])), _Request)
        except (OSError, UnicodeError) as error:
            raise SettingsError(
                f"The dashboard cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error}).",
                "Expected: an address of this machine and a port that is free.",
                "Name another one with --port or --host.",
            ) from None

    def server_bind(self) -> None:
        """Bind like the base class, but do not look up this machine's name, because this may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log that a connection broke or was idle for too long. This is not an error."""
        log.debug("The connection from %s ended early.", client_address, exc_info=True)


class _Request(WSGIRequestHandler):
    timeout: ClassVar[float] = _IDLE_S

    def get_environ(self) -> WSGIEnvironment:
        return {**super().get_environ(), _LOCAL_ADDRESS: self.connection.getsockname()[0]}

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def for_own_pages(app: WSGIApplication, bound: str, names: Sequence[str] = ()) -> WSGIApplication:
    """`app` for requests under a name of this server. Requests that change something must come from its own pages.

    By DNS rebinding, the owner of a foreign page can let the page's host name point to this machine. The browser then
    treats the foreign page and this server as the same site. Only the header Host shows the difference.
    """
    allowed = [_plain_name(name) for name in names]

    def known(host: str | None, environ: WSGIEnvironment) -> bool:
        if host is None:
            return False
        local = environ.get(_LOCAL_ADDRESS, "") if _is(bound, "is_unspecified") else bound
        return host == "localhost" or _is(host, "is_loopback") or host in allowed or host == _host(_netloc(local))

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        asked = environ.get("HTTP_HOST", "")
        if not known(_host(asked), environ):
            return refuse(
                environ,
                start_response,
                f"This dashboard was asked under the name {asked!r}, which it does not know.",
                "Expected: localhost, a loopback address, or the address that it listens on.",
                "If others reach it under that name, start it with --allow-host NAME.",
            )
        if environ["REQUEST_METHOD"] not in _READING:
            origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE", "none")
            sender = None if origin is None else origin.partition("://")[2]
            same = sender is None or sender.lower() == asked.lower() or _host(sender) in allowed
            if not same or site not in ("same-origin", "none"):
                return refuse(
                    environ,
                    start_response,
                    f"A page of another site ({origin or site}) asked for a change.",
                    "Expected: changes from the dashboard's own pages.",
                    "If the dashboard has that name too, start it with --allow-host NAME.",
                )
        return app(environ, start_response)

    return checked


def without_writing(app: WSGIApplication) -> WSGIApplication:
    """`app` behind a layer that refuses every request that changes something."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in _READING:
            return refuse(
                environ,
                start_response,
                "This dashboard is read-only.",
                "Nothing can be changed, added or deleted here.",
                "Start one without --read-only for that.",
            )
        return app(environ, start_response)

    return checked


def refuse_renames(app: WSGIApplication, storage: Storage) -> WSGIApplication:
    """`app` behind a layer that refuses to rename studies of this program. Other studies can be renamed.

    To rename a study, the dashboard copies the trials to a new study and deletes the old study. It does not copy
    definition, budget and leases, and the copied trials have other ids. So no worker could continue the new study.
    """

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        name = None
        if asked := _RENAME.fullmatch(environ.get("PATH_INFO", "")):
            query = select(study_table.c.name).where(study_table.c.study_id == int(asked[1]))
            name = storage.read(lambda connection: connection.execute(query).scalars().first())
        if name is None:
            return app(environ, start_response)
        return refuse(
            environ,
            start_response,
            f"Study '{name}' was not renamed: its workers, budget and files go by its name.",
            "Start a study under the other name instead;",
            f'[warm_start] study = "{name}" in its file begins with the best points of this one.',
        )

    return checked


def safe_answers(app: WSGIApplication) -> WSGIApplication:
    """`app` with protective headers in its answers.

    Browsers then do not run uploaded files, and other sites cannot show the dashboard's pages in a frame.
    """

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        uploaded = _OWN.fullmatch(environ.get("PATH_INFO") or "/") is None

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            given = {name.lower(): value for name, value in headers}
            replaced = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "SAMEORIGIN"}
            if uploaded and status.startswith("2"):
                replaced |= _as_file(given.get("content-type", ""))
            dropped = {name.lower() for name in replaced} | {"access-control-allow-origin"}
            kept = [(name, value) for name, value in headers if name.lower() not in dropped]
            return start_response(status, [*kept, *replaced.items()], exc_info)

        return app(environ, start)

    return checked


def refuse(environ: WSGIEnvironment, start_response: StartResponse, *parts: str) -> list[bytes]:
    """Answer 403 with `parts`: what was found, what was expected, what to do. The dashboard's pages show the text."""
    reason = " ".join(parts)
    for_page = environ.get("PATH_INFO", "").startswith("/api/")
    body = (json.dumps({"reason": reason}) if for_page else f"{reason}\n").encode()
    status = HTTPStatus.FORBIDDEN
    headers = [
        ("Content-Type", "application/json" if for_page else "text/plain; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
    ]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]


def _as_file(stored: str) -> dict[str, str]:
    """The headers for an uploaded file whose stored type is `stored`."""
    kind = stored.partition(";")[0].strip().lower()
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox"}
    if kind in _SHOWN_TEXTS:
        return headers | {"Content-Type": f"{kind}; charset=utf-8"}
    if _SHOWN.fullmatch(kind):
        return headers | {"Content-Type": kind}
    return headers | {"Content-Type": "application/octet-stream", "Content-Disposition": "attachment"}


def _plain_name(given: str) -> str:
    """The host name in `--allow-host`, in the spelling of browsers; SettingsError if it is not a host name."""
    name = _host(_netloc(given))
    if name is None:
        raise SettingsError(
            f"--allow-host {given!r} is not the name of a host.",
            "Expected: a name or an address, without https:// and without a path.",
            "Write it as in --allow-host lab.example.",
        )
    return name


def _netloc(address: str) -> str:
    """A host name or an address in the form that URLs use: an IPv6 address is in brackets."""
    return f"[{address}]" if address.count(":") > 1 and not address.startswith("[") else address


def _host(netloc: str) -> str | None:
    """The host name or the address in a header Host, in a normalised spelling; None if there is none."""
    match = _NETLOC.fullmatch(netloc)
    if match is None:
        return None
    host = (match[1] or match[2]).lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host or None


def _is(host: str, what: str) -> bool:
    """Whether `host` is an address that has the property `what` of `ipaddress`; False for host names."""
    try:
        return bool(getattr(ipaddress.ip_address(host), what))
    except ValueError:
        return False

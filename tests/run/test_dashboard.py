"""The dashboard's doors: whose pages may ask, what may be written, how uploads are handed out, and who waits."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from cvaeopt.errors import SettingsError
from cvaeopt.run import dashboard
from cvaeopt.run.dashboard import Server, application


class Room:
    """A storage with one study, and its dashboard asked without a network."""

    def __init__(self, folder: Path) -> None:
        self.storage = optuna.storages.InMemoryStorage()
        self.study = optuna.create_study(storage=self.storage, study_name="main", direction="maximize")
        self.pictures = FileSystemArtifactStore(folder)
        self.options: dict[str, Any] = {"bound": "127.0.0.1"}

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        """(status, headers, body) of the answer; headers are the names in the WSGI environment."""
        content = b"" if body is None else json.dumps(body).encode()
        environ: dict[str, Any] = {"HTTP_HOST": "localhost:8080", "HTTP_ACCEPT_ENCODING": "", **headers}
        setup_testing_defaults(environ)
        environ |= {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(content)}
        environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(content))}
        environ = {key: value for key, value in environ.items() if value is not None}
        given: list[Any] = []
        app = application(self.storage, self.pictures, **self.options)
        answer = app(environ, lambda status, fields, exc_info=None: given.extend([status, fields]))
        content = b"".join(answer)
        getattr(answer, "close", lambda: None)()
        return int(given[0].split()[0]), {name.lower(): value for name, value in given[1]}, content

    def delete(self, **headers: str) -> int:
        """The status that an attempt to delete the study is answered with."""
        status: int = self.ask("DELETE", f"/api/studies/{self.study._study_id}", {}, **headers)[0]
        return status

    @property
    def studies(self) -> list[str]:
        return [study.study_name for study in self.storage.get_all_studies()]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


FOREIGN = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.9:8080"]
BROKEN = ["", "a b", "localhost,evil.example", "user@localhost", "[::1", "localhost:80:80", "localhost/x", "[evil]"]
OURS = ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1:9000", "127.0.0.5", "[::1]:8080", "[0:0:0:0:0:0:0:1]"]


@pytest.mark.parametrize("host", FOREIGN + BROKEN)
def test_a_foreign_host_reads_nothing_and_deletes_nothing(room: Room, host: str) -> None:
    assert room.ask("GET", "/api/studies", HTTP_HOST=host)[0] == 403
    assert room.delete(HTTP_HOST=host, HTTP_ORIGIN=f"http://{host}", HTTP_SEC_FETCH_SITE="same-origin") == 403
    assert room.studies == ["main"]


def test_a_request_without_a_host_is_refused(room: Room) -> None:
    assert room.delete(HTTP_HOST="") == 403
    assert room.studies == ["main"]


@pytest.mark.parametrize("host", OURS)
def test_a_loopback_name_or_address_is_known(room: Room, host: str) -> None:
    assert room.ask("GET", "/api/studies", HTTP_HOST=host)[0] == 200
    assert room.delete(HTTP_HOST=host, HTTP_ORIGIN=f"http://{host}", HTTP_SEC_FETCH_SITE="same-origin") == 204
    assert room.studies == []


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_ORIGIN": "http://evil.example"},
        {"HTTP_ORIGIN": "http://localhost:3000"},  # another program's page on this machine
        {"HTTP_ORIGIN": "null"},
        {"HTTP_ORIGIN": ""},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_ORIGIN": "http://localhost:8080", "HTTP_SEC_FETCH_SITE": "cross-site"},
    ],
)
def test_another_sites_page_changes_nothing(room: Room, headers: dict[str, str]) -> None:
    assert room.delete(**headers) == 403
    assert room.ask("POST", "/api/studies", {"study_name": "x", "directions": ["maximize"]}, **headers)[0] == 403
    assert room.studies == ["main"]
    assert room.ask("GET", "/api/studies", **headers)[0] == 200  # a link to the dashboard works


def test_a_program_without_an_origin_may_write(room: Room) -> None:
    assert room.delete() == 204


def test_more_hosts_are_allowed_by_name(room: Room) -> None:
    room.options["names"] = ["lab.example", "10.0.0.9", "fe80::1"]
    for host in ("lab.example", "LAB.example:443", "10.0.0.9:8080", "[fe80::1]:8080"):
        assert room.ask("GET", "/api/studies", HTTP_HOST=host)[0] == 200
    assert room.ask("GET", "/api/studies", HTTP_HOST="other.example")[0] == 403
    # Behind a proxy the browser's name and the header Host differ.
    assert room.delete(HTTP_ORIGIN="https://lab.example", HTTP_SEC_FETCH_SITE="same-origin") == 204


@pytest.mark.parametrize("name", ["https://lab.example", "lab.example/x", "", "a b", "*"])
def test_a_name_that_is_none_is_refused(room: Room, name: str) -> None:
    room.options["names"] = [name]
    with pytest.raises(SettingsError, match="is not the name of a host"):
        room.ask("GET", "/")


def test_the_address_that_is_listened_on_is_known(room: Room) -> None:
    room.options["bound"] = "10.0.0.9"
    assert room.ask("GET", "/api/studies", HTTP_HOST="10.0.0.9:8080")[0] == 200
    assert room.ask("GET", "/api/studies", HTTP_HOST="10.0.0.8:8080")[0] == 403
    room.options["bound"] = "0.0.0.0"  # then the address that the connection came to
    arrived = {dashboard._LOCAL_ADDRESS: "10.0.0.8"}
    assert room.ask("GET", "/api/studies", HTTP_HOST="10.0.0.8:8080", **arrived)[0] == 200
    assert room.ask("GET", "/api/studies", HTTP_HOST="10.0.0.9:8080", **arrived)[0] == 403
    assert room.ask("GET", "/api/studies", HTTP_HOST="0.0.0.0", **arrived)[0] == 403


def test_a_refusal_says_what_to_do_where_the_page_shows_it(room: Room) -> None:
    status, headers, body = room.ask("GET", "/dashboard", HTTP_HOST="lab.example")
    assert (status, headers["content-type"]) == (403, "text/plain; charset=utf-8")
    assert b"'lab.example'" in body and b"--allow-host" in body
    status, headers, body = room.ask("POST", "/api/studies", {}, HTTP_ORIGIN="http://evil.example")
    assert (status, headers["content-type"]) == (403, "application/json")
    assert "http://evil.example" in json.loads(body)["reason"]


WRITES = [
    ("POST", "/api/studies", {"study_name": "x", "directions": ["maximize"]}),
    ("POST", "/api/studies/0/rename", {"study_name": "x"}),
    ("PUT", "/api/studies/0/note", {"version": 1, "body": "x"}),
    ("DELETE", "/api/studies/0", {}),
    ("POST", "/api/artifacts/0", {"file": "data:text/html;base64,PGI+", "filename": "x.html"}),
    ("PATCH", "/api/studies", {}),
    ("POST", "/incompatible-rdb-schema", {}),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_read_only_refuses_every_change_and_serves_the_rest(
    room: Room, method: str, path: str, body: dict[str, Any], tmp_path: Path
) -> None:
    room.options["read_only"] = True
    status, _, answer = room.ask(method, path, body)
    assert status == 403 and b"read-only" in answer
    assert room.studies == ["main"] and room.storage.get_study_system_attrs(0) == {} and list(tmp_path.iterdir()) == []
    assert room.ask("GET", "/api/studies")[0] == room.ask("GET", "/dashboard")[0] == 200


def stored(room: Room, tmp_path: Path, mimetype: str, content: bytes = b"<script>1</script>") -> str:
    """The path of an uploaded file of that type."""
    file = tmp_path / "file"
    file.write_bytes(content)
    identity = upload_artifact(
        artifact_store=room.pictures, file_path=str(file), study_or_trial=room.study, mimetype=mimetype
    )
    return f"/artifacts/{room.study._study_id}/{identity}"


@pytest.mark.parametrize(
    "mimetype",
    [
        "text/html",
        "TEXT/HTML; charset=utf-8",
        "text/html;image/png",
        "image/svg+xml",
        "application/xhtml+xml",
        "text/xml",
        "application/pdf",
        "text/javascript",
        "multipart/x-mixed-replace",
        "nonsense",
        "image/png, text/html",
        "",
    ],
)
def test_an_upload_that_a_browser_could_run_is_only_saved(room: Room, tmp_path: Path, mimetype: str) -> None:
    for path in (stored(room, tmp_path, mimetype), stored(room, tmp_path, mimetype) + "/"):
        status, headers, body = room.ask("GET", path)
        assert (status, body) == (200, b"<script>1</script>")
        assert headers["content-type"] == "application/octet-stream"
        assert headers["content-disposition"].startswith("attachment")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    ("mimetype", "served"),
    [
        ("image/png", "image/png"),
        ("image/gif", "image/gif"),
        ("image/jpeg; x=y", "image/jpeg"),
        ("application/json", "application/json; charset=utf-8"),
        ("text/plain; charset=utf-7", "text/plain; charset=utf-8"),
    ],
)
def test_pictures_and_texts_are_shown_as_what_they_are(room: Room, tmp_path: Path, mimetype: str, served: str) -> None:
    _, headers, _ = room.ask("GET", stored(room, tmp_path, mimetype))
    assert headers["content-type"] == served
    assert headers["x-content-type-options"] == "nosniff" and "sandbox" in headers["content-security-policy"]
    assert "content-disposition" not in headers


def test_the_dashboards_own_pages_stay_pages_that_no_site_can_frame(room: Room) -> None:
    _, headers, body = room.ask("GET", "/dashboard/studies/0")
    assert headers["content-type"].startswith("text/html") and b"<html" in body.lower()
    assert "script-src" in headers["content-security-policy"] and headers["x-frame-options"] == "SAMEORIGIN"


def test_a_layer_sees_what_passed_the_checks(room: Room) -> None:
    seen: list[str] = []

    def layer(app: Any) -> Any:
        def answer(environ: Any, start_response: Any) -> Any:
            seen.append(environ["PATH_INFO"])
            return dashboard.refuse(environ, start_response, "The layer says no.")

        return answer

    room.options["layers"] = [layer]
    assert room.ask("GET", "/api/studies", HTTP_HOST="evil.example")[0] == 403 and seen == []
    assert json.loads(room.ask("GET", "/api/studies")[2]) == {"reason": "The layer says no."}
    assert seen == ["/api/studies"]


# ---- the server


@pytest.fixture
def served(room: Room) -> Iterator[Server]:
    """The dashboard at an address of the loopback."""
    with Server("127.0.0.1", 0) as server:
        server.set_app(application(room.storage, room.pictures, **room.options))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answered(server: Server, host: str = "localhost") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request("GET", "/api/studies", headers={"Host": host})
    status = connection.getresponse().status
    connection.close()
    return status


def test_idle_connections_block_nobody(served: Server) -> None:
    with socket.create_connection(("127.0.0.1", served.server_port)) as silent:
        half = socket.create_connection(("127.0.0.1", served.server_port))
        half.sendall(b"POST /api/studies HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        with half:
            assert answered(served) == 200
            assert answered(served, "evil.example") == 403
        assert silent.fileno() != -1


def test_an_idle_connection_is_closed_in_the_end(
    served: Server, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard._Request, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", served.server_port), timeout=60) as silent:
        assert silent.recv(1) == b""
    assert answered(served) == 200
    assert capfd.readouterr() == ("", "")


def test_a_server_listens_on_ipv6_too() -> None:
    try:
        server = Server("::1", 0)
    except SettingsError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        assert server.address_family == socket.AF_INET6

"""A real S3 server (moto's) for tests, which can also go away and come back, on the same port with the same objects."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SECRET = "s3cr3t-KEY/not+to=be%shown"
BUCKET = "studies"


@dataclass
class S3:
    """A running server."""

    server: Any
    port: int
    _own: Any = None
    _patient: Any = None

    @classmethod
    def launch(cls) -> S3:
        """A new server with the empty bucket `studies`."""
        made = cls(None, 0)
        made.start()
        made.client().create_bucket(Bucket=BUCKET)
        return made

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AKIDNOTSHOWN",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, attempts: int = 1) -> Any:
        """A client of its own, which makes so many attempts at a request."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="AKIDNOTSHOWN",
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            config=Config(
                connect_timeout=60, read_timeout=60, retries={"mode": "standard", "total_max_attempts": attempts}
            ),
        )

    @property
    def patient(self) -> Any:
        """The client that looks and tidies up: a connection that the server dropped when it stopped is no error."""
        self._patient = self._patient or self.client(attempts=5)
        return self._patient

    @property
    def own(self) -> Any:
        """The tests' client: a new one takes a third of a second."""
        self._own = self._own or self.client()
        return self._own

    def keys(self) -> list[str]:
        """Every object of the bucket."""
        return sorted(entry["Key"] for entry in self.patient.list_objects_v2(Bucket=BUCKET).get("Contents", []))

    def clear(self) -> None:
        """Delete every object."""
        for key in self.keys():
            self.patient.delete_object(Bucket=BUCKET, Key=key)

    def start(self) -> None:
        """Answer (again)."""
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *arguments: Any) -> None:
                pass

        self.server = make_server(
            "127.0.0.1",
            self.port,
            DomainDispatcherApplication(create_backend_app),
            threaded=True,
            request_handler=Quiet,
        )
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer nobody."""
        self.server.shutdown()
        self.server.server_close()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within the block nobody answers."""
        self.stop()
        try:
            yield
        finally:
            self.start()

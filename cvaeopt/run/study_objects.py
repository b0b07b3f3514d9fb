"""List, read, write and delete the checkpoints of studies as objects in an S3 bucket.

An object is named like a file of the artifact folder: `PREFIX/STUDY/00042/last.TOKEN.pt`. `TOKEN` is the token of the
lease. An owner who has lost the trial without knowing it therefore cannot overwrite the object of the next owner.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cvaeopt.errors import CheckpointError, CvaeoptError, UserError
from cvaeopt.files import whole
from cvaeopt.store.urls import mask

_NAME = re.compile(r"(\d+)/last\.(\d+)\.pt")
"""The end of an object's name: the number of the trial and the token of its owner."""


def parse(url: str) -> tuple[str, str]:
    """(bucket, prefix without slashes at its ends) of `s3://BUCKET/PREFIX`; UserError for other texts."""
    match = re.fullmatch(r"s3://([^/@:?#]+)(?:/([^@:?#]*))?", url)
    if match is None:
        todo = "Credentials belong into the environment (AWS_ACCESS_KEY_ID, ...)." if "@" in url else ""
        raise UserError(
            f"{mask(url)!r} names no object store.",
            "Expected: s3://BUCKET or s3://BUCKET/PREFIX.",
            todo or "Change --checkpoints.",
        )
    return match[1], (match[2] or "").strip("/")


class StudyObjects:
    """The objects under one URL.

    url      `s3://BUCKET/PREFIX`, without credentials
    client   an S3 client of boto3
    hide     removes secrets from a text

    The public methods raise CheckpointError if the store does not answer or does not permit the request.
    """

    def __init__(self, url: str, client: Any, hide: Callable[[str], str] = lambda text: text) -> None:
        from optuna.artifacts import Boto3ArtifactStore

        bucket, prefix = parse(url)
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client
        self._store = Boto3ArtifactStore(bucket, client)
        self._hide = hide

    def of_trial(self, study: str, number: int) -> str:
        return f"{self.url}/{study}/{number:05d}"

    def of_study(self, study: str) -> list[str]:
        """The sorted names of the study's objects, such as `00042/last.3.pt`."""
        with self._asking(f"{self.url}/{study} cannot be listed"):
            return sorted(key.removeprefix(f"{self._prefix}{study}/") for _, _, key in self._objects(study))

    def read(self, study: str, name: str) -> bytes | None:
        """The content of an object; None if the object was deleted. `name` has the form that `of_study` returns."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        with self._asking(f"{self.url}/{study}/{name} cannot be read"):
            try:
                with contextlib.closing(self._store.open_reader(f"{self._prefix}{study}/{name}")) as source:
                    return source.read()
            except ArtifactNotFound:
                return None

    def write(self, study: str, name: str, content: bytes) -> None:
        """Store `content` as an object. `name` has the form that `of_study` returns."""
        with self._asking(f"{self.url}/{study}/{name} cannot be written"):
            self._store.write(f"{self._prefix}{study}/{name}", io.BytesIO(content))

    def delete(self, study: str) -> int:
        """Delete all objects of the study; returns their number."""
        with self._asking(f"{self.url}/{study} cannot be deleted"):
            return self._delete(study, lambda *_: True)

    def download(self, study: str, number: int, target: Path) -> Path:
        """Write the checkpoint of the trial's last owner to `target`; returns `target`."""
        with self._asking(f"{self.of_trial(study, number)} cannot be read"):
            names = self._names(study, number)
            if names:
                self._download(study, number, names[-1], target)
                return target
        raise CheckpointError(
            f"{self.of_trial(study, number)} holds no checkpoint.",
            "Expected: the last.TOKEN.pt of a trial that is among the study's best, or still runs.",
        )

    def check(self) -> str:
        """The reason why the store does not answer now, or an empty text; UserError if the settings cannot work."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except (ConnectionError, HTTPClientError) as error:
            return self._reason(error)
        except (BotoCoreError, ClientError, ValueError) as error:
            if isinstance(error, ClientError):
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                if status >= 500 or status == 429:
                    return self._reason(error)
            raise UserError(
                f"The object store {self.url} cannot be used ({self._reason(error)}).",
                "Expected: a bucket that exists, and credentials that may list, read, write and delete in it.",
                "Check --checkpoints, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
            ) from None
        return ""

    @contextlib.contextmanager
    def _asking(self, failed: str) -> Iterator[None]:
        """Inside the block, an error of the client becomes a CheckpointError whose message begins with `failed`."""
        try:
            yield
        except (OSError, CvaeoptError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{failed} ({self._reason(error)}).",
                "Expected: an object store that answers, and credentials that may list, read, write and delete.",
                "Check --checkpoints, AWS_ENDPOINT_URL and the credentials.",
            ) from None

    def _reason(self, error: Exception) -> str:
        """The error's text in one line, without credentials."""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return self._hide(re.sub(r"://[^/\s\"']*@", "://***@", text))

    # The methods below raise the client's own errors.

    def _key(self, study: str, number: int, name: str) -> str:
        return f"{self._prefix}{study}/{number:05d}/{name}"

    def _objects(self, study: str, number: int | None = None) -> Iterator[tuple[int, int, str]]:
        """(number, token, key) of every checkpoint of the study, or of trial `number` only."""
        below = f"{self._prefix}{study}/"
        pages = self._client.get_paginator("list_objects_v2")
        prefix = below if number is None else f"{below}{number:05d}/"
        for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                key = str(entry["Key"])
                match = _NAME.fullmatch(key.removeprefix(below))
                if match:
                    yield int(match[1]), int(match[2]), key

    def _names(self, study: str, number: int) -> list[str]:
        """The names of the trial's objects, sorted by their tokens."""
        listed = sorted((token, key.rpartition("/")[2]) for _, token, key in self._objects(study, number))
        return [name for _, name in listed]

    def _delete(self, study: str, is_wanted: Callable[[int, int], bool], number: int | None = None) -> int:
        """Delete the objects for which `is_wanted(number, token)` is True; returns their number."""
        keys = [key for of, token, key in self._objects(study, number) if is_wanted(of, token)]
        for key in keys:
            self._store.remove(key)
        return len(keys)

    def _download(self, study: str, number: int, name: str, target: Path) -> None:
        with (
            contextlib.closing(self._store.open_reader(self._key(study, number, name))) as source,
            whole(target) as stream,
        ):
            shutil.copyfileobj(source, stream)

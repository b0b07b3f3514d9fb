"""Checkpoints in an object store (S3 API): workers that share no folder continue each other's trials.

Objects are named like the files of the artifact folder, `PREFIX/STUDY/00042/last.TOKEN.pt`. The token is the lease's,
so an owner who lost the trial without knowing writes beside the next owner's object and never over it.

The files stay where they were: this is a copy for other machines. A thread uploads what was saved last, so training
waits for nothing, and a store that does not answer costs the copy, never the trial: it is said once, and tried again.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from cvaeopt.errors import CheckpointError, CvaeoptError, UserError
from cvaeopt.files import whole
from cvaeopt.store.urls import mask

log = logging.getLogger(__name__)

_NAME = re.compile(r"(\d+)/last\.(\d+)\.pt")
"""An object below PREFIX/STUDY/: the trial's number and the token of its owner."""

_EXPECTED = "Expected: s3://BUCKET or s3://BUCKET/PREFIX."


def parse(url: str) -> tuple[str, str]:
    """(bucket, prefix without slashes at its ends) of `s3://BUCKET/PREFIX`; UserError for anything else."""
    shown = mask(url)
    match = re.fullmatch(r"s3://([^/@:?#]+)(?:/([^@:?#]*))?", url)
    if match is None:
        todo = "Credentials belong into the environment (AWS_ACCESS_KEY_ID, ...)." if "@" in url else ""
        raise UserError(f"{shown!r} names no object store.", _EXPECTED, todo or "Change --checkpoints.")
    return match[1], (match[2] or "").strip("/")


class Checkpoints:
    """The checkpoints under one URL; made by `open_checkpoints`.

    url       `s3://BUCKET/PREFIX`, which holds no credentials
    retry_s   pause before a failed upload is tried again, seconds
    """

    def __init__(
        self, url: str, client: Any, *, retry_s: float = 30.0, hide: Callable[[str], str] = lambda text: text
    ) -> None:
        from optuna.artifacts import Boto3ArtifactStore

        bucket, prefix = parse(url)
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._client = client
        self._store = Boto3ArtifactStore(bucket, client)
        self._retry_s = retry_s
        self._hide = hide
        self._lock = threading.Condition()
        self._pending: dict[tuple[str, int, int], IO[bytes]] = {}  # what was saved last of each (study, trial, token)
        self._losers: dict[str, set[int]] = {}  # trials whose objects are to be deleted, by study
        self._busy: IO[bytes] | None = None
        self._idle = True
        self._failures = 0
        self._failing = False
        self._hurry = False
        self._closed = False
        self._thread: threading.Thread | None = None

    def of_trial(self, study: str, number: int) -> str:
        """Where the checkpoints of a trial are, as a URL."""
        return f"{self.url}/{study}/{number:05d}"

    # ---- called by who trains

    def offer(self, study: str, number: int, token: int, path: Path) -> None:
        """Upload the checkpoint that `path` holds at this moment, soon; an older one that still waits is dropped.

        Never raises and never waits. The file may be replaced, renamed or deleted meanwhile.
        """
        try:
            stream = path.open("rb")
        except OSError as error:
            self._failed(f"{path} cannot be read: {error.strerror}")
            return
        with self._lock:
            before = self._pending.get((study, number, token))
            if before is not None and before is not self._busy:
                before.close()
            self._pending[study, number, token] = stream
            self._begin()

    def forget(self, study: str, numbers: Iterable[int]) -> None:
        """Delete, soon, every object of these trials; never raises and never waits."""
        with self._lock:
            self._losers[study] = set(numbers)
            self._begin()

    def flush(self, limit_s: float) -> bool:
        """True once everything was uploaded and deleted; False after `limit_s`, or as soon as the store fails."""
        end = time.monotonic() + limit_s
        with self._lock:
            failures = self._failures
            self._hurry = True
            self._lock.notify_all()
            while self._pending or self._losers or not self._idle:
                left = end - time.monotonic()
                if left <= 0 or self._failures > failures:
                    break
                self._lock.wait(left)
            self._hurry = False
            return not self._pending

    def close(self, limit_s: float = 60.0) -> bool:
        """`flush`, then end the thread."""
        done = self.flush(limit_s)
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
        return done

    def fetch(self, study: str, number: int, folder: Path, known: str = "") -> list[Path]:
        """Copies of the trial's objects in `folder`, as `last.TOKEN.remote.pt`; `known` is not fetched again.

        Nothing where the store does not answer: that is said, and the trial begins with what is here. OSError when
        the disk is full.
        """
        made = []
        try:
            for name in self._names(study, number):
                if name == known:
                    continue
                target = folder / f"{name.removesuffix('.pt')}.remote.pt"
                self._download(study, number, name, target)
                made.append(target)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning(
                "Trial %d: its checkpoints in %s cannot be read (%s); it goes on with what is in %s.",
                number,
                self.of_trial(study, number),
                self._said(error),
                folder,
            )
        return made

    def download(self, study: str, number: int, target: Path) -> Path:
        """`target`, written from the object of the trial's last owner; CheckpointError if there is none."""
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
        """Why the store cannot be used now though it may be later, or an empty text; UserError if it never can."""
        from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError

        try:
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        except (ConnectionError, HTTPClientError) as error:
            return self._said(error)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status >= 500 or status == 429:
                return self._said(error)
            raise self._unusable(error) from None
        except (BotoCoreError, ValueError) as error:
            raise self._unusable(error) from None
        return ""

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"The object store {self.url} cannot be used ({self._said(error)}).",
            "Expected: a bucket that exists, and credentials that may list, read, write and delete in it.",
            "Check --checkpoints, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )

    # ---- a whole study at once: CheckpointError when the store does not answer or does not permit it

    def of_study(self, study: str) -> list[str]:
        """The study's objects as `00042/last.3.pt`, in order."""
        with self._asking(f"{self.url}/{study} cannot be listed"):
            return sorted(key.removeprefix(f"{self._prefix}{study}/") for _, _, key in self._objects(study))

    def read(self, study: str, name: str) -> bytes | None:
        """The content of an object that `of_study` named; None if it was replaced or deleted meanwhile."""
        from optuna.artifacts.exceptions import ArtifactNotFound

        with self._asking(f"{self.url}/{study}/{name} cannot be read"):
            try:
                with contextlib.closing(self._store.open_reader(f"{self._prefix}{study}/{name}")) as source:
                    return source.read()
            except ArtifactNotFound:
                return None

    def write(self, study: str, name: str, content: bytes) -> None:
        """Store an object under a name as `of_study` gives them."""
        with self._asking(f"{self.url}/{study}/{name} cannot be written"):
            self._store.write(f"{self._prefix}{study}/{name}", io.BytesIO(content))

    def delete(self, study: str) -> int:
        """How many objects of the study were deleted: all."""
        with self._asking(f"{self.url}/{study} cannot be deleted"):
            return self._delete(study, lambda *_: True)

    @contextlib.contextmanager
    def _asking(self, failed: str) -> Iterator[None]:
        try:
            yield
        except (OSError, CvaeoptError):
            raise
        except Exception as error:
            raise CheckpointError(
                f"{failed} ({self._said(error)}).",
                "Expected: an object store that answers, and credentials that may list, read, write and delete.",
                "Check --checkpoints, AWS_ENDPOINT_URL and the credentials.",
            ) from None

    # ---- the thread

    def _begin(self) -> None:
        self._idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._pending and not self._losers and not self._closed:
                    self._idle = True
                    self._lock.notify_all()
                    self._lock.wait()
                if self._closed:
                    self._release()
                    return
            try:
                self._round()
            except Exception as error:
                self._failed(self._said(error))
                with self._lock:
                    self._lock.wait_for(lambda: self._closed or self._hurry, self._retry_s)
                    # Who is in a hurry waits for one attempt, not for a store that stays away.
                    self._lock.wait_for(lambda: self._closed or not self._hurry, self._retry_s)
            else:
                if self._failing:
                    log.warning("%s answers again; checkpoints are stored there again.", self.url)
                    self._failing = False

    def _round(self) -> None:
        """Upload one checkpoint, else delete what lost."""
        with self._lock:
            key = next(iter(self._pending), None)
            stream = self._busy = self._pending[key] if key is not None else None
            losers, self._losers = ({}, self._losers) if key is not None else (self._losers, {})
        if key is None or stream is None:
            for study, numbers in losers.items():
                self._delete(study, lambda number, _, numbers=numbers: number in numbers)  # type: ignore[misc]
            return
        study, number, token = key
        try:
            stream.seek(0)
            self._store.write(self._key(study, number, f"last.{token}.pt"), io.BytesIO(stream.read()))
        finally:
            with self._lock:
                self._busy = None
                if self._pending.get(key) is not stream:  # a newer one came meanwhile
                    stream.close()
        with self._lock:
            if self._pending.get(key) is stream:
                del self._pending[key]
                stream.close()
        # Those of earlier owners; never a later one's, should this process have slept since.
        self._delete(study, lambda _, old: old < token, number)

    def _release(self) -> None:
        for stream in self._pending.values():
            stream.close()
        self._pending.clear()

    def _failed(self, said: str) -> None:
        with self._lock:
            self._failures += 1
            self._lock.notify_all()
        if not self._failing:
            self._failing = True
            log.warning(
                "Checkpoints cannot be stored in %s (%s). Training goes on and the files stay on this machine; "
                "until the store answers, no other machine can continue from them.",
                self.url,
                said,
            )

    # ---- objects

    def _key(self, study: str, number: int, name: str) -> str:
        return f"{self._prefix}{study}/{number:05d}/{name}"

    def _objects(self, study: str, number: int | None = None) -> Iterator[tuple[int, int, str]]:
        """(number, token, key) of every checkpoint of a study, or of one trial; nothing that lies deeper."""
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
        """The names of the trial's objects, the last owner's last."""
        found = sorted((token, key.rpartition("/")[2]) for _, token, key in self._objects(study, number))
        return [name for _, name in found]

    def _delete(self, study: str, wanted: Callable[[int, int], bool], number: int | None = None) -> int:
        doomed = [key for of, token, key in self._objects(study, number) if wanted(of, token)]
        for key in doomed:
            self._store.remove(key)
        return len(doomed)

    def _download(self, study: str, number: int, name: str, target: Path) -> None:
        with (
            contextlib.closing(self._store.open_reader(self._key(study, number, name))) as source,
            whole(target) as stream,
        ):
            shutil.copyfileobj(source, stream)

    def _said(self, error: Exception) -> str:
        """The error in one line, without credentials."""
        text = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return self._hide(re.sub(r"://[^/\s\"']*@", "://***@", text))


def open_checkpoints(url: str, *, retry_s: float = 30.0) -> Checkpoints:
    """The checkpoints at `url`; credentials, region and endpoint as boto3 finds them (AWS_ENDPOINT_URL, ...).

    UserError for a URL that is none and where boto3 is missing. Nothing is asked yet: `Checkpoints.check` does.
    """
    parse(url)
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError(f"No driver is installed for {url}.", "Expected: boto3.", "pip install 'cvaeopt[s3]'") from None
    # A store that is away must not hold up the beginning of a trial for minutes.
    options = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 2})
    try:
        session = boto3.session.Session()
        client = session.client("s3", config=options)
        credentials = session.get_credentials()
    except (BotoCoreError, ValueError) as error:
        raise UserError(
            f"The object store {url} cannot be used ({error}).",
            "Expected: the settings of boto3 in the environment or in ~/.aws.",
            "Check AWS_ENDPOINT_URL, AWS_PROFILE and AWS_DEFAULT_REGION.",
        ) from None

    def hide(text: str) -> str:
        if credentials is not None:
            now = credentials.get_frozen_credentials()
            for secret in (now.secret_key, now.token, now.access_key):
                if secret:
                    text = text.replace(secret, "***")
        return text

    return Checkpoints(url, client, retry_s=retry_s, hide=hide)

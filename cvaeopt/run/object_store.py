"""Copies of checkpoints in an object store. Workers that share no folder use the copies to continue a trial.

The files stay in the artifact folder; `study_objects` describes the names of the copies. A thread uploads the newest
checkpoint of each trial, so that the training does not wait for the upload. If the store does not answer, one warning
is logged, the thread tries again, and the training continues.
"""

from __future__ import annotations

import errno
import io
import logging
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from cvaeopt.errors import UserError
from cvaeopt.run.study_objects import StudyObjects, parse

log = logging.getLogger(__name__)

_MAX_JOIN_S = 5.0  # how long `close` waits for a thread whose network call does not return


class Checkpoints(StudyObjects):
    """The checkpoints under one URL, with the thread that uploads them; `open_checkpoints` makes this object.

    retry_s   pause before a failed upload is tried again, seconds
    """

    def __init__(
        self, url: str, client: Any, *, retry_s: float = 30.0, hide: Callable[[str], str] = lambda text: text
    ) -> None:
        super().__init__(url, client, hide)
        self._retry_s = retry_s
        self._lock = threading.Condition()
        self._pending: dict[tuple[str, int, int], IO[bytes]] = {}  # newest checkpoint by (study, trial, token)
        self._unwanted: dict[str, set[int]] = {}  # trials whose objects are to be deleted, by study
        self._uploading: IO[bytes] | None = None
        self._is_idle = True
        self._failures = 0
        self._failing = False  # whether the last attempt failed
        self._is_hurried = False  # whether `flush` waits
        self._is_closed = False
        self._thread: threading.Thread | None = None

    def offer(self, study: str, number: int, token: int, path: Path) -> None:
        """Upload the present content of the checkpoint `path` soon, instead of an older checkpoint that still waits.

        This method never raises and never waits. The file may be replaced, renamed or deleted before the upload.
        """
        try:
            stream = path.open("rb")
        except OSError as error:
            self._note_failure(f"{path} cannot be read: {error.strerror}")
            return
        with self._lock:
            before = self._pending.get((study, number, token))
            if before is not None and before is not self._uploading:
                before.close()
            self._pending[study, number, token] = stream
            self._wake()

    def forget(self, study: str, numbers: Iterable[int]) -> None:
        """Delete every object of these trials soon; never raises and never waits."""
        with self._lock:
            self._unwanted[study] = set(numbers)
            self._wake()

    def flush(self, limit_s: float) -> bool:
        """Wait until all uploads and deletions are done; returns whether all uploads are done.

        The wait ends early after `limit_s` seconds, and after the first failure.
        """
        end = time.monotonic() + limit_s
        with self._lock:
            failures = self._failures
            self._is_hurried = True
            self._lock.notify_all()
            while self._pending or self._unwanted or not self._is_idle:
                remaining_s = end - time.monotonic()
                if remaining_s <= 0 or self._failures > failures:
                    break
                self._lock.wait(remaining_s)
            self._is_hurried = False
            return not self._pending

    def close(self, limit_s: float = 60.0) -> bool:
        """Call `flush`, then end the thread; returns whether all uploads are done."""
        is_uploaded = self.flush(limit_s)
        with self._lock:
            self._is_closed = True
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=_MAX_JOIN_S)
        return is_uploaded

    def fetch(self, study: str, number: int, folder: Path, known: str = "") -> list[Path]:
        """Copy the trial's objects, except the object `known`, into `folder` as `last.TOKEN.remote.pt`.

        Returns the new files. If the store does not answer, a warning is logged, and only the files that were already
        copied are returned. OSError if the disk is full.
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
                self._reason(error),
                folder,
            )
        return made

    def holds(self, study: str, number: int) -> bool:
        """Whether the store has a checkpoint of the trial; False if the store does not answer."""
        try:
            return bool(self._names(study, number))
        except Exception as error:
            log.warning("%s does not answer (%s).", self.url, self._reason(error))
            return False

    # ---- the thread

    def _wake(self) -> None:
        """Wake the thread, or start the thread for its first work. The caller holds the lock."""
        self._is_idle = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        self._lock.notify_all()

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                self._round()
            except Exception as error:
                self._note_failure(self._reason(error))
                with self._lock:
                    self._lock.wait_for(lambda: self._is_closed or self._is_hurried, self._retry_s)
                    # `flush` waits for a single attempt, not until the store answers again.
                    self._lock.wait_for(lambda: self._is_closed or not self._is_hurried, self._retry_s)
            else:
                if self._failing:
                    log.warning("%s answers again; checkpoints are stored there again.", self.url)
                    self._failing = False

    def _wait_for_work(self) -> bool:
        """Wait until there is an upload or a deletion to do; returns False after `close`."""
        with self._lock:
            while not self._pending and not self._unwanted and not self._is_closed:
                self._is_idle = True
                self._lock.notify_all()
                self._lock.wait()
            if self._is_closed:
                for stream in self._pending.values():
                    stream.close()
                self._pending.clear()
            return not self._is_closed

    def _round(self) -> None:
        """Upload one checkpoint. If no checkpoint waits, delete the objects that are not needed any more."""
        with self._lock:
            key = next(iter(self._pending), None)
            if key is None:
                unwanted, self._unwanted = self._unwanted, {}
            else:
                stream = self._uploading = self._pending[key]
        if key is None:
            for study, numbers in unwanted.items():
                self._delete(study, lambda number, _, numbers=numbers: number in numbers)  # type: ignore[misc]
            return
        study, number, token = key
        try:
            stream.seek(0)
            self._store.write(self._key(study, number, f"last.{token}.pt"), io.BytesIO(stream.read()))
        finally:
            with self._lock:
                self._uploading = None
                if self._pending.get(key) is not stream:  # a newer checkpoint was offered meanwhile
                    stream.close()
        with self._lock:
            if self._pending.get(key) is stream:
                del self._pending[key]
                stream.close()
        # Delete the objects of earlier owners. The object of a later owner stays, because this process may have been
        # frozen while that owner took over.
        self._delete(study, lambda _, old: old < token, number)

    def _note_failure(self, reason: str) -> None:
        with self._lock:
            self._failures += 1
            self._lock.notify_all()
        if not self._failing:
            self._failing = True
            log.warning(
                "Checkpoints cannot be stored in %s (%s). Training goes on and the files stay on this machine; "
                "until the store answers, no other machine can continue from them.",
                self.url,
                reason,
            )


def open_checkpoints(url: str, *, retry_s: float = 30.0) -> Checkpoints:
    """The checkpoints at `url`; boto3 finds credentials, region and endpoint (AWS_ENDPOINT_URL, ...).

    UserError if the URL is wrong, boto3 is missing, or boto3's settings are wrong. This function sends no request to
    the store; `check` does.
    """
    parse(url)
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise UserError(f"No driver is installed for {url}.", "Expected: boto3.", "pip install 'cvaeopt[s3]'") from None
    # A store that does not answer must not delay the beginning of a trial by minutes.
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

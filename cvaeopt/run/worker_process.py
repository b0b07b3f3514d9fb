"""This process as a worker: it trains the trials of a study, then the trials of the study's confirmations."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.trial import Trial

from cvaeopt.errors import CvaeoptError, StorageUnreachable
from cvaeopt.run import dashboard_notes
from cvaeopt.run.events import Listener, StudyOpened, StudyRead, WorkerEnded
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.run.objective import Objective
from cvaeopt.run.processes import ParentProcess
from cvaeopt.run.retention import tidy
from cvaeopt.run.signals import Stop
from cvaeopt.run.trial_run import TrialRun
from cvaeopt.run.worker import Worker
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import corners, params_to_config
from cvaeopt.store import status
from cvaeopt.store import study as studies
from cvaeopt.store.confirmation import advance, unfinished
from cvaeopt.store.leases import Lease
from cvaeopt.store.storage import Storage
from cvaeopt.vae.dataset import Dataset, require_batch
from cvaeopt.vae.metrics import baselines

log = logging.getLogger(__name__)

_READ_EVERY_S = 5.0
_READ_SHARE = 0.05  # largest fraction of the time that is spent on reading the study
_PATIENCE_S = 2.0  # how long tidying up and reading the study wait for the database


@dataclass(frozen=True)
class WorkerProcess:
    """A process that trains: its data, its device, and the places of its files.

    listener      receives every event; several threads call it
    remote        the object store with copies of the checkpoints, for workers that share no folder
    parent        the connection to the parent process, if several workers share a device
    reads_study   whether the listener regularly receives the state of the whole study
    """

    storage: Storage
    data: Dataset
    device: str
    artifacts: Path
    listener: Listener
    remote: Checkpoints | None = None
    parent: ParentProcess | None = None
    reads_study: bool = True
    stop: Stop = field(default_factory=Stop)

    def work(self, definition: Definition) -> None:
        """Train trials of the study until its budget is met, then the trials of its confirmations.

        A request to stop ends the work early. Raises the errors of `Worker.run`. DataError if the data are too few
        for the study; nothing is stored then.
        """
        for params in corners(definition.search, definition.fixed):
            require_batch(self.data, params_to_config(definition, params, 0))
        study = studies.create_or_open(self.storage, definition)
        with self.entered():
            if self._train(study, definition).kind == "finished":
                self._confirm(definition)

    def confirm(self, searched: Definition) -> None:
        """Train the runs of all confirmations of `searched`, including confirmations that are registered meanwhile."""
        with self.entered():
            self._confirm(searched)

    def baselines(self, study: str) -> dict[str, float]:
        """The baselines of the data by name, dB; StudyError if the study was measured on other data.

        The baselines are stored with the study.
        """
        facts = studies.record_facts(
            self.storage, study, self.data.digest, lambda: baselines(self.data.train, self.data.val).plain()
        )
        measured: dict[str, float] = facts["baselines"]
        return measured

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Inside the block this process trains. After the block, even after an error, the uploads are finished.

        After a second signal, the uploads to the object store are skipped. Signals are counted from the beginning of
        the block to the end of the uploads. If a signal comes while no worker runs, the next worker obeys it.
        """
        with self.stop:
            try:
                if self.parent is not None:
                    self.parent.share(self.device)
                yield
            finally:
                if self.stop.count < 2 and self.remote is not None and not self.remote.close():
                    log.warning(
                        "not all checkpoints reached %s; they are in %s on this machine",
                        self.remote.url,
                        self.artifacts,
                    )

    def _train(self, study: optuna.Study, definition: Definition) -> WorkerEnded:
        """Train trials of one study until its budget is met or a stop is requested."""
        objective = Objective(definition, self.data, self.device, self.artifacts, self.remote)
        measured = self.baselines(definition.name)

        def open_trial(trial: Trial, lease: Lease) -> TrialRun:
            return objective.open(trial, lease.token)

        def tidy_up() -> None:
            self._tidy_up(study, definition)

        tidy_up()  # an earlier worker that was killed may have left files
        worker = Worker(
            study,
            self.storage,
            open_trial,
            device=self.device,
            artifacts=self.artifacts,
            listener=self.listener,
            stop=self.stop,
            after_trial=tidy_up,
        )
        if self.parent is not None:
            self.parent.attach(worker.stop)
        self.listener(StudyOpened(definition.name, measured))
        with self._reading(definition.name) if self.reads_study else contextlib.nullcontext():
            ended = worker.run()
        tidy_up()
        return ended

    def _confirm(self, searched: Definition) -> None:
        worked: set[str] = set()
        while not self.stop:
            advance(self.storage, searched)
            names = [study.name for study in unfinished(self.storage, searched) if study.name not in worked]
            if not names:
                return
            worked.add(names[0])
            study, definition = studies.open_existing(self.storage, names[0])
            definition = definition.model_copy(update={"service": searched.service})
            if self._train(study, definition).kind != "finished":
                return

    def _tidy_up(self, study: optuna.Study, definition: Definition) -> None:
        service = definition.service
        try:
            with self.storage.patience(_PATIENCE_S):
                tidy(study, self.artifacts, service.keep_best, self.remote)
        except StorageUnreachable:  # the worker meets the same outage and reports it
            return
        dashboard_notes.keep_up(self.storage, study, self.artifacts, service.keep_pictures)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Inside the block the listener receives the state of the whole study every few seconds.

        A separate thread reads the study, so that a database that does not answer delays nobody.
        """
        closed = threading.Event()

        def keep_reading() -> None:
            while not closed.is_set():
                began = time.monotonic()
                with contextlib.suppress(CvaeoptError), self.storage.patience(_PATIENCE_S):
                    self.listener(StudyRead(status.status(self.storage, name)))
                closed.wait(max(_READ_EVERY_S, (time.monotonic() - began) / _READ_SHARE))

        reader = threading.Thread(target=keep_reading, name="study", daemon=True)
        reader.start()
        try:
            yield
        finally:
            closed.set()
            reader.join(timeout=2.0)

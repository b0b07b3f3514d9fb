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
from cvaeopt.run.events import Listener, StudyExtended, StudyOpened, StudyRead
from cvaeopt.run.notices import Notices
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.run.objective import Objective
from cvaeopt.run.processes import ParentProcess
from cvaeopt.run.retention import tidy
from cvaeopt.run.signals import Stop
from cvaeopt.run.trial_run import Factory, TrialRun
from cvaeopt.run.worker import Worker
from cvaeopt.search.changes import changes
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import corners, params_to_config
from cvaeopt.store import status
from cvaeopt.store import study as studies
from cvaeopt.store.confirmation import advance, unfinished
from cvaeopt.store.leases import Lease
from cvaeopt.store.storage import Storage
from cvaeopt.store.versions import Version
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
        self._check(definition)
        study = studies.create_or_open(self.storage, definition)
        with self.entered():
            while (trained := self._train(study, definition)) is not None and self._confirm(trained):
                if studies.newest(self.storage, trained)[0] is trained:
                    return
                definition = trained  # the study was extended while this process trained its confirmations

    def _check(self, definition: Definition) -> None:
        """DataError if the data are too few for some point of the search space."""
        for params in corners(definition.search, definition.fixed):
            require_batch(self.data, params_to_config(definition, params, 0))

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

    def _train(self, study: optuna.Study, given: Definition) -> Definition | None:
        """Train trials of one study until its budget is met or a stop is requested.

        Returns the version of the definition with which the budget was met; None if a stop was requested.
        """
        with Notices(given.service.notify, self.storage, given.name, self.device) as notices:
            return self._train_announced(study, given, notices)

    def _train_announced(self, study: optuna.Study, given: Definition, notices: Notices) -> Definition | None:
        training = _Training(self, study, given)
        measured = self.baselines(given.name)
        training.take_newest()
        training.tidy_up()  # an earlier worker that was killed may have left files
        worker = Worker(
            training.study,
            self.storage,
            training.open_trial,
            device=self.device,
            artifacts=self.artifacts,
            listener=notices.before(self.listener),
            stop=self.stop,
            after_trial=training.tidy_up,
            digest=training.known[-1].digest,
            newest=training.take_newest,
        )
        if self.parent is not None:
            self.parent.attach(worker.stop)
        self.listener(StudyOpened(given.name, measured))
        with self._reading(given.name) if self.reads_study else contextlib.nullcontext():
            ended = worker.run()
        training.tidy_up()
        return training.definition if ended.kind == "finished" else None

    def _confirm(self, searched: Definition) -> bool:
        """Train the runs of all confirmations; returns whether all of them ended."""
        worked: set[str] = set()
        while not self.stop:
            advance(self.storage, searched)
            names = [study.name for study in unfinished(self.storage, searched) if study.name not in worked]
            if not names:
                return True
            worked.add(names[0])
            study, definition = studies.open_existing(self.storage, names[0])
            definition = definition.model_copy(update={"service": searched.service})
            if self._train(study, definition) is None:
                return False
        return False

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


class _Training:
    """The newest known version of a study's definition, and what a worker needs for it.

    known   the versions of the definition that existed when it was read last, oldest first
    """

    def __init__(self, process: WorkerProcess, study: optuna.Study, definition: Definition) -> None:
        self.study = study
        self.definition = definition
        self.known: list[Version] = []
        self._process = process

    def take_newest(self) -> tuple[optuna.Study, Factory, str]:
        """Read the newest version. If it differs from the present one, the listener is told.

        Returns the study with its sampler, the factory of trials and the digest of the newest version. DataError if the
        data are too few for it.
        """
        process, before = self._process, self.definition.digest()
        self.definition, self.known = studies.newest(process.storage, self.definition)
        newest = self.known[-1]
        if self.definition.digest() != before:
            process._check(self.definition)
            self.study = studies.load(process.storage, self.definition)
            old = next(one for one in self.known if one.digest == before)
            differ = changes(old.definition, newest.definition)
            process.listener(StudyExtended(self.definition.name, old.number, newest.number, newest.by, differ))
        return self.study, self.open_trial, newest.digest

    def open_trial(self, trial: Trial, lease: Lease) -> TrialRun:
        """The training of a trial, under the version of the definition with which the trial was begun."""
        process, definition = self._process, self.definition
        if lease.version != self.known[-1].number:
            old = next(one for one in self.known if one.number == lease.version)
            definition = old.parsed(definition.name).model_copy(update={"service": definition.service})
        objective = Objective(definition, process.data, process.device, process.artifacts, process.remote)
        return objective.open(trial, lease.token)

    def tidy_up(self) -> None:
        """Delete files that are not needed any more, and update the dashboard's notes."""
        process, service = self._process, self.definition.service
        try:
            with process.storage.patience(_PATIENCE_S):
                tidy(self.study, process.artifacts, service.keep_best, process.remote)
        except StorageUnreachable:  # the worker meets the same outage and reports it
            return
        dashboard_notes.keep_up(process.storage, self.study, process.artifacts, service.keep_pictures)

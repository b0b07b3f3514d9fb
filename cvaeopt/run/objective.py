"""A study's objective: it chooses the settings, the seed and the folder of a trial, and trains the trial.

`Objective` is a plain Optuna objective, so `study.optimize(Objective(...))` works in a notebook. A worker calls
`Objective.open` instead and trains the `TrialRun` itself, because a worker also deals with leases and outages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import Trial

from cvaeopt.errors import Diverged
from cvaeopt.files import RunFolder
from cvaeopt.run.dashboard_notes import artifact_store
from cvaeopt.run.object_store import Checkpoints
from cvaeopt.run.retention import tidy
from cvaeopt.run.trial_run import SEED, TrialRun
from cvaeopt.search.definition import Definition
from cvaeopt.search.space import key_of, suggest, trial_seed
from cvaeopt.store.identity import Identity, given
from cvaeopt.store.leases import CONSTRAINTS
from cvaeopt.vae.dataset import Dataset


class Objective:
    """Trains one configuration of `definition` and returns the trial's value in dB.

    artifacts    the artifact folder, in which the run folders of the trials are made
    remote       the object store with copies of the checkpoints, for workers that do not see `artifacts`
    """

    def __init__(
        self,
        definition: Definition,
        data: Dataset,
        device: str = "cpu",
        artifacts: Path = Path("storage/artifacts"),
        remote: Checkpoints | None = None,
    ) -> None:
        self.definition = definition
        self.data = data
        self.device = device
        self.artifacts = artifacts
        self.remote = remote
        self._store = artifact_store(artifacts)

    def open(self, trial: Trial, token: int = 0) -> TrialRun:
        """The run of `trial`, with suggested settings, a run folder, and the newest checkpoint restored.

        Before that, checkpoints of finished trials that are not needed any more are deleted, see `tidy`.
        """
        tidy(trial.study, self.artifacts, self.definition.service.keep_best, self.remote)
        config = suggest(self.definition, trial)
        config = config.model_copy(update={"seed": self._seed(trial, config.seed)})
        identity = Identity(self.definition.name, given(trial.study).value)
        folder = RunFolder(identity.claim(self.artifacts) / f"{trial.number:05d}")
        return TrialRun(
            self.definition, config, self.data, self.device, folder, trial, token, self._store, self.remote, identity
        )

    def _seed(self, trial: Trial, usual: int) -> int:
        """The training seed of `trial`.

        The seed is `usual` if every trial has its own seed, or if the seed is fixed or searched. Otherwise new settings
        get the study's first seed, and each repeat of these settings gets the study's next seed: equal settings with an
        equal seed would train the same network twice. A trial that changes its worker keeps its seed.
        """
        definition = self.definition
        if definition.seeds == "each" or "seed" in definition.fixed or "seed" in definition.search:
            return usual
        if SEED in trial.user_attrs:
            return int(trial.user_attrs[SEED])
        key = key_of(definition, trial.params)
        # A trial with other names of parameters has other settings, or has not suggested all of its settings yet.
        names = trial.params.keys()
        trials = trial.study.get_trials(deepcopy=False)
        earlier = [other for other in trials if other.number < trial.number and other.params.keys() == names]
        return trial_seed(definition.seed, sum(key_of(definition, other.params) == key for other in earlier))

    def __call__(self, trial: Trial) -> float:
        """The trial's value, dB; TrialPruned if the pruner ends the trial or the loss diverges."""
        run = self.open(trial)
        try:
            for result in run.run():
                run.save()
                trial.report(run.value_of(result.row()), result.epoch)
                if trial.should_prune() and result.epoch < run.epochs:
                    reason = f"pruned at epoch {result.epoch}"
                    self._close(run, "pruned", reason)
                    raise optuna.TrialPruned(reason)
        except Diverged as error:
            self._close(run, "failed", str(error), diverged=1.0)
            trial.set_user_attr("failed", "diverged")
            raise optuna.TrialPruned(str(error)) from error
        self._close(run, "complete", "all epochs trained")
        return run.final_value()

    def _close(self, run: TrialRun, state: Literal["complete", "pruned", "failed"], reason: str, **bad: float) -> None:
        for key in CONSTRAINTS:
            run.trial.set_constraint(key, bad.get(key, 0.0))
        run.trial.set_user_attr("epochs_done", run.epoch)
        run.trial.set_user_attr("reason", reason)
        run.finish(state, reason)

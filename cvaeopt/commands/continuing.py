"""The trial of a study that retrain continues with --study and --trial."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cvaeopt.commands.failure import writing
from cvaeopt.commands.opening import open_study
from cvaeopt.commands.places import Flags
from cvaeopt.commands.results import bring
from cvaeopt.errors import SettingsError
from cvaeopt.terminal.console import Console

if TYPE_CHECKING:
    from cvaeopt.config import Config
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome.recipe import Recipe
    from cvaeopt.vae.dataset import Dataset


@dataclass(frozen=True)
class TrialToContinue:
    """A complete trial, and the folder of the run that continues it.

    name      name of the trial in the run's provenance
    recipe    the settings that the trial was trained with, and where they come from
    trained   number of epochs that the trial has trained; None if its checkpoint is not needed or not here
    source    path of the trial's checkpoint; it is not needed once the run has begun
    data      data folder; None if none was given
    gpu       index of the GPU, or "cpu"; None for the default
    """

    name: str
    recipe: Recipe
    folder: RunFolder
    source: Path
    trained: int | None
    data: Path | None
    gpu: str | None

    def check(self, console: Console, config: Config) -> None:
        """Raise SettingsError if a run of `config` cannot continue the trial. Say which schedules differ."""
        from cvaeopt.outcome import continuing

        own = self.recipe.settings
        if self.folder.last.exists():  # these were said when the run began
            return
        trained = own.num_epoch if self.trained is None else self.trained
        continuing.check(own, config, trained, self.recipe.provenance["trial"])
        for sentence in continuing.departures(own, config, trained):
            console.warn(sentence)

    def start(self, config: Config, data: Dataset) -> None:
        """Begin the run with a copy of the trial's checkpoint, unless the run has begun already."""
        from cvaeopt.outcome import continuing

        if not self.folder.last.exists():
            with writing(self.folder.root, folder=True):
                provenance = {"recipe": self.name, **self.recipe.origin}
                continuing.start(self.source, config, data, self.folder, provenance)


def require_alone(*others: object) -> None:
    """Raise SettingsError if a value of another kind of run (recipe, --from, --output) is given beside a trial."""
    if any(other is not None for other in others):
        raise SettingsError(
            "--study and --trial are given beside a recipe, --from or --output.",
            "Expected: one of them. A trial brings its own settings and weights.",
            "Leave the others out.",
        )


def locate_trial(
    console: Console, flags: Flags, number: int | None, epochs: int | None, out: Path | None, *, dry_run: bool
) -> TrialToContinue:
    """The trial of the flags' study, with its checkpoint on this machine.

    A dry run copies no checkpoint from the object store; the settings then come from the database. A run that has begun
    does not need the trial's checkpoint any more.
    """
    if flags.study is None or number is None or epochs is None:
        raise SettingsError(
            "A trial is continued with --study, --trial and --epochs.",
            "Expected: all three. --epochs is the number of all epochs, those of the trial included.",
            "Such as: cvaeopt retrain --study main --trial 17 --epochs 150",
        )
    from cvaeopt.files import RunFolder
    from cvaeopt.outcome import continuing
    from cvaeopt.outcome.fetch import locate
    from cvaeopt.vae import checkpoint

    places, store = open_study(console, flags, needs=("storage", "artifacts", "checkpoints", "data"))
    located = locate(store, places.study, number, places.artifact_folder())
    recipe, trained = located.recipe, None
    folder = RunFolder(out or Path("storage") / "retrain" / f"{places.study}-{number}-{epochs}")
    config = continuing.begun(folder, recipe.provenance)
    if config is None or not folder.last.exists():
        if not dry_run:
            bring(console, located, places.checkpoints)
        if located.path.exists():
            own = checkpoint.own_part(checkpoint.read(located.path), located.path)
            config, trained = own.config, own.epoch
    if config is not None:
        recipe = replace(recipe, settings=config)
    return TrialToContinue(
        f"trial {number} of {places.study}", recipe, folder, located.path, trained, places.data, places.device
    )

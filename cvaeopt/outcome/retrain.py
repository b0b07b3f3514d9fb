"""The full run of a recipe. The run has a best and a last checkpoint, and a score sheet at its end.

    run = Retraining(resolve(recipe, 500), data, RunFolder(out), provenance=recipe.origin)
    for result in run.run():
        ...                                    # show the result
    sheet = run.finish()

The run writes retrain.json and config.json into its folder before the first epoch. After every epoch it writes best.pt
(only if this epoch is the best so far), last.pt and history.jsonl, in this order. A snapshot is written before them.

A run can be stopped at any moment and resumed. A resumed run continues after the epoch in last.pt, whatever other files
a killed run has left. On the CPU, the final weights are equal bit for bit to those of a run without an interruption.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder, write_json
from cvaeopt.outcome.predict import file_digest
from cvaeopt.outcome.recipe import Recipe, require_one_length
from cvaeopt.outcome.rolling import Noise, notes, with_output_decided
from cvaeopt.outcome.run_files import CONTINUED, RETRAIN
from cvaeopt.outcome.score import ScoreSheet, score, write
from cvaeopt.outcome.transfer import DEFAULT_TRANSFER, Transfer, transfer
from cvaeopt.pictures import snapshots as snapshot_chart
from cvaeopt.vae import checkpoint, snapshots
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.trainer import EpochResult, Trainer


def resolve(
    recipe: Recipe,
    epochs: int | None = None,
    mode: Transfer = DEFAULT_TRANSFER,
    changes: dict[str, Any] | None = None,
) -> Config:
    """The settings of the full run: the recipe's schedules are carried over to `epochs` epochs, then `changes` apply.

    epochs    default: the recipe's own number of epochs
    changes   settings of the user, e.g. {"seed": 1, "milestones": [20, 50]}; these values are trained as given and
              are not carried over

    SettingsError if a setting is not valid, or if both `epochs` and `changes` set the number of epochs.
    """
    require_one_length(epochs, changes or {})
    settings = recipe.settings if epochs is None else transfer(recipe.settings, epochs, mode)
    return Config.parse({**settings.plain(), **(changes or {})}, "The recipe with the given changes")


def differences(before: Config, after: Config) -> dict[str, str]:
    """The settings in which `before` and `after` differ: name -> 'old value -> new value'."""
    old, new = before.plain(), after.plain()
    return {name: f"{_shown(old[name])} -> {_shown(new[name])}" for name in new if old[name] != new[name]}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def with_output_of(
    start: Path | None, config: Config, data: Dataset, folder: RunFolder, *, ignore_extra: bool = False
) -> tuple[Config, tuple[str, ...]]:
    """`config` with the output that fits the run's starting weights, and sentences about it for the user.

    This function is for runs whose user sets no output. Weights that were trained with a sigmoid need a sigmoid. Other
    weights need an output without a sigmoid; linear and clamp are trained in the same way. If `folder` has a run that
    began from weights, this run keeps its output.

    start   the checkpoint with the starting weights; None for a run that does not start from weights
    """
    output = _begun_output(folder)
    if output is not None:
        return _with_output(config, output), ()
    if start is None:
        return config, ()
    loaded = with_output_decided(checkpoint.load_model(start, ignore_extra=ignore_extra), data.val, Noise.of(config))
    said = notes(loaded, start.name)
    if "sigmoid" not in (loaded.output, config.output) or loaded.output == config.output:
        return config, said
    changed = (
        f"The run trains with output = {loaded.output}, as these weights were trained, and not with the recipe's "
        f"{config.output}. --output {config.output} keeps the recipe's."
    )
    return _with_output(config, loaded.output), (*said, changed)


def _with_output(config: Config, output: str) -> Config:
    return Config.parse({**config.plain(), "output": output}, "The run")


def _begun_output(folder: RunFolder) -> str | None:
    """The output of the run in `folder`, if that run began from given weights; None otherwise."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
        if json.loads((folder.root / RETRAIN).read_text())["start"]:
            return str(json.loads(folder.config.read_text())["output"])
    return None


def require_widths(loaded: checkpoint.Loaded, config: Config, path: Path) -> None:
    """Raise SettingsError if the network of the checkpoint `path` has other widths than the run's settings `config`."""
    settings = config.plain()
    for name, width in loaded.model.widths.items():
        if settings[name] != width:
            raise SettingsError(
                f"The network of {path} has {name} = {width}.",
                f"Expected: {name} = {settings[name]}, as the run that shall start from it.",
                f"Use --set {name}={width}, or another checkpoint.",
            )


class Retraining:
    """A run of `config` on `data` in `folder`, new or continued.

    start         a checkpoint of cvaeopt or of the lab; a new run starts from its weights
    ignore_extra  ignore the tensors of `start` that do not belong to this network
    patience      stop the run after this number of epochs without a better `metric`; None: never
    metric        the figure that defines the best epoch: 'val_psnr' or 'val_psnr_late'
    kept          the epochs whose checkpoints stay in the folder, see `vae.snapshots`
    provenance    the provenance of the settings (`Recipe.origin`), which is stored in the checkpoints

    SettingsError if the folder contains a run with other settings or other starting weights.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        folder: RunFolder,
        *,
        device: torch.device | str = "cpu",
        start: Path | None = None,
        ignore_extra: bool = False,
        patience: int | None = None,
        metric: str = "val_psnr",
        kept: Collection[int] = (),
        provenance: dict[str, Any] | None = None,
    ) -> None:
        if patience is not None and patience < 1:
            raise SettingsError(f"patience = {patience}.", "Expected: at least 1 epoch.")
        if metric not in ("val_psnr", "val_psnr_late"):
            raise SettingsError(f"metric = {metric!r}.", "Expected: 'val_psnr' or 'val_psnr_late'.")
        self.config = config
        self.data = data
        self.folder = folder
        self.patience = patience
        self.metric = metric
        self.kept = kept
        self._device = device
        begun_from = file_digest(start) if start is not None else None
        begun_from = self._check_folder(begun_from)
        self.first = self._first_epoch()
        self.provenance = {
            **(provenance or {}),
            "settings_digest": config.digest(),
            "data_digest": data.digest,
            "seed": config.seed,
            "start": begun_from,
            **({CONTINUED: self.first} if self.first else {}),
            "version": __version__,
        }
        self.trainer = Trainer(config, data, device)
        self.resumed_at = 0
        if folder.last.exists():
            self.trainer.restore(folder.last)
            self.resumed_at = self.trainer.epoch
        elif start is not None:
            loaded = checkpoint.load_model(start, ignore_extra=ignore_extra)
            require_widths(loaded, config, start)
            self.trainer.start_from(loaded.model.state_dict())

    @property
    def epoch(self) -> int:
        """The number of finished epochs, including the epochs before a resume."""
        return self.trainer.epoch

    @property
    def best(self) -> dict[str, Any] | None:
        """The history's row of the best epoch so far; None before the first epoch.

        Of a continued trial, only the last epoch and later epochs count, because the others left no checkpoint.
        """
        rows = self.trainer.history[max(self.first - 1, 0) :]
        return max(rows, key=lambda row: float(row[self.metric]), default=None)

    @property
    def missed(self) -> list[int]:
        """The epochs of `kept` that were trained before without a snapshot, for example by a run without `kept`."""
        root = self.folder.root
        return sorted(
            epoch for epoch in self.kept if epoch <= self.epoch and not snapshots.path_of(root, epoch).exists()
        )

    @property
    def finished(self) -> bool:
        """Whether the run is over: all epochs are finished, or `patience` epochs brought no better value."""
        return self._nothing_left()

    def _nothing_left(self) -> bool:
        if self.epoch >= self.config.num_epoch:
            return True
        best = self.best
        return self.patience is not None and best is not None and self.epoch - best["epoch"] >= self.patience

    def run(self) -> Iterator[EpochResult]:
        """Train the remaining epochs. Each epoch is saved before its result is yielded.

        A finished run yields nothing. OSError if an epoch cannot be saved. Diverged if a loss, a gradient or a PSNR is
        not finite; the checkpoints of the epochs before are kept.
        """
        if not self.folder.config.exists():
            write_json(self.folder.root / RETRAIN, {"kind": "retrain", **self.provenance})
            write_json(self.folder.config, self.config.plain())
        self.folder.write_history(self.trainer.history)
        if self.finished:
            return
        for result in self.trainer.run():
            if result.epoch in self.kept:
                snapshots.keep(self.trainer, self.folder.root, self.provenance)
            best = self.best
            if best is not None and best["epoch"] == result.epoch:
                self.trainer.save(self.folder.best, self.provenance)
            self.trainer.save(self.folder.last, self.provenance)
            self.folder.write_history(self.trainer.history)
            yield result
            if self._nothing_left():
                return

    def finish(self) -> ScoreSheet:
        """The score of best.pt. This method also writes score.json and its pictures into the run's folder."""
        sheet = score(self.folder.best, self.data, device=self._device)
        write(sheet, self.data, self.folder.root)
        root, levels = self.folder.root, sheet.baselines.plain()
        snapshot_chart.write(root, levels, title=root.name, kinds=("png", "svg", "pdf"))
        return sheet

    def _first_epoch(self) -> int:
        """The number of epochs with which the run in the folder began; 0 unless it continues a trial."""
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            return int(json.loads((self.folder.root / RETRAIN).read_text()).get(CONTINUED, 0))
        return 0

    def _check_folder(self, begun_from: str | None) -> str | None:
        """The digest of the weights from which the run in the folder started; None if it started without weights.

        SettingsError if the folder contains a run with other settings or other starting weights, or if its files
        cannot be read.
        """
        if not self.folder.config.exists():
            if self.folder.last.exists():
                raise SettingsError(
                    f"{self.folder.root} holds {self.folder.last.name} but no {self.folder.config.name}.",
                    "Expected: an empty folder, or one that retrain wrote.",
                    "Name another folder.",
                )
            return begun_from
        try:
            stored = dict(json.loads(self.folder.config.read_text()))
            facts = dict(json.loads((self.folder.root / RETRAIN).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(
                f"{self.folder.root} cannot be continued: {error}.",
                f"Expected: {self.folder.config.name} and {RETRAIN}, as retrain writes them.",
                "Name another folder.",
            ) from None
        mine = self.config.plain()
        # A setting that is missing, because an older version wrote the file, gets its default.
        stored = Config.parse(stored, str(self.folder.config)).plain()
        if names := [name for name in mine if stored[name] != mine[name]]:
            raise SettingsError(
                f"{self.folder.root} holds a run of other settings (digest {facts.get('settings_digest')}; "
                f"{', '.join(names)} differ).",
                f"Expected: {self.config.digest()}, the settings of this run.",
                "Name another folder, or give the recipe, epochs and transfer of that run.",
            )
        if facts.get("start") != begun_from and begun_from is not None:
            raise SettingsError(
                f"{self.folder.root} holds a run that started from other weights ({facts.get('start')}).",
                f"Expected: {begun_from}, the weights given now.",
                "Name another folder.",
            )
        return str(facts["start"]) if facts.get("start") else None

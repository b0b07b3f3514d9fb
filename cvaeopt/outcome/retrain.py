"""The full run of a recipe: resumable at any moment, best and last checkpoints, a score sheet at its end.

    run = Retraining(resolve(recipe, 500), data, RunFolder(out), provenance=recipe.origin)
    for result in run.run():
        ...                                    # show it
    sheet = run.finish()

The folder: config.json and retrain.json first, then after every epoch best.pt (when it is the best so far),
last.pt and history.jsonl, in this order. last.pt is the commit mark: whatever a kill leaves behind, the run goes
on after the epoch that last.pt holds, and on the CPU it ends with the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder, write_json
from cvaeopt.outcome.predict import file_digest
from cvaeopt.outcome.recipe import Recipe
from cvaeopt.outcome.rolling import Noise, notes, with_output_decided
from cvaeopt.outcome.run_files import RETRAIN
from cvaeopt.outcome.score import ScoreSheet, score, write
from cvaeopt.outcome.transfer import DEFAULT_TRANSFER, Transfer, transfer
from cvaeopt.vae import checkpoint
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.trainer import EpochResult, Trainer


def resolve(
    recipe: Recipe,
    epochs: int | None = None,
    mode: Transfer = DEFAULT_TRANSFER,
    changes: dict[str, Any] | None = None,
) -> Config:
    """The settings of the full run: the recipe's schedules carried over to `epochs` epochs, then `changes`.

    epochs    default: the recipe's own
    changes   settings as the user wants them trained, e.g. {"seed": 1, "milestones": [20, 50]}: nothing is carried
              over in them; SettingsError as everywhere
    """
    if epochs is not None and changes and "num_epoch" in changes:
        raise SettingsError(
            f"num_epoch = {changes['num_epoch']!r} is set beside --epochs {epochs}.",
            "Expected: the number of epochs once.",
            "Leave num_epoch out: --epochs sets it and carries the schedules over.",
        )
    settings = recipe.settings if epochs is None else transfer(recipe.settings, epochs, mode)
    return Config.parse({**settings.plain(), **(changes or {})}, "The recipe with the given changes")


def differences(before: Config, after: Config) -> dict[str, str]:
    """Every setting in which `after` differs, as 'before -> after'."""
    old, new = before.plain(), after.plain()
    return {name: f"{_shown(old[name])} -> {_shown(new[name])}" for name in new if old[name] != new[name]}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def with_output_of(
    start: Path | None, config: Config, data: Dataset, folder: RunFolder, *, ignore_extra: bool = False
) -> tuple[Config, tuple[str, ...]]:
    """`config` with the output of the weights that the run begins with, and what its user should know of it.

    For runs whose user sets no output. Weights that were trained with a sigmoid need one and others need none; linear
    and clamp are trained alike. A run in `folder` that began from weights goes on with the output it has.
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
    """The output of the run in `folder` if it has begun from given weights."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, IndexError):
        if json.loads((folder.root / RETRAIN).read_text())["start"]:
            return str(json.loads(folder.config.read_text())["output"])
    return None


def require_widths(loaded: checkpoint.Loaded, config: Config, path: Path) -> None:
    """SettingsError unless the checkpoint's network has the widths of the run that shall start from it."""
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

    start      a checkpoint (ours or the lab's) whose weights a new run starts from; `ignore_extra` leaves out tensors
               of it that this network has not
    patience   stop after so many epochs without a better `metric` (None: never)
    metric     what "best" means: 'val_psnr' or 'val_psnr_late'
    provenance  of the settings (`Recipe.origin`); goes into the checkpoints
    SettingsError when the folder holds a run of other settings or other starting weights.
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
        self._device = device
        begun_from = file_digest(start) if start is not None else None
        begun_from = self._check_folder(begun_from)
        self.provenance = {
            **(provenance or {}),
            "settings_digest": config.digest(),
            "data_digest": data.digest,
            "seed": config.seed,
            "start": begun_from,
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
        """Epochs finished, those before a resume included."""
        return self.trainer.epoch

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch so far, or None."""
        return max(self.trainer.history, key=lambda row: float(row[self.metric]), default=None)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train: all epochs done, or the patience is used up."""
        return self._nothing_left()

    def _nothing_left(self) -> bool:
        if self.epoch >= self.config.num_epoch:
            return True
        best = self.best
        return self.patience is not None and best is not None and self.epoch - best["epoch"] >= self.patience

    def run(self) -> Iterator[EpochResult]:
        """Train what is left; each epoch is saved before it is yielded. OSError when it cannot be saved.

        A finished run yields nothing. Raises Diverged when a loss is not finite; the last good epoch stays.
        """
        if not self.folder.config.exists():
            write_json(self.folder.root / RETRAIN, {"kind": "retrain", **self.provenance})
            write_json(self.folder.config, self.config.plain())
        self.folder.write_history(self.trainer.history)
        if self.finished:
            return
        for result in self.trainer.run():
            best = self.best
            if best is not None and best["epoch"] == result.epoch:
                self.trainer.save(self.folder.best, self.provenance)
            self.trainer.save(self.folder.last, self.provenance)
            self.folder.write_history(self.trainer.history)
            yield result
            if self._nothing_left():
                return

    def finish(self) -> ScoreSheet:
        """The score of best.pt; score.json and its pictures are written into the folder."""
        sheet = score(self.folder.best, self.data, device=self._device)
        write(sheet, self.data, self.folder.root)
        return sheet

    def _check_folder(self, begun_from: str | None) -> str | None:
        """Digest of the weights that the run in the folder started from; SettingsError if it is another run."""
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
        stored = Config.parse(stored, str(self.folder.config)).plain()  # what an older version lacks has its default
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

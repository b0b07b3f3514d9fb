"""One run: iterate epochs, yield results. Whoever consumes the iterator owns the policy.

    trainer = Trainer(config, dataset, "cuda:0")
    for result in trainer.run():
        trainer.save(folder.last)

Every random draw derives from (seed, purpose, epoch), so a run that is saved and restored between any two epochs
continues as if it had never stopped, bit for bit on the CPU.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError, DataError, Diverged
from cvaeopt.vae import checkpoint
from cvaeopt.vae import device as devices
from cvaeopt.vae.cpu_step import Lanes, one_thread
from cvaeopt.vae.dataset import Dataset, clip_starts, require_clips
from cvaeopt.vae.loss import ClipLoss, FreeStep, clip_loss
from cvaeopt.vae.metrics import late_mean, psnr_per_frame
from cvaeopt.vae.model import CVAE, Statistics, check_weights
from cvaeopt.vae.rollout import (
    evaluation,
    generator,
    noise,
    recalibrate,
    roll_chunks,
    to_float,
    to_pixels,
)
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at

VAL_STATISTICS: dict[str, Statistics] = {"recalibrated": "stored", "running": "stored", "own": "own"}


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch; the fields are the keys of history.jsonl.

    epoch            epochs finished, so the first is 1
    lr, tfr, beta    in force during the epoch
    teacher_forced   fraction of the steps that were forced, in [0, 1]
    train_loss       mean over steps of the loss per predicted frame, train_mse + beta * train_kl
    val_psnr         free-running, mean over frames 1.. of the PSNR of each, dB
    val_psnr_late    the same over the last third of the frames, dB
    seconds          wall time of the epoch, validation included
    """

    epoch: int
    lr: float
    tfr: float
    teacher_forced: float
    beta: float
    train_loss: float
    train_mse: float
    train_kl: float
    val_psnr: float
    val_psnr_late: float
    seconds: float

    def row(self) -> dict[str, Any]:
        """The result as a plain dict."""
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """A free-running roll-out of the validation video.

    psnr_frames   (V - 1,) dB, float32 on the CPU
    frames        (V - 1, 3, H, W) uint8 on the CPU, or None if they were not asked for
    """

    psnr_frames: Tensor
    frames: Tensor | None

    @property
    def mean(self) -> float:
        """Mean over frames of the PSNR of each, dB."""
        return float(self.psnr_frames.double().mean())

    @property
    def late(self) -> float:
        """The same over the last third of the frames, dB."""
        return late_mean(self.psnr_frames)


class _Resident:
    """A data set as uint8 tensors on a device, shared by all runs of a process."""

    _latest: tuple[tuple[str, str, str], _Resident] | None = None

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.train_frames = _pixels(data.train.frames, device)
        self.train_labels = _pixels(data.train.labels, device)
        self.val_frames = _pixels(data.val.frames, device)
        self.val_labels = _pixels(data.val.labels, device)

    @classmethod
    def of(cls, data: Dataset, device: torch.device) -> _Resident:
        """The tensors of `data` on `device`; the same object as last time for the same data."""
        key = (str(data.root), data.digest, f"{device}{data.train.frames.shape}")
        if cls._latest is None or cls._latest[0] != key:
            cls._latest = None  # free the old one before the new one is made
            cls._latest = (key, cls(data, device))
        return cls._latest[1]


class Trainer:
    """One training run of `config` on `data`.

    data      frames must be of config.frame_H x config.frame_W
    device    'cpu', 'cuda:0', ...
    free_step how free-running steps are computed (equal results): None chooses what was measured to be faster
    Raises DataError if the training video has no clip, or fewer than one batch.
    """

    def __init__(
        self,
        config: Config,
        data: Dataset,
        device: torch.device | str = "cpu",
        free_step: FreeStep | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.device = torch.device(device)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.free_step: FreeStep = free_step or ("replay" if self.device.type == "cuda" else "sequential")
        require_clips(data, config.train_vi_len, config.partial)
        starts = clip_starts(len(data.train), config.train_vi_len, config.partial)
        if len(starts) < config.batch_size:
            raise DataError(
                f"{data.root}: {len(starts)} clips of {config.train_vi_len} frames.",
                f"Expected: at least one batch of {config.batch_size}.",
                "Lower batch_size, raise partial or add frames.",
            )
        self._starts = torch.tensor(starts, device=self.device)
        self._data = _Resident.of(data, self.device)
        used = starts[-1] + config.train_vi_len
        self._calibration_labels = self._data.train_labels[:used]
        self.model = CVAE.of(config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._lanes: Lanes | None = None
        self.averaged: CVAE | None = copy.deepcopy(self.model) if config.ema else None
        self.optimizer = _optimizer(config, self.model, self.device)
        self._z = noise(
            config.val_noise,
            config.val_noise_scale,
            config.val_noise_seed,
            len(data.val) - 1,
            config.N_dim,
            config.frame_H,
            config.frame_W,
        )
        if self.device.type == "cuda":
            mode = "ieee" if config.precision == "fp32" else "tf32"
            torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = mode

    def run(self, until_epoch: int | None = None) -> Generator[EpochResult, None, None]:
        """Train and validate epoch after epoch until `until_epoch` (default: config.num_epoch) are finished.

        Raises Diverged, with the epoch, when a loss or the PSNR is not finite.
        """
        last = self.config.num_epoch if until_epoch is None else min(until_epoch, self.config.num_epoch)
        while self.epoch < last:
            began = time.perf_counter()
            forced, mse, kl = self._train_epoch()
            beta = beta_at(self.config, self.epoch)
            self._require_finite("The training loss", mse + beta * kl)
            validation = self.validate(frames=False)
            self._require_finite("The validation PSNR", validation.mean)
            result = EpochResult(
                epoch=self.epoch + 1,
                lr=lr_at(self.config, self.epoch),
                tfr=tfr_at(self.config, self.epoch),
                teacher_forced=forced,
                beta=beta,
                train_loss=mse + beta * kl,
                train_mse=mse,
                train_kl=kl,
                val_psnr=validation.mean,
                val_psnr_late=validation.late,
                seconds=time.perf_counter() - began,
            )
            self.epoch += 1
            self.history.append(result.row())
            yield result

    def validate(self, frames: bool = True) -> Validation:
        """The free-running roll-out of the validation video with the weights and statistics that count."""
        with self._processor():
            return self._validate(self.validated_model(), frames)

    def _validate(self, model: CVAE, frames: bool) -> Validation:
        truth = self._data.val_frames[1:]
        score, pictures = [], []
        with evaluation(model), self._autocast():
            done = 0
            for piece in roll_chunks(
                model,
                to_float(self._data.val_frames[:1]).contiguous(memory_format=torch.channels_last),
                self._data.val_labels[None, 1:],
                self._z[None],
                self.config.output,
                VAL_STATISTICS[self.config.val_statistics],
            ):
                piece = piece[0].float()
                score.append(psnr_per_frame(piece, to_float(truth[done : done + len(piece)])))
                done += len(piece)
                if frames:
                    pictures.append(to_pixels(piece).cpu())
        return Validation(torch.cat(score).cpu(), torch.cat(pictures) if frames else None)

    def validated_model(self) -> CVAE:
        """The weights that validation and prediction use: averaged if `ema` is on, statistics per `val_statistics`.

        With `recalibrated` it is a copy, so that the running averages of training go on undisturbed.
        """
        model = self.averaged or self.model
        if self.config.val_statistics == "recalibrated":
            model = copy.deepcopy(model)
            with self._autocast():
                recalibrate(model, self._calibration_labels)
        return model

    def save(self, path: Path, provenance: dict[str, Any] | None = None) -> None:
        """Write a checkpoint of this moment, whole or not at all (OSError when the disk is full)."""
        validated = _plain_weights(self.recalibrated_model())
        training = _plain_weights(self.model)
        epoch = max(0, self.epoch - 1)
        own = {
            "format": checkpoint.FORMAT,
            "version": __version__,
            "config": self.config.plain(),
            "epoch": self.epoch,
            "history": self.history,
            "training": {key: value for key, value in training.items() if not torch.equal(value, validated[key])},
            "data_digest": self.data.digest,
            "provenance": provenance or {},
        }
        checkpoint.write(
            path,
            {
                "state_dict": validated,
                "optimizer": self.optimizer.state_dict(),
                "lr": lr_at(self.config, epoch),
                "tfr": tfr_at(self.config, epoch),
                "last_epoch": self.epoch,
                "cvaeopt": own,
            },
        )

    def recalibrated_model(self) -> CVAE:
        """A copy of the validated weights with recalibrated statistics, whatever `val_statistics` says.

        What is saved is always recalibrated: the lab's tester, in evaluation mode, then gets the full quality.
        """
        model = copy.deepcopy(self.averaged or self.model)
        with self._autocast():
            recalibrate(model, self._calibration_labels)
        return model

    def restore(self, path: Path) -> None:
        """Continue from the checkpoint at `path`; CheckpointError if it is of another run."""
        saved = checkpoint.continuation(path)
        if reason := checkpoint.other_run(saved.own, self.config, self.data.digest):
            raise CheckpointError(
                f"{path} {reason[0]}.",
                f"Expected: {reason[1]}.",
                "Use another folder, or the settings and the data of that run.",
            )
        training = {**saved.weights, **saved.training}
        try:
            check_weights(self.model, saved.weights)
            check_weights(self.model, training)
            moments = checkpoint.fitting_moments(self.optimizer, saved.optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.found}", error.expected, error.todo) from None
        self.model.load_state_dict(training)
        if self.averaged is not None:
            statistics = {key: training[key] for key, _ in self.averaged.named_buffers()}
            self.averaged.load_state_dict({**saved.weights, **statistics})
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.epoch = saved.own.epoch
        self.history = [dict(row) for row in saved.own.history]

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Take `weights` as the starting point of a new run; CheckpointError names the first that does not fit."""
        check_weights(self.model, weights)
        self.model.load_state_dict(weights)
        if self.averaged is not None:
            self.averaged.load_state_dict(weights)

    def _train_epoch(self) -> tuple[float, float, float]:
        """Fraction of forced steps, mean squared error and KL per frame, averaged over the epoch's steps."""
        with self._processor():
            return self._train_steps()

    def _train_steps(self) -> tuple[float, float, float]:
        config, epoch = self.config, self.epoch
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(config, epoch)
        beta = beta_at(config, epoch)
        order = torch.arange(len(self._starts))
        if config.shuffle:
            order = torch.randperm(len(order), generator=generator("cpu", "clip order", config.seed, epoch))
        steps = len(order) // config.batch_size  # an incomplete last batch is left out, as in the lab's loader
        coins = self._coins(steps)
        draws = generator(self.device, "posterior noise", config.seed, epoch)
        window = torch.arange(config.train_vi_len, device=self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        order = order.to(self.device)
        skipped = 0
        self.model.train()
        for step in range(steps):
            chosen = self._starts[order[step * config.batch_size : (step + 1) * config.batch_size]]
            rows = (chosen[:, None] + window).flatten()
            shape = (config.batch_size, config.train_vi_len)
            frames = _channels_last(to_float(self._data.train_frames[rows])).unflatten(0, shape)
            labels = _channels_last(to_float(self._data.train_labels[rows])).unflatten(0, shape)
            eps = torch.randn(
                (config.batch_size, config.train_vi_len - 1, config.N_dim, config.frame_H, config.frame_W),
                generator=draws,
                device=self.device,
            )
            loss = self._backward(frames, labels, eps, beta, coins[step])
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
            # Asking costs a wait for the device at every step, so only those who want it pay.
            if config.skip_steps and not bool(torch.isfinite(norm)):
                skipped += 1
                if skipped > config.skip_steps:
                    raise Diverged(f"The gradient of {skipped} steps", float(norm), epoch)
                continue
            self.optimizer.step()
            if self.averaged is not None:
                self._average(self.averaged, epoch * steps + step + 1)
            sums += torch.stack([loss.mse, loss.kl]).detach()
        if skipped == steps:  # fewer steps than `skip_steps` allows: nothing was trained, and there is no loss
            raise Diverged(f"The gradient of all {steps} steps", float(norm), epoch)
        mse, kl = (sums / (steps - skipped)).tolist()  # the only wait for the device in an epoch
        return sum(coins) / steps, mse, kl

    def _backward(self, frames: Tensor, labels: Tensor, eps: Tensor, beta: float, forced: bool) -> ClipLoss:
        """The loss terms of one step, with the gradient of its total in every parameter."""
        config = self.config
        statistics: Statistics = "batch" if config.label_bn == "clip" else "frame"
        if self._lanes is not None:
            return self._lanes.backward(
                self.model,
                frames,
                labels,
                eps,
                beta,
                forced=forced,
                output=config.output,
                kl_norm=config.kl_norm,
                statistics=statistics,
                free_step=self.free_step,
            )
        with self._autocast():
            loss = clip_loss(
                self.model,
                frames,
                labels,
                eps,
                forced=forced,
                output=config.output,
                kl_norm=config.kl_norm,
                statistics=statistics,
                free_step=self.free_step,
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.total(beta).backward()
        return loss

    @contextlib.contextmanager
    def _processor(self) -> Iterator[None]:
        """On a CPU: threads for the clips of a step, none inside an operation; elsewhere nothing.

        Mixed precision is for GPUs; on a CPU it takes their path, so that its results can be looked at anywhere.
        """
        if self.device.type != "cpu" or self.config.precision == "bf16":
            yield
            return
        lanes = Lanes(devices.threads())
        try:
            with one_thread():
                self._lanes = lanes
                yield
        finally:
            self._lanes = None
            lanes.close()

    def _coins(self, steps: int) -> list[bool]:
        """Which steps of this epoch are teacher forced: one coin for all, or one each."""
        draws = generator("cpu", "forcing coin", self.config.seed, self.epoch)
        rate = tfr_at(self.config, self.epoch)
        if self.config.tfr_coin == "epoch":
            return [bool(torch.rand((), generator=draws) < rate)] * steps
        return [bool(coin) for coin in torch.rand(steps, generator=draws) < rate]

    @torch.no_grad()
    def _average(self, averaged: CVAE, done: int) -> None:
        """Move the averaged weights after the run's step `done`; the first ones evenly, so the start is soon forgotten.

        The BatchNorm's running averages are those of training: they are averages already.
        """
        decay = min(self.config.ema, done / (done + 9))
        torch._foreach_lerp_(list(averaged.parameters()), list(self.model.parameters()), 1 - decay)
        for kept, latest in zip(averaged.buffers(), self.model.buffers(), strict=True):
            kept.copy_(latest)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.config.precision == "bf16",
        )

    def _require_finite(self, quantity: str, value: float) -> None:
        if not math.isfinite(value):
            raise Diverged(quantity, value, self.epoch)


def _optimizer(config: Config, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of `config`, fused where torch has it."""
    parameters = list(model.parameters())
    decay = config.weight_decay
    if config.optim == "SGD":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=decay, fused=True)
    if config.optim == "Adamax":
        return torch.optim.Adamax(parameters, config.lr, weight_decay=decay)
    kind = torch.optim.AdamW if config.optim == "AdamW" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=decay, fused=True)


def _pixels(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on `device`; on the CPU the same memory, so that processes that map one decoded file share its pages."""
    with warnings.catch_warnings():
        # The mapped file is read-only and torch knows no such tensors; nothing here ever writes into it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` on the CPU in the ordinary memory layout."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}

"""One training run, as an iterator over the epochs. The caller decides what to do with the result of each epoch.

    trainer = Trainer(config, dataset, "cuda:0")
    for result in trainer.run():
        trainer.save(folder.last)

Every random draw is derived from (seed, purpose, epoch). So a run may be saved and restored between two epochs, and the
results equal those of a run without interruption. On a CPU the results are equal bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError, Diverged
from cvaeopt.vae import checkpoint
from cvaeopt.vae import device as devices
from cvaeopt.vae.cpu_step import StepThreads, one_thread
from cvaeopt.vae.dataset import Dataset, require_batch
from cvaeopt.vae.device_data import DeviceData
from cvaeopt.vae.loss import ClipLoss, FreeStep, LossSettings, clip_loss
from cvaeopt.vae.model import CVAE, check_weights
from cvaeopt.vae.rollout import generator, noise, recalibrate, to_float
from cvaeopt.vae.schedules import beta_at, lr_at, tfr_at
from cvaeopt.vae.validation import Validation, validate


@dataclass(frozen=True)
class EpochResult:
    """The result of one finished epoch. The fields are the keys of history.jsonl.

    epoch            number of finished epochs; 1 after the first epoch
    lr, tfr, beta    the values that were used during the epoch
    teacher_forced   fraction of the steps with teacher forcing, in [0, 1]
    train_loss       loss per predicted frame, averaged over the steps: train_mse + beta * train_kl
    val_psnr         mean PSNR of the predicted validation frames, dB
    val_psnr_late    mean PSNR of the last third of these frames, dB
    val_mse          mean squared error of the predicted validation frames
    seconds          wall time of the epoch including validation
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
    val_mse: float
    seconds: float

    def row(self) -> dict[str, Any]:
        return asdict(self)


class Trainer:
    """One training run of `config` on `data`.

    data        videos of config.frame_H x config.frame_W pixels
    device      'cpu', 'cuda:0', ...

    DataError if the training video has too few clips for one batch.
    """

    def __init__(self, config: Config, data: Dataset, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.data = data
        self.device = torch.device(device)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        # Both ways give equal results. Each kind of device uses the way that was faster in measurements.
        self.free_step: FreeStep = "replay" if self.device.type == "cuda" else "sequential"
        starts = require_batch(data, config)
        self._starts = torch.tensor(starts, device=self.device)
        self._data = DeviceData.of(data, self.device)
        used = starts[-1] + config.train_vi_len
        self._calibration_labels = self._data.train_labels[:used]
        self.model = CVAE.of(config).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._threads: StepThreads | None = None
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
            _set_precision(config.precision)

    def run(self, until_epoch: int | None = None) -> Generator[EpochResult, None, None]:
        """Train and validate until `until_epoch` epochs are finished. Yield the result of each epoch.

        until_epoch   at most config.num_epoch, which is the default

        Diverged if a loss or the PSNR is not finite, or if the gradient is not finite in more than `skip_steps` steps.
        """
        last = self.config.num_epoch if until_epoch is None else min(until_epoch, self.config.num_epoch)
        while self.epoch < last:
            began = time.perf_counter()
            forced, mse, kl = self._train_epoch()
            beta = beta_at(self.config, self.epoch)
            _require_finite("The training loss", mse + beta * kl, self.epoch)
            validation = self.validate(frames=False)
            _require_finite("The validation PSNR", validation.mean, self.epoch)
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
                val_mse=validation.mse,
                seconds=time.perf_counter() - began,
            )
            self.epoch += 1
            self.history.append(result.row())
            yield result

    def validate(self, frames: bool = True) -> Validation:
        """Predict and score the validation video with `validated_model`; see `validation.validate`."""
        with self._cpu_threads():
            model = self.validated_model()
            with self._autocast():
                return validate(model, self.config, self._data, self._z, frames)

    def validated_model(self) -> CVAE:
        """The network for validation. It has averaged weights if `ema` is on.

        If `val_statistics` is "recalibrated", the network is a copy with recalibrated BatchNorm statistics. A copy is
        needed so that the running averages of training do not change.
        """
        if self.config.val_statistics == "recalibrated":
            return self.recalibrated_model()
        return self.averaged or self.model

    def save(self, path: Path, provenance: dict[str, Any] | None = None) -> None:
        """Write a checkpoint of the current state, whole or not at all. OSError if the disk is full."""
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
        """A copy of the network for validation with recalibrated BatchNorm statistics, for every `val_statistics`.

        Saved weights always have recalibrated statistics, because the lab's tester uses the stored statistics
        (evaluation mode).
        """
        model = copy.deepcopy(self.averaged or self.model)
        with self._autocast():
            recalibrate(model, self._calibration_labels)
        return model

    def restore(self, path: Path, *, longer: bool = False) -> None:
        """Continue from the checkpoint `path`. CheckpointError if the file is damaged or belongs to another run.

        longer   whether `path` may belong to a run with another number of epochs, see `checkpoint.other_run`
        """
        saved = checkpoint.continuation(path)
        checkpoint.require_same_run(saved.own, self.config, self.data.digest, path, longer=longer)
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
        """Start a new run from `weights`. CheckpointError names the first tensor that does not fit the network."""
        check_weights(self.model, weights)
        self.model.load_state_dict(weights)
        if self.averaged is not None:
            self.averaged.load_state_dict(weights)

    def _train_epoch(self) -> tuple[float, float, float]:
        """Train for one epoch. Return the fraction of steps with teacher forcing, and the mean MSE and KL per frame."""
        with self._cpu_threads():
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
        coins = _coins(config, epoch, steps)
        draws = generator(self.device, "posterior noise", config.seed, epoch)
        window = torch.arange(config.train_vi_len, device=self.device)
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        order = order.to(self.device)
        skipped = 0
        self.model.train()
        for step in range(steps):
            chosen = self._starts[order[step * config.batch_size : (step + 1) * config.batch_size]]
            shape = (config.batch_size, config.train_vi_len)
            rows = (chosen[:, None] + window).flatten()
            if config.clip_order == "strided":  # the tensor read as (T, B), which is what report 004's `view` does
                rows = rows.view(shape[::-1]).T.flatten()
            frames = _channels_last(to_float(self._data.train_frames[rows])).unflatten(0, shape)
            labels = _channels_last(to_float(self._data.train_labels[rows])).unflatten(0, shape)
            eps = torch.randn(
                (config.batch_size, config.train_vi_len - 1, config.N_dim, config.frame_H, config.frame_W),
                generator=draws,
                device=self.device,
            )
            loss = self._backward(frames, labels, eps, beta, coins[step])
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
            # This test waits for the device in every step, so it is made only if `skip_steps` is above 0.
            if config.skip_steps and not bool(torch.isfinite(norm)):
                skipped += 1
                if skipped > config.skip_steps:
                    raise Diverged(f"The gradient of {skipped} steps", float(norm), epoch)
                continue
            self.optimizer.step()
            if self.averaged is not None:
                _average(self.averaged, self.model, config.ema, epoch * steps + step + 1)
            sums += torch.stack([loss.mse, loss.kl]).detach()
        if skipped == steps:  # no step was trained, so there is no loss
            raise Diverged(f"The gradient of all {steps} steps", float(norm), epoch)
        mse, kl = (sums / (steps - skipped)).tolist()  # the only wait for the device in an epoch if `skip_steps` is 0
        return sum(coins) / steps, mse, kl

    def _backward(self, frames: Tensor, labels: Tensor, eps: Tensor, beta: float, forced: bool) -> ClipLoss:
        """The loss terms of one step. The gradient of the total loss is stored in every parameter's `grad`."""
        settings = LossSettings(
            forced=forced,
            output=self.config.output,
            kl_norm=self.config.kl_norm,
            statistics="batch" if self.config.label_bn == "clip" else "frame",
            free_step=self.free_step,
            posterior=self.config.posterior,
            detach=self.config.detach,
            forced_loss=self.config.forced_loss,
        )
        if self._threads is not None:
            return self._threads.backward(self.model, frames, labels, eps, beta, settings)
        with self._autocast():
            loss = clip_loss(self.model, frames, labels, eps, settings)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total(beta).backward()
        return loss

    @contextlib.contextmanager
    def _cpu_threads(self) -> Iterator[None]:
        """On a CPU: inside the block several threads compute a step, and each operation of torch uses one thread.

        On other devices, and with bf16 precision, nothing changes. Because bf16 is meant for GPUs, a CPU then computes
        a step in the same way as a GPU.
        """
        if self.device.type != "cpu" or self.config.precision == "bf16":
            yield
            return
        threads = StepThreads(devices.threads())
        try:
            with one_thread():
                self._threads = threads
                yield
        finally:
            self._threads = None
            threads.close()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")


def _coins(config: Config, epoch: int, steps: int) -> list[bool]:
    """For each step of an epoch, whether the step uses teacher forcing.

    `tfr_coin` selects one random draw for all steps of the epoch, or one random draw for each step.
    """
    draws = generator("cpu", "forcing coin", config.seed, epoch)
    rate = tfr_at(config, epoch)
    if config.tfr_coin == "epoch":
        return [bool(torch.rand((), generator=draws) < rate)] * steps
    return [bool(coin) for coin in torch.rand(steps, generator=draws) < rate]


@torch.no_grad()
def _average(averaged: CVAE, model: CVAE, ema: float, done: int) -> None:
    """Move the averaged weights towards the weights of `model`.

    done   number of finished steps of the run, including this step

    In the first steps the decay is below `ema`, so that the initial weights soon have no effect on the average. The
    running statistics of the BatchNorm are copied, because they are averages already.
    """
    decay = min(ema, done / (done + 9))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for kept, latest in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(latest)


def _require_finite(quantity: str, value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise Diverged(quantity, value, epoch)


def _set_precision(precision: str) -> None:
    """Make CUDA compute in full single precision if `precision` is "fp32", and in TF32 otherwise."""
    mode = "ieee" if precision == "fp32" else "tf32"
    torch.backends.cudnn.conv.fp32_precision = mode  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = mode


def _optimizer(config: Config, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of `config`. All kinds except Adamax use torch's fused implementation."""
    parameters = list(model.parameters())
    decay = config.weight_decay
    if config.optim == "SGD":
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=decay, fused=True)
    if config.optim == "Adamax":
        return torch.optim.Adamax(parameters, config.lr, weight_decay=decay)
    kind = torch.optim.AdamW if config.optim == "AdamW" else torch.optim.Adam
    return kind(parameters, config.lr, weight_decay=decay, fused=True)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of `model` on the CPU, in the contiguous memory layout."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}

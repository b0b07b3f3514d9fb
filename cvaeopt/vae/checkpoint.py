"""Read and write checkpoints. One file has everything that a run needs to continue, and the lab's tester can load it.

The content of a checkpoint of this program:
    state_dict, optimizer, lr, tfr, last_epoch    the lab's keys. `state_dict` has the weights for validation (averaged
                                                  if `ema` is on) with recalibrated BatchNorm statistics
    cvaeopt.format, .version                      the number of the file format, the version of the program
    cvaeopt.config                                the settings of the run
    cvaeopt.epoch, .history                       the number of finished epochs, and one row for each finished epoch
    cvaeopt.training                              the tensors of the training weights that differ from `state_dict`
    cvaeopt.data_digest                           the digest of the decoded videos
    cvaeopt.provenance                            the origin of the checkpoint (study, trial, digests, ...)

Reading a file runs no code from the file (`vae.archive`). In a lab checkpoint the weights may be under any key
(`vae.weights`). Before a run continues from a checkpoint, this module checks the content of the checkpoint.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError, SettingsError
from cvaeopt.files import whole
from cvaeopt.vae import archive
from cvaeopt.vae.model import CVAE, check_weights, widths
from cvaeopt.vae.rollout import Output
from cvaeopt.vae.schedules import first_differences
from cvaeopt.vae.weights import Weights, find, fitting, plain

FORMAT = 1

log = logging.getLogger(__name__)

Number = int | float
Model = TypeVar("Model", bound=BaseModel)


class Own(BaseModel):
    """The `cvaeopt` part of a checkpoint, checked. The lab's program does not write this part.

    config     the settings of the run; a setting that is missing in the file gets its default
    history    one row for each finished epoch, in the order of the epochs
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, arbitrary_types_allowed=True)

    format: Literal[1]
    version: str = ""
    config: Config
    epoch: int = Field(ge=0)
    history: list[dict[str, Annotated[Number, Field(allow_inf_nan=False)] | None]]
    training: dict[str, Tensor]
    data_digest: str
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("config", mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Config:
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise ValueError("the settings of a run")
        try:
            return Config.parse(given, "config")
        except SettingsError as error:
            raise ValueError(str(error)) from None

    @field_validator("history", mode="after")
    @classmethod
    def _with_figures(cls, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for number, row in enumerate(rows, 1):
            if row.get("epoch") != number or not all(isinstance(row.get(key), Number) for key in _FIGURES):
                raise ValueError(f"one row per epoch with {', '.join(_FIGURES)}; row {number} is another")
        return rows

    @model_validator(mode="after")
    def _of_one_run(self) -> Own:
        if not len(self.history) == self.epoch <= self.config.num_epoch:
            raise ValueError(f"{self.epoch} epochs of {self.config.num_epoch} with {len(self.history)} rows of history")
        return self


_FIGURES = ("lr", "train_loss", "train_mse", "val_psnr", "val_psnr_late", "seconds")
"""The keys that every row of a history must have, in addition to "epoch"."""


class OptimizerState(BaseModel):
    """The state of an optimizer, such as moments. The keys are the numbers of the parameters."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, arbitrary_types_allowed=True)

    state: dict[int, dict[str, Tensor | Number | None]]


class _Run(BaseModel):
    """The parts of a checkpoint that a run needs to continue, in addition to the weights."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, arbitrary_types_allowed=True)

    optimizer: OptimizerState
    cvaeopt: Own


@dataclass(frozen=True)
class Continuation:
    """The data from which a run continues. The structure of the data has been checked.

    weights    the weights for validation
    training   the tensors of the training weights that differ from `weights`
    """

    own: Own
    weights: dict[str, Tensor]
    training: dict[str, Tensor]
    optimizer: OptimizerState


@dataclass(frozen=True)
class Loaded:
    """A network in evaluation mode, and the other content of its checkpoint.

    config       None for a lab checkpoint, because it has no settings
    epoch        number of finished epochs, 0 if unknown
    raw          the whole content of the file
    weights      the tensors of the file, and their names in the file
    own          the `cvaeopt` part; None for a lab checkpoint
    output       the function that makes frames from the generator's output
    output_from  the source of `output`: the checkpoint's settings, the user ("given"), a comparison on the validation
                 video, or the template's default ("assumed")
    output_psnr  PSNR of each output on the validation video, dB, if the video was used
    ignored      names of tensors in the file that were left out on request
    """

    model: CVAE
    config: Config | None
    epoch: int
    provenance: dict[str, Any] = field(default_factory=dict)
    raw: Any = field(default_factory=dict, repr=False)
    weights: Weights | None = field(default=None, repr=False)
    own: Own | None = field(default=None, repr=False)
    output: Output = "linear"
    output_from: Literal["settings", "given", "validation", "assumed"] = "assumed"
    output_psnr: dict[str, float] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def write(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` to `path`, whole or not at all. OSError if the disk is full."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)  # to memory: on a full disk torch raises a RuntimeError that does not name the cause
    with whole(path) as stream:
        stream.write(buffer.getbuffer())


def read(path: Path) -> Any:
    """The content of `path`, with tensors on the CPU. CheckpointError if the file cannot be read."""
    return archive.content(path)


def load_model(
    path: Path, device: torch.device | str = "cpu", *, output: Output | None = None, ignore_extra: bool = False
) -> Loaded:
    """The network of a checkpoint of this program or of the lab, in evaluation mode on `device`.

    output        the function that makes frames from the generator's output. None: the function in the checkpoint's
                  settings, or the template's function ("linear") if there are no settings
    ignore_extra  leave out tensors that do not belong to this network, instead of raising CheckpointError

    The widths are taken from the weights. CheckpointError names the first tensor that does not fit the network.
    """
    payload = read(path)
    own = own_part(payload, path) if _is_own(payload) else None
    with _named(path):
        weights = find(payload)
        model = CVAE(**widths(weights.tensors))
        tensors, extra = fitting(weights, model.state_dict(), ignore_extra)
        check_weights(model, tensors)
    model.load_state_dict(tensors)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(False)
    source: Literal["settings", "given", "assumed"] = "given" if output else "settings" if own else "assumed"
    return Loaded(
        model,
        own.config if own else None,
        own.epoch if own else _epochs(payload),
        dict(own.provenance) if own else {},
        payload,
        weights,
        own,
        output or (own.config.output if own else "linear"),
        source,
        ignored=tuple(extra),
    )


def own_part(payload: Any, path: Path) -> Own:
    """The `cvaeopt` part of a payload. CheckpointError if this part is missing, damaged or of another format."""
    _require_own(payload, path)
    return _checked(Own, payload["cvaeopt"], path)


def continuation(path: Path) -> Continuation:
    """The data from which a run continues. CheckpointError if `path` is not a complete checkpoint of this program."""
    payload = read(path)
    _require_own(payload, path)
    run = _checked(_Run, payload, path)
    with _named(path):
        weights = find({"state_dict": payload.get("state_dict")}).tensors
        training = {name: plain(name, value) for name, value in run.cvaeopt.training.items()}
    return Continuation(run.cvaeopt, weights, training, run.optimizer)


def newest(
    paths: list[Path],
    config: Config,
    data_digest: str,
    identities: Collection[str | None] | None = None,
    *,
    longer: bool = False,
) -> Path | None:
    """The path of this run's checkpoint with the most finished epochs; None if there is no checkpoint of this run.

    identities   the identities that the study may have. A checkpoint is accepted if its provenance has one of these
                 identities. The value None in the collection accepts a checkpoint without an identity. If the argument
                 itself is None, every checkpoint is accepted.
    longer       see `other_run`

    Files that cannot be read are ignored. Checkpoints of other settings, other data or another study are ignored too.
    If all files are ignored, a warning gives the reasons.
    """
    found: list[tuple[int, Path]] = []
    passed: list[str] = []
    for path in paths:
        try:
            own = continuation(path).own
        except CheckpointError as error:
            passed.append(error.found)
            continue
        if identities is not None and own.provenance.get("identity") not in identities:
            passed.append(f"{path} belongs to another study.")
        elif reason := other_run(own, config, data_digest, longer=longer):
            passed.append(f"{path} {reason[0]}.")
        else:
            found.append((own.epoch, path))
    if passed and not found:
        log.warning("No checkpoint is continued: %s", " ".join(passed))
    return max(found)[1] if found else None


def other_run(own: Own, config: Config, data_digest: str, *, longer: bool = False) -> tuple[str, str] | None:
    """The first difference between a checkpoint and the run of `config` on the data, as (found, expected).

    None if the checkpoint belongs to this run.

    longer   whether a checkpoint of a run with another number of epochs is accepted, if every schedule agrees on the
             epochs that it has trained
    """
    theirs, mine = own.config.plain(), config.plain()
    agrees = longer and not first_differences(own.config, config, own.epoch)
    for name in mine:
        if theirs[name] != mine[name] and not (name == "num_epoch" and agrees):
            return f"was trained with {name} = {theirs[name]!r}", f"{mine[name]!r}, as this run"
    if own.data_digest != data_digest:
        return f"was trained on other data (digest {own.data_digest[:20]})", f"data of digest {data_digest}"
    return None


def require_same_run(own: Own, config: Config, data_digest: str, path: Path, *, longer: bool = False) -> None:
    """Raise CheckpointError if `other_run` finds a difference in the checkpoint `path`."""
    if reason := other_run(own, config, data_digest, longer=longer):
        raise CheckpointError(
            f"{path} {reason[0]}.",
            f"Expected: {reason[1]}.",
            "Use another folder, or the settings and the data of that run.",
        )


_MOMENTS = {
    "Adam": {"step", "exp_avg", "exp_avg_sq"},
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "Adamax": {"step", "exp_avg", "exp_inf"},
    "SGD": set[str](),
}


def fitting_moments(optimizer: torch.optim.Optimizer, saved: OptimizerState) -> dict[int, dict[str, Any]]:
    """The saved state for `optimizer`. CheckpointError names the first value that does not fit the parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    needed = _MOMENTS[type(optimizer).__name__]
    for number, moments in saved.state.items():
        if not 0 <= number < len(parameters):
            raise CheckpointError(f"The optimizer has a parameter {number}.", f"Expected: {len(parameters)} of them.")
        for name in needed | moments.keys():
            value = moments.get(name)
            shape = () if name == "step" else tuple(parameters[number].shape)
            if isinstance(value, Tensor):
                fits = tuple(value.shape) == shape and value.is_floating_point() and bool(torch.isfinite(value).all())
            else:
                fits = name not in needed
            if not fits:
                raise CheckpointError(
                    f"The optimizer's {name[:40]} of parameter {number} is missing or does not fit.",
                    f"Expected: finite numbers of shape {shape}.",
                    "Use another checkpoint of the run, or its weights alone (retrain --from).",
                )
    return saved.state


def _is_own(payload: Any) -> bool:
    return isinstance(payload, dict) and isinstance(payload.get("cvaeopt"), dict)


def _require_own(payload: Any, path: Path) -> None:
    if not _is_own(payload):
        raise CheckpointError(
            f"{path} is a lab checkpoint: it does not hold what is needed to continue a run.",
            "Expected: a checkpoint of this program.",
            "Use it as the starting weights of a new run instead (retrain --from).",
        )
    if payload["cvaeopt"].get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {str(payload['cvaeopt'].get('format'))[:40]!r}.", f"Expected: {FORMAT}."
        )


def _checked(model: type[Model], part: dict[str, Any], path: Path) -> Model:
    """`part` as an object of `model`. CheckpointError names the first key with an invalid value."""
    try:
        return model.model_validate(part)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"]) or "its parts"
        message = first["msg"].removeprefix("Value error, ")[:300]
        raise CheckpointError(
            f"{path} is damaged, or of another version of this program: {where} is not what it should be ({message}).",
            "Expected: a checkpoint as this program writes it.",
            "Use another checkpoint of the run, or its weights alone (retrain --from).",
        ) from None


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside the block, put `path` before the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.found}", error.expected, error.todo) from None


def _epochs(payload: Any) -> int:
    """The number of finished epochs in a lab checkpoint; 0 if the checkpoint does not have this number.

    The file may store the number as a Python number, an array or a tensor.
    """
    for key in ("last_epoch", "epoch", "current_epoch"):
        value = payload.get(key) if isinstance(payload, dict) else None
        if isinstance(value, Tensor):
            value = value.item() if value.numel() == 1 and not value.is_meta else None
        elif isinstance(value, np.ndarray | np.generic):
            value = value.item() if value.size == 1 else None
        if isinstance(value, int | float) and 0 <= value < 1e9:
            return int(value)
    return 0

"""One file that holds everything a run needs to continue, and that the lab's tester can load.

Payload (our own checkpoints):
    state_dict, optimizer, lr, tfr, last_epoch    the lab's keys. `state_dict` holds the validated weights
                                                  (averaged if `ema` is on), BatchNorm statistics recalibrated
    cvaeopt.format, .version                      of this file, of the program
    cvaeopt.config                                the settings of the run
    cvaeopt.epoch, .history                       epochs finished, one row each
    cvaeopt.training                              tensors of the training weights that differ from `state_dict`
    cvaeopt.provenance                            where it came from (study, trial, digests, ...)

Only tensors and plain data are read back (`weights_only`), so a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cvaeopt.config import Config
from cvaeopt.errors import CheckpointError
from cvaeopt.files import whole
from cvaeopt.vae.model import CVAE, check_weights, widths

FORMAT = 1


@dataclass(frozen=True)
class Loaded:
    """A network ready to predict, and what its checkpoint says about it.

    config       None for a lab checkpoint, which records no settings
    epoch        epochs finished (0 if unknown)
    """

    model: CVAE
    config: Config | None
    epoch: int
    provenance: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def output(self) -> Any:
        """How frames are made of the generator's output: 'linear' for a lab checkpoint, as its tester does."""
        return self.config.output if self.config else "linear"


def write(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` to `path`, whole or not at all (OSError when the disk is full)."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)  # to memory: torch turns a full disk into a RuntimeError that does not say so
    with whole(path) as stream:
        stream.write(buffer.getbuffer())


def read(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The payload of `path`, tensors on `device`; CheckpointError if it is no checkpoint."""
    try:
        payload = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.", "Expected: a checkpoint (.pt, .ckpt, .pth).") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, zipfile.BadZipFile, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({_unreadable(path, error)}).",
            "Expected: a whole file of tensors and plain data, as torch.save writes it.",
            "Copy it again from where it was made, or name another one.",
        ) from None
    if isinstance(payload, dict) and "state_dict" not in payload and "frame_transformation.6.weight" in payload:
        payload = {"state_dict": payload}  # bare weights, as some reports save them
    if not isinstance(payload, dict) or not isinstance(payload.get("state_dict"), dict):
        raise CheckpointError(
            f"{path} holds no 'state_dict'.",
            "Expected: a checkpoint of this program or of the lab's template.",
        )
    return payload


def _unreadable(path: Path, error: Exception) -> str:
    """Why torch could not read `path`, in words that help."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    with path.open("rb") as stream:
        start = stream.read(4)
    if start == b"PK\x03\x04" and not zipfile.is_zipfile(path):
        return f"it ends after {size} bytes, in the middle"
    if isinstance(error, pickle.UnpicklingError):
        return "it is no checkpoint, or holds objects other than tensors and plain data, which could run code"
    return "it was not written by torch.save"


def load_model(path: Path, device: torch.device | str = "cpu") -> Loaded:
    """The network of a checkpoint, ours or the lab's, in evaluation mode on `device`.

    Widths are inferred from the weights. CheckpointError names the first tensor that does not fit.
    """
    payload = read(path, device)
    weights = payload["state_dict"]
    try:
        model = CVAE(**widths(weights))
        check_weights(model, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.found}", error.expected, error.todo) from None
    model.load_state_dict(weights)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.eval().requires_grad_(False)
    own = payload.get("cvaeopt")
    if not isinstance(own, dict):
        epoch = payload.get("last_epoch")
        return Loaded(model, None, epoch if isinstance(epoch, int) else 0, {}, payload)
    config = Config.parse(own["config"], f"{path}, its settings")
    return Loaded(model, config, int(own["epoch"]), dict(own.get("provenance") or {}), payload)


def own_part(payload: dict[str, Any], path: Path) -> dict[str, Any]:
    """The `cvaeopt` part of a payload; CheckpointError if it has none or is of another format."""
    own = payload.get("cvaeopt")
    if not isinstance(own, dict):
        raise CheckpointError(
            f"{path} is a lab checkpoint: it does not hold what is needed to continue a run.",
            "Expected: a checkpoint of this program.",
            "Use it as the starting weights of a new run instead (retrain --from).",
        )
    if own.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {own.get('format')!r}.", f"Expected: {FORMAT}.")
    return own


def newest(paths: list[Path], config: Config, data_digest: str) -> Path | None:
    """The checkpoint of this very run with the most finished epochs, or None.

    Passed over: files that cannot be read, and those of other settings or other data, which a deleted study of the
    same name may have left.
    """
    found: list[tuple[int, Path]] = []
    for path in paths:
        with contextlib.suppress(CheckpointError):
            own = own_part(read(path), path)
            if own["config"] == config.plain() and own["data_digest"] == data_digest:
                found.append((int(own["epoch"]), path))
    return max(found)[1] if found else None

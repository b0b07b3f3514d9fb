"""A user's trainer, ready to be driven.

The trainer's five networks are replaced by tiny modules that record their inputs, and its steps are called with frames
that can be recognised by their value. So the checks follow what the code does, however it is written.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAMES: Final = 16
VAL_FRAMES: Final = 630
BATCH: Final = 2
EPOCHS: Final = 70
_TRUTH, _LABEL, _PREDICTION = 0.1, 0.4, 0.7
_STEP = 1e-5  # difference between the values of two frames; a clip of the batch begins 1000 steps later
_LENGTHS = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8, "frame_H": 8, "frame_W": 16}
_NETWORKS = ("RGB_Encoder", "Label_Encoder", "Gaussian_Predictor", "Decoder_Fusion", "Generator")
_CALLED: Final = {
    "frame_transformation": ("frame", "F_dim"),
    "label_transformation": ("label", "L_dim"),
    "Gaussian_Predictor": ("posterior", "N_dim"),
    "Decoder_Fusion": ("decoder", "D_out_dim"),
}
"""Attribute of the trainer -> what its calls are recorded as, and the option with its number of channels."""
_OPTIONS: Final[dict[str, Any]] = {
    **_LENGTHS,
    "DR": ".",
    "save_root": ".",
    "ckpt_path": None,
    "device": "cpu",
    "gpu": 1,
    "num_workers": 0,
    "test": False,
    "store_visualization": False,
    "fast_train": False,
    "fast_partial": 0.4,
    "fast_train_epoch": 5,
    "batch_size": BATCH,
    "num_epoch": EPOCHS,
    "per_save": 1000,
    "partial": 1.0,
    "optim": "Adam",
    "lr": 1e-3,
    "train_vi_len": FRAMES,
    "val_vi_len": VAL_FRAMES,
    "tfr": 1.0,
    "tfr_sde": 10,
    "tfr_d_step": 0.1,
    "kl_anneal_type": "Cyclical",
    "kl_anneal_cycle": 10,
    "kl_anneal_ratio": 1.0,
}


class Unchecked(Exception):  # noqa: N818
    """A check could not be made. The message says why."""


@dataclass
class Call:
    """One recorded call.

    what      "label", "frame", "posterior", "decoder", "error" (squared error) or "psnr"
    frames    for each clip of the batch: the time of the true frame in the first input; None for any other frame
    labels    the same for the label, or for the second frame of "error" and "psnr"
    line      line in the user's file, 0 if the call came from elsewhere
    tracked   whether the first input has a gradient
    training  whether the module was in training mode
    source    of "decoder": the frames of the posterior that made z; () if z is not from a posterior
    """

    what: str
    frames: tuple[int | None, ...]
    labels: tuple[int | None, ...] = ()
    line: int = 0
    tracked: bool = False
    training: bool = False
    source: tuple[int | None, ...] | None = None


@dataclass
class Log:
    """The recorded calls, and the outputs of the posterior."""

    file: str
    calls: list[Call] = field(default_factory=list)
    posteriors: list[tuple[Tensor, Tensor, tuple[int | None, ...]]] = field(default_factory=list)

    def of(self, what: str) -> list[Call]:
        """The calls of one kind, in their order."""
        return [call for call in self.calls if call.what == what]

    def line(self) -> int:
        """The line of the user's file that is running now."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename != self.file:
            frame = frame.f_back
        return 0 if frame is None else frame.f_lineno


def times(x: Any, base: float) -> tuple[int | None, ...]:
    """For each image of a batch: its time, if it has the value of a true frame or label; otherwise None."""
    if not isinstance(x, Tensor) or x.dim() < 4:
        return (None,)
    steps = (x.detach().double().flatten(1).mean(1) - base) / _STEP
    near = [round(step) for step in steps.tolist()]
    return tuple(
        time % 1000 if abs(step - time) < 0.2 and 0 <= time < 1000 * BATCH else None
        for step, time in zip(steps.tolist(), near, strict=True)
    )


def clips(base: float, batch: int, length: int) -> Tensor:
    """(batch, length, 3, H, W): every image has one value, by which `times` recognises it."""
    steps = torch.arange(length) + 1000.0 * torch.arange(batch)[:, None]
    shape = (batch, length, 3, _LENGTHS["frame_H"], _LENGTHS["frame_W"])
    return (base + _STEP * steps)[..., None, None, None].expand(shape).contiguous()


class Recorder(nn.Module):
    """A tiny network in place of one of the five. Its output carries the value of its input."""

    def __init__(self, log: Log, what: str, channels: int) -> None:
        super().__init__()
        self.log, self.what, self.channels = [log], what, channels  # in a list, so that copies share the log
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, *given: Any, **named: Any) -> Any:
        """The output of the network that this module replaces, for the same inputs."""
        x, *rest = (*given, *named.values())
        if not rest and self.what == "decoder":  # some trainers concatenate before the call
            x, *rest = x.split([_LENGTHS["F_dim"], _LENGTHS["L_dim"], _LENGTHS["N_dim"]], 1)
        (log,) = self.log
        call = Call(self.what, times(x, _LABEL if self.what == "label" else _TRUTH), line=log.line())
        call.tracked, call.training = x.requires_grad, self.training
        out = x.mean(1, keepdim=True).expand(-1, self.channels, -1, -1) * self.weight
        if self.what == "generator":
            out = out * 0 + (_PREDICTION + _STEP * len(log.of("generator")))
        if rest:
            call.labels = times(rest[0], _LABEL)
        log.calls.append(call)
        if self.what == "posterior":
            mu, logvar = out * 0 + 0.25, out * 0 - 1.0
            z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
            log.posteriors.append((z, mu, call.frames))
            return z, mu, logvar
        if self.what == "decoder" and len(rest) > 1:
            z = rest[1]
            call.source = ()
            for drawn, mu, frames in log.posteriors[-1:]:
                if z.shape == drawn.shape and (torch.equal(z, drawn) or torch.equal(z, mu)):
                    call.source = frames
        return out


class Stub(nn.Module):
    """A network for a trainer whose file `modules` is missing. It is replaced before it is called."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))


class Missing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes a stand-in for every module that a file in the user's folder imports and that is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.names: list[str] = []

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The specification of a stand-in. It is asked last, so the module was not found."""
        caller = inspect.currentframe()
        between = (__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
        while caller is not None and caller.f_code.co_filename in between:
            caller = caller.f_back
        if caller is None or not caller.f_code.co_filename.startswith(self.folder):
            return None  # an installed library looks for something that it can do without
        self.names.append(name)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The stand-in: networks under the lab's names, and mock objects under all other names."""
        made = mock.MagicMock(name=spec.name)
        made.__all__ = list(_NETWORKS) if spec.name.startswith("modules") else []
        made.__path__ = []
        if spec.name.startswith("modules"):
            made.configure_mock(**dict.fromkeys(_NETWORKS, Stub))
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: the stand-in is ready."""


@dataclass
class Validated:
    """One validation: its calls, what val_one_step returned, and whether the model is in training mode afterwards."""

    log: Log
    returned: Any
    training_after: bool


@dataclass
class Trainer:
    """The user's trainer, ready to be driven.

    missing          names of modules for which a stand-in was made
    reparameterize   the user's function that draws z; None if there is none
    """

    module: types.ModuleType
    model: Any
    log: Log
    tree: ast.Module
    missing: list[str]
    reparameterize: Callable[[Tensor, Tensor], Tensor] | None
    _steps: dict[bool, Log] = field(default_factory=dict)
    _validated: Validated | None = None

    def step(self, forced: bool) -> Log:
        """The calls of one training step."""
        if forced not in self._steps:
            self.log.calls.clear()
            nn.Module.train(self.model)
            self.model.training_one_step(clips(_TRUTH, BATCH, FRAMES), clips(_LABEL, BATCH, FRAMES), forced)
            self._steps[forced] = Log(self.log.file, list(self.log.calls))
        return self._steps[forced]

    def validation(self) -> Validated:
        """The calls of one validation, through the trainer's own `eval`."""
        if self._validated is not None:
            return self._validated
        self.log.calls.clear()
        nn.Module.train(self.model)
        batch = (clips(_TRUTH, 1, VAL_FRAMES), clips(_LABEL, 1, VAL_FRAMES))
        returned: list[Any] = []
        plain = self.model.val_one_step

        def kept(*given: Any, **named: Any) -> Any:
            returned.append(plain(*given, **named))
            return returned[-1]

        with (
            mock.patch.object(self.model, "val_one_step", kept),
            mock.patch.object(self.model, "val_dataloader", lambda *given: [batch], create=True),
        ):
            self.model.eval()
        after = self.model.training
        if not returned:  # the class has no `eval` of its own
            with torch.no_grad():
                returned.append(plain(*batch))
        self._validated = Validated(Log(self.log.file, list(self.log.calls)), returned[-1], after)
        return self._validated

    def trains_again(self) -> bool:
        """Whether a training step that follows a validation is in training mode."""
        nn.Module.train(self.model, self.validation().training_after)
        self.log.calls.clear()
        self.model.training_one_step(clips(_TRUTH, BATCH, FRAMES), clips(_LABEL, BATCH, FRAMES), True)
        return all(call.training for call in self.log.of("label"))

    def line_of(self, *words: str) -> int:
        """The first line with a name, attribute or definition of these words; 0 if there is none."""
        for node in ast.walk(self.tree):
            name = getattr(node, "name", None) or getattr(node, "attr", None) or getattr(node, "id", None)
            if name in words:
                return int(getattr(node, "lineno", 0))
        return 0


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Trainer]:
    """The trainer in file `path`, with recording networks. Unchecked if the file has no such class.

    After the block torch and the import system are as before.
    """
    log, missing, known = Log(str(path)), Missing(path.parent), set(sys.modules)
    with (
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        mock.patch.object(sys, "meta_path", [*sys.meta_path, missing]),
        mock.patch.object(functional, "mse_loss", _recorded_error(log)),
    ):
        try:
            yield _load(path, log, missing)
        finally:
            own = {path.stem, "modules", "dataloader", *missing.names}
            for name in set(sys.modules) - known:
                if name.partition(".")[0] in own:
                    del sys.modules[name]


def _load(path: Path, log: Log, missing: Missing) -> Trainer:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    kinds = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "training_one_step")
    ]
    if not kinds:
        written = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
        functions = f" It has the functions {', '.join(written[:6])}." if written else ""
        raise Unchecked(
            f"the file has no class (a torch Module) with the method training_one_step.{functions} Looked for are the "
            "methods training_one_step(img, label, adapt_TeacherForcing), val_one_step(img, label) and eval(), and the "
            f"networks {', '.join(_CALLED)}, Generator. Functions cannot be checked: put them into such a class as "
            "methods that call its networks, and name the file of that class"
        )
    model: Any = kinds[0](options())
    predictor = getattr(model, "Gaussian_Predictor", None)
    draw = getattr(model, "reparameterize", getattr(predictor, "reparameterize", None))
    _record(model, log)
    if hasattr(module, "Generate_PSNR"):
        vars(module)["Generate_PSNR"] = _recorded_psnr(log)
    return Trainer(module, model, log, ast.parse(path.read_text()), missing.names, draw)


def options(**changes: Any) -> argparse.Namespace:
    """The options of the template's command line."""
    return argparse.Namespace(**{**_OPTIONS, **changes})


def _record(model: Any, log: Log) -> None:
    for name, (what, size) in _CALLED.items():
        if not hasattr(model, name):
            raise Unchecked(f"the model has no network {name}")
        setattr(model, name, Recorder(log, what, _LENGTHS[size]))
    model.Generator = Recorder(log, "generator", 3)


def _recorded_error(log: Log) -> Callable[..., Tensor]:
    """torch's squared error, which also records its inputs."""
    plain = functional.mse_loss

    def recorded(one: Tensor, other: Tensor, *given: Any, **named: Any) -> Tensor:
        log.calls.append(Call("error", times(one, _TRUTH), times(other, _TRUTH), log.line(), one.requires_grad))
        return plain(one, other, *given, **named)

    return recorded


def _recorded_psnr(log: Log) -> Callable[..., Tensor]:
    def psnr(one: Tensor, other: Tensor, *given: Any, **named: Any) -> Tensor:
        one, other = (x if x.dim() == 4 else x[None] for x in (one, other))
        log.calls.append(Call("psnr", times(one, _TRUTH), times(other, _TRUTH), log.line()))
        return torch.tensor(20.0)

    return psnr


def numbers(value: Any) -> Iterator[float]:
    """All numbers in what a function returned; those of lists that are longer than three are left out."""
    if (isinstance(value, Tensor) and value.numel() == 1) or isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) <= 3:
        for inner in value:
            yield from numbers(inner)

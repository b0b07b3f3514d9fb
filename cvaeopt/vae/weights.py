"""Find the weights of the network in a checkpoint that another program saved.

Each tensor has a full name in the file, such as "model.module.Generator.7.weight". The part before the name of one of
the five modules is called the place of the tensor, here "model.module". The weights are the tensors at the place with
the most modules. The search goes through nested dicts, lists and tuples up to six levels deep.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from cvaeopt.errors import CheckpointError

MODULES: Final = ("frame_transformation", "label_transformation", "Gaussian_Predictor", "Decoder_Fusion", "Generator")

Path = tuple[Any, ...]  # the keys that lead to a value

_USUAL: Final = ("state_dict", "model_state_dict", "model", "net", "network", "module")
_MAX_DEPTH: Final = 6
_MAX_TENSORS: Final = 100_000
_COUNTER: Final = "num_batches_tracked"  # the step counter of a BatchNorm; it has no effect if the momentum is fixed


@dataclass(frozen=True)
class Weights:
    """The weights in a file, under this network's names.

    tensors   tensors by name, on the CPU and finite; float32, but int64 for a step counter
    paths     the keys that lead to each tensor in the file, by name
    place     the place of the weights, as the module's docstring defines it: "", "state_dict", "model.module", ...
    extra     names of tensors at the same place that belong to no module of this network
    """

    tensors: dict[str, Tensor]
    paths: dict[str, Path]
    place: str
    extra: tuple[str, ...]


def find(payload: Any) -> Weights:
    """The weights in `payload`.

    CheckpointError if `payload` has no weights of this network, or two sets of weights that are equally likely.
    """
    leaves = [(path, ".".join(map(str, path)).split("."), value) for path, value in _leaves(payload)]
    places: dict[str, dict[str, tuple[Path, Any]]] = {}
    for path, parts, value in leaves:
        at = next((index for index in reversed(range(len(parts))) if parts[index] in MODULES), None)
        if at is not None:
            places.setdefault(".".join(parts[:at]), {})[".".join(parts[at:])] = (path, value)
    if not places:
        raise CheckpointError(
            f"It holds no weights of this network. {_names(payload, leaves)}",
            f"Expected: the lab's five modules ({', '.join(MODULES)}).",
            "Pass a checkpoint of this network.",
        )
    ranked = sorted(places, key=lambda place: _rank(place, places[place]))
    best = ranked[0]
    if len(ranked) > 1 and _rank(best, places[best]) == _rank(ranked[1], places[ranked[1]]):
        raise CheckpointError(
            f"It holds weights of this network twice, under '{best}' and '{ranked[1]}'.",
            "Expected: one set of weights.",
            "Save those that are meant alone: torch.save({'state_dict': weights}, 'weights.pt').",
        )
    found = places[best]
    tensors = {name: plain(name, value) for name, (_, value) in found.items()}
    paths = {name: path for name, (path, _) in found.items()}
    return Weights(tensors, paths, best, _beside(leaves, set(paths.values()), best))


def plain(name: str, value: Any) -> Tensor:
    """`value` as a float32 tensor on the CPU; a step counter is int64. CheckpointError if `value` cannot be used."""
    try:
        tensor = torch.as_tensor(value).detach().cpu()
        usable = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        usable = False
    if name.endswith(_COUNTER):
        return tensor.reshape(()).long() if usable and tensor.numel() == 1 else torch.tensor(0)
    if not usable or not tensor.is_floating_point():
        raise CheckpointError(
            f"Tensor '{name}' is {getattr(value, 'dtype', type(value).__name__)}, not a plain array of real numbers.",
            "Expected: weights in single, half or double precision.",
            "Save the weights as they were trained.",
        )
    tensor = tensor.float()
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise CheckpointError(
            f"Tensor '{name}' has {bad} of {tensor.numel()} values that are NaN or infinite.",
            "Expected: finite weights.",
            "Use a checkpoint from before the training diverged.",
        )
    return tensor


def fitting(
    weights: Weights, own: Mapping[str, Tensor], ignore_extra: bool = False
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of `weights` that belong to a network with the state `own`, and the names of all other tensors.

    Step counters may be missing in `weights`. If there are other tensors, CheckpointError names them, unless
    `ignore_extra` is true.
    """
    extra = [*(name for name in weights.tensors if name not in own), *weights.extra]
    if extra and not ignore_extra:
        listed = ", ".join(f"'{name}'" for name in extra[:5]) + (f" and {len(extra) - 5} more" if extra[5:] else "")
        raise CheckpointError(
            f"The weights have {'a tensor' if len(extra) == 1 else 'tensors'} unknown to this network: {listed}.",
            "Expected: the lab's five modules and nothing else.",
            "--ignore-extra leaves them out; the frames are then not those of the network that was trained.",
        )
    counters = {name: value for name, value in own.items() if name.endswith(_COUNTER)}
    return {**counters, **{name: value for name, value in weights.tensors.items() if name in own}}, extra


def replaced(payload: Any, path: Path, value: Any) -> Any:
    """A copy of `payload` with `value` at `path`. Only the containers along `path` are copied."""
    if not path:
        return value
    key, *rest = path
    if isinstance(payload, tuple):
        return tuple(replaced(list(payload), path, value))
    changed = copy.copy(payload)
    changed[key] = replaced(payload[key], tuple(rest), value)
    return changed


def _leaves(payload: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the value of every tensor or array in nested dicts and lists, in the order of the file."""
    stack: list[tuple[Path, Any]] = [((), payload)]
    seen = 0
    while stack and seen < _MAX_TENSORS:
        path, value = stack.pop()
        seen += 1
        if isinstance(value, Tensor | np.ndarray):
            yield path, value
        elif len(path) < _MAX_DEPTH and isinstance(value, dict | list | tuple):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend(reversed([((*path, key), item) for key, item in inner]))


def _rank(place: str, found: Mapping[str, Any]) -> tuple[int, bool, int]:
    """A sort key for places. The best place comes first.

    Places with more modules come first. Then places outside an optimizer come before others, and then places with a
    usual name come before others.
    """
    first, *_ = place.split(".")
    usual = _USUAL.index(first) if first in _USUAL else -1 if not place else len(_USUAL)
    return -len({name.partition(".")[0] for name in found}), "optim" in first.lower(), usual


def _beside(leaves: list[tuple[Path, list[str], Any]], taken: set[Path], place: str) -> tuple[str, ...]:
    """The names of tensors that are at the same place as the weights, but belong to no module of this network."""
    prefix = place.split(".") if place else []
    holders = {path[:-1] for path in taken}
    # Modules that were saved one by one are in separate dicts at the same place.
    apart = {path[:-2] for path in taken if len(path) > 1 and str(path[-2]) in MODULES}
    names = []
    for path, parts, value in leaves:
        together = path[:-1] in holders and ("." in str(path[-1]) or value.ndim > 0)
        aside = path[:-2] in apart and len(path) > 1 and "optim" not in str(path[-2]).lower()
        aside = aside and isinstance(path[-1], str) and isinstance(value, Tensor)  # a list of numbers is not a module
        if path not in taken and (together or aside):
            names.append(".".join(parts[len(prefix) :] if parts[: len(prefix)] == prefix else parts))
    return tuple(names)


def _names(payload: Any, leaves: list[tuple[Path, list[str], Any]]) -> str:
    """A short sentence that lists the names in a file without weights of this network."""
    names = [".".join(parts) for _, parts, _ in leaves] or [
        str(key) for key in (payload if isinstance(payload, dict) else ())
    ]
    if not names:
        return f"There is only a {type(payload).__name__}."
    shown = ", ".join(name[:60] for name in names[:8])
    return f"Found: {shown}" + (f" and {len(names) - 8} more." if len(names) > 8 else ".")

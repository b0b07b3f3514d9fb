"""The words that settings take: other spellings, suggestions for wrong words, and the base class of settings tables."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

# Names of the lab, of torch and of Optuna for our words, in the form that `_key` returns.
_ALIASES: dict[str, tuple[str, ...]] = {
    "MultiStepLR": ("multistep",),
    "ExponentialLR": ("exponential",),
    "cosine": ("cosinelr", "cosineannealing", "cosineannealinglr"),
    "constant": ("none", "null", "off"),
    "cyclical": ("cyclic",),
    "monotonic": ("monotone",),
    "none": ("null", "off", "without", "nop", "noppruner"),
    "linear": ("identity",),
    "fp32": ("float32",),
    "tf32": ("tensorfloat32",),
    "bf16": ("bfloat16",),
    "tpe": ("tpesampler",),
    "random": ("randomsampler",),
    "grid": ("gridsampler",),
    "qmc": ("qmcsampler",),
    "gp": ("gpsampler",),
    "median": ("medianpruner",),
    "percentile": ("percentilepruner",),
    "halving": ("successivehalving", "successivehalvingpruner"),
    "hyperband": ("hyperbandpruner",),
}


class Table(BaseModel):
    """A frozen table of settings. In a `Literal` field, users may write another spelling if it fits only one word.

    The table stores our spelling, so that digests and Optuna's parameters do not depend on the user's spelling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _as_meant(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: meant(value, words_of(cls, name)) for name, value in given.items()}


def meant(value: Any, words: Iterable[str]) -> Any:
    """Our spelling of `value`: the word in `words` that fits. If no word or several words fit, `value` itself.

    Capitals, '_', '-', spaces and a module's name in front ("torch.optim.Adam") make no difference.
    """
    if not isinstance(value, str):
        return value
    words = tuple(words)
    if value in words:
        return value
    key = _key(value)
    fitting = [word for word in words if key == _key(word)] or [word for word in words if key in _ALIASES.get(word, ())]
    return fitting[0] if len(fitting) == 1 else value


def nearest(given: object, words: Iterable[str]) -> str | None:
    """The word in `words` that is most similar to `given`; None if no word is similar enough."""
    by_key = {_key(word): word for word in words}
    near = difflib.get_close_matches(_key(str(given)), list(by_key), n=1)
    return by_key[near[0]] if near else None


@functools.cache
def words_of(model: type[BaseModel], field: str) -> tuple[str, ...]:
    """The words that a `Literal` field of `model` takes; empty if the field has another type or does not exist."""
    known = model.model_fields.get(field)
    return () if known is None else tuple(_words(known.annotation))


def _words(annotation: Any) -> Iterable[str]:
    if get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
    else:
        for part in get_args(annotation):
            yield from _words(part)


def _key(word: str) -> str:
    return re.sub(r"[\W_]", "", word.rpartition(".")[2].casefold())

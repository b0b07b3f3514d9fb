"""Where the lab's own tester predicts in another way than this program, in words and in dB."""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from cvaeopt.config import Config
from cvaeopt.outcome.rolling import Noise
from cvaeopt.outcome.score import ScoreSheet
from cvaeopt.vae.checkpoint import Loaded
from cvaeopt.vae.dataset import Dataset
from cvaeopt.vae.metrics import psnr_per_frame
from cvaeopt.vae.model import Statistics
from cvaeopt.vae.rollout import noise, roll_chunks, to_float

_WIDTHS: Final = ("F_dim", "L_dim", "N_dim", "D_out_dim")


def tester_notes(loaded: Loaded, data: Dataset, sheet: ScoreSheet) -> tuple[dict[str, Any], list[str]]:
    """What the lab's tester does differently with this checkpoint.

    returns   the PSNR on the validation video in the tester's way, dB (None if a value is not finite); and sentences
    """
    stored, own = (_tester_psnr(loaded, data, way) for way in ("stored", "own"))
    measured = {"stored_statistics": stored, "own_statistics": own}
    said = [
        f"On the validation video, the lab's way of testing gives {_db(stored)} with the stored BatchNorm statistics, "
        f"and {_db(own)} if BatchNorm stays in training mode, which happens where the program replaces torch's eval() "
        f"by its own loop. The prediction here gives {sheet.mean:.2f} dB."
    ]
    if loaded.output != "linear":
        said.append(
            f"The network's output is used as '{loaded.output}' here. The lab's tester applies no {loaded.output}: add "
            "it there, or use `cvaeopt predict`."
        )
    if sheet.noise.kind != "prior":
        said.append(f"z is '{sheet.noise.kind}' here. The lab's tester draws z from a standard normal distribution.")
    said.append(
        "The lab's tester draws z without a seed and writes values below 0 or above 255 as they are. Here z has a "
        "seed, and values are limited to 0-255."
    )
    usual = Config()
    other = {name: loaded.model.widths[name] for name in _WIDTHS if loaded.model.widths[name] != getattr(usual, name)}
    if other:
        flags = " ".join(f"--{name} {width}" for name, width in other.items())
        said.append(f"The network has other widths than the template: start the lab's tester with {flags}.")
    return measured, said


def _tester_psnr(loaded: Loaded, data: Dataset, statistics: Statistics) -> float | None:
    """The validation PSNR with a linear output that is not limited, z from N(0, I), and these statistics, dB."""
    height, width = data.val.frames.shape[2:]
    labels = torch.tensor(data.val.labels[None, 1:])
    first = to_float(torch.tensor(data.val.frames[:1]))
    draw = noise("prior", 1.0, Noise().seed, labels.shape[1], loaded.model.widths["N_dim"], height, width)
    pieces = roll_chunks(loaded.model, first, labels, draw[None], "linear", statistics)
    rolled = torch.cat([piece[0].float().cpu() for piece in pieces])
    value = float(psnr_per_frame(rolled, to_float(torch.tensor(data.val.frames[1:]))).mean())
    return round(value, 4) if math.isfinite(value) else None


def _db(value: float | None) -> str:
    return "no finite value" if value is None else f"{value:.2f} dB"

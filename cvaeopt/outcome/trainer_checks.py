"""The checks of a user's trainer. Each check drives the trainer and returns (line, what was found), or None.

`python -m cvaeopt.outcome.trainer_checks TRAINER RESULT` is the process that makes them. The results go to the file
RESULT as JSON, because the user's code may print.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from cvaeopt.config import KlAnnealType, KlFormula
from cvaeopt.files import write_json
from cvaeopt.outcome.trainer_probe import EPOCHS, FRAMES, VAL_FRAMES, Log, Trainer, Unchecked, numbers, opened, options
from cvaeopt.vae.schedules import kl_beta

if TYPE_CHECKING:
    from cvaeopt.outcome.trainer_probe import Call

Found = tuple[int, str] | None

_FORMULAS: Final[tuple[KlFormula, ...]] = ("fu", "seed001", "seed003", "seed000", "seed004")
_LENGTH: Final = ("seed000", "seed004")  # the formulas in which kl_anneal_cycle is the length of a cycle


_SPELLINGS: Final[dict[KlAnnealType, tuple[str, ...]]] = {
    "cyclical": ("Cyclical", "cyclical"),
    "none": ("None", "none", "Without", "without"),
}


def truth_scored(trainer: Trainer) -> Found:
    """In a forced step the squared error compares the true frame with itself."""
    errors = _of(trainer.step(forced=True), "error", "it computes its squared error without torch's mse_loss")
    return next(
        (
            (call.line, "in a forced step the true frame is scored against itself")
            for call in errors
            if None not in call.frames and call.frames == call.labels
        ),
        None,
    )


def posterior_input(trainer: Trainer) -> Found:
    """In training the posterior sees the frame before the predicted frame."""
    calls = _of(trainer.step(forced=True), "posterior", "its training step calls no Gaussian_Predictor")
    late = [call for time, call in enumerate(calls, start=1) if set(call.frames) != {time}]
    if len(late) < len(calls) or _mixed(late):
        return None
    return late[0].line, "the posterior sees the frame before the one that is predicted"


def posterior_leak(trainer: Trainer) -> Found:
    """In validation z comes from a posterior that sees a true frame after the given one."""
    log = trainer.validation().log
    for call in _of(log, "decoder", "its validation calls no Decoder_Fusion"):
        if call.source is None:
            raise Unchecked("it calls Decoder_Fusion in another way than the template")
        if call.source and any(time is not None and time > 0 for time in call.source):
            return call.line, f"in validation z is the posterior's of true frame {call.source[0]}"
        if call.source:
            return call.line, "in validation z comes from the posterior, not from N(0, I)"
    return None


def batch_norm(trainer: Trainer) -> Found:
    """BatchNorm is in the wrong mode in validation or in training."""
    calls = _of(trainer.validation().log, "label", "its validation calls no label_transformation")
    if calls[0].training:
        line = trainer.line_of("eval") or calls[0].line
        return line, "in validation BatchNorm is in training mode"
    if not trainer.trains_again():
        return trainer.line_of("training_one_step"), "after the first validation BatchNorm stays in evaluation mode"
    return None


def reparameterization(trainer: Trainer) -> Found:
    """z does not have the standard deviation exp(logvar / 2)."""
    draw = trainer.reparameterize
    if draw is None:
        raise Unchecked("there is no reparameterize in Gaussian_Predictor (is modules.py beside the file?)")
    spreads = {}
    for logvar in (-4.0, 2.0):
        z = draw(torch.full((4, 4, 32, 64), 3.0), torch.full((4, 4, 32, 64), logvar)).double()
        spreads[logvar] = float(z.std())
        if abs(float(z.mean()) - 3) > 0.2:
            return _line(draw, trainer), f"the mean of z is {float(z.mean()):.2f} where mu is 3"
    right = {logvar: math.exp(logvar / 2) for logvar in spreads}
    if all(abs(spreads[logvar] / right[logvar] - 1) < 0.05 for logvar in spreads):
        return None
    known: dict[str, Callable[[float], float]] = {
        "logvar": abs,
        "exp(logvar)": math.exp,
        "no noise": lambda logvar: 0.0,
        "1": lambda logvar: 1.0,
    }
    like = next(
        (name for name, of in known.items() if all(abs(spreads[v] - of(v)) < 0.05 * max(of(v), 0.1) for v in spreads)),
        f"{spreads[2.0]:.3g} at logvar 2",
    )
    return _line(draw, trainer), f"the standard deviation of z is {like}, not exp(logvar / 2)"


def given_frame(trainer: Trainer) -> Found:
    """The mean PSNR counts the given frame."""
    validated = trainer.validation()
    calls = _of(validated.log, "psnr", "its validation does not call Generate_PSNR")
    for call in calls:
        if call.frames == call.labels == (0,):
            return call.line, "PSNR is computed for the given frame, which is exact"
    # Every PSNR is 20 dB here, so a mean over too many frames is lower.
    right, wrong = 20.0, 20 * (VAL_FRAMES - 1) / VAL_FRAMES
    seen = [*numbers(validated.returned), *(n for value in vars(trainer.model).values() for n in numbers(value))]
    if any(abs(value - wrong) < 1e-4 for value in seen):
        return trainer.line_of("val_one_step"), f"the sum of {VAL_FRAMES - 1} PSNR values is divided by {VAL_FRAMES}"
    if not any(abs(value - right) < 1e-4 for value in seen):
        raise Unchecked("val_one_step neither returns the mean of its PSNR values nor keeps it in the model")
    return None


def detach(trainer: Trainer) -> Found:
    """Gradients cross the frames of a free step."""
    calls = _of(trainer.step(forced=False), "frame", "its training step calls no frame_transformation")
    tracked = [call for call in calls if call.tracked]
    return (tracked[0].line, "the predicted frame is fed back without detach") if tracked else None


def kl_cycle(trainer: Trainer) -> Found:
    """kl_anneal_cycle is not the number of cycles, or beta follows no known formula."""
    kind = getattr(trainer.module, "kl_annealing", None)
    if kind is None:
        raise Unchecked("the file has no class kl_annealing")
    line = trainer.line_of("frange_cycle_linear", "frage_cycle_linear", "calculate_beta") or trainer.line_of(
        "kl_annealing"
    )
    for name, spellings in _SPELLINGS.items():
        curves = [_beta(kind, spelling) for spelling in spellings]
        fitting = [one for curve in curves for one in _FORMULAS if _near(curve, name, one)]
        if "fu" in fitting or fitting == ["seed001"]:
            continue
        # A spelling that the class does not know leaves beta as it was at the start.
        curve = max(curves, key=lambda curve: (max(curve) - min(curve), curve[-1]))
        if name == "none":
            return line, f"without annealing beta begins with {curve[0]:g} and ends with {curve[-1]:g}, not 1"
        if not fitting:
            return line, f"beta follows no known formula: it is between {min(curve):.3g} and {max(curve):.3g}"
        if fitting[0] in _LENGTH:
            return line, f"kl_anneal_cycle is the length of a cycle (kl_formula {fitting[0]}), not their number"
        return line, f"beta never exceeds {max(curve):.3g}: it is divided by the period twice (kl_formula seed003)"
    return None


def frozen_rate(trainer: Trainer) -> Found:
    """The learning rate has fallen to a twentieth before a tenth of the epochs."""
    scheduler, optimizer = (getattr(trainer.model, name, None) for name in ("scheduler", "optim"))
    if scheduler is None or optimizer is None:
        raise Unchecked("the model has no scheduler or no optim")
    rates = []
    for _ in range(EPOCHS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    early = rates[EPOCHS // 10]
    if early > rates[0] / 20 or rates[-1] < early / 2:
        return None
    epoch = next(epoch for epoch, rate in enumerate(rates) if rate <= early)
    line = trainer.line_of("MultiStepLR", "lr_scheduler") or trainer.line_of("scheduler")
    return line, f"the learning rate is {early:.3g} from epoch {epoch} on, after {rates[0]:.3g} at the start"


def label_order(trainer: Trainer) -> Found:
    """A frame is predicted from the label of another frame, or clips and time are mixed."""
    log = trainer.step(forced=True)
    calls = _of(log, "decoder", "its training step calls no Decoder_Fusion")
    if not any(time is not None for call in calls for time in call.labels):
        raise Unchecked("it changes the labels before Decoder_Fusion sees them")
    if mixed := _mixed(calls):
        return mixed.line, "time and batch are mixed: one step sees different times of its clips (view, not permute)"
    validated = trainer.validation().log.of("decoder")
    for place, found, last in (("training", calls, FRAMES), ("validation", validated, VAL_FRAMES)):
        for time, call in enumerate(found[: last - 1], start=1):
            if set(call.labels) != {time}:
                return call.line, f"in {place} frame {time} is predicted from label {call.labels[0]}"
    return None


CHECKS: Final[dict[str, Callable[[Trainer], Found]]] = {
    "truth scored": truth_scored,
    "posterior input": posterior_input,
    "posterior leak": posterior_leak,
    "BatchNorm mode": batch_norm,
    "reparameterization": reparameterization,
    "PSNR of the given frame": given_frame,
    "detach": detach,
    "KL cycle": kl_cycle,
    "frozen learning rate": frozen_rate,
    "label order": label_order,
}


def examine(trainer: Trainer, keep: Callable[[list[dict[str, Any]]], None]) -> None:
    """Make all checks. Before each one and at the end, call `keep` with the results so far.

    A result has the keys check, line, found and unchecked. The user's code may end the process or never return: the
    results that were kept are then all there is.
    """
    rows: list[dict[str, Any]] = []
    for name, check in CHECKS.items():
        keep(rows)
        row: dict[str, Any] = {"check": name, "line": 0, "found": "", "unchecked": ""}
        try:
            found = check(trainer)
            if found is not None:
                row["line"], row["found"] = found
        except Unchecked as error:
            row["unchecked"] = str(error)
        except BaseException as error:  # the user's code may raise anything, and may end the process
            row["unchecked"] = f"its code raised {raised(error, Path(trainer.log.file).parent)}"
        rows.append(row)
    keep(rows)


def raised(error: BaseException, folder: Path) -> str:
    """The error in words, with the place in the user's files: file, line and code. Other frames are left out."""
    if isinstance(error, SyntaxError) and error.filename:
        frames = [traceback.FrameSummary(error.filename, error.lineno, "", line=error.text or "")]
        message = error.msg
    else:
        frames, message = traceback.extract_tb(error.__traceback__), str(error)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    text = f"{type(error).__name__}{f': {message}' if message else ''}"
    if not own:
        return text
    last = own[-1]
    code = f": {last.line}" if last.line else ""
    return f"{text} ({Path(last.filename).relative_to(folder)}, line {last.lineno}{code})"


def _of(log: Log, what: str, missing: str) -> list[Call]:
    calls = log.of(what)
    if not calls:
        raise Unchecked(missing)
    return calls


def _mixed(calls: list[Call]) -> Call | None:
    return next((call for call in calls if len(set(call.labels)) > 1), None)


def _line(draw: Callable[..., object], trainer: Trainer) -> int:
    """The line of `reparameterize`; 0 if it is not in the trainer's file."""
    code = getattr(draw, "__code__", None) or getattr(getattr(draw, "__func__", None), "__code__", None)
    return code.co_firstlineno if code is not None and code.co_filename == trainer.log.file else 0


def _beta(kind: Callable[..., Any], spelling: str) -> list[float]:
    """The KL weight of each epoch, in the template's order of calls."""
    annealing = kind(options(kl_anneal_type=spelling), current_epoch=0)
    curve = []
    for _ in range(EPOCHS):
        curve.append(float(annealing.get_beta()))
        annealing.update()
    return curve


def _near(curve: list[float], kind: KlAnnealType, formula: KlFormula) -> bool:
    expected = [kl_beta(epoch, EPOCHS, kind, 10, 1.0, formula) for epoch in range(EPOCHS)]
    return all(abs(found - right) < 1e-6 for found, right in zip(curve, expected, strict=True))


def main() -> None:
    """Drive the trainer of the command line and write the results."""
    torch.manual_seed(0)
    file, result = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        with opened(file) as trainer:
            examine(trainer, lambda rows: write_json(result, {"checks": rows, "missing": trainer.missing}))
    except Unchecked as error:
        write_json(result, {"error": str(error), "missing": []})
    except BaseException as error:  # the user's code may raise anything while it is imported
        write_json(result, {"raised": raised(error, file.parent)})


if __name__ == "__main__":
    main()

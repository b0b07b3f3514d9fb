"""One self-contained HTML page per study, and the pictures it shows as files beside it.

The page opens without a network: every picture is a data URI, there is no script, and its own policy forbids
both. Names and reasons come from a database that other programs may write, so the template escapes them all.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.trial import FrozenTrial

from cvaeopt import __version__
from cvaeopt.config import Config
from cvaeopt.errors import SettingsError
from cvaeopt.files import RunFolder, write_bytes, write_text
from cvaeopt.outcome import charts, pictures, study_charts
from cvaeopt.outcome.charts import BASELINE_NAMES
from cvaeopt.outcome.confirmed import Confirmation, confirmation, table
from cvaeopt.outcome.export import beaten_baselines, estimator
from cvaeopt.outcome.importance import importances
from cvaeopt.outcome.transfer import landmarks
from cvaeopt.outcome.trials import Axis, TrialFacts, axes, best_of, facts
from cvaeopt.search.space import params_to_config
from cvaeopt.search.storage import Storage
from cvaeopt.search.study import Definition, left, open_existing, status

PAGE: Final = "report.html"
MOST_ROWS: Final = 200
MOST_FAILURES: Final = 50
_MOST_VARIANTS: Final = 8
_MOST_NUMBERS: Final = 12
_COMPARED: Final = ("kl_anneal_type", "tfr")
_SCHEDULE_OF: Final = {"kl_anneal_type": ("beta", "KL weight"), "tfr": ("tfr", "forcing ratio")}
_STATES: Final = ("complete", "pruned", "failed", "running", "waiting")


@dataclass(frozen=True)
class Report:
    """What `report` wrote."""

    page: Path
    pictures: tuple[Path, ...]


@dataclass(frozen=True)
class _Picture:
    """One picture of the page; `text` is for those who cannot see it."""

    name: str
    data: bytes = field(repr=False)
    text: str
    caption: str = ""

    @property
    def uri(self) -> str:
        kind = "gif" if self.name.endswith(".gif") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, so that the page does not jump while it loads."""
        if self.name.endswith(".gif"):
            return int.from_bytes(self.data[6:8], "little"), int.from_bytes(self.data[8:10], "little")
        return int.from_bytes(self.data[16:20], "big"), int.from_bytes(self.data[20:24], "big")


def report(storage: Storage, name: str, out: Path, *, artifacts: Path, now: datetime) -> Report:
    """Write `out`/report.html and its pictures for study `name`; StudyError for an unknown study.

    artifacts   folder of the trials' run folders; what is missing there is said on the page
    now         the date on the page
    """
    study, definition = open_existing(storage, name)
    overview = {**status(storage, name), "left": left(storage, name), "confirmation": confirmation(storage, name)}
    return write(definition, study.get_trials(deepcopy=False), overview, out, artifacts=artifacts, now=now)


def write(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    out: Path,
    *,
    artifacts: Path,
    now: datetime,
) -> Report:
    """The same of trials that were read already.

    overview   what `status` says; under "left" the trials that wait for a worker (`study.left`), under
               "confirmation" what fresh runs say of the leaders, if there are any
    """
    page = _page(definition, trials, overview, artifacts, now)
    environment = Environment(
        loader=PackageLoader("cvaeopt.outcome"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown: list[_Picture] = page["pictures"]
    written = []
    for picture in shown:
        write_bytes(out / picture.name, picture.data)
        written.append(out / picture.name)
    write_text(out / PAGE, environment.get_template("report.html.j2").render(page))
    return Report(out / PAGE, tuple(written))


def _page(
    definition: Definition,
    trials: Sequence[FrozenTrial],
    overview: Mapping[str, Any],
    artifacts: Path,
    now: datetime,
) -> dict[str, Any]:
    """Everything the template shows."""
    known = facts(trials, overview.get("left", ()))
    searched_best = best = best_of(known)
    fresh: Confirmation | None = overview.get("confirmation")
    estimated = estimator(definition)
    if fresh is not None and fresh.over and fresh.best is not None:
        # What the search thought best is one lucky value; export-best goes by the fresh runs, and so does the page.
        chosen = next(trial for trial in known if trial.number == fresh.best.leader.trials[0])
        best = replace(chosen, value=fresh.best.mean)
        runs = len(fresh.best.values)
        estimated = f"mean of {runs} fresh run{'' if runs == 1 else 's'}"
    baselines: dict[str, float] = {k: v for k, v in overview["baselines"].items() if v is not None}
    searched = _ordered(axes(trials), definition)
    spent = {state: sum(t.epochs for t in known if t.state == state) for state in _STATES}
    saved = sum(max(0, definition.budget.epochs - t.epochs) for t in known if t.state == "pruned")
    seconds = [trial.seconds for trial in known if trial.seconds is not None]
    total_s = sum(seconds) if seconds else None
    metric = definition.metric
    overall = [
        _Picture("history.png", study_charts.history(known, baselines, metric), _history_text(known, searched_best)),
        _Picture(
            "curves.png",
            study_charts.curves(known, baselines, metric),
            f"Learning curves of {sum(bool(t.curve) for t in known)} trials: {metric} in dB over epochs.",
        ),
    ]
    shares = importances(trials)
    settings = [
        _Picture(
            "importance.png",
            study_charts.importance(shares, sum(t.value is not None for t in known)),
            "Importance of the settings: "
            + (", ".join(f"{item.name} {item.share:.0%}" for item in shares) or "too few trials to tell"),
        ),
        _Picture(
            "parallel.png",
            study_charts.parallel(known, searched),
            "Complete trials as lines over all searched settings, coloured by value.",
        ),
        _Picture(
            "slices.png",
            study_charts.slices(known, _ordered(axes(trials, constant=True), definition), metric),
            f"{metric} of every finished trial against each searched setting.",
        ),
    ]
    money = _Picture(
        "cost.png", study_charts.cost(spent, saved, _duration(total_s)), "Epochs by how their trials ended."
    )
    run = _best_run(definition, best, baselines, artifacts)
    compared = _comparison(definition, known, baselines, artifacts)
    failures = _failures(known)
    schedules = _good_schedules(definition, known)
    ranked = sorted(known, key=_rank)
    return {
        "name": definition.name,
        "description": definition.description,
        "metric": metric,
        "estimated": estimated,
        "date": now.isoformat(sep=" ", timespec="minutes"),
        "version": __version__,
        "storage": overview["storage"],
        "stopped": overview.get("stopped"),
        "digest": definition.digest(),
        "data_digest": best.attributes.get("data_digest") if best else None,
        "verdict": _verdict(best, baselines),
        "confirmed": None if fresh is None else {"rows": table(fresh), "text": _confirmed_text(fresh)},
        "lost": bool(best and best.value is not None and beaten_baselines(best.value, baselines)),
        "best": best,
        "baselines": _against(best, baselines),
        "counts": {state: sum(t.state == state for t in known) for state in _STATES},
        "budget": definition.budget.model_dump(exclude_none=True),
        "epochs_spent": sum(spent.values()),
        "epochs_saved": saved,
        "device_time": _duration(total_s),
        "time_saved": _duration(total_s * saved / sum(spent.values())) if total_s and saved else None,
        "overall": overall,
        "settings": settings,
        "good": _good_trials(known, searched),
        "schedules": schedules,
        "money": money,
        "run": run,
        "compared": compared,
        "failures": failures[:MOST_FAILURES],
        "failure_kinds": len(failures),
        "rows": ranked[:MOST_ROWS],
        "row_count": len(ranked),
        "columns": [axis.name for axis in searched],
        "pictures": [*overall, *settings, *schedules, *run["pictures"], money, *compared["pictures"]],
        "text": _text,
    }


def _best_run(
    definition: Definition, best: TrialFacts | None, baselines: Mapping[str, float], artifacts: Path
) -> dict[str, Any]:
    """Pictures, settings and what is missing of the best trial's run folder."""
    if best is None:
        return {"pictures": [], "missing": [], "host": "", "settings": [], "marks": []}
    folder = RunFolder.of_trial(artifacts, definition.name, best.number)
    title = f"Trial {best.number}"
    shown: list[_Picture] = []
    missing: list[str] = []
    rows = _read_history(folder)
    if rows:
        shown.append(
            _Picture(
                "best_curves.png",
                charts.run_curves(rows, name=title),
                f"{title}: validation PSNR, losses, forcing ratio, KL weight and learning rate over "
                f"{len(rows)} epochs.",
            )
        )
    else:
        missing.append(folder.history.name)
    psnr = _read_psnr(folder)
    if psnr:
        shown.append(
            _Picture(
                "best_psnr_per_frame.png",
                charts.psnr_per_frame(np.array(psnr), baselines, name=title),
                f"{title}: PSNR of each of {len(psnr)} predicted validation frames, mean "
                f"{statistics.fmean(psnr):.2f} dB.",
            )
        )
    else:
        missing.append(pictures.PSNR_VALUES)
    for name, text, caption in (
        (
            pictures.WORST,
            "The frames with the lowest PSNR: truth, pose and prediction above each other.",
            "The worst predicted frames, each from another stretch of the video.",
        ),
        (
            pictures.GIF,
            "Animation: true frames, prediction and pose beside each other.",
            "The free-running prediction between the truth and the pose it was given.",
        ),
    ):
        try:
            shown.append(_Picture(f"best_{name}", (folder.root / name).read_bytes(), text, caption))
        except OSError:
            missing.append(name)
    run = {"pictures": shown, "missing": missing, "host": str(best.attributes.get("host") or "")}
    try:
        config = params_to_config(definition, best.params, best.number, best.attributes.get("seed"))
    except SettingsError:  # trials that another version of the definition made
        return {**run, "settings": list(best.params.items()), "marks": []}
    return {
        **run,
        "settings": list(config.plain().items()),
        "marks": _marks(config),
    }


def _marks(config: Config) -> list[tuple[str, str]]:
    """Where the schedules of the best trial turn, in words."""
    marks = landmarks(config)
    when = {
        "teacher forcing starts to fall": marks.decay_starts,
        "teacher forcing reaches 0": marks.decay_ends,
        "KL weight first reaches 1": marks.beta_full,
        "KL weight first falls back": marks.cycle,
    }
    return [(what, _when(epoch)) for what, epoch in when.items()]


def _when(epoch: int | None) -> str:
    if epoch is None:
        return "never"
    return f"after {epoch} epoch{'' if epoch == 1 else 's'}" if epoch else "from the start"


def _comparison(
    definition: Definition, known: Sequence[TrialFacts], baselines: Mapping[str, float], artifacts: Path
) -> dict[str, Any]:
    """The charts and the table of an ablation study: a grid over the KL weight's shape or the forcing ratio."""
    varied = [name for name in _COMPARED if name in definition.search]
    if definition.sampler.kind != "grid" or not varied:
        return {"pictures": [], "rows": []}
    runs: dict[str, list[dict[str, Any]]] = {}
    frames: dict[str, list[float]] = {}
    rows = []
    for trial in known:
        if trial.state != "complete" or len(runs) == _MOST_VARIANTS:
            continue
        label = ", ".join(f"{_plain_name(name)} {_text(value)}" for name, value in trial.params.items())
        folder = RunFolder.of_trial(artifacts, definition.name, trial.number)
        runs[label] = _read_history(folder)
        psnr = _read_psnr(folder)
        if psnr:
            frames[label] = psnr
        rows.append(_variant(label, trial, runs[label]))
    what = " and ".join(_plain_name(name) for name in varied)
    beside = [_SCHEDULE_OF[name] for name in varied]
    below = " and ".join(name for _, name in beside)
    shown = [
        _Picture(
            "compare_loss.png",
            study_charts.ablation(
                runs, "train_loss", what="Training loss", unit="", lower_is_better=True, beside=beside
            ),
            f"Training loss over epochs by {what}; below, {below} over the same epochs.",
        ),
        _Picture(
            "compare_mse.png",
            study_charts.ablation(
                runs, "train_mse", what="Squared error", unit="", lower_is_better=True, beside=beside
            ),
            f"Squared error in training, without the KL term, over epochs by {what}; below, {below}.",
        ),
        _Picture(
            "compare_psnr.png",
            study_charts.ablation(runs, "val_psnr", what="Validation PSNR", unit="dB", lower_is_better=False),
            f"Validation PSNR over epochs by {what}.",
        ),
        _Picture(
            "compare_frames.png",
            study_charts.frames_compared(frames, baselines),
            f"PSNR of every validation frame by {what}.",
        ),
    ]
    return {"pictures": shown, "rows": rows}


def _variant(label: str, trial: TrialFacts, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line of the comparison's table; numbers that the run folder lacks are None."""
    last = rows[-1] if rows else {}
    swing = [abs(float(b["train_loss"]) - float(a["train_loss"])) for a, b in itertools.pairwise(rows)]
    return {
        "label": label,
        "number": trial.number,
        "value": trial.value,
        "best": max((float(row["val_psnr"]) for row in rows), default=None),
        "late": last.get("val_psnr_late"),
        "loss": last.get("train_loss"),
        "mse": last.get("train_mse"),
        "swing": statistics.fmean(swing) if swing else None,
    }


def _failures(known: Sequence[TrialFacts]) -> list[dict[str, Any]]:
    """Failed trials by reason, the most frequent first."""
    by_reason: dict[str, list[TrialFacts]] = {}
    for trial in known:
        if trial.state == "failed":
            by_reason.setdefault(trial.reason, []).append(trial)
    return [
        {
            "reason": reason,
            "count": len(trials),
            "epochs": sum(trial.epochs for trial in trials),
            "numbers": ", ".join(str(trial.number) for trial in trials[:_MOST_NUMBERS])
            + (" ..." if len(trials) > _MOST_NUMBERS else ""),
        }
        for reason, trials in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1][0].number))
    ]


def _good(known: Sequence[TrialFacts]) -> list[TrialFacts]:
    """The best fifth of the complete trials, best first; empty below five complete trials."""
    complete = sorted((t for t in known if t.value is not None), key=lambda t: (-(t.value or 0.0), t.number))
    return complete[: max(3, math.ceil(len(complete) / 5))] if len(complete) >= 5 else []


def _good_trials(known: Sequence[TrialFacts], searched: Sequence[Axis]) -> dict[str, Any] | None:
    """Where the settings of the good trials lie; None where there are too few to tell."""
    good = _good(known)
    if not good:
        return None
    rows = []
    for axis in searched:
        here = [trial.params[axis.name] for trial in good if axis.name in trial.params]
        every = [trial.params[axis.name] for trial in known if axis.name in trial.params]
        if axis.kind == "categorical":
            rows.append((axis.name, _tally(here, axis), _tally(every, axis)))
        else:
            rows.append((axis.name, _spread(here), _spread(every)))
    return {"count": len(good), "of": sum(trial.value is not None for trial in known), "rows": rows}


def _good_schedules(definition: Definition, known: Sequence[TrialFacts]) -> list[_Picture]:
    """The forcing ratio and KL weight of the good trials as curves, where the study searches what shapes them."""
    good = {trial.number for trial in _good(known)}
    if not good or not any(name.startswith(("tfr", "kl_anneal")) for name in definition.search):
        return []
    configs = {}
    for trial in known:
        if trial.params:
            with contextlib.suppress(SettingsError):  # trials that another version of the definition made
                configs[trial.number] = params_to_config(definition, trial.params, trial.number)
    chosen = {trial.number: configs[trial.number] for trial in _good(known) if trial.number in configs}
    if not chosen:
        return []
    others = [config for number, config in configs.items() if number not in good]
    return [
        _Picture(
            "good_schedules.png",
            study_charts.good_schedules(chosen, others, next(iter(chosen))),
            f"Forcing ratio and KL weight over the epochs of the {len(chosen)} best trials, above those of the "
            f"{len(others)} others.",
        )
    ]


def _tally(values: Sequence[Any], axis: Axis) -> str:
    found = [(choice, values.count(choice)) for choice in axis.choices]
    return ", ".join(f"{_text(choice)} {count}x" for choice, count in found if count) or "-"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{_text(min(values))} to {_text(max(values))}, median {_text(statistics.median(values))}"


def _verdict(best: TrialFacts | None, baselines: Mapping[str, float]) -> str:
    """One sentence on what the study has found."""
    if best is None or best.value is None:
        return "No trial is complete yet, so there is nothing to recommend."
    if not baselines:
        return f"Trial {best.number} reached {best.value:.2f} dB; the study knows no baselines to compare it with."
    lost = beaten_baselines(best.value, baselines)
    if lost:
        names = " and ".join(BASELINE_NAMES.get(name, name) for name in lost)
        # The nearest pose is no trifle: it looks the frame up in the training video.
        doing = "copying the nearest training frame is worth" if lost == ["nearest_pose"] else "doing nothing is worth"
        return (
            f"The best trial, number {best.number} with {best.value:.2f} dB, does NOT beat {names}: "
            f"these settings have learnt less than {doing}."
        )
    name, level = max(baselines.items(), key=lambda item: item[1])
    return (
        f"Trial {best.number} reached {best.value:.2f} dB, {best.value - level:.2f} dB above the hardest baseline "
        f"({BASELINE_NAMES.get(name, name)})."
    )


def _confirmed_text(fresh: Confirmation) -> str:
    """What the table of fresh runs is, in words."""
    text = (
        f"{fresh.ended} of {fresh.runs} fresh runs of the leaders are over. They rank by these runs alone, because the "
        "search's own values were selected for being high."
    )
    if fresh.spread is None:
        return text
    text += f" One run scatters by {fresh.spread:.2f} dB (standard deviation, {fresh.freedom} degrees of freedom)."
    if not fresh.paired:
        return text
    return text + " Leaders are compared seed by seed: what a seed does to all of them alike is no difference."


def _against(best: TrialFacts | None, baselines: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {
            "name": BASELINE_NAMES.get(name, name),
            "value": value,
            "gain": None if best is None or best.value is None else best.value - value,
        }
        for name, value in baselines.items()
    ]


def _history_text(known: Sequence[TrialFacts], best: TrialFacts | None) -> str:
    ended = sum(trial.state in ("complete", "pruned") for trial in known)
    if best is None or best.value is None:
        return f"Values of {ended} finished trials over the epochs spent; none is complete."
    return f"Values of {ended} finished trials over the epochs spent; the best is {best.value:.2f} dB."


def _rank(trial: TrialFacts) -> tuple[int, float, int]:
    """Complete trials by value, then the others by state and last report."""
    level = trial.level
    return (_STATES.index(trial.state), -level if level is not None else math.inf, trial.number)


def _ordered(found: Sequence[Axis], definition: Definition) -> list[Axis]:
    """The settings in the order in which the definition lists them."""
    place = {name: index for index, name in enumerate(definition.search)}
    return sorted(found, key=lambda axis: place.get(axis.name, len(place)))


def _read_history(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows of history.jsonl; empty if it is missing or not what a run writes."""
    try:
        rows = folder.read_history()
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and "val_psnr" in row for row in rows) else []


def _read_psnr(folder: RunFolder) -> list[float]:
    """The PSNR of every validation frame; empty if it is missing or not what a run writes."""
    try:
        values = json.loads((folder.root / pictures.PSNR_VALUES).read_text())["psnr_db"]
        return [float(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _duration(seconds: float | None) -> str | None:
    """A time with its unit, in hours from one hour on; None for None."""
    if seconds is None:
        return None
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _plain_name(name: str) -> str:
    return {"kl_anneal_type": "KL", "tfr": "forcing"}.get(name, name)


def _text(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    return str(value)

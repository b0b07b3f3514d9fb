"""The pictures of a report, drawn from its facts and from the run folder of the best trial."""

from __future__ import annotations

import base64
import io
import itertools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cvaeopt.outcome import settings_charts, study_charts
from cvaeopt.outcome.ablation import Ablation
from cvaeopt.outcome.comparison_charts import lines_per_frame
from cvaeopt.outcome.contour_chart import contour, first_pair
from cvaeopt.outcome.importance import Importance
from cvaeopt.outcome.report_data import ReportData
from cvaeopt.outcome.report_text import short_name
from cvaeopt.outcome.run_files import DIPS, RunFiles
from cvaeopt.pictures import curves, run_pictures
from cvaeopt.pictures import snapshots as snapshot_chart
from cvaeopt.pictures.strip import strip_frames
from cvaeopt.pictures.training_chart import run_curves
from cvaeopt.vae import snapshots

_SCHEDULE_OF: Final = {"kl_anneal_type": ("beta", "KL weight"), "tfr": ("tfr", "forcing ratio")}
_RUN_PICTURES: Final = (
    (
        run_pictures.WORST,
        "The frames with the lowest PSNR: truth, pose and prediction above each other.",
        "The worst predicted frames, each from another stretch of the video.",
    ),
    (
        run_pictures.GIF,
        "Animation: true frames, prediction and pose beside each other.",
        "The free-running prediction between the truth and the pose it was given.",
    ),
)


@dataclass(frozen=True)
class Picture:
    """One picture of the page. `text` describes the picture for readers who cannot see it."""

    name: str
    data: bytes = field(repr=False)
    text: str
    caption: str = ""

    @property
    def uri(self) -> str:
        """The picture as a data URI. With data URIs the page needs no other file."""
        kind = "gif" if self.name.endswith(".gif") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels. The page states both, so that its layout does not change while it loads."""
        with Image.open(io.BytesIO(self.data)) as image:
            return image.size


@dataclass(frozen=True)
class Frame:
    """A frame of the film strip.

    number   the number of the predicted frame, counted from 1
    psnr     PSNR of the frame, dB
    mark     'best', 'median', 'worst', or ''
    """

    picture: Picture
    number: int
    psnr: float
    mark: str


@dataclass(frozen=True)
class ReportPictures:
    """The pictures of each section of the page.

    missing   names of the files that are missing in the best trial's run folder on this machine
    strip     frames of the roll-out: of the retrained run if there is a retrained run, else of the best trial
    """

    overall: list[Picture]
    settings: list[Picture]
    schedules: list[Picture]
    cost: Picture
    run: list[Picture]
    missing: list[str]
    compared: list[Picture]
    contour: list[Picture]
    strip: list[Frame]
    retrained: list[Picture]

    @property
    def all(self) -> list[Picture]:
        """Every picture, in the order of the page."""
        groups = (self.overall, self.settings, self.contour, self.schedules, self.run, self.retrained, self.compared)
        return [*itertools.chain(*groups), self.cost]


def report_pictures(data: ReportData, shares: list[Importance]) -> ReportPictures:
    """Draw all pictures of a report.

    shares   the importance of each setting, the largest first
    """
    run, missing = _best_run(data)
    cost = study_charts.cost(data.spent, data.epochs_saved, data.device_time)
    return ReportPictures(
        overall=_overall(data),
        settings=_settings(data, shares),
        schedules=_good_schedules(data),
        cost=Picture("cost.png", cost, "Epochs by how their trials ended."),
        run=run,
        missing=missing,
        compared=_compared(data.compared, data.levels),
        contour=_contour(data, shares),
        strip=_strip(data),
        retrained=_retrained(data),
    )


def _overall(data: ReportData) -> list[Picture]:
    ended = sum(trial.state in ("complete", "pruned") for trial in data.known)
    best = data.searched_best
    found = "none is complete" if best is None or best.value is None else f"the best is {best.value:.2f} dB"
    return [
        Picture(
            "history.png",
            study_charts.history(data.known, data.levels, data.metric),
            f"Values of {ended} finished trials over the epochs spent; {found}.",
        ),
        Picture(
            "curves.png",
            study_charts.curves(data.known, data.levels, data.metric),
            f"Learning curves of {sum(bool(t.curve) for t in data.known)} trials: {data.metric} in dB over epochs.",
        ),
    ]


def _settings(data: ReportData, shares: list[Importance]) -> list[Picture]:
    complete = sum(trial.value is not None for trial in data.known)
    said = ", ".join(f"{item.name} {item.share:.0%}" for item in shares) or "too few trials to tell"
    return [
        Picture("importance.png", settings_charts.importance(shares, complete), f"Importance of the settings: {said}"),
        Picture(
            "parallel.png",
            settings_charts.parallel(data.known, data.axes),
            "Complete trials as lines over all searched settings, coloured by value.",
        ),
        Picture(
            "slices.png",
            settings_charts.slices(data.known, data.all_axes, data.metric),
            f"{data.metric} of every finished trial against each searched setting.",
        ),
    ]


def _contour(data: ReportData, shares: list[Importance]) -> list[Picture]:
    """The chart of the values over the two most important numeric settings; empty if there are too few trials."""
    pair = first_pair([item.name for item in shares], data.axes)
    drawn = contour(data.known, *pair, data.metric) if pair else None
    if pair is None or drawn is None:
        return []
    across, up = pair
    return [Picture("contour.png", drawn, f"{data.metric} over {across.name} and {up.name}, smoothed, and the trials.")]


def _strip(data: ReportData) -> list[Frame]:
    """The film strip of the retrained run. If there is no retrained run, the film strip of the best trial."""
    files = data.retrained.files if data.retrained else data.run.files
    return [] if files is None else film_strip(files)


def film_strip(files: RunFiles) -> list[Frame]:
    """Frames of a run's roll-out in order of time; empty if the run folder has no animation."""
    shown = strip_frames(files.folder.root / run_pictures.GIF, files.psnr)
    return [
        Frame(
            Picture(
                f"frame_{one.number}.png",
                one.data,
                f"Frame {one.number}: truth, prediction and pose beside each other, {one.psnr:.1f} dB.",
            ),
            one.number,
            one.psnr,
            one.mark,
        )
        for one in shown
    ]


def _retrained(data: ReportData) -> list[Picture]:
    if data.retrained is None:
        return []
    shown, _ = _curves_of_run(data.retrained.files, "Retrained", data.levels, "retrained")
    explained = _content(data.retrained.files.folder.root / DIPS)
    if explained is not None:
        text = "PSNR of each predicted frame over the pose's speed, its share outside, its novelty, and the drift."
        caption = "What may explain a low PSNR. The intervals take into account that neighbours are alike."
        shown.append(Picture(f"retrained_{DIPS}", explained, text, caption))
    return shown


def _good_schedules(data: ReportData) -> list[Picture]:
    """The chart of the good trials' forcing ratio and KL weight over epochs.

    The list is empty if the study searches no setting of these schedules, or if there is no good trial.
    """
    searched = any(axis.name.startswith(("tfr", "kl_anneal")) for axis in data.all_axes)
    chosen = {number: data.configs[number] for number in data.good_numbers if number in data.configs}
    if not searched or not chosen:
        return []
    others = [config for number, config in data.configs.items() if number not in data.good_numbers]
    return [
        Picture(
            "good_schedules.png",
            settings_charts.good_schedules(chosen, others, next(iter(chosen))),
            f"Forcing ratio and KL weight over the epochs of the {len(chosen)} best trials, above those of the "
            f"{len(others)} others.",
        )
    ]


def _best_run(data: ReportData) -> tuple[list[Picture], list[str]]:
    """The pictures of the best trial, and the names of the files that are missing in its run folder on this machine."""
    files = data.run.files
    if files is None or data.best is None:
        return [], []
    return all_of_run(files, f"Trial {data.best.number}", data.levels, "best")


def all_of_run(
    files: RunFiles, title: str, levels: Mapping[str, float], prefix: str
) -> tuple[list[Picture], list[str]]:
    """The pictures of one run, and the names of the files that are missing in its run folder on this machine.

    title    the name of the run
    levels   PSNR of each baseline, dB
    prefix   the first part of the pictures' file names
    """
    shown, missing = _curves_of_run(files, title, levels, prefix)
    for name, text, caption in _RUN_PICTURES:
        content = _content(files.folder.root / name)
        if content is None:
            missing.append(name)
        else:
            shown.append(Picture(f"{prefix}_{name}", content, text, caption))
    return shown, missing


def _curves_of_run(
    files: RunFiles, title: str, levels: Mapping[str, float], prefix: str
) -> tuple[list[Picture], list[str]]:
    shown, missing = [], []
    if files.history:
        shown.append(
            Picture(
                f"{prefix}_curves.png",
                run_curves(files.history, name=title),
                f"{title}: validation PSNR, losses, forcing ratio, KL weight and learning rate over "
                f"{len(files.history)} epochs.",
            )
        )
    else:
        missing.append(files.folder.history.name)
    if files.psnr:
        shown.append(
            Picture(
                f"{prefix}_psnr_per_frame.png",
                curves.psnr_per_frame(np.array(files.psnr), levels, name=title),
                f"{title}: PSNR of each of {len(files.psnr)} predicted validation frames, mean "
                f"{statistics.fmean(files.psnr):.2f} dB.",
            )
        )
    else:
        missing.append(run_pictures.PSNR_VALUES)
    if kept := snapshots.read(files.folder.root):
        shown.append(
            Picture(
                f"{prefix}_snapshots.png",
                snapshot_chart.chart(kept, levels, name=title),
                f"{title}: PSNR of each predicted validation frame after the epochs "
                f"{', '.join(str(epoch) for epoch in sorted(kept))}.",
            )
        )
    return shown, missing


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _compared(compared: Ablation, levels: dict[str, float]) -> list[Picture]:
    """The charts of an ablation: losses and PSNR over epochs, and PSNR per frame. Each arm is a line."""
    if not compared.varied:
        return []
    runs = {one.label: one.files.history for one in compared.variants}
    what = " and ".join(short_name(name) for name in compared.varied)
    schedules = [_SCHEDULE_OF[name] for name in compared.varied]
    below = " and ".join(name for _, name in schedules)
    made = []
    for file, key, name, unit, text in (
        ("loss", "train_loss", "Training loss", "", f"Training loss over epochs by {what}; below, {below}."),
        (
            "mse",
            "train_mse",
            "Squared error",
            "",
            f"Squared error in training, without the KL term, by {what}; {below}.",
        ),
        ("psnr", "val_psnr", "Validation PSNR", "dB", f"Validation PSNR over epochs by {what}."),
    ):
        chart = study_charts.ablation(runs, key, what=name, unit=unit, beside=() if unit else schedules)
        made.append(Picture(f"compare_{file}.png", chart, text))
    frames = {one.label: one.files.psnr for one in compared.variants}
    text = f"PSNR of every validation frame by {what}."
    return [*made, Picture("compare_frames.png", lines_per_frame(frames, levels), text)]

"""What may explain a low PSNR: four measures of every validation frame, and their correlations with the PSNR.

    speed      how fast the pose moves, pixels a frame: the mean distance between the lines of two neighbouring labels
    outside    share of the pose outside the picture: the missing part of the lines, if they touch the border
    distance   distance to the nearest training pose: 0 for an equal label, about 1.4 for labels without a common pixel
    drift      change of the background's mean colour since the given frame, levels of 255, in the previous prediction

The correlation is Spearman's, because a PSNR is no linear function of these measures. Neighbouring frames of a video
are alike, so n frames say less than n independent ones. The interval uses the effective number of frames, n divided by
1 + 2 * (sum of the products of both autocorrelations). The sum ends at the first product that is not positive. The four
intervals hold together with a probability of 95 % (Bonferroni).

A correlation is not a cause: a measure may only go along with the cause.

Sources: Bartlett, Journal of the Royal Statistical Society 98 (1935), for the effective number; Geyer, Statistical
Science 7 (1992), for the end of the sum; Bonett and Wright, Psychometrika 65 (2000), for the interval of Spearman's
correlation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.special import ndtri
from scipy.stats import rankdata

from cvaeopt.outcome.intervals import CONFIDENCE
from cvaeopt.pictures.run_pictures import Frames
from cvaeopt.vae.dataset import Split
from cvaeopt.vae.metrics import nearest_labels

Name = Literal["speed", "outside", "distance", "drift"]
Values = NDArray[np.float64]

LABELS: Final[dict[Name, str]] = {
    "speed": "speed of the pose, pixels a frame",
    "outside": "share of the pose outside the picture",
    "distance": "distance to the nearest training pose",
    "drift": "drift of the background in the frame before, levels of 255",
}

MIN_EFFECTIVE: Final = 6.0
"""With fewer effective frames, no interval is given."""

_INK: Final = 64  # a pixel belongs to the pose if a channel is darker than white by more than this
_NEAR_PX: Final = 6  # pixels so near to a pose are not background


@dataclass(frozen=True)
class Explanation:
    """One measure of every predicted frame, and its correlation with the PSNR.

    values        (T,); NaN where the measure is unknown
    correlation   Spearman's correlation with the PSNR; None if one of both is constant or known in too few frames
    low, high     its interval; None with fewer than MIN_EFFECTIVE effective frames
    effective     the effective number of frames
    """

    name: Name
    values: Values = field(repr=False)
    correlation: float | None = None
    low: float | None = None
    high: float | None = None
    effective: float = 0.0

    @property
    def verdict(self) -> Literal["lower", "higher", "unknown"]:
        """Whether the PSNR is lower or higher where the measure is large, or whether that cannot be told."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "unknown"
        return "lower" if self.high < 0 else "higher"

    def plain(self) -> dict[str, Any]:
        """The explanation as JSON values; an unknown value is null."""
        rounded = {
            key: None if value is None else round(value, 4)
            for key, value in (("correlation", self.correlation), ("low", self.low), ("high", self.high))
        }
        return {
            "name": self.name,
            "what": LABELS[self.name],
            **rounded,
            "effective_frames": round(self.effective, 1),
            "psnr_is": self.verdict,
            "text": f"{LABELS[self.name]}: {interval_text(self)}, {verdict_text(self)}",
            "values": [None if math.isnan(value) else round(float(value), 4) for value in self.values],
        }


def explanations(
    psnr_frames: NDArray[np.floating[Any]], prediction: Frames, val: Split, train: Split
) -> tuple[Explanation, ...]:
    """The four measures of the predicted frames 1..T and their correlations with `psnr_frames` (T,).

    prediction   (T, 3, H, W) uint8
    """
    ink = _ink(val.labels)
    measures: dict[Name, Values] = {
        "speed": speed(ink),
        "outside": outside(ink, _ink(train.labels))[1:],
        "distance": pose_distance(val.labels[1:], train.labels),
        "drift": drift(prediction, val.frames[0], ink),
    }
    psnr = np.asarray(psnr_frames, dtype=np.float64)
    return tuple(explained(name, values, psnr, len(measures)) for name, values in measures.items())


def explained(name: Name, values: Values, psnr: Values, family: int = 1) -> Explanation:
    """The correlation of `values` with `psnr`, both (T,). `family` is the number of intervals that hold together."""
    known = np.isfinite(values) & np.isfinite(psnr)
    if known.sum() < MIN_EFFECTIVE or np.ptp(values[known]) == 0 or np.ptp(psnr[known]) == 0:
        return Explanation(name, values)
    one, other = (np.full(len(values), np.nan) for _ in range(2))
    for ranks, given in ((one, values), (other, psnr)):
        ranks[known] = rankdata(given[known])
        ranks[known] = (ranks[known] - ranks[known].mean()) / ranks[known].std()
    correlation = float(np.clip(np.mean(one[known] * other[known]), -1, 1))
    effective = float(known.sum()) / _inflation(one, other)
    if effective < MIN_EFFECTIVE:
        return Explanation(name, values, correlation, effective=effective)
    half = float(ndtri(1 - (1 - CONFIDENCE) / 2 / family)) * math.sqrt((1 + correlation**2 / 2) / (effective - 3))
    centre = math.atanh(min(max(correlation, -0.999999), 0.999999))
    return Explanation(name, values, correlation, math.tanh(centre - half), math.tanh(centre + half), effective)


def speed(ink: NDArray[np.bool_]) -> Values:
    """The speed of the pose in frames 1..T, pixels a frame; NaN where one of two neighbouring labels is empty.

    ink   (T + 1, H, W), the pixels of the pose

    The distance of two labels is the mean distance of a pixel of one label from the nearest pixel of the other label.
    """
    distances = [None if not shown.any() else distance_transform_edt(~shown) for shown in ink]
    values = np.full(len(ink) - 1, np.nan)
    for index, (before, after) in enumerate(itertools.pairwise(distances)):
        if before is not None and after is not None:
            values[index] = (before[ink[index + 1]].mean() + after[ink[index]].mean()) / 2
    return values


def outside(ink: NDArray[np.bool_], known: NDArray[np.bool_]) -> Values:
    """The share of the pose outside the picture, (T,) in [0, 1], for labels `ink` (T, H, W).

    known   (N, H, W), the training labels; those that do not touch the border show how many pixels a whole pose has

    It is 0 for a label that does not touch the border, and 1 for an empty label.
    """
    amounts, whole = known.sum(axis=(1, 2)), ~_touches(known)
    inside = amounts[whole & (amounts > 0)]
    usual = float(np.median(inside)) if len(inside) else float(max(1, ink.sum(axis=(1, 2)).max(initial=1)))
    amount = ink.sum(axis=(1, 2))
    missing: Values = np.clip(1 - amount / usual, 0, 1)
    return np.where((amount == 0) | _touches(ink), missing, 0.0)


def pose_distance(wanted: Frames, known: Frames) -> Values:
    """The distance of each label in `wanted` (T, 3, H, W) to the nearest one in `known`, in sizes of a label, (T,).

    The distance is the Euclidean distance of the pictures. The size is the mean distance of the labels in `wanted` that
    are not empty from an empty label.
    """
    nearest = known[nearest_labels(known, wanted)].astype(np.float32)
    apart = np.sqrt(np.square(nearest - wanted.astype(np.float32)).sum(axis=(1, 2, 3), dtype=np.float64))
    size = np.sqrt(np.square(255 - wanted.astype(np.float32)).sum(axis=(1, 2, 3), dtype=np.float64))
    usual = size[size > 0].mean() if (size > 0).any() else 1.0
    relative: Values = apart / usual
    return relative


def drift(prediction: Frames, first: Frames, ink: NDArray[np.bool_]) -> Values:
    """The change of the background's mean colour since the given frame, levels of 255, (T,).

    first   (3, H, W), the given frame
    ink     (T + 1, H, W), the pixels of the pose, with that of the given frame

    The change of frame t is measured in the prediction of frame t - 1, from which frame t is predicted. So the error of
    frame t itself is not part of it. It is the root mean square over the three channels. Background are the pixels that
    are far from the poses of the given frame and of frame t - 1. The measure is NaN where no pixel is.
    """
    far = np.array([distance_transform_edt(~shown) > _NEAR_PX if shown.any() else ~shown for shown in ink])
    values = np.full(len(prediction), np.nan)
    for index, frame in enumerate([first, *prediction[:-1]]):
        background = far[0] & far[index]
        if background.any():
            change = frame.astype(np.float64)[:, background] - first.astype(np.float64)[:, background]
            values[index] = math.sqrt(float(np.square(change.mean(axis=1)).mean()))
    return values


def verdict_text(one: Explanation) -> str:
    """The verdict in words."""
    if one.verdict == "unknown":
        return "no relation can be told"
    return f"PSNR is {one.verdict} where it is large"


def interval_text(one: Explanation) -> str:
    """The correlation with its interval as short text."""
    if one.correlation is None:
        return "r unknown"
    text = f"r = {one.correlation:.2f}"
    return text if one.low is None else f"{text} ({one.low:.2f} to {one.high:.2f})"


def _inflation(one: Values, other: Values) -> float:
    """The factor by which the effective number of frames is smaller, for standardised values; NaN is left out."""
    total = 0.0
    for lag in range(1, len(one) // 2):
        product = _autocorrelation(one, lag) * _autocorrelation(other, lag)
        if not product > 0:
            break
        total += product
    return 1 + 2 * total


def _autocorrelation(values: Values, lag: int) -> float:
    products = values[lag:] * values[:-lag]
    products = products[np.isfinite(products)]
    return float(products.mean()) if len(products) else 0.0


def _ink(labels: Frames) -> NDArray[np.bool_]:
    """The pixels of the pose, (N, H, W): all pixels that are clearly not white."""
    ink: NDArray[np.bool_] = (255 - labels.min(axis=1)) > _INK
    return ink


def _touches(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether each pose touches the border of its picture, (N,)."""
    sides: Sequence[NDArray[np.bool_]] = (ink[:, 0], ink[:, -1], ink[:, :, 0], ink[:, :, -1])
    touching: NDArray[np.bool_] = np.any([side.any(axis=1) for side in sides], axis=0)
    return touching

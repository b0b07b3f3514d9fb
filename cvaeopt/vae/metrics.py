"""PSNR, KL divergence, and the baselines with which a PSNR is compared.

The PSNR is computed for each frame and then averaged; it is never computed from the error of a whole batch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

# A frame that is predicted exactly has an infinite PSNR. This lower bound of the error limits its PSNR to 100 dB.
# Without the bound, one exact frame would make the mean of a video infinite.
MSE_FLOOR = 1e-10

_CHUNK = 1024  # number of frames that are converted to float at once: 25 MB at 32 x 64


class Video(Protocol):
    """A video: frames and labels, uint8 (N, 3, H, W) each. `cvaeopt.vae.dataset.Split` is such a class."""

    @property
    def frames(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors on the scale [0, 1], element by element.

    The result is at most 100 dB, because an error below 1e-10 counts as 1e-10. NaN stays NaN.
    """
    return -10 * torch.log10(mse.clamp_min(MSE_FLOOR))


def mse_per_frame(prediction: Tensor, truth: Tensor) -> Tensor:
    """The mean squared error of every frame, (N,) float64.

    prediction, truth   (N, 3, H, W), on the scale [0, 1]
    """
    return (prediction - truth).double().square().mean(dim=(1, 2, 3))


def psnr_per_frame(prediction: Tensor, truth: Tensor) -> Tensor:
    """The PSNR of every frame in dB, (N,) float64. The arguments are those of `mse_per_frame`."""
    return psnr(mse_per_frame(prediction, truth))


def late_mean(psnr_frames: Tensor | np.ndarray) -> float:
    """The mean PSNR of the last third of the frames, in dB: of the last ceil(N / 3) of N >= 1 values.

    The first frames of a roll-out are close to the given frame. The late frames show whether errors accumulate.
    """
    values = np.asarray(psnr_frames.detach().cpu() if isinstance(psnr_frames, Tensor) else psnr_frames)
    return float(values[-math.ceil(len(values) / 3) :].mean(dtype=np.float64))


def kl_divergence(mu: Tensor, logvar: Tensor, norm: Literal["batch", "element"]) -> Tensor:
    """KL divergence from N(mu, exp(logvar)) to N(0, I) in nats, a scalar, >= 0.

    mu, logvar   (B, ...), the mean and the log variance of one Gaussian for each element
    norm         "batch": the sum over all elements divided by B, as in the template; "element": the mean per element
    """
    total = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
    return total / (mu.shape[0] if norm == "batch" else mu.numel())


@dataclass(frozen=True)
class Baselines:
    """The PSNR of three simple predictors on the validation video, dB. The predictors use no network.

    copy_first     predicts the first validation frame for every frame
    train_mean     predicts the mean of all training frames
    nearest_pose   predicts the training frame whose label is nearest to the given label
    """

    copy_first: float
    train_mean: float
    nearest_pose: float

    def plain(self) -> dict[str, float]:
        return asdict(self)


def baselines(train: Video, val: Video) -> Baselines:
    """The three baselines on all validation frames after frame 0. The PSNR is computed per frame and then averaged.

    There must be at least one training frame and two validation frames. The training video is read in chunks: 23,410
    training and 630 validation frames of 32 x 64 take seconds and less than 300 MB.
    """
    truth = val.frames[1:]
    nearest = nearest_labels(train.labels, val.labels[1:])
    return Baselines(
        copy_first=_mean_psnr(val.frames[:1], truth),
        train_mean=_mean_psnr(_mean_frame(train.frames), truth),
        nearest_pose=_mean_psnr(train.frames[nearest], truth),
    )


def public_score(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The public test score of one sequence in dB: mean over frames 1..600 of the PSNR on values 0-255.

    prediction, truth   uint8 (T, 3, H, W), T >= 2; frame 0 is the given frame and does not count

    ValueError if the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    return _mean_psnr(prediction[1:601], truth[1:601])


def _mean_psnr(prediction: np.ndarray, truth: np.ndarray) -> float:
    """The mean PSNR in dB against `truth` (N, 3, H, W), values 0-255.

    prediction   (N, 3, H, W), or (1, 3, H, W) for a picture that is compared with every frame
    """
    total = 0.0
    for start in range(0, len(truth), _CHUNK):
        rows = slice(start, start + _CHUNK)
        shown = prediction if len(prediction) == 1 else prediction[rows]
        error = (shown.astype(np.float32) - truth[rows].astype(np.float32)) / 255
        mse = np.square(error).mean(axis=(1, 2, 3), dtype=np.float64)
        total += float(psnr(torch.from_numpy(mse)).sum())
    return total / len(truth)


def _mean_frame(frames: np.ndarray) -> np.ndarray:
    """The mean of uint8 frames (N, 3, H, W) as float64 (1, 3, H, W), values 0-255, not rounded."""
    total = np.zeros(frames.shape[1:], dtype=np.uint64)
    for start in range(0, len(frames), _CHUNK):
        total += frames[start : start + _CHUNK].sum(axis=0, dtype=np.uint64)
    return total[None] / len(frames)


def nearest_labels(known: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each label in `wanted` (V, 3, H, W), the index of the nearest label in `known` (N, 3, H, W), int64 (V,).

    The distance is the Euclidean distance of the pictures. If several labels have the same distance, the first is used.
    """
    best = np.full(len(wanted), np.inf, dtype=np.float32)
    index = np.zeros(len(wanted), dtype=np.int64)
    target = _ink(wanted)
    for start in range(0, len(known), _CHUNK):
        row = _ink(known[start : start + _CHUNK])
        # |a - b|^2 without |b|^2, because |b|^2 is equal for all candidates of one target
        distance = np.einsum("nd,nd->n", row, row)[:, None] - 2 * (row @ target.T)  # (n, V)
        near = distance.argmin(axis=0)
        value = distance[near, np.arange(len(wanted))]
        closer = value < best
        best[closer] = value[closer]
        index[closer] = near[closer] + start
    return index


def _ink(labels: np.ndarray) -> np.ndarray:
    """Labels as float32 (N, 3 * H * W) in [0, 1], where white is 0.

    Most pixels of a label are white, so most values are 0, and sums in float32 stay accurate.
    """
    return (255 - labels.reshape(len(labels), -1)).astype(np.float32) / 255

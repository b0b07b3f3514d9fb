"""Validate a network: predict the validation video from its first frame, and compute the PSNR of the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvaeopt.config import Config
from cvaeopt.vae.device_data import DeviceData
from cvaeopt.vae.metrics import late_mean, mse_per_frame, psnr
from cvaeopt.vae.model import CVAE, Statistics
from cvaeopt.vae.rollout import evaluation, roll_chunks, to_float, to_pixels

_STATISTICS: dict[str, Statistics] = {"recalibrated": "stored", "running": "stored", "own": "own"}


@dataclass(frozen=True)
class Validation:
    """The scores of a predicted validation video of V frames.

    mse_frames    the mean squared error of each predicted frame on the scale [0, 1], (V - 1,), float64 on the CPU
    frames        the predicted frames, (V - 1, 3, H, W) uint8 on the CPU; None if they were not requested
    """

    mse_frames: Tensor
    frames: Tensor | None

    @property
    def psnr_frames(self) -> Tensor:
        """The PSNR of each predicted frame, (V - 1,) dB, float64 on the CPU."""
        return psnr(self.mse_frames)

    @property
    def mse(self) -> float:
        return float(self.mse_frames.mean())

    @property
    def mean(self) -> float:
        """The mean PSNR of the predicted frames, dB."""
        return float(self.psnr_frames.double().mean())

    @property
    def late(self) -> float:
        """The mean PSNR of the last third of the frames, dB."""
        return late_mean(self.psnr_frames)


def validate(model: CVAE, config: Config, data: DeviceData, z: Tensor, with_frames: bool) -> Validation:
    """Predict all frames of the validation video after frame 0 with `model`, and compute their error.

    z             (V - 1, N, H, W), see `rollout.noise`
    with_frames   whether the result has the predicted frames
    """
    truth = data.val_frames[1:]
    score, pictures = [], []
    done = 0
    with evaluation(model):
        for piece in roll_chunks(
            model,
            to_float(data.val_frames[:1]).contiguous(memory_format=torch.channels_last),
            data.val_labels[None, 1:],
            z[None],
            config.output,
            _STATISTICS[config.val_statistics],
        ):
            piece = piece[0].float()
            score.append(mse_per_frame(piece, to_float(truth[done : done + len(piece)])))
            done += len(piece)
            if with_frames:
                pictures.append(to_pixels(piece).cpu())
    return Validation(torch.cat(score).cpu(), torch.cat(pictures) if with_frames else None)

"""Validate a network: predict the validation video from its first frame, and compute the PSNR of the prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvaeopt.config import Config
from cvaeopt.vae.device_data import DeviceData
from cvaeopt.vae.metrics import late_mean, psnr_per_frame
from cvaeopt.vae.model import CVAE, Statistics
from cvaeopt.vae.rollout import evaluation, roll_chunks, to_float, to_pixels

_STATISTICS: dict[str, Statistics] = {"recalibrated": "stored", "running": "stored", "own": "own"}


@dataclass(frozen=True)
class Validation:
    """The scores of a predicted validation video of V frames.

    psnr_frames   (V - 1,) dB, float64 on the CPU
    frames        the predicted frames, (V - 1, 3, H, W) uint8 on the CPU; None if they were not requested
    """

    psnr_frames: Tensor
    frames: Tensor | None

    @property
    def mean(self) -> float:
        """The mean PSNR of the predicted frames, dB."""
        return float(self.psnr_frames.double().mean())

    @property
    def late(self) -> float:
        """The mean PSNR of the last third of the frames, dB."""
        return late_mean(self.psnr_frames)


def validate(model: CVAE, config: Config, data: DeviceData, z: Tensor, with_frames: bool) -> Validation:
    """Predict all frames of the validation video after frame 0 with `model`, and compute their PSNR.

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
            score.append(psnr_per_frame(piece, to_float(truth[done : done + len(piece)])))
            done += len(piece)
            if with_frames:
                pictures.append(to_pixels(piece).cpu())
    return Validation(torch.cat(score).cpu(), torch.cat(pictures) if with_frames else None)

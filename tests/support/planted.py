"""Demonstration videos with a planted fast stretch or a planted exit, and what is true of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvaeopt.demo_data.choreography import Motion, choreography, fade
from cvaeopt.demo_data.drawing import label, picture
from cvaeopt.demo_data.skeleton import HEIGHT, WIDTH, joints, project
from cvaeopt.vae.dataset import Split


@dataclass(frozen=True)
class Video:
    """A video, and the true state of its figure.

    speed      (N,), mean speed of the joints since the frame before, pixels a frame
    outside    (N,), share of the joints outside the picture
    """

    split: Split
    speed: np.ndarray
    outside: np.ndarray


def video(seed: int, frames: int, fast: slice | None = None, exit_at: slice | None = None) -> Video:
    """A figure that stays in the middle of the picture.

    fast       frames in which the figure moves four times as fast
    exit_at    frames in which the figure is out of the picture; it leaves and comes back in 10 frames
    """
    pace = np.full(frames, 0.5)
    if fast is not None:
        pace[fast] = 2.0
    at = np.cumsum(pace)
    moved = choreography(np.random.default_rng(seed), int(at[-1]) + 2)
    first = at.astype(int)
    part = (at - first)[:, None]
    angles = moved.angles[first] * (1 - part) + moved.angles[first + 1] * part
    t = np.arange(frames)
    x = np.zeros(frames)
    if exit_at is not None:
        x = 2.2 * (fade((t - exit_at.start) / 5) - fade((t - exit_at.stop) / 5))
    space = joints(Motion(angles, x, np.zeros(frames), np.full(frames, 0.3)))
    points, _ = project(space)
    speed = np.zeros(frames)
    speed[1:] = np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(1)
    out = (points < 0) | (points > np.array([WIDTH, HEIGHT]))
    shown = np.array([picture(moment) for moment in space]).transpose(0, 3, 1, 2)
    labels = np.array([label(moment) for moment in space]).transpose(0, 3, 1, 2)
    return Video(Split(shown, labels), speed, out.any(-1).mean(1))

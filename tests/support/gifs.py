"""Animated GIFs, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def gif_frames(path: Path) -> tuple[np.ndarray, list[int], int]:
    """Frames (T, 3, H, W), durations in ms and the loop count of a GIF (0: endless)."""
    shown, durations = [], []
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            shown.append(np.asarray(gif.convert("RGB")).transpose(2, 0, 1))
            durations.append(gif.info["duration"])
        return np.stack(shown), durations, gif.info["loop"]

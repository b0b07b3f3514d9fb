"""The frames and labels of a data set as tensors on a device."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from cvaeopt.vae.dataset import Dataset


class DeviceData:
    """A data set as uint8 tensors (N, 3, H, W) on a device, shared by all runs of a process."""

    _latest: tuple[tuple[str, str, str], DeviceData] | None = None

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.train_frames = _tensor(data.train.frames, device)
        self.train_labels = _tensor(data.train.labels, device)
        self.val_frames = _tensor(data.val.frames, device)
        self.val_labels = _tensor(data.val.labels, device)

    @classmethod
    def of(cls, data: Dataset, device: torch.device) -> DeviceData:
        """The tensors of `data` on `device`. Two successive calls with the same arguments return the same object."""
        key = (str(data.root), data.digest, f"{device}{data.train.frames.shape}")
        if cls._latest is None or cls._latest[0] != key:
            cls._latest = None  # free the memory of the old tensors before the new ones are made
            cls._latest = (key, cls(data, device))
        return cls._latest[1]


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` as a tensor on `device`.

    On a CPU the tensor uses the memory of `array`. So processes that map the same decoded file share its memory pages.
    """
    with warnings.catch_warnings():
        # The mapped file is read-only, but torch has no read-only tensors. No code writes into these tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array).to(device)

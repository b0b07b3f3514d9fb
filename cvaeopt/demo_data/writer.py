"""Write the demonstration data to a folder in the lab's layout, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cvaeopt import files
from cvaeopt.demo_data.choreography import choreography
from cvaeopt.demo_data.drawing import label, picture
from cvaeopt.demo_data.skeleton import joints
from cvaeopt.errors import DataError

Progress = Callable[[str, int, int], None]  # (what, done, total)

CLIP_FRAMES = 16
MARKER = "demonstration.json"  # moved into the folder last, so a folder with this file is complete

_VERSION = 1  # version of the pictures; it must change if the pictures change


def draw(rng: np.random.Generator, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the picture and the label of each frame of a video, uint8 (HEIGHT, WIDTH, 3) each.

    frames   the length of the video
    """
    space = joints(choreography(rng, frames))
    # The brightness of the lamps varies by 0.8 %. Without this variation empty frames would be predicted without any
    # error. Each of them would count as 100 dB, so the mean PSNR would depend mostly on empty frames.
    light = 1 + 0.008 * np.sin(2 * np.pi * (np.arange(frames) / 57 + rng.uniform()))
    for moment, level in zip(space, light, strict=True):
        yield picture(moment, float(level)), label(moment)


def write(
    root: Path,
    *,
    seed: int = 0,
    clips: int = 48,
    val_frames: int = 160,
    sequences: int = 2,
    sequence_frames: int = 96,
    progress: Progress | None = None,
) -> None:
    """Write a demonstration set to the folder `root`, whole or not at all. Equal parameters give equal bytes.

    clips             length of the training video, in clips of 16 frames
    sequences         number of test sequences; test_img gets the first frame of each sequence, test_truth all frames
    sequence_frames   number of frames and of labels in each test sequence

    If `root` already holds a set with the same parameters, nothing is changed. DataError if `root` holds anything else,
    if a parameter is too small, or if `root` cannot be written.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("clips", clips, 1),
        ("val_frames", val_frames, 2),
        ("sequences", sequences, 0),
        ("sequence_frames", sequence_frames, 2),
    ):
        if value < least:
            raise DataError(f"{name} = {value}.", f"Expected at least {least}.", "Change the value.")
    marker = {
        "version": _VERSION, "seed": seed, "clips": clips, "val_frames": val_frames, "sequences": sequences,
        "sequence_frames": sequence_frames,
    }  # fmt: skip
    root = root.absolute()
    if _is_there(root, marker):
        return
    # An existing folder may be a mount point, which cannot be replaced. So the files are moved into the folder.
    exists = root.is_dir()
    scratch = (root if exists else root.parent) / f".{root.name}-{secrets.token_hex(4)}.part"
    try:
        _draw_all(scratch, marker, progress)
        if exists:
            for name in ("train", "val", "test", MARKER):
                if (scratch / name).exists():
                    (scratch / name).rename(root / name)
        else:
            scratch.rename(root)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and _is_there(root, marker):
            return  # another process has written the same set in the meantime
        raise DataError(
            f"The demonstration set could not be written to {root}: {error.strerror}.",
            "Expected a folder that can be written, on a disk with 20 MB of room.",
            "Choose another folder.",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_there(root: Path, marker: dict[str, int]) -> bool:
    """Whether `root` holds the set that `marker` describes. DataError if `root` holds anything else."""
    if not root.exists():
        return False
    if not root.is_dir():
        raise DataError(f"{root} is a file.", "Expected a new or an empty folder.", "Choose another path.")
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((root / MARKER).read_text())
        if found == marker:
            return True
        raise DataError(
            f"{root} holds a demonstration set with other parameters: {json.dumps(found)}.",
            f"Expected {json.dumps(marker)}.",
            "Remove the folder or choose another.",
        )
    left = re.compile(rf"\.{re.escape(root.name)}-[0-9a-f]{{8}}\.part")  # remains of a killed process
    if any(not left.fullmatch(path.name) for path in root.iterdir()):
        raise DataError(
            f"{root} is not empty, and not a demonstration set.",
            "Expected a new or an empty folder.",
            "Choose another: nothing is ever overwritten.",
        )
    return False


def _draw_all(folder: Path, marker: dict[str, int], progress: Progress | None) -> None:
    """Write all pictures and labels of the set, and then `marker`, into `folder`."""
    videos = [
        ("train/train_img", "train/train_label", marker["clips"] * CLIP_FRAMES),
        ("val/val_img", "val/val_label", marker["val_frames"]),
    ]
    videos += [
        (f"test/test_truth/{k}", f"test/test_label/{k}", marker["sequence_frames"]) for k in range(marker["sequences"])
    ]
    done, total = 0, sum(frames for _, _, frames in videos)
    for number, (pictures, labels, frames) in enumerate(videos):
        (folder / pictures).mkdir(parents=True)
        (folder / labels).mkdir(parents=True)
        rng = np.random.default_rng([marker["seed"], number])
        for index, (shown, skeleton) in enumerate(draw(rng, frames)):
            Image.fromarray(shown).save(folder / pictures / f"{index}.png")
            Image.fromarray(skeleton).save(folder / labels / f"{index}.png")
            done += 1
            if progress:
                progress("drawing frames", done, total)
    for k in range(marker["sequences"]):
        first = folder / f"test/test_img/{k}/0.png"
        first.parent.mkdir(parents=True)
        shutil.copyfile(folder / f"test/test_truth/{k}/0.png", first)
    files.write_json(folder / MARKER, marker)

"""The motion of the figure: the angles of its joints and its place on the floor in every frame."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# An arm has four angles: swing forward, raise to the side, roll about the arm's own axis, and bend of the elbow.
# If roll is pi/2, the elbow of a raised arm bends the forearm upwards. If roll is -pi/2, the elbow of a hanging arm
# bends the forearm across the body. A leg has three angles: swing forward ("leg"), raise to the side ("out"), knee.
ANGLES = (
    "lean", "tilt", "twist", "nod", "look", "lift", "sway",
    "l_swing", "l_raise", "l_roll", "l_elbow",
    "r_swing", "r_raise", "r_roll", "r_elbow",
    "l_leg", "l_out", "l_knee",
    "r_leg", "r_out", "r_knee",
)  # fmt: skip
_MIRRORED = [ANGLES.index(n.replace("l_", "R_").replace("r_", "l_").replace("R_", "r_")) for n in ANGLES]
_MIRROR_SIGN = np.array([-1.0 if name in ("tilt", "twist", "look", "sway") else 1.0 for name in ANGLES])
_RELAXED = {
    "l_raise": 0.16, "r_raise": 0.16, "l_elbow": 0.25, "r_elbow": 0.25, "l_roll": -0.3, "r_roll": -0.3,
    "l_out": 0.09, "r_out": 0.09, "l_knee": 0.06, "r_knee": 0.06, "l_leg": 0.03, "r_leg": 0.03,
}  # fmt: skip


@dataclass(frozen=True)
class Motion:
    """The motion of the figure in N frames.

    angles   (N, len(ANGLES))
    x, z     the place on the floor, (N,) each
    yaw      the direction in which the figure looks, (N,)
    """

    angles: np.ndarray
    x: np.ndarray
    z: np.ndarray
    yaw: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def _pose(t: np.ndarray, **angles: np.ndarray | float) -> np.ndarray:
    """Angles (N, len(ANGLES)) at the times `t` (N,). An angle that is not given has its value in the relaxed pose."""
    given = {**_RELAXED, **angles}
    return np.stack([np.broadcast_to(given.get(name, 0.0), t.shape) for name in ANGLES], axis=1)


def _walk(t: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * t / 23
    step, lift = np.sin(phase), np.cos(phase)
    return _pose(
        t, lean=0.06, twist=0.14 * step, l_leg=0.5 * step + 0.06, r_leg=0.06 - 0.5 * step,
        l_knee=0.12 + 0.8 * np.maximum(lift, 0) ** 2, r_knee=0.12 + 0.8 * np.maximum(-lift, 0) ** 2,
        l_swing=-0.5 * step, r_swing=0.5 * step, l_elbow=0.55, r_elbow=0.55, l_out=0.03, r_out=0.03,
    )  # fmt: skip


def _groove(t: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * t / 24
    side, bounce = np.sin(phase), 0.4 - 0.3 * np.cos(2 * phase)
    return _pose(
        t, sway=0.13 * side, tilt=0.16 * side, twist=0.3 * side, look=0.3 * side,
        l_leg=bounce / 2, r_leg=bounce / 2, l_knee=bounce, r_knee=bounce, l_out=0.22, r_out=0.22,
        l_raise=1.25 + 0.95 * side, r_raise=1.25 - 0.95 * side, l_elbow=0.7, r_elbow=0.7, l_roll=1.3, r_roll=1.3,
    )  # fmt: skip


def _kick(t: np.ndarray) -> np.ndarray:
    side = np.sin(2 * np.pi * t / 28)
    right, left = np.maximum(side, 0) ** 1.5, np.maximum(-side, 0) ** 1.5
    return _pose(
        t, tilt=0.22 * side, r_out=0.08 + 1.15 * right, l_out=0.08 + 1.15 * left,
        l_knee=0.06 + 0.3 * right, r_knee=0.06 + 0.3 * left, l_leg=0.03 + 0.15 * right, r_leg=0.03 + 0.15 * left,
        l_raise=1.35 + 0.5 * side, r_raise=1.35 - 0.5 * side, l_elbow=0.15, r_elbow=0.15,
    )  # fmt: skip


def _star(t: np.ndarray) -> np.ndarray:
    phase = 2 * np.pi * t / 22
    wide = (1 - np.cos(phase)) / 2
    return _pose(
        t, lift=0.09 * np.sin(phase) ** 2, l_raise=0.2 + 2.3 * wide, r_raise=0.2 + 2.3 * wide, l_elbow=0.3,
        r_elbow=0.3, l_roll=1.2, r_roll=1.2, l_out=0.07 + 0.42 * wide, r_out=0.07 + 0.42 * wide,
    )  # fmt: skip


def _kneel(t: np.ndarray) -> np.ndarray:
    give = np.sin(2 * np.pi * t / 30)
    return _pose(
        t, lean=0.12, r_leg=-0.05, r_knee=1.6, l_leg=1.45, l_knee=1.5, l_swing=0.75, l_elbow=0.5,
        r_raise=1.1 + 0.5 * give, r_elbow=0.35, r_roll=1.2, nod=-0.1,
    )  # fmt: skip


def _wave(t: np.ndarray) -> np.ndarray:
    beat = np.sin(2 * np.pi * t / 12)
    return _pose(
        t, tilt=0.06, r_raise=1.75, r_roll=1.5, r_elbow=0.95 + 0.55 * beat, l_raise=0.8, l_roll=-1.3, l_elbow=1.7,
        r_out=0.14, l_out=0.14, look=-0.15,
    )  # fmt: skip


def _turn(t: np.ndarray) -> np.ndarray:
    return _pose(t, l_raise=2.5, l_elbow=0.5, l_roll=1.4, r_raise=1.2, r_elbow=0.35, l_out=0.06, r_out=0.06)


def _bow(t: np.ndarray) -> np.ndarray:
    depth = (1 - np.cos(2 * np.pi * t / 30)) / 2
    return _pose(
        t, lean=1.05 * depth, nod=0.3 * depth, l_raise=0.3 + 0.9 * depth, r_swing=0.9 * depth, r_roll=-1.3,
        r_elbow=0.25 + 1.3 * depth, l_leg=0.03 + 0.25 * depth, r_leg=0.03 - 0.15 * depth,
    )  # fmt: skip


_ACTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {  # (motion, duration in frames)
    "groove": (_groove, 36),
    "kick": (_kick, 32),
    "star": (_star, 26),
    "kneel": (_kneel, 30),
    "wave": (_wave, 26),
    "turn": (_turn, 34),
    "bow": (_bow, 30),
}
_SPEED = 0.047  # walking speed in body heights per frame; it matches the stride of `_walk`
_STAGE = 0.9  # largest |x| at which an act takes place; the edge of the picture is at about 1.3
_OUTSIDE = 1.7  # |x| at which no part of a walking figure is in the picture
_SOFT = 7  # half the duration of the transition between two motions, frames


@dataclass(frozen=True)
class _Segment:
    motion: Callable[[np.ndarray], np.ndarray]
    frames: int
    x: float  # place at the end; the segment starts at the place where the previous segment ended
    z: float
    yaw: float  # direction; constant if `turns` is 0
    turns: int = 0  # number of whole turns; the sign is the direction of rotation
    mirrored: bool = False


def _programme(rng: np.random.Generator, frames: int) -> list[_Segment]:
    """Segments with at least `frames` frames in total.

    Each round has all acts in random order, with walks between the acts. In each round the figure walks out of the
    picture once.
    """
    segments: list[_Segment] = []
    x, z = float(rng.uniform(-_STAGE, _STAGE)), 0.0

    def walk(to: float) -> None:
        nonlocal x
        yaw = math.copysign(1.2, to - x)
        segments.append(_Segment(_walk, max(8, round(abs(to - x) / _SPEED)), to, z, yaw))
        x = to

    while sum(segment.frames for segment in segments) < frames:
        acts = [str(name) for name in rng.permutation(list(_ACTS))]
        leaving = int(rng.integers(1, 3))  # early, so that the figure leaves the picture in short videos too
        for position, name in enumerate(acts):
            if position == leaving:
                side = math.copysign(1.0, x)
                walk(side * _OUTSIDE)
                segments.append(_Segment(_walk, 4, x, z, side * 1.2))
            if position:
                away = float(rng.uniform(0.5, 1.1)) * (-1 if x > 0 else 1)
                outside = abs(x) > _STAGE
                walk(away / 2 if outside else float(np.clip(x + away, -_STAGE, _STAGE)))
            motion, length = _ACTS[name]
            z = float(rng.uniform(-0.45, 0.3))
            turns = int(rng.choice([-1, 1])) if name == "turn" else 0
            yaw = float(rng.uniform(-0.5, 0.5))
            segments.append(_Segment(motion, length, x, z, yaw, turns, bool(rng.integers(2))))
    return segments


def choreography(rng: np.random.Generator, frames: int) -> Motion:
    """A continuous, smooth motion of `frames` frames. Generators with the same seed give the same motion."""
    segments = _programme(rng, frames)
    ends = np.cumsum([segment.frames for segment in segments])
    starts = ends - [segment.frames for segment in segments]
    t = np.arange(frames, dtype=np.float64)
    angles = np.zeros((frames, len(ANGLES)))
    x, z, yaw = np.zeros(frames), np.zeros(frames), np.zeros(frames)
    turned = 0.0
    before = segments[0]
    for segment, start, end in zip(segments, starts, ends, strict=True):
        opening = np.ones(frames) if start == 0 else fade((t - start) / _SOFT)
        weight = opening - (0 if segment is segments[-1] else fade((t - end) / _SOFT))
        pose = segment.motion(t - start)
        if segment.mirrored:
            pose = pose[:, _MIRRORED] * _MIRROR_SIGN
        angles += weight[:, None] * pose
        inside = (t >= start) & (t < end)
        part = (t[inside] - start) / segment.frames
        x[inside] = before.x + (segment.x - before.x) * part if segment is not segments[0] else segment.x
        z[inside] = segment.z
        yaw[inside] = segment.yaw + turned + 2 * np.pi * segment.turns * part
        turned += 2 * np.pi * segment.turns
        before = segment
    return Motion(angles, _smooth(x, 2.5), _smooth(z, 6.0), _smooth(yaw, 4.0))


def fade(u: np.ndarray) -> np.ndarray:
    """A smooth step from 0 at u <= -1 to 1 at u >= 1."""
    v = np.clip((u + 1) / 2, 0, 1)
    return v * v * v * (v * (6 * v - 15) + 10)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """`values` (N,) smoothed by a Gaussian window with the standard deviation `sigma`.

    Before the start and after the end, the first and the last value are repeated.
    """
    reach = math.ceil(3 * sigma)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), window / window.sum(), mode="valid")

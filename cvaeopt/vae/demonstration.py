"""A small data set of our own making, in the lab's layout: one figure in a lit studio, and its skeleton.

The figure walks, dances, kneels, turns, waves, jumps, bows and now and then leaves the picture. Three stages:

    choreography   a programme of motions -> the angles of all joints and the place on the floor, smooth in time
    body           angles -> joints in space -> joints in the picture (forward kinematics, a fixed camera)
    drawing        joints -> a shaded picture, and a thin colour skeleton on white

Lengths are in body heights (the standing figure is 1), angles in radians, times in frames. In space x goes to the
right of the picture, y up, z towards the camera; at yaw 0 the figure looks into the camera.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from cvaeopt import files
from cvaeopt.errors import DataError

Progress = Callable[[str, int, int], None]  # (what, done, total)
Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw

WIDTH, HEIGHT = 64, 32
CLIP_FRAMES = 16
MARKER = "demonstration.json"  # moved in last: a folder that has it is complete

_VERSION = 1  # of the pictures; another version draws others
_FINE = 8  # pictures are drawn this much larger, then averaged

# Choreography


# Arms: swing forward, raise to the side, roll about their own length (at pi/2 the elbow of a raised arm bends the
# forearm upwards, at -pi/2 that of a hanging arm bends it across the body), elbow. Legs: swing, raise, knee.
_ANGLES = (
    "lean", "tilt", "twist", "nod", "look", "lift", "sway",
    "l_swing", "l_raise", "l_roll", "l_elbow",
    "r_swing", "r_raise", "r_roll", "r_elbow",
    "l_leg", "l_out", "l_knee",
    "r_leg", "r_out", "r_knee",
)  # fmt: skip
_MIRRORED = [_ANGLES.index(n.replace("l_", "R_").replace("r_", "l_").replace("R_", "r_")) for n in _ANGLES]
_MIRROR_SIGN = np.array([-1.0 if name in ("tilt", "twist", "look", "sway") else 1.0 for name in _ANGLES])
_RELAXED = {
    "l_raise": 0.16, "r_raise": 0.16, "l_elbow": 0.25, "r_elbow": 0.25, "l_roll": -0.3, "r_roll": -0.3,
    "l_out": 0.09, "r_out": 0.09, "l_knee": 0.06, "r_knee": 0.06, "l_leg": 0.03, "r_leg": 0.03,
}  # fmt: skip


@dataclass(frozen=True)
class Motion:
    """What the figure does in N frames: `angles` (N, len(_ANGLES)); place `x`, `z` and direction `yaw` (N,)."""

    angles: np.ndarray
    x: np.ndarray
    z: np.ndarray
    yaw: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


def _pose(t: np.ndarray, **angles: np.ndarray | float) -> np.ndarray:
    """Angles (N, len(_ANGLES)) at the times `t` (N,): those given, and the relaxed ones for the others."""
    given = {**_RELAXED, **angles}
    return np.stack([np.broadcast_to(given.get(name, 0.0), t.shape) for name in _ANGLES], axis=1)


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


_ACTS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {  # motion, frames of one performance
    "groove": (_groove, 36),
    "kick": (_kick, 32),
    "star": (_star, 26),
    "kneel": (_kneel, 30),
    "wave": (_wave, 26),
    "turn": (_turn, 34),
    "bow": (_bow, 30),
}
_SPEED = 0.047  # of walking, body heights a frame: the stride of `_walk`
_STAGE = 0.9  # acts take place at |x| up to this; the picture ends at about 1.3
_OUTSIDE = 1.7  # nothing of a figure that walks is seen there
_SOFT = 7  # half the frames in which one motion becomes the next


@dataclass(frozen=True)
class _Segment:
    motion: Callable[[np.ndarray], np.ndarray]
    frames: int
    x: float  # where it ends; it begins where the one before ended
    z: float
    yaw: float  # throughout, but for `turns`
    turns: int = 0  # whole turns, signed
    mirrored: bool = False


def _programme(rng: np.random.Generator, frames: int) -> list[_Segment]:
    """Segments of at least `frames` frames: acts in random order, walks between, out of the picture once a round."""
    segments: list[_Segment] = []
    x, z = float(rng.uniform(-_STAGE, _STAGE)), 0.0

    def walk(to: float) -> None:
        nonlocal x
        yaw = math.copysign(1.2, to - x)
        segments.append(_Segment(_walk, max(8, round(abs(to - x) / _SPEED)), to, z, yaw))
        x = to

    while sum(segment.frames for segment in segments) < frames:
        acts = [str(name) for name in rng.permutation(list(_ACTS))]
        leaving = int(rng.integers(1, 3))  # early, so that short videos have it too
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
    """A continuous, smooth motion of `frames` frames; equal generators give equal motions."""
    segments = _programme(rng, frames)
    ends = np.cumsum([segment.frames for segment in segments])
    starts = ends - [segment.frames for segment in segments]
    t = np.arange(frames, dtype=np.float64)
    angles = np.zeros((frames, len(_ANGLES)))
    x, z, yaw = np.zeros(frames), np.zeros(frames), np.zeros(frames)
    turned = 0.0
    before = segments[0]
    for segment, start, end in zip(segments, starts, ends, strict=True):
        opening = np.ones(frames) if start == 0 else _fade((t - start) / _SOFT)
        weight = opening - (0 if segment is segments[-1] else _fade((t - end) / _SOFT))
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


def _fade(u: np.ndarray) -> np.ndarray:
    """A smooth step from 0 at u <= -1 to 1 at u >= 1."""
    v = np.clip((u + 1) / 2, 0, 1)
    return v * v * v * (v * (6 * v - 15) + 10)


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """`values` (N,) under a Gaussian window; the ends continue as they are."""
    reach = math.ceil(3 * sigma)
    window = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), window / window.sum(), mode="valid")


# Body


_JOINTS = (
    "pelvis", "neck", "head", "nose", "chest", "belly",
    "l_shoulder", "l_elbow", "l_wrist", "l_hand", "l_hip", "l_knee", "l_ankle", "l_toe",
    "r_shoulder", "r_elbow", "r_wrist", "r_hand", "r_hip", "r_knee", "r_ankle", "r_toe",
)  # fmt: skip
_AT = {name: index for index, name in enumerate(_JOINTS)}

_SCALE = 25.0  # pixels of one body height at z = 0
_DISTANCE = 5.0  # of the camera from z = 0
_EYE = 0.75  # height of the camera
_FLOOR = 29.5  # where the floor at z = 0 is seen, pixels from the top


def joints(motion: Motion) -> np.ndarray:
    """All joints of all frames in space, (N, J, 3), in the order of `_JOINTS`; the lowest touch the floor, y = 0."""
    a = dict(zip(_ANGLES, motion.angles.T, strict=True))
    n = len(motion)
    hips = _turn_y(motion.yaw)
    trunk = hips @ _turn_x(a["lean"]) @ _turn_z(-a["tilt"]) @ _turn_y(a["twist"])
    face = trunk @ _turn_y(a["look"]) @ _turn_x(a["nod"])
    at: dict[str, np.ndarray] = {"pelvis": np.zeros((n, 3))}
    at["neck"] = _go(at["pelvis"], trunk, 0, 0.31, 0)
    at["head"] = _go(at["neck"], face, 0, 0.125, 0.015)
    at["nose"] = _go(at["head"], face, 0, 0, 0.1)
    at["chest"] = _go(at["neck"], trunk, 0, -0.05, 0.075)
    at["belly"] = _go(at["pelvis"], trunk, 0, 0.03, 0.075)
    for side, sign in (("l_", 1.0), ("r_", -1.0)):
        arm = trunk @ _turn_x(-a[side + "swing"]) @ _turn_z(sign * a[side + "raise"])
        arm = arm @ _turn_y(sign * a[side + "roll"])
        fore = arm @ _turn_x(-a[side + "elbow"])
        at[side + "shoulder"] = _go(at["neck"], trunk, sign * 0.105, -0.02, 0)
        at[side + "elbow"] = _go(at[side + "shoulder"], arm, 0, -0.17, 0)
        at[side + "wrist"] = _go(at[side + "elbow"], fore, 0, -0.15, 0)
        at[side + "hand"] = _go(at[side + "wrist"], fore, 0, -0.035, 0)
        leg = hips @ _turn_x(-a[side + "leg"]) @ _turn_z(sign * a[side + "out"])
        shin = leg @ _turn_x(a[side + "knee"])
        foot = shin @ _turn_x(0.5 * np.clip(a[side + "knee"] - 0.3, 0, 1.2))
        at[side + "hip"] = _go(at["pelvis"], hips, sign * 0.06, -0.02, 0)
        at[side + "knee"] = _go(at[side + "hip"], leg, 0, -0.235, 0)
        at[side + "ankle"] = _go(at[side + "knee"], shin, 0, -0.23, 0)
        at[side + "toe"] = _go(at[side + "ankle"], foot, 0, -0.025, 0.085)
    space = np.stack([at[name] for name in _JOINTS], axis=1)
    below = {"l_ankle": 0.035, "r_ankle": 0.035, "l_toe": 0.015, "r_toe": 0.015, "l_knee": 0.045, "r_knee": 0.045}
    lowest = np.min([space[:, _AT[name], 1] - depth for name, depth in below.items()], axis=0)
    sideways = hips[:, :, 0] * a["sway"][:, None]
    space += np.stack([motion.x, a["lift"] - lowest, motion.z], axis=1)[:, None] + sideways[:, None]
    return space


def project(space: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where points (..., 3) are seen, (..., 2) pixels from the left and the top, and their scale (...), pixels."""
    scale = _SCALE * _DISTANCE / (_DISTANCE - space[..., 2])
    across = WIDTH / 2 + scale * space[..., 0]
    down = _FLOOR - _SCALE * _EYE + scale * (_EYE - space[..., 1])
    return np.stack([across, down], axis=-1), scale


def _go(start: np.ndarray, frame: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    """Points (N, 3) at (x, y, z) from `start` (N, 3), measured along the axes `frame` (N, 3, 3)."""
    there: np.ndarray = start + frame @ np.array([x, y, z])
    return there


def _turn_x(angle: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) that take y towards z."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([one, nil, nil, nil, c, -s, nil, s, c], axis=-1).reshape(-1, 3, 3)


def _turn_y(angle: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) that take z towards x."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([c, nil, s, nil, one, nil, -s, nil, c], axis=-1).reshape(-1, 3, 3)


def _turn_z(angle: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) that take x towards y."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([c, -s, nil, s, c, nil, nil, nil, one], axis=-1).reshape(-1, 3, 3)


# Drawing


_SKIN, _HAIR, _COAT, _SHIRT = (232, 182, 148), (58, 36, 26), (206, 74, 56), (240, 234, 222)
_TROUSERS, _SHOES = (44, 52, 92), (236, 232, 226)

# Limbs as (from, to, radius there, radius here, colour)
_LIMBS: tuple[tuple[str, str, float, float, Color], ...] = tuple(
    (side + a, side + b, r, s, color)
    for side in ("l_", "r_")
    for a, b, r, s, color in (
        ("hip", "knee", 0.062, 0.046, _TROUSERS),
        ("knee", "ankle", 0.045, 0.034, _TROUSERS),
        ("ankle", "toe", 0.032, 0.026, _SHOES),
        ("shoulder", "elbow", 0.046, 0.038, _COAT),
        ("elbow", "wrist", 0.037, 0.030, _COAT),
        ("wrist", "hand", 0.026, 0.030, _SKIN),
    )
)

# Bones of the label: (from, to, colour), one colour each
_BONES: tuple[tuple[str, str, Color], ...] = (
    ("pelvis", "neck", (210, 0, 50)),
    ("neck", "head", (255, 0, 170)),
    ("neck", "r_shoulder", (255, 60, 0)),
    ("r_shoulder", "r_elbow", (255, 128, 0)),
    ("r_elbow", "r_wrist", (235, 185, 0)),
    ("neck", "l_shoulder", (120, 190, 0)),
    ("l_shoulder", "l_elbow", (0, 170, 40)),
    ("l_elbow", "l_wrist", (0, 205, 150)),
    ("pelvis", "r_hip", (0, 190, 230)),
    ("r_hip", "r_knee", (0, 140, 255)),
    ("r_knee", "r_ankle", (0, 70, 240)),
    ("r_ankle", "r_toe", (90, 150, 255)),
    ("pelvis", "l_hip", (90, 60, 200)),
    ("l_hip", "l_knee", (120, 0, 255)),
    ("l_knee", "l_ankle", (180, 0, 230)),
    ("l_ankle", "l_toe", (215, 120, 255)),
)
_NOSE: Color = (255, 120, 200)

# Shadows on the floor: (joint above, width, strength, height at which it has faded)
_SHADOWS = (
    ("l_ankle", 0.11, 0.4, 0.12),
    ("r_ankle", 0.11, 0.4, 0.12),
    ("l_toe", 0.09, 0.3, 0.12),
    ("r_toe", 0.09, 0.3, 0.12),
    ("l_knee", 0.12, 0.3, 0.12),
    ("r_knee", 0.12, 0.3, 0.12),
    ("pelvis", 0.26, 0.55, 0.7),
)

# What makes a part look round: (tone, size, shift to the upper left in radii), painted one over the other
_ROUND = ((0.72, 1.0, 0.0), (1.0, 0.82, -0.16), (1.15, 0.42, -0.36))

_SCREEN = (WIDTH * _FINE, HEIGHT * _FINE)
_V, _U = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5  # centres of the pixels, from the top and the left


def picture(space: np.ndarray, light: float = 1.0) -> np.ndarray:
    """The studio and the figure with joints at `space` (J, 3), uint8 (HEIGHT, WIDTH, 3).

    light   brightness of the lamps as a fraction of the usual
    """
    stage = Image.fromarray(np.round(_STUDIO * _shadow(space)[..., None]).astype(np.uint8))
    canvas = stage.resize(_SCREEN, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    figure = _Figure(space)
    parts = [(figure.depth(*limb[:2]), partial(_paint_limb, draw, figure, *limb)) for limb in _LIMBS]
    parts.append((figure.depth("pelvis", "neck"), partial(_paint_trunk, draw, figure)))
    parts.append((figure.depth("head", "head"), partial(_paint_head, draw, figure)))
    for _, paint in sorted(parts, key=lambda part: part[0]):  # what is farther away is painted first
        paint()
    return np.clip(np.round(np.asarray(canvas.reduce(_FINE)) * light), 0, 255).astype(np.uint8)


def label(space: np.ndarray) -> np.ndarray:
    """The skeleton of the joints at `space` (J, 3), uint8 (HEIGHT, WIDTH, 3): thin lines on white, a colour a bone."""
    canvas = Image.new("RGB", _SCREEN, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    figure = _Figure(space)
    radius = _FINE / 2  # lines of one pixel
    for a, b, color in sorted(_BONES, key=lambda bone: figure.depth(*bone[:2])):
        _capsule(draw, figure.seen(a), figure.seen(b), radius, radius, color)
    if figure.facing > -0.3:  # a nose is not seen from behind: this tells front from back
        _capsule(draw, figure.seen("head"), figure.seen("nose"), radius, radius, _NOSE)
    return np.asarray(canvas.reduce(_FINE))


def _studio() -> np.ndarray:
    """The empty studio, float (HEIGHT, WIDTH, 3), 0-255: a lit wall that runs softly into a floor."""
    across = (_U - WIDTH / 2) / (WIDTH / 2)
    lamp = np.exp(-((across + 0.15) ** 2) / 0.55 - ((_V - 9) / 20) ** 2)
    wall = np.array([92, 116, 128]) + lamp[..., None] * np.array([92, 88, 80])
    pool = np.exp(-((across + 0.05) ** 2) / 0.5 - ((_V - 29) / 6) ** 2)
    floor = np.array([128, 108, 92]) + pool[..., None] * np.array([78, 72, 62])
    ground = _fade((_V - 23.2) / 1.8)[..., None]
    empty: np.ndarray = wall * (1 - ground) + floor * ground
    return empty


_STUDIO = _studio()


def _shadow(space: np.ndarray) -> np.ndarray:
    """The part of the light that reaches each pixel, (HEIGHT, WIDTH) in (0, 1]: soft shadows on the floor."""
    dark = np.zeros((HEIGHT, WIDTH))
    for name, width, strength, reach in _SHADOWS:
        x, y, z = space[_AT[name]]
        (across, down), scale = project(np.array([x + 0.06, 0.0, z - 0.02]))
        near = math.exp(-max(y - 0.04, 0) / reach)
        wide, deep = width * scale, 0.3 * width * scale
        dark += strength * near * np.exp(-(((_U - across) / wide) ** 2) - ((_V - down) / deep) ** 2)
    left: np.ndarray = 1 / (1 + dark)
    return left


class _Figure:
    """The joints of one moment as the painter needs them: in fine pixels, with scales and depths."""

    def __init__(self, space: np.ndarray) -> None:
        self._space = space
        points, scales = project(space)
        self._points, self._scales = points * _FINE, scales * _FINE

    def seen(self, joint: str) -> np.ndarray:
        """Where the joint is on the canvas, (2,)."""
        point: np.ndarray = self._points[_AT[joint]]
        return point

    def scale(self, joint: str) -> float:
        """Fine pixels of one body height at the joint."""
        return float(self._scales[_AT[joint]])

    def depth(self, a: str, b: str) -> float:
        """How near the middle of two joints is to the camera."""
        return float(self._space[_AT[a], 2] + self._space[_AT[b], 2]) / 2

    @property
    def facing(self) -> float:
        """1 when the face looks into the camera, -1 when it looks away."""
        return float(self._space[_AT["nose"], 2] - self._space[_AT["head"], 2]) / 0.1

    @property
    def open_coat(self) -> float:
        """1 when the front of the trunk looks into the camera, at most 0 when it is not seen."""
        return float(self._space[_AT["belly"], 2] - self._space[_AT["pelvis"], 2]) / 0.075


def _paint_limb(draw: Draw, figure: _Figure, a: str, b: str, r: float, s: float, color: Color) -> None:
    behind = figure.depth(a, b) - figure.depth("pelvis", "pelvis")
    color = _tone(color, float(np.clip(1 + 1.2 * behind, 0.75, 1.05)))  # less light comes behind the body
    r, s = r * figure.scale(a), s * figure.scale(b)
    for tone, size, shift in _ROUND:
        move = np.full(2, shift * (r + s) / 2)
        _capsule(draw, figure.seen(a) + move, figure.seen(b) + move, r * size, s * size, _tone(color, tone))


def _paint_trunk(draw: Draw, figure: _Figure) -> None:
    scale = figure.scale("pelvis")
    outline = ("l_shoulder", "r_shoulder", "r_hip", "l_hip")
    for tone, size, shift in _ROUND:
        color = _tone(_COAT, tone)
        move = np.full(2, shift * 0.06 * scale)
        corners = [figure.seen(joint) + move for joint in outline]
        shoulder, hip = 0.052 * size * scale, 0.062 * size * scale
        draw.polygon([tuple(corner) for corner in corners], fill=color)
        _capsule(draw, corners[0], corners[1], shoulder, shoulder, color)
        _capsule(draw, corners[2], corners[3], hip, hip, color)
        _capsule(draw, corners[0], corners[3], shoulder, hip, color)
        _capsule(draw, corners[1], corners[2], shoulder, hip, color)
        top = figure.seen("neck") + move + [0, 0.04 * scale]
        _capsule(draw, top, figure.seen("pelvis") + move, 0.075 * size * scale, 0.07 * size * scale, color)
    if figure.open_coat > 0:
        width = 0.028 * scale * math.sqrt(figure.open_coat)
        _capsule(draw, figure.seen("chest"), figure.seen("belly"), width, width * 0.8, _SHIRT)


def _paint_head(draw: Draw, figure: _Figure) -> None:
    scale = figure.scale("head")
    head, neck = figure.seen("head"), figure.seen("neck")
    _capsule(draw, neck, head, 0.036 * scale, 0.036 * scale, _tone(_SKIN, 0.8))
    up = (head - neck) / max(math.dist(head, neck), 1.0) * scale
    forward = (figure.seen("nose") - head) / 0.1
    hair = head + up * 0.018 - forward * 0.018
    face = head - up * 0.012 + forward * 0.03
    if figure.facing > -0.1:
        _disc(draw, hair, 0.078 * scale, _HAIR)
        _disc(draw, face, 0.066 * scale, _SKIN)
        _disc(draw, hair + up * 0.038, 0.05 * scale, _HAIR)
    else:
        _disc(draw, face, 0.066 * scale, _tone(_SKIN, 0.85))
        _disc(draw, hair, 0.082 * scale, _HAIR)
        _disc(draw, hair - 0.02 * scale, 0.04 * scale, _tone(_HAIR, 1.35))


def _tone(color: Color, factor: float) -> Color:
    """A colour made lighter or darker."""
    r, g, b = (min(255, round(value * factor)) for value in color)
    return (r, g, b)


def _disc(draw: Draw, center: np.ndarray, radius: float, color: Color) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _capsule(draw: Draw, a: np.ndarray, b: np.ndarray, r: float, s: float, color: Color) -> None:
    """Two discs and what lies between them."""
    _disc(draw, a, r, color)
    _disc(draw, b, s, color)
    length = math.dist(a, b)
    if length > 1e-6:
        side = np.array([a[1] - b[1], b[0] - a[0]]) / length
        draw.polygon([tuple(p) for p in (a + side * r, b + side * s, b - side * s, a - side * r)], fill=color)


def draw(rng: np.random.Generator, frames: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pictures and labels of one video of `frames` frames, each uint8 (HEIGHT, WIDTH, 3)."""
    space = joints(choreography(rng, frames))
    # The lamps breathe by less than 1 %: in a studio that never changed, empty frames would be predicted without
    # any error, and their 100 dB would drown the others.
    light = 1 + 0.008 * np.sin(2 * np.pi * (np.arange(frames) / 57 + rng.uniform()))
    for moment, level in zip(space, light, strict=True):
        yield picture(moment, float(level)), label(moment)


# Files


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
    """Write a demonstration set to the folder `root`, whole or not at all; equal parameters give equal bytes.

    clips             training frames / 16, one continuous video
    sequences         test sequences of `sequence_frames` labels; test_img has the first frame, test_truth all

    A folder that was written with the same parameters is left as it is. DataError if `root` holds anything
    else, or if a number is too small to be of use.
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
    # A folder that exists may be a mount point, which cannot be replaced: its contents are moved in instead.
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
            return  # another process wrote the same set meanwhile
        raise DataError(
            f"The demonstration set could not be written to {root}: {error.strerror}.",
            "Expected a folder that can be written, on a disk with 20 MB of room.",
            "Choose another folder.",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_there(root: Path, marker: dict[str, int]) -> bool:
    """Whether `root` holds the set that `marker` describes; DataError if it holds anything else."""
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
    left = re.compile(rf"\.{re.escape(root.name)}-[0-9a-f]{{8}}\.part")  # by a process that was killed
    if any(not left.fullmatch(path.name) for path in root.iterdir()):
        raise DataError(
            f"{root} is not empty, and not a demonstration set.",
            "Expected a new or an empty folder.",
            "Choose another: nothing is ever overwritten.",
        )
    return False


def _draw_all(folder: Path, marker: dict[str, int], progress: Progress | None) -> None:
    """All pictures and labels of the set, and its marker, under `folder`."""
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

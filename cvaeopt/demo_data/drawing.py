"""Draw the frames (a shaded figure in a studio) and the labels (its skeleton as thin coloured lines on white)."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from cvaeopt.demo_data.choreography import fade
from cvaeopt.demo_data.skeleton import AT, HEIGHT, WIDTH, project

Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw

_FINE = 8  # pictures are drawn larger by this factor, then reduced by averaging
_SKIN, _HAIR, _COAT, _SHIRT = (232, 182, 148), (58, 36, 26), (206, 74, 56), (240, 234, 222)
_TROUSERS, _SHOES = (44, 52, 92), (236, 232, 226)

# Limbs: (first joint, second joint, radius at the first joint, radius at the second joint, colour)
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

# Bones of the label: (first joint, second joint, colour). Each bone has its own colour.
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

# Shadows on the floor: (joint above the shadow, width, strength, height of the joint that divides the strength by e)
_SHADOWS = (
    ("l_ankle", 0.11, 0.4, 0.12),
    ("r_ankle", 0.11, 0.4, 0.12),
    ("l_toe", 0.09, 0.3, 0.12),
    ("r_toe", 0.09, 0.3, 0.12),
    ("l_knee", 0.12, 0.3, 0.12),
    ("r_knee", 0.12, 0.3, 0.12),
    ("pelvis", 0.26, 0.55, 0.7),
)

# The layers that make a body part look round, in the order of painting: (tone, size, shift in radii). A negative shift
# moves the layer to the upper left.
_ROUND = ((0.72, 1.0, 0.0), (1.0, 0.82, -0.16), (1.15, 0.42, -0.36))

_SCREEN = (WIDTH * _FINE, HEIGHT * _FINE)
_V, _U = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5  # pixel centres, measured from the top (V) and from the left (U)


def picture(space: np.ndarray, light: float = 1.0) -> np.ndarray:
    """The picture of the figure in the studio, uint8 (HEIGHT, WIDTH, 3).

    space   the joints, (J, 3)
    light   brightness of the lamps; 1 is the usual brightness
    """
    stage = Image.fromarray(np.round(_STUDIO * _shadow(space)[..., None]).astype(np.uint8))
    canvas = stage.resize(_SCREEN, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    figure = _Figure(space)
    parts = [(figure.depth(*limb[:2]), partial(_paint_limb, draw, figure, *limb)) for limb in _LIMBS]
    parts.append((figure.depth("pelvis", "neck"), partial(_paint_trunk, draw, figure)))
    parts.append((figure.depth("head", "head"), partial(_paint_head, draw, figure)))
    for _, paint in sorted(parts, key=lambda part: part[0]):  # parts farther from the camera are painted first
        paint()
    return np.clip(np.round(np.asarray(canvas.reduce(_FINE)) * light), 0, 255).astype(np.uint8)


def label(space: np.ndarray) -> np.ndarray:
    """The skeleton of the figure as thin lines on white, one colour for each bone, uint8 (HEIGHT, WIDTH, 3).

    space   the joints, (J, 3)
    """
    canvas = Image.new("RGB", _SCREEN, (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    figure = _Figure(space)
    radius = _FINE / 2  # half the width of a line, in fine pixels: a line is one pixel wide
    for a, b, color in sorted(_BONES, key=lambda bone: figure.depth(*bone[:2])):
        _capsule(draw, figure.seen(a), figure.seen(b), radius, radius, color)
    if figure.facing > -0.3:  # seen from behind, the figure has no nose, so labels of front and back differ
        _capsule(draw, figure.seen("head"), figure.seen("nose"), radius, radius, _NOSE)
    return np.asarray(canvas.reduce(_FINE))


def _studio() -> np.ndarray:
    """The empty studio, float (HEIGHT, WIDTH, 3), 0-255: a lit wall and a floor, without a hard edge between them."""
    across = (_U - WIDTH / 2) / (WIDTH / 2)
    lamp = np.exp(-((across + 0.15) ** 2) / 0.55 - ((_V - 9) / 20) ** 2)
    wall = np.array([92, 116, 128]) + lamp[..., None] * np.array([92, 88, 80])
    pool = np.exp(-((across + 0.05) ** 2) / 0.5 - ((_V - 29) / 6) ** 2)
    floor = np.array([128, 108, 92]) + pool[..., None] * np.array([78, 72, 62])
    ground = fade((_V - 23.2) / 1.8)[..., None]
    empty: np.ndarray = wall * (1 - ground) + floor * ground
    return empty


_STUDIO = _studio()


def _shadow(space: np.ndarray) -> np.ndarray:
    """The fraction of the light that reaches each pixel, (HEIGHT, WIDTH) in (0, 1]. It is below 1 in a shadow."""
    dark = np.zeros((HEIGHT, WIDTH))
    for name, width, strength, reach in _SHADOWS:
        x, y, z = space[AT[name]]
        (across, down), scale = project(np.array([x + 0.06, 0.0, z - 0.02]))
        near = math.exp(-max(y - 0.04, 0) / reach)
        wide, deep = width * scale, 0.3 * width * scale
        dark += strength * near * np.exp(-(((_U - across) / wide) ** 2) - ((_V - down) / deep) ** 2)
    left: np.ndarray = 1 / (1 + dark)
    return left


class _Figure:
    """The joints of one frame, prepared for drawing: positions and scales in fine pixels, and depths.

    A fine pixel is a pixel of the enlarged picture: `_FINE` of them are as wide as a pixel of the result.
    """

    def __init__(self, space: np.ndarray) -> None:
        self._space = space
        points, scales = project(space)
        self._points, self._scales = points * _FINE, scales * _FINE

    def seen(self, joint: str) -> np.ndarray:
        """The position of the joint in the picture, (2,) fine pixels from the left and from the top."""
        point: np.ndarray = self._points[AT[joint]]
        return point

    def scale(self, joint: str) -> float:
        """The length of one body height at the joint, fine pixels."""
        return float(self._scales[AT[joint]])

    def depth(self, a: str, b: str) -> float:
        """The z coordinate of the middle of two joints. It is larger for points nearer to the camera."""
        return float(self._space[AT[a], 2] + self._space[AT[b], 2]) / 2

    @property
    def facing(self) -> float:
        """The direction of the face, in [-1, 1]: 1 if it looks into the camera, -1 if it looks away."""
        return float(self._space[AT["nose"], 2] - self._space[AT["head"], 2]) / 0.1

    @property
    def open_coat(self) -> float:
        """The direction of the trunk's front, in [-1, 1]: 1 if it faces the camera, 0 or less if it cannot be seen."""
        return float(self._space[AT["belly"], 2] - self._space[AT["pelvis"], 2]) / 0.075


def _paint_limb(draw: Draw, figure: _Figure, a: str, b: str, r: float, s: float, color: Color) -> None:
    behind = figure.depth(a, b) - figure.depth("pelvis", "pelvis")
    color = _tone(color, float(np.clip(1 + 1.2 * behind, 0.75, 1.05)))  # limbs behind the body get less light
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
    """`color` times `factor`, lighter if the factor is above 1; each channel is at most 255."""
    r, g, b = (min(255, round(value * factor)) for value in color)
    return (r, g, b)


def _disc(draw: Draw, center: np.ndarray, radius: float, color: Color) -> None:
    x, y = center
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _capsule(draw: Draw, a: np.ndarray, b: np.ndarray, r: float, s: float, color: Color) -> None:
    """Draw a disc of radius `r` at `a`, a disc of radius `s` at `b`, and the area between the two discs."""
    _disc(draw, a, r, color)
    _disc(draw, b, s, color)
    length = math.dist(a, b)
    if length > 1e-6:
        side = np.array([a[1] - b[1], b[0] - a[0]]) / length
        draw.polygon([tuple(p) for p in (a + side * r, b + side * s, b - side * s, a - side * r)], fill=color)

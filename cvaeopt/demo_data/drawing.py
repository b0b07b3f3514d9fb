"""The pictures: a shaded figure in a studio, and its skeleton as thin coloured lines on white."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from cvaeopt.demo_data.choreography import fade
from cvaeopt.demo_data.skeleton import AT, HEIGHT, WIDTH, project

Color = tuple[int, int, int]
Draw = ImageDraw.ImageDraw

_FINE = 8  # pictures are drawn this much larger, then averaged
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
    ground = fade((_V - 23.2) / 1.8)[..., None]
    empty: np.ndarray = wall * (1 - ground) + floor * ground
    return empty


_STUDIO = _studio()


def _shadow(space: np.ndarray) -> np.ndarray:
    """The part of the light that reaches each pixel, (HEIGHT, WIDTH) in (0, 1]: soft shadows on the floor."""
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
    """The joints of one moment as the painter needs them: in fine pixels, with scales and depths."""

    def __init__(self, space: np.ndarray) -> None:
        self._space = space
        points, scales = project(space)
        self._points, self._scales = points * _FINE, scales * _FINE

    def seen(self, joint: str) -> np.ndarray:
        """Where the joint is on the canvas, (2,)."""
        point: np.ndarray = self._points[AT[joint]]
        return point

    def scale(self, joint: str) -> float:
        """Fine pixels of one body height at the joint."""
        return float(self._scales[AT[joint]])

    def depth(self, a: str, b: str) -> float:
        """How near the middle of two joints is to the camera."""
        return float(self._space[AT[a], 2] + self._space[AT[b], 2]) / 2

    @property
    def facing(self) -> float:
        """1 when the face looks into the camera, -1 when it looks away."""
        return float(self._space[AT["nose"], 2] - self._space[AT["head"], 2]) / 0.1

    @property
    def open_coat(self) -> float:
        """1 when the front of the trunk looks into the camera, at most 0 when it is not seen."""
        return float(self._space[AT["belly"], 2] - self._space[AT["pelvis"], 2]) / 0.075


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

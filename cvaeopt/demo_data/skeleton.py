"""The positions of the joints in space (forward kinematics) and in the picture (one fixed camera)."""

from __future__ import annotations

import numpy as np

from cvaeopt.demo_data.choreography import ANGLES, Motion

WIDTH, HEIGHT = 64, 32
JOINTS = (
    "pelvis", "neck", "head", "nose", "chest", "belly",
    "l_shoulder", "l_elbow", "l_wrist", "l_hand", "l_hip", "l_knee", "l_ankle", "l_toe",
    "r_shoulder", "r_elbow", "r_wrist", "r_hand", "r_hip", "r_knee", "r_ankle", "r_toe",
)  # fmt: skip
AT = {name: index for index, name in enumerate(JOINTS)}

_SCALE = 25.0  # pixels per body height at z = 0
_DISTANCE = 5.0  # distance of the camera from z = 0
_EYE = 0.75  # height of the camera
_FLOOR = 29.5  # position of the floor at z = 0 in the picture, pixels from the top


def joints(motion: Motion) -> np.ndarray:
    """The positions of all joints in all frames, (N, J, 3), in the order of `JOINTS`.

    In each frame `lift` is the height of the lowest point of the feet and knees above the floor, y = 0.
    """
    a = dict(zip(ANGLES, motion.angles.T, strict=True))
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
    space = np.stack([at[name] for name in JOINTS], axis=1)
    below = {"l_ankle": 0.035, "r_ankle": 0.035, "l_toe": 0.015, "r_toe": 0.015, "l_knee": 0.045, "r_knee": 0.045}
    lowest = np.min([space[:, AT[name], 1] - depth for name, depth in below.items()], axis=0)
    sideways = hips[:, :, 0] * a["sway"][:, None]
    space += np.stack([motion.x, a["lift"] - lowest, motion.z], axis=1)[:, None] + sideways[:, None]
    return space


def project(space: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of points (..., 3) in the picture, and the scale at each point.

    returns   positions (..., 2), pixels from the left and from the top; scales (...), pixels per body height
    """
    scale = _SCALE * _DISTANCE / (_DISTANCE - space[..., 2])
    across = WIDTH / 2 + scale * space[..., 0]
    down = _FLOOR - _SCALE * _EYE + scale * (_EYE - space[..., 1])
    return np.stack([across, down], axis=-1), scale


def _go(start: np.ndarray, frame: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    """Points (N, 3) at the distance (x, y, z) from `start` (N, 3), along the axes that are the columns of `frame`.

    frame   rotation matrices, (N, 3, 3)
    """
    there: np.ndarray = start + frame @ np.array([x, y, z])
    return there


def _turn_x(angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) about the x axis. They turn y towards z."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([one, nil, nil, nil, c, -s, nil, s, c], axis=-1).reshape(-1, 3, 3)


def _turn_y(angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) about the y axis. They turn z towards x."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([c, nil, s, nil, one, nil, -s, nil, c], axis=-1).reshape(-1, 3, 3)


def _turn_z(angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (N, 3, 3) about the z axis. They turn x towards y."""
    one, nil, c, s = np.ones_like(angle), np.zeros_like(angle), np.cos(angle), np.sin(angle)
    return np.stack([c, -s, nil, s, c, nil, nil, nil, one], axis=-1).reshape(-1, 3, 3)

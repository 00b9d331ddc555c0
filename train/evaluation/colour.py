"""How far a finished frame's colours are from the true ones, as perceived.

CIELAB (CIE 1976) of sRGB (IEC 61966-2-1) under D65, two-degree observer; the distance is Euclidean
in that space: about 2 is just visible side by side.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dithead.train.evaluation.motion import LIPS

LIP_MARGIN = 0.1
"""Pixels nearer to the lips than this, in widths of the mouth, belong to them."""
_DIRECTIONS = 32
_XYZ_OF_RGB = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_MOUTH_CORNERS = (61, 291)


def lab(rgb: Tensor) -> Tensor:
    """Convert sRGB (..., 3) in [0, 1] to CIELAB (..., 3): lightness 0 to 100, a and b."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = linear @ linear.new_tensor(_XYZ_OF_RGB).T / linear.new_tensor(_WHITE)
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def skin_area(
    outline: np.ndarray, meshes: list[np.ndarray], height: int, width: int
) -> tuple[slice, slice, Tensor]:
    """The part of a frame that is replaced, without the lips.

    Args:
        outline: (P, 2) in frame pixels, the blend's, convex and clockwise as seen. meshes: (468, 2)
            each, whose lips are left out. height, width: size of the frame.

    Returns:
        Rows and columns of the box round it, and which of the box's pixels belong to it.
    """
    low, high = np.floor(outline.min(0)).astype(int), np.ceil(outline.max(0)).astype(int)
    x0, x1 = (int(v) for v in np.clip((low[0], high[0]), 0, width))
    y0, y1 = (int(v) for v in np.clip((low[1], high[1]), 0, height))
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    pixels = np.stack([x, y], axis=-1)  # (h, w, 2)
    edges = np.roll(outline, -1, axis=0) - outline
    normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
    area = _within(outline, normals / np.linalg.norm(normals, axis=1, keepdims=True), pixels, 0.0)
    angles = np.arange(_DIRECTIONS) * 2 * math.pi / _DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for mesh in meshes:
        left, right = _MOUTH_CORNERS
        margin = LIP_MARGIN * float(np.linalg.norm(mesh[left] - mesh[right]))
        area &= ~_within(mesh[list(LIPS)], directions, pixels, margin)
    return slice(y0, y1), slice(x0, x1), torch.from_numpy(area)


def _within(
    points: np.ndarray, directions: np.ndarray, pixels: np.ndarray, margin: float
) -> np.ndarray:
    """Which pixels (h, w, 2) lie no further out than some points (N, 2) in any direction (K, 2)."""
    reach = (points @ directions.T).max(0) + margin  # (K,)
    return (pixels @ directions.T <= reach).all(-1)


def colour_distance(
    true: Tensor, made: Tensor, outline: np.ndarray, meshes: list[np.ndarray]
) -> float:
    """Mean CIELAB distance of two frames (H, W, 3) uint8 in :func:`skin_area`; NaN where it is
    empty."""
    rows, columns, area = skin_area(outline, meshes, true.shape[0], true.shape[1])
    a, b = (lab(frame[rows, columns][area].float() / 255) for frame in (true, made))
    return float((a - b).norm(dim=-1).mean())

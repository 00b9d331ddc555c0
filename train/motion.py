"""The motion of a speaker's mouth in a prepared clip, without that of his head.

*Units* are crop units (see ``dithead.face.crop``) of a face put upright by its stable points, frame
by frame: in these units a head neither moves nor rolls. *Stored pixels* are those of a stored crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import FaceConfig
from dithead.face.crop import placement_from_mesh, stable_template, transform_from_placement
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.kernels.sampling import compose, invert_similarity
from dithead.train.data import STORED_MARGIN

UPPER_LIP = (
    *(185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(184, 74, 73, 72, 11, 302, 303, 304, 408),
    *(183, 42, 41, 38, 12, 268, 271, 272, 407),
    *INNER_UPPER[1:-1],
)
"""Mesh points of the upper lip, from its outer to its inner edge, without the corners."""
LOWER_LIP = (
    *(146, 91, 181, 84, 17, 314, 405, 321, 375),
    *(77, 90, 180, 85, 16, 315, 404, 320, 307),
    *(96, 89, 179, 86, 15, 316, 403, 319, 325),
    *INNER_LOWER[1:-1],
)
"""The same for the lower lip."""
CORNERS = (61, 291)
NOSE_BASE, LIP_TOP = 2, 0
CHEEKS = (50, 280, 205, 425, 36, 266, 101, 330)
"""Mesh points on the cheeks, whose colour is used to compare the light on two faces."""

REST_SHARE = 0.05
"""A speaker's mouth counts as at rest in this share of his frames, those with the smallest
opening."""


@dataclass(frozen=True, slots=True)
class Motion:
    """A speaker's motion in one clip."""

    rest: Tensor
    """(468, 2) his mesh with closed lips, in units."""
    moved: Tensor
    """(T, 468, 2) how far each point has moved from there, in units."""
    inner: Tensor
    """(T, 2, 11, 2) inner edges of the upper and the lower lip in stored pixels of his crops."""
    contact: Tensor
    """(11,) distance of the two edges of closed lips, in his stored pixels."""
    crops: Tensor
    """(T, 3, S, S) his stored crops in [0, 1]."""
    colour: Tensor
    """(2, 3) mean colour of his cheeks and of his lips."""


def stored_pixels_of_units(size: int, config: FaceConfig) -> Tensor:
    """The map (2, 3) from crop units to the pixels of a stored crop of side ``size``."""
    scale = size / (config.crop_span * STORED_MARGIN)
    half = size / 2
    return torch.tensor([[scale, 0.0, half], [0.0, scale, half - scale * config.crop_down]])


def to_units(mesh: Tensor) -> Tensor:
    """Meshes (T, 468, 2) in any pixels -> in units."""
    transform = transform_from_placement(placement_from_mesh(mesh, stable_template()))
    return _apply(invert_similarity(transform), mesh)


def to_stored(mesh: Tensor, transform: Tensor, size: int, config: FaceConfig) -> Tensor:
    """Meshes (T, 468, 2) in frame pixels -> in stored pixels, by a track's transform (T, 2, 3)."""
    pixels = stored_pixels_of_units(size, config)[None]
    return _apply(compose(pixels, invert_similarity(transform)), mesh)


def to_crop(mesh: Tensor, transform: Tensor) -> Tensor:
    """Meshes (T, 468, 2) in frame pixels -> in crop units, by a track's transform (T, 2, 3)."""
    return _apply(invert_similarity(transform), mesh)


def crop_meshes(track: Mapping[str, np.ndarray]) -> Tensor:
    """A track's meshes in crop units: (T, 468, 2)."""
    mesh, transform = (torch.from_numpy(track[name]).float() for name in ("mesh", "transform"))
    return to_crop(mesh, transform)


def from_crop(mesh: Tensor, transform: Tensor) -> Tensor:
    """The reverse of :func:`to_crop`."""
    return _apply(transform, mesh)


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def lip_gap(mesh: Tensor) -> Tensor:
    """Distance (T, 11) of the inner edges of upright meshes (T, 468, 2)."""
    return lips_apart(mesh).clamp(min=0.0)


def lips_apart(mesh: Tensor) -> Tensor:
    """As :func:`lip_gap`; negative where the edges of a mesh cross."""
    return mesh[:, INNER_LOWER, 1] - mesh[:, INNER_UPPER, 1]


def mouth_width(mesh: Tensor) -> Tensor:
    """Distance of the mouth's corners of meshes (..., 468, 2)."""
    return (mesh[..., CORNERS[1], :] - mesh[..., CORNERS[0], :]).norm(dim=-1)


def read_motion(crops: np.ndarray, track: dict[str, np.ndarray], config: FaceConfig) -> Motion:
    """The motion of a prepared clip: crops (T, S, S, 3) uint8 and its track."""
    pictures = torch.from_numpy(np.array(crops)).movedim(-1, 1).float() / 255
    mesh = torch.from_numpy(track["mesh"]).float()
    transform = torch.from_numpy(track["transform"]).float()
    stored = to_stored(mesh, transform, pictures.shape[-1], config)
    units = to_units(mesh)
    gap = lip_gap(units).mean(1)
    closed = gap.argsort()[: max(3, round(REST_SHARE * len(gap)))]
    rest = units[closed].mean(0)
    return Motion(
        rest=rest,
        moved=units - rest,
        inner=torch.stack([stored[:, INNER_UPPER], stored[:, INNER_LOWER]], dim=1),
        contact=lip_gap(stored[closed]).mean(0),
        crops=pictures,
        colour=mean_colours(pictures[closed], stored[closed]),
    )


def mean_colours(pictures: Tensor, meshes: Tensor) -> Tensor:
    """Mean colours (2, 3) of cheeks and lips in pictures (T, 3, S, S), meshes in their pixels."""
    size = pictures.shape[-1]
    means = []
    for points in (CHEEKS, UPPER_LIP[9:27] + LOWER_LIP[9:27]):
        places = meshes[:, None, points] * (2.0 / size) - 1
        found = F.grid_sample(pictures, places, align_corners=False, padding_mode="border")
        means.append(found.mean((0, 2, 3)))
    return torch.stack(means)

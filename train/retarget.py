"""Makes a still talk: transfers a speaker's mouth motion to somebody who is only known from a
picture.

The still is bent smoothly by the motion of the speaker's lips, jaw and cheeks since his mouth was
closed. The upper and the lower lip move apart, so there are two displacement fields: one for what
is above the line where the lips meet, one for what is below. What opens between is taken from the
speaker's own frame, in the still's light.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import FaceConfig
from dithead.face.mesh import INNER_LOWER, INNER_UPPER
from dithead.train.data import STORED_MARGIN
from dithead.train.motion import (
    CORNERS,
    LIP_TOP,
    LOWER_LIP,
    NOSE_BASE,
    UPPER_LIP,
    Motion,
    lip_gap,
    mean_colours,
    mouth_width,
    to_stored,
)
from dithead.train.mouth import heights, inner_mouth, seam

AMPLITUDE = (0.75, 1.3)
"""Motion grows with the width of the mouth, within these limits."""
GRID_PX = 2
"""Displacements are computed at every second stored pixel."""
CONTACT = 0.04
"""Inner edges of closed lips may be this far apart in a mesh, in widths of the mouth."""
CUT = 0.045
"""This much of the lips, in widths of the mouth, goes with the teeth when an open mouth is
closed."""
CLOSED_BY_UPPER = 0.35
"""The upper lip's share in closing an open mouth."""
_KERNEL_PX = 2.0
_SMOOTHING_PX = 0.5
_INVERSIONS = 5


@dataclass(frozen=True, slots=True)
class Still:
    """A picture of a face, and everything that does not depend on the driver."""

    crop: Tensor
    """(3, S, S) in [0, 1]."""
    mesh: Tensor
    """(468, 2) in stored pixels."""
    unit_px: float
    """Stored pixels in one crop unit."""
    share: Tensor
    """(468,) how much of the speaker's motion a point follows, from 0 to 1."""
    fields: Tensor
    """(2, G, 468) weights from the points' displacement to that of the grid's places, above and
    below the line where the lips meet."""
    top: int
    """First row of stored pixels that may move."""
    closing: Tensor
    """(468, 2) what closes the still's own mouth, in stored pixels."""
    colour: Tensor
    """(2, 3) mean colour of the cheeks and of the lips."""


def read_still(crop: np.ndarray, track: dict[str, np.ndarray], config: FaceConfig) -> Still:
    """A prepared still: crop (1, S, S, 3) uint8 and its track."""
    picture = torch.from_numpy(np.array(crop)).movedim(-1, 1).float() / 255
    size = picture.shape[-1]
    transform = torch.from_numpy(track["transform"]).float()
    mesh = to_stored(torch.from_numpy(track["mesh"]).float(), transform, size, config)[0]
    top = int(mesh[NOSE_BASE, 1].clamp(0, size - 2)) // GRID_PX * GRID_PX
    return Still(
        crop=picture[0],
        mesh=mesh,
        unit_px=size / (config.crop_span * STORED_MARGIN),
        share=_share(mesh),
        fields=torch.stack([_field(mesh, size, top, lip) for lip in (LOWER_LIP, UPPER_LIP)]),
        top=top,
        closing=_closing(mesh),
        colour=mean_colours(picture, mesh[None]),
    )


def _share(mesh: Tensor) -> Tensor:
    """Nothing above the nose's base, everything from the upper lip down, and less towards the
    temples."""
    y = (mesh[:, 1] - mesh[NOSE_BASE, 1]) / (mesh[LIP_TOP, 1] - mesh[NOSE_BASE, 1]).clamp(min=1.0)
    half = (mesh[454, 0] - mesh[234, 0]).abs() / 2
    middle = mesh[[*CORNERS], 0].mean()
    x = ((mesh[:, 0] - middle).abs() / half - 0.5) / 0.5
    return _smoothstep(y) * (1 - 0.7 * _smoothstep(x))


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _field(mesh: Tensor, size: int, top: int, without: tuple[int, ...]) -> Tensor:
    """Weights (G, 468) of a smooth interpolation (radial functions) between the mesh's points,
    except some, and the picture's edge, which does not move; for the grid from row ``top`` down."""
    line = torch.linspace(0.0, size, 9)
    zero, full = torch.zeros_like(line), torch.full_like(line, size)
    edge = torch.cat(
        [torch.stack(pair, 1) for pair in ((line, full), (zero, line), (full, line))]
    ).unique(dim=0)
    kept = [i for i in range(len(mesh)) if i not in without]
    centres = torch.cat([mesh[kept], edge]).double()

    def kernel(places: Tensor) -> Tensor:
        return -(torch.cdist(places, centres).square() + _KERNEL_PX**2).sqrt()

    count = len(centres)
    system = torch.ones(count + 1, count + 1, dtype=torch.float64)
    system[:count, :count] = kernel(centres) + _SMOOTHING_PX * torch.eye(count)
    system[count, count] = 0
    solved = torch.linalg.inv(system)[:, : len(kept)].float()
    places = _grid(size, top).flatten(0, 1)
    basis = torch.cat([kernel(places.double()).float(), torch.ones(len(places), 1)], dim=1)
    weights = torch.zeros(len(places), len(mesh))
    weights[:, kept] = basis @ solved
    fade = _smoothstep((places[:, 1] - top) / 6.0)
    return weights * fade[:, None]


def _grid(size: int, top: int) -> Tensor:
    """Positions of stored pixels on the grid from row ``top`` down: (rows, columns, 2)."""
    x = torch.arange(0.0, size + 1, GRID_PX)
    y = torch.arange(float(top), size + 1, GRID_PX)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def own_opening(mesh: Tensor) -> Tensor:
    """How much of a still's mouth must be removed for its lips to meet, at 11 places from corner to
    corner, in the pixels of its mesh (468, 2): (11,), 0 for a closed mouth."""
    gap, width = lip_gap(mesh[None])[0], mouth_width(mesh)
    opened = _smoothstep(gap / (CONTACT * width) - 1)
    return opened * (gap + CUT * width)


def _closing(mesh: Tensor) -> Tensor:
    """Displacement (468, 2) that brings the lips of an open mouth together; 0 for a closed one.

    Both lips move as a whole, the lower one further.
    """
    opening = own_opening(mesh)[1:-1]
    shift = torch.zeros_like(mesh)
    for points, share in ((UPPER_LIP, CLOSED_BY_UPPER), (LOWER_LIP, CLOSED_BY_UPPER - 1)):
        for ring in range(0, len(points), len(opening)):
            shift[[*points[ring : ring + len(opening)]], 1] = share * opening
    return shift


@torch.inference_mode()
def retarget(still: Still, motion: Motion, vigour: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Make the still say what the speaker says.

    Args:
        vigour: how much further its mouth moves than the speaker's.

    Returns:
        crops (T, S, S, 3) uint8, and meshes (T, 468, 2) float32 in their pixels.
    """
    size = still.crop.shape[-1]
    frames = len(motion.moved)
    ratio = float(mouth_width(still.mesh)) / still.unit_px / float(mouth_width(motion.rest))
    amplitude = vigour * min(max(ratio, AMPLITUDE[0]), AMPLITUDE[1])
    moved = motion.moved * (amplitude * still.unit_px) * still.share[:, None] + still.closing
    mesh = still.mesh + moved
    # Where the lips part in the still; each moves with its edge.
    meeting = (still.mesh[INNER_UPPER, :] + still.mesh[INNER_LOWER, :]) / 2
    half = torch.stack([torch.zeros(11), own_opening(still.mesh) / 2], dim=1)
    upper = meeting - half + moved[:, INNER_UPPER]
    lower = meeting + half + moved[:, INNER_LOWER]
    both = (upper + lower) / 2
    pressed = (lower[..., 1] < upper[..., 1])[..., None]
    upper, lower = torch.where(pressed, both, upper), torch.where(pressed, both, lower)
    touching = torch.zeros(11, 2)
    touching[:, 1] = (lip_gap(still.mesh[None])[0] - own_opening(still.mesh)).clamp(min=0) / 2
    mesh[:, INNER_UPPER], mesh[:, INNER_LOWER] = upper - touching, lower + touching

    picture = still.crop.expand(frames, -1, -1, -1).clone()
    bent = _bend(still, moved, upper, lower)
    mouth, opacity = inner_mouth(motion, still.colour, upper, lower, size)
    rows = slice(still.top, None)
    picture[:, :, rows] = bent + opacity[:, :, rows] * (mouth[:, :, rows] - bent)
    return (255 * picture).round().byte().movedim(1, -1).numpy(), mesh.numpy()


def _bend(still: Still, moved: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """The still's rows from ``top`` down with its points moved (T, 468, 2), and the edges of its
    lips at ``upper`` and ``lower`` (T, 11, 2): (T, 3, S - top, S)."""
    size = still.crop.shape[-1]
    columns = torch.arange(size) + 0.5
    rows = torch.arange(still.top, size) + 0.5
    above, below = heights(upper, columns), heights(lower, columns)  # (T, S)
    middle = (above + below) / 2
    left, right = (upper[:, i, 0, None, None] for i in (0, -1))
    outside = torch.maximum(left - columns, columns - right).clamp(min=0)  # (T, 1, S)
    # Between the lips, and over an increasing width beside the mouth, one field passes into the
    # other.
    half = ((below - above) / 2)[:, None].clamp(min=0.5) + 0.5 * outside
    under = (rows[:, None] - middle[:, None]) / (2 * half) + 0.5  # (T, S - top, S)
    offset = _read_back(still, moved, size)  # (2, T, S - top, S, 2)
    offset = offset[0] + under.clamp(0, 1)[..., None] * (offset[1] - offset[0])
    places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) + offset
    bent = F.grid_sample(
        still.crop.expand(len(moved), -1, -1, -1),
        places * (2.0 / size) - 1,
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    dark = seam(own_opening(still.mesh), middle, columns, rows, left, right)
    return bent.clamp(0, 1) * dark


def _read_back(still: Still, moved: Tensor, size: int) -> Tensor:
    """Offset from each pixel of the result to its place in the still, by either field: (2, T, S -
    top, S, 2) in stored pixels."""
    grid = _grid(size, still.top)
    rows, columns = grid.shape[:2]
    frames = len(moved)
    field = still.fields @ moved.permute(1, 0, 2).reshape(len(still.mesh), -1)
    field = field.view(2, rows, columns, frames, 2).permute(0, 3, 4, 1, 2).flatten(0, 1)
    low = grid[0, 0]
    scale = 2.0 / (grid[-1, -1] - low)
    offset = torch.zeros_like(field)
    for _ in range(_INVERSIONS):  # fixed-point iteration: a place's source is near it
        places = (grid + offset.movedim(1, -1) - low) * scale - 1
        offset = -F.grid_sample(field, places, padding_mode="border", align_corners=True)
    x = torch.arange(size) + 0.5
    y = torch.arange(still.top, size) + 0.5
    fine = (torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) - low) * scale - 1
    fine = fine.expand(len(offset), -1, -1, -1)
    offset = F.grid_sample(offset, fine, padding_mode="border", align_corners=True)
    return offset.view(2, frames, 2, len(y), size).movedim(2, -1)

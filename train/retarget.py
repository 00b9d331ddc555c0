"""A still made to talk: a speaker's mouth motion, carried over to somebody of whom there is only a
picture.

The still is bent smoothly by what the speaker's lips, jaw and cheeks have moved since his mouth was
closed. The upper and the lower lip move apart, so two fields of displacement serve: one for what
lies above the line where the lips meet, one for what lies below. What opens between is taken from
the speaker's own frame, in the still's light.

*Units* are crop units (see ``dithead.face.crop``) of a face put upright by its stable points, frame
by frame: in them a head neither moves nor rolls. *Stored pixels* are those of a stored crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import FaceConfig
from dithead.face.crop import placement_from_mesh, stable_template, transform_from_placement
from dithead.face.sampling import compose, invert_similarity
from dithead.train.data import STORED_MARGIN

INNER_UPPER = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
"""Mesh points on the upper lip's inner edge, from corner to corner."""
INNER_LOWER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
"""And on the lower lip's; the corners belong to both."""
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
"""Likewise of the lower lip."""
CORNERS = (61, 291)
NOSE_BASE, LIP_TOP = 2, 0
CHEEKS = (50, 280, 205, 425, 36, 266, 101, 330)
"""Mesh points on the cheeks, by whose colour the light on two faces is compared."""

REST_SHARE = 0.05
"""A speaker's mouth is at rest in this share of his frames, those with the smallest opening."""
AMPLITUDE = (0.75, 1.3)
"""Motion grows with the width of the mouth, within these limits."""
GRID_PX = 2
"""Displacements are worked out at every second stored pixel."""
CONTACT = 0.04
"""Inner edges of closed lips are up to so far apart in a mesh, in widths of the mouth."""
CUT = 0.03
"""So much of the lips, in widths of the mouth, goes with the teeth when an open mouth is closed."""
SEAM, SEAM_PX = 0.45, 1.0
"""How dark and how wide, in stored pixels, the line is where lips meet that were apart."""
CLOSED_BY_UPPER = 0.35
"""The upper lip's part in closing an open mouth."""
_KERNEL_PX = 2.0
_SMOOTHING_PX = 0.5
_INVERSIONS = 5
LUMA = (0.299, 0.587, 0.114)
TEETH_TINT, TEETH_LIGHT = 0.5, 0.6
"""How far teeth take the tint and (as an exponent) the brightness of a face's light."""
FLESH_TINT = (1.08, 0.96, 0.98)
"""Tongue and gums beside the mean of cheek and lip."""
_RIM_PX = 1.3
"""Width of the soft edge of the inside of the mouth."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What a speaker does in one clip."""

    rest: Tensor
    """(468, 2) his mesh with closed lips, in units."""
    moved: Tensor
    """(T, 468, 2) how far each point is from there, in units."""
    inner: Tensor
    """(T, 2, 11, 2) inner edges of the upper and the lower lip in stored pixels of his crops."""
    contact: Tensor
    """(11,) how far the two edges of closed lips are apart, in his stored pixels."""
    crops: Tensor
    """(T, 3, S, S) his stored crops in [0, 1]."""
    colour: Tensor
    """(2, 3) mean colour of his cheeks and of his lips."""


@dataclass(frozen=True, slots=True)
class Still:
    """A picture of a face, and all that does not depend on who drives it."""

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


def _apply(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:, :, :2].transpose(1, 2) + matrix[:, None, :, 2]


def lip_gap(mesh: Tensor) -> Tensor:
    """Distance (T, 11) of the inner edges of meshes (T, 468, 2), which stand upright."""
    return (mesh[:, INNER_LOWER, 1] - mesh[:, INNER_UPPER, 1]).clamp(min=0.0)


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
        colour=_colours(pictures[closed], stored[closed]),
    )


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
        colour=_colours(picture, mesh[None]),
    )


def _share(mesh: Tensor) -> Tensor:
    """Nothing above the nose's base, all from the upper lip down, and less towards the temples."""
    y = (mesh[:, 1] - mesh[NOSE_BASE, 1]) / (mesh[LIP_TOP, 1] - mesh[NOSE_BASE, 1]).clamp(min=1.0)
    half = (mesh[454, 0] - mesh[234, 0]).abs() / 2
    middle = mesh[[*CORNERS], 0].mean()
    x = ((mesh[:, 0] - middle).abs() / half - 0.5) / 0.5
    return _smoothstep(y) * (1 - 0.7 * _smoothstep(x))


def _smoothstep(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _field(mesh: Tensor, size: int, top: int, without: tuple[int, ...]) -> Tensor:
    """Weights (G, 468) of a smooth interpolation (radial functions) between the mesh's points but
    some, and the picture's edge, which does not move; of the grid from row ``top`` down."""
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
    """Stored pixels' places on the grid from row ``top`` down: (rows, columns, 2)."""
    x = torch.arange(0.0, size + 1, GRID_PX)
    y = torch.arange(float(top), size + 1, GRID_PX)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def own_opening(mesh: Tensor) -> Tensor:
    """How much of a still's mouth must go for its lips to meet, at 11 places from corner to corner,
    in the pixels of its mesh (468, 2): (11,), nothing of a closed mouth."""
    gap, width = lip_gap(mesh[None])[0], mouth_width(mesh)
    opened = _smoothstep(gap / (CONTACT * width) - 1)
    return opened * (gap + CUT * width)


def _closing(mesh: Tensor) -> Tensor:
    """Displacement (468, 2) that brings the lips of an open mouth together; none of a closed one.

    Both lips move whole, the lower one further.
    """
    opening = own_opening(mesh)[1:-1]
    shift = torch.zeros_like(mesh)
    for points, share in ((UPPER_LIP, CLOSED_BY_UPPER), (LOWER_LIP, CLOSED_BY_UPPER - 1)):
        for ring in range(0, len(points), len(opening)):
            shift[[*points[ring : ring + len(opening)]], 1] = share * opening
    return shift


def _colours(pictures: Tensor, meshes: Tensor) -> Tensor:
    """Mean colours (2, 3) of cheeks and lips in pictures (T, 3, S, S), meshes in their pixels."""
    size = pictures.shape[-1]
    means = []
    for points in (CHEEKS, UPPER_LIP[9:27] + LOWER_LIP[9:27]):
        places = meshes[:, None, points] * (2.0 / size) - 1
        found = F.grid_sample(pictures, places, align_corners=False, padding_mode="border")
        means.append(found.mean((0, 2, 3)))
    return torch.stack(means)


@torch.inference_mode()
def retarget(still: Still, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """The still says what the speaker says.

    Returns:
        crops (T, S, S, 3) uint8, and meshes (T, 468, 2) float32 in their pixels.
    """
    size = still.crop.shape[-1]
    frames = len(motion.moved)
    ratio = float(mouth_width(still.mesh)) / still.unit_px / float(mouth_width(motion.rest))
    amplitude = min(max(ratio, AMPLITUDE[0]), AMPLITUDE[1])
    moved = motion.moved * (amplitude * still.unit_px) * still.share[:, None] + still.closing
    mesh = still.mesh + moved
    # Where the lips part in the still; each takes its edge along.
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

    columns = torch.arange(size) + 0.5
    above = _heights(upper, columns)  # (T, S)
    below = _heights(lower, columns)
    middle = (above + below) / 2
    y = torch.arange(size)[:, None] + 0.5
    left, right = (upper[:, i, 0, None, None] for i in (0, -1))
    outside = torch.maximum(left - columns, columns - right).clamp(min=0)  # (T, 1, S)
    half = ((below - above) / 2)[:, None].clamp(min=0.5) + 0.5 * outside
    under = ((y - middle[:, None]) / (2 * half) + 0.5).clamp(0, 1)  # (T, S, S)

    offset = _read_back(still, moved, size)  # (2, T, S - top, S, 2)
    under = under[:, still.top :, :, None]
    offset = offset[0] + under * (offset[1] - offset[0])
    places = torch.stack(torch.meshgrid(columns, y[still.top :, 0], indexing="xy"), dim=-1)
    places = (places + offset) * (2.0 / size) - 1
    picture = still.crop.expand(frames, -1, -1, -1).clone()
    bent = F.grid_sample(
        picture, places, mode="bicubic", padding_mode="border", align_corners=False
    ).clamp(0, 1)
    bent = bent * _seam(own_opening(still.mesh), middle, columns, left, right)[:, :, still.top :]
    inside, opacity = _inside(still, motion, upper, lower, above, below)
    rows = slice(still.top, None)
    picture[:, :, rows] = bent + opacity[:, :, rows] * (inside[:, :, rows] - bent)
    return (255 * picture).round().byte().movedim(1, -1).numpy(), mesh.numpy()


def _seam(opening: Tensor, middle: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """What a picture is multiplied by, so that lips of which the still has shown the inside meet in
    a dark line: (T, 1, S, S)."""
    y = torch.arange(len(columns))[:, None] + 0.5
    line = torch.exp(-((y - middle[:, None]) / SEAM_PX).square())
    across = ((columns - left) / (right - left)).clamp(0, 1)
    depth = SEAM * (4 * across * (1 - across)).sqrt() * (opening.max() / 2.0).clamp(max=1.0)
    return (1 - depth * line)[:, None]


def _heights(points: Tensor, columns: Tensor) -> Tensor:
    """Height at given columns (S,) or (T, S) of lines through points (T, P, 2): (T, S)."""
    x = points[..., 0].cummax(1).values + 1e-3 * torch.arange(points.shape[1])
    columns = columns.expand(len(points), -1).contiguous()
    index = torch.searchsorted(x.contiguous(), columns).clamp(1, points.shape[1] - 1)
    x0, x1 = x.gather(1, index - 1), x.gather(1, index)
    y0, y1 = points[..., 1].gather(1, index - 1), points[..., 1].gather(1, index)
    return y0 + ((columns - x0) / (x1 - x0)).clamp(0, 1) * (y1 - y0)


def _read_back(still: Still, moved: Tensor, size: int) -> Tensor:
    """Where each pixel of the result lies in the still, less its own place, by either field: (2, T,
    S - top, S, 2) in stored pixels."""
    grid = _grid(size, still.top)
    rows, columns = grid.shape[:2]
    frames = len(moved)
    field = still.fields @ moved.permute(1, 0, 2).reshape(len(still.mesh), -1)
    field = field.view(2, rows, columns, frames, 2).permute(0, 3, 4, 1, 2).flatten(0, 1)
    low = grid[0, 0]
    scale = 2.0 / (grid[-1, -1] - low)
    offset = torch.zeros_like(field)
    for _ in range(_INVERSIONS):  # a fixed point: where a place came from lies near it
        places = (grid + offset.movedim(1, -1) - low) * scale - 1
        offset = -F.grid_sample(field, places, padding_mode="border", align_corners=True)
    x = torch.arange(size) + 0.5
    y = torch.arange(still.top, size) + 0.5
    fine = (torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1) - low) * scale - 1
    fine = fine.expand(len(offset), -1, -1, -1)
    offset = F.grid_sample(offset, fine, padding_mode="border", align_corners=True)
    return offset.view(2, frames, 2, len(y), size).movedim(2, -1)


def _inside(
    still: Still, motion: Motion, upper: Tensor, lower: Tensor, above: Tensor, below: Tensor
) -> tuple[Tensor, Tensor]:
    """The speaker's mouth between the still's lips: pictures (T, 3, S, S) in the still's light, and
    their opacity (T, 1, S, S)."""
    size = still.crop.shape[-1]
    frames = len(upper)
    own_upper, own_lower = motion.inner.unbind(1)  # (T, 11, 2)
    half = motion.contact / 2
    shrink = torch.minimum(half, (own_lower - own_upper)[..., 1].clamp(min=0) / 2)
    own_upper = torch.stack([own_upper[..., 0], own_upper[..., 1] + shrink], dim=-1)
    own_lower = torch.stack([own_lower[..., 0], own_lower[..., 1] - shrink], dim=-1)
    columns = torch.arange(size) + 0.5
    left, right = upper[:, :1, 0], upper[:, -1:, 0]
    own_left, own_right = own_upper[:, :1, 0], own_upper[:, -1:, 0]
    across = (columns - left) / (right - left)  # (T, S)
    own_columns = own_left + across.clamp(0, 1) * (own_right - own_left)
    own_above, own_below = (_heights(line, own_columns) for line in (own_upper, own_lower))
    y = torch.arange(size)[:, None] + 0.5
    down = (y - above[:, None]) / (below - above).clamp(min=1e-3)[:, None]  # (T, S, S)
    own_y = own_above[:, None] + down.clamp(0, 1) * (own_below - own_above)[:, None]
    places = torch.stack([own_columns[:, None].expand(-1, size, -1), own_y], dim=-1)
    picture = F.grid_sample(motion.crops, places * (2.0 / size) - 1, align_corners=False)
    picture = _relight(picture, motion.colour, still.colour)
    rim = ((y - above[:, None]) / _RIM_PX).clamp(0, 1)
    rim = rim * ((below[:, None] - y) / _RIM_PX).clamp(0, 1)
    ends = torch.minimum(columns - left, right - columns)[:, None]
    opacity = rim * (ends / _RIM_PX).clamp(0, 1)
    return picture, opacity.view(frames, 1, size, size)


def _relight(picture: Tensor, own: Tensor, wanted: Tensor) -> Tensor:
    """Pictures (T, 3, S, S) of an open mouth in another face's light.

    Only brightness and how red a place is, between cheek and lip, are the speaker's: what is red
    takes the other face's colour, what is not (teeth) is nearly white in the other light.
    """
    luma = torch.tensor(LUMA)
    bright = torch.einsum("c,tcyx->tyx", luma, picture)[:, None]
    own_level, level = own @ luma, wanted @ luma  # (2,) of cheeks and lips
    cheek, lip = _redness(own[0]), _redness(own[1])
    red = _redness(picture.movedim(1, -1))[:, None]
    red = ((red - cheek) / (0.5 * (lip - cheek)).clamp(min=0.02)).clamp(0, 1)
    dark = (1 - bright / (0.5 * own_level[1]).clamp(min=0.05)).clamp(0, 1)
    red = torch.maximum(red, dark)
    tint = wanted / level.clamp(min=0.02)[:, None]  # (2, 3) with brightness 1
    flesh = tint.mean(0) * torch.tensor(FLESH_TINT)
    teeth = 1 + TEETH_TINT * (tint[0] - 1)
    ratio = (level / own_level.clamp(min=0.05)).clamp(0.3, 1.8)
    teeth = teeth * ratio[0] ** TEETH_LIGHT
    flesh = flesh * ratio[1]
    return (bright * (teeth + red.movedim(1, -1) * (flesh - teeth)).movedim(-1, 1)).clamp(0, 1)


def _redness(colour: Tensor) -> Tensor:
    """Share of red over green in colours (..., 3): (...)."""
    return (colour[..., 0] - colour[..., 1]) / colour.sum(-1).clamp(min=0.1)

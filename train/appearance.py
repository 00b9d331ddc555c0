"""Augmentation: turns prepared crops into training pictures of people, poses and places that are
not in the footage."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.config import View
from dithead.face.crop import WHOLE, crop_face
from dithead.train.data import STORED_MARGIN

_BACKGROUND_CELLS = 24
_BEND_PX = 4


@dataclass(frozen=True, slots=True)
class Appearance:
    """One look, applied equally to every picture of a sample; each field has one row per
    picture."""

    affine: Tensor
    """(B, 2, 3) maps places in the model's crop to places in the stored one, both from -0.5 to
    0.5."""
    warp: Tensor
    """(B, 2, 5, 5) smooth displacement in sides of the crop: another face from the same footage."""
    turn: Tensor
    """(B, 2) yaw and pitch in radians, of a head shaped like an ellipsoid with a nose."""
    background: Tensor
    """(B, 4, 24, 24) RGB and opacity in [0, 1], which replaces a blue screen."""
    light: Tensor
    """(B, 1, 4, 4) logarithm of a smooth light field."""
    gamma: Tensor
    """(B,) exponent on [0, 1]."""
    colour: Tensor
    """(B, 3, 4) matrix and offset on RGB in [0, 1]."""
    coarseness: Tensor
    """(B,) fraction of detail kept, 1 = all: pictures from small faces are coarse."""

    def take(self, rows: Tensor) -> Appearance:
        """The looks of the given rows."""
        return Appearance(*(getattr(self, field.name)[rows] for field in fields(self)))

    def to(self, device: str) -> Appearance:
        """The same on a device."""
        return Appearance(*(getattr(self, field.name).to(device) for field in fields(self)))

    def where(self, keep: Tensor, other: Appearance) -> Appearance:
        """Another look in the rows where keep (B,) is true."""
        return Appearance(
            *(
                torch.where(
                    keep.view(-1, *[1] * (value.ndim - 1)), getattr(other, field.name), value
                )
                for field in fields(self)
                for value in [getattr(self, field.name)]
            )
        )


def plain_appearance(batch: int) -> Appearance:
    """No change."""
    affine = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) / STORED_MARGIN
    colour = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    return Appearance(
        affine=affine.repeat(batch, 1, 1),
        warp=torch.zeros(batch, 2, 5, 5),
        turn=torch.zeros(batch, 2),
        background=torch.zeros(batch, 4, _BACKGROUND_CELLS, _BACKGROUND_CELLS),
        light=torch.zeros(batch, 1, 4, 4),
        gamma=torch.ones(batch),
        colour=colour.repeat(batch, 1, 1),
        coarseness=torch.ones(batch),
    )


def _uniform(batch: int, generator: torch.Generator) -> Callable[..., Tensor]:
    """Draws (batch, *shape) uniformly from low to high: called with low, high, *shape."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    return uniform


def random_appearance(batch: int, generator: torch.Generator, strength: float = 1.0) -> Appearance:
    """Random looks: another face (mirror, stretch, smooth warp) before another background, in
    another light, with other colours, at another distance; and a random pose.

    Args:
        strength: 1 turns one person into many, who may not resemble that person; smaller values are
            for footage that already shows many people: 0 leaves only a mirror and a slightly
            different pose.
    """

    uniform = _uniform(batch, generator)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    stretch = uniform(0.93, 1.07) ** strength
    affine = torch.zeros(batch, 2, 3)
    affine[:, 0, 0] = mirror * stretch / STORED_MARGIN
    affine[:, 1, 1] = 1.0 / stretch / STORED_MARGIN
    warp = strength * uniform(0.0, 0.03, 1, 1, 1) * torch.randn(batch, 2, 5, 5, generator=generator)
    look = Appearance(
        affine=affine,
        warp=warp,
        turn=strength * torch.stack([uniform(-0.35, 0.35), uniform(-0.15, 0.15)], dim=1),
        background=_random_background(batch, generator, 0.75 * strength),
        light=strength
        * uniform(0.0, 0.25, 1, 1, 1)
        * torch.randn(batch, 1, 4, 4, generator=generator),
        gamma=(strength * uniform(-0.4, 0.4)).exp(),
        colour=_random_colour(batch, generator, strength),
        coarseness=torch.where(
            uniform(0, 1) < 0.4 * strength, uniform(0.25, 1.0), torch.ones(batch)
        ),
    )
    return vary_pose(look, generator)


def vary_pose(look: Appearance, generator: torch.Generator) -> Appearance:
    """The same looks in other poses: turned, nodded, rolled, a little closer or shifted, as the
    tracker leaves them."""
    batch = len(look.turn)

    def normal(scale: float, *shape: int) -> Tensor:
        return scale * torch.randn(batch, *shape, generator=generator).clamp(-2.5, 2.5)

    roll, scale, shift = normal(0.04), 1.0 + normal(0.025), normal(0.012, 2)
    c, s = scale * torch.cos(roll), scale * torch.sin(roll)
    rotation = torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)
    matrix = look.affine[:, :, :2]
    moved = matrix @ shift[:, :, None] + look.affine[:, :, 2:]
    affine = torch.cat([matrix @ rotation, moved], dim=2)
    turn = look.turn + torch.stack([normal(0.12), normal(0.06)], dim=1)
    return replace(look, affine=affine, turn=turn)


def follow(look: Appearance, frames: int, generator: torch.Generator) -> Appearance:
    """One look (one row) over the frames of a clip, in a pose that drifts slowly: (frames, ...)."""
    looks = vary_pose(look, generator).take(torch.zeros(frames, dtype=torch.long))
    phase = torch.rand(2, generator=generator) + torch.arange(frames)[:, None] / 75.0  # (T, 2)
    swing = torch.tensor([0.10, 0.05]) * torch.randn(2, generator=generator)
    return replace(looks, turn=looks.turn + swing * torch.sin(2 * math.pi * phase))


def _random_colour(batch: int, generator: torch.Generator, strength: float) -> Tensor:
    uniform = _uniform(batch, generator)
    # Hue: mostly near the truth, sometimes (only at full strength) anywhere.
    any_hue = (uniform(0, 1) < 0.2) & (strength >= 1)
    hue = torch.where(any_hue, uniform(-math.pi, math.pi), uniform(-0.15, 0.15))
    axis = torch.full((3,), 1.0 / math.sqrt(3.0))
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3.0)
    outer = axis[:, None] * axis
    c, s = torch.cos(hue)[:, None, None], torch.sin(hue)[:, None, None]
    rotation = c * torch.eye(3) + s * cross + (1 - c) * outer
    grey = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    saturation = uniform(0.2, 1.4, 1, 1)
    mix = (saturation * torch.eye(3) + (1 - saturation) * grey) @ rotation
    gain = uniform(0.5, 1.15, 1) * uniform(0.85, 1.15, 3)
    lift = uniform(-0.05, 0.12, 1, 1) + uniform(-0.03, 0.03, 3, 1)
    colour = torch.cat([gain[:, :, None] * mix, lift], dim=2)
    plain = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    return strength * colour + (1 - strength) * plain


def _random_background(batch: int, generator: torch.Generator, share: float) -> Tensor:
    """Out of focus, with or without stripes and an edge, in a ``share`` of the rows; otherwise the
    footage's own."""

    uniform = _uniform(batch, generator)
    cells = _BACKGROUND_CELLS
    field = uniform(-1, 1, 3, 6, 6) * uniform(0.0, 0.35, 1, 1, 1)
    field = F.interpolate(field, size=(cells, cells), mode="bicubic", align_corners=True)
    line = torch.linspace(-0.5, 0.5, cells)
    y, x = torch.meshgrid(line, line, indexing="ij")
    angle = uniform(0, math.pi, 1, 1, 1)
    across = torch.cos(angle) * x + torch.sin(angle) * y  # (B, 1, cells, cells)
    stripes = torch.sin(across * uniform(10, 60, 1, 1, 1)) * uniform(0.0, 0.3, 1, 1, 1)
    stripes = stripes * (uniform(0, 1, 1, 1, 1) < 0.3)
    edge = (across > uniform(-0.4, 0.4, 1, 1, 1)) * uniform(-0.6, 0.6, 3, 1, 1)
    edge = edge * (uniform(0, 1, 1, 1, 1) < 0.4)
    picture = (uniform(0, 1, 3, 1, 1) + field + stripes + edge).clamp(0, 1)
    opacity = (uniform(0, 1, 1, 1, 1) < share).float().expand(-1, -1, cells, cells)
    return torch.cat([picture, opacity], dim=1)


def render(crops: Tensor, look: Appearance, size: int, view: View = WHOLE) -> Tensor:
    """Stored crops (B, S, S, 3) uint8 -> pictures (B, 3, size, size) float32 in [-1, 1] with the
    given looks; ``view`` is what the model's crops show."""
    image = crops.movedim(-1, 1).float() / 255.0
    stored = image.shape[2]
    rows = torch.nonzero(look.background[:, 3, 0, 0] > 0).flatten()
    if len(rows) > 0:
        image[rows] = _replace_background(image[rows], look.background[rows])
    bent = (look.warp != 0).flatten(1).any(1) | (look.turn != 0).any(1)
    rows = torch.nonzero(bent).flatten()
    if len(rows) > 0:
        image[rows] = _bend(image[rows], look.warp[rows], look.turn[rows], view)
    scaled = stored * look.affine
    scaled[:, :, 2] += stored / 2
    image = crop_face(image, scaled, size)
    if bool((look.light != 0).any()):
        light = F.interpolate(look.light, size=(size, size), mode="bicubic", align_corners=True)
        image = image * light.exp()
    image = image.clamp(0, 1) ** look.gamma.view(-1, 1, 1, 1)
    image = torch.einsum("bij,bjhw->bihw", look.colour[:, :, :3], image)
    image = image + look.colour[:, :, 3:, None]
    return _coarsen(image.clamp(0, 1) * 2 - 1, look.coarseness)


def _replace_background(image: Tensor, background: Tensor) -> Tensor:
    """Key out a cyan-blue screen, as in the GRID corpus; pictures without one stay as they are."""
    size = image.shape[2]
    new = F.interpolate(background[:, :3], size=(size, size), mode="bilinear")
    red, green, blue = image.unbind(1)
    screen = torch.sigmoid(((green + blue) / 2 - red - 0.33) / 0.04)
    weight = (screen * background[:, 3, :1, :1])[:, None]
    return image + weight * (new - image)


def _bend(image: Tensor, warp: Tensor, turn: Tensor, view: View) -> Tensor:
    """Displace smoothly, then turn the head; both map backwards, from result to source."""
    size = image.shape[2]
    coarse = max(2, size // _BEND_PX)  # smooth, so a position every few pixels is enough
    line = torch.linspace(0.5 / size - 0.5, 0.5 - 0.5 / size, coarse) * STORED_MARGIN
    x, y = torch.meshgrid(line, line, indexing="xy")
    grid = _sources(x, y, warp, turn, view)
    grid = F.interpolate(
        grid.movedim(-1, 1), size=(size, size), mode="bilinear", align_corners=True
    ).movedim(1, -1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _sources(x: Tensor, y: Tensor, warp: Tensor, turn: Tensor, view: View) -> Tensor:
    """Where the pixels at some places of bent pictures come from: x, y (H, W) or (B, H, W) in
    unaugmented crops -> (B, H, W, 2) in -1..1 over a stored crop."""
    yaw, pitch = turn[:, :1, None], turn[:, 1:, None]
    across, down = x.expand(len(turn), -1, -1), y.expand(len(turn), -1, -1)
    for _ in range(3):  # fixed-point iteration: depth is known at the source, not at the result
        depth = _head_depth(across * view.span, down * view.span + view.down) / view.span
        across = (x - torch.sin(yaw) * depth) / torch.cos(yaw)
        down = (y - torch.sin(pitch) * depth) / torch.cos(pitch)
    grid = torch.stack([across, down], dim=-1) * (2.0 / STORED_MARGIN)  # (B, H, W, 2) in [-1, 1]
    field = F.grid_sample(warp, grid, mode="bicubic", padding_mode="border", align_corners=True)
    return grid + field.movedim(1, -1) * (2.0 / STORED_MARGIN)


def bent_places(places: Tensor, look: Appearance, view: View) -> Tensor:
    """Where places (B, N, 2) of unaugmented crops are once a look has displaced them and turned the
    head; for :func:`in_picture`."""
    found = places
    for _ in range(8):  # fixed-point iteration: the map is known from result to source
        x, y = found[:, None].unbind(-1)  # (B, 1, N)
        source = _sources(x, y, look.warp, look.turn, view)[:, 0] * (STORED_MARGIN / 2)
        found = found + places - source
    return found


def _head_depth(x: Tensor, y: Tensor) -> Tensor:
    """Depth towards the viewer in crop units, from the mean of the points that define the crop."""
    head = 0.42 * torch.exp(-((x / 0.40).square() + (y / 0.60).square()))
    nose = 0.08 * torch.exp(-((x / 0.07).square() + ((y + 0.03) / 0.10).square()))
    return head + nose - 0.22


def _coarsen(image: Tensor, kept: Tensor) -> Tensor:
    size = image.shape[2]
    out = image.clone()
    for row in torch.nonzero(kept < 0.99).flatten().tolist():
        small = max(16, round(size * float(kept[row])))
        shrunk = F.interpolate(
            image[row : row + 1], size=(small, small), mode="bilinear", antialias=True
        )
        out[row : row + 1] = F.interpolate(shrunk, size=(size, size), mode="bilinear")
    return out


def in_picture(places: Tensor, look: Appearance) -> Tensor:
    """Map places (B, N, 2) in an unaugmented crop to the picture that a look's affine map makes of
    it."""
    matrix = look.affine * STORED_MARGIN  # places in the picture -> in the unaugmented crop
    inverse = torch.linalg.inv(matrix[:, :, :2])
    return (places - matrix[:, None, :, 2]) @ inverse.transpose(1, 2)

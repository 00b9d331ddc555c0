"""The ``face_judge`` graph: takes down what a fitted face looks like, and judges the fit.

A mesh network fits a mesh to anything. From the upper half of the face, this graph tells whether it
is the person who was followed, how well lit and how sharp the face is, and how far it is turned
away. Speech does not move that half, and a hand at the mouth does not hide it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import View
from dithead.controls import MOUTH_ROWS
from dithead.face.crop import (
    crop_face,
    placement_from_mesh,
    stable_template,
    transform_from_placement,
)
from dithead.face.likeness import LOOKS_SHAPE, NOISE, light_to, unlikeness
from dithead.face.mesh import INPUT_SIZE, roi_from_mesh

_VIEW = View(0.84, -0.29)  # in crop units; the part cut out of it is from the hair to the nose
_FIRST_ROW = 3
_DENSITY = 4
_SHARP_ROWS, _SHARP_COLUMNS = slice(40, 112), slice(48, 144)  # of the picture: eyes and nose
_TEMPLES, _NOSE_TIP = (127, 356), 1
GALLERY = 6
"""How many looks of a person are stored, and how many of the mouth."""
_BELOW: tuple[int, ...] = (
    200,
    199,
    175,
    201,
    421,
    208,
    428,
    57,
    287,
    216,
    436,
    212,
    432,
    214,
    434,
    207,
    427,
)
_BELOW += (202, 422, 204, 424, 210, 430, 211, 431)
_SPOTS = tuple(point for row in MOUTH_ROWS for point in row) + _BELOW
_LIPS = len(MOUTH_ROWS[0]) + len(MOUTH_ROWS[1])  # spots on the lips; then as many on skin
_SPOT = 2.0  # half the side of a spot, in pixels of the mesh network's picture
MOUTH_SHAPE = (3, len(_SPOTS))
"""Shape of a mouth's looks: colours, and spots on and round the lips that move with them."""


MEASURES = 12
"""How many numbers a judgement has."""


@dataclass(frozen=True, slots=True)
class Measures:
    """A judgement, on the host."""

    score: float
    """The mesh network's own score, in [0, 1]."""
    moved: float
    """How far the mesh has moved from the last one, as a share of its width."""
    unlike_last: float
    """How unlike the face is to the last one, in [0, 2]."""
    unlike_person: float
    """How unlike it is to the person who is followed, likewise."""
    light_step: float
    """How much brighter or darker it is than the last one: logarithm of the ratio, for the colour
    that changed most."""
    level: float
    """Mean of its pixels, in 0..255."""
    contrast: float
    """Their standard deviation."""
    sharpness: float
    """How much the levels bend between neighbouring pixels of the mesh network's picture, relative
    to the contrast."""
    unlike_mouth: float
    """How much the mouth differs from all its stored looks: root mean square of the logarithms of
    its colours' ratios."""
    unlike_first_mouth: float
    """How much it differs from the first of them."""
    redness: float
    """How much redder the lips are than the skin round them, as a logarithm."""
    turn: float
    """How far the head is turned: from -1, where the nose covers the temple on the left, through 0
    to 1."""


class FaceJudge(nn.Module):
    """The ``face_judge`` graph. It has no weights."""

    template: Tensor
    spots: Tensor
    around: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([-_SPOT, 0.0, _SPOT])
        self.register_buffer("template", stable_template(), persistent=False)
        self.register_buffer("spots", torch.tensor(_SPOTS), persistent=False)
        self.register_buffer("around", torch.cartesian_prod(line, line), persistent=False)

    def forward(
        self,
        picture: Tensor,
        region: Tensor,
        mesh: Tensor,
        score: Tensor,
        last_mesh: Tensor,
        last_looks: Tensor,
        person: Tensor,
        reference: Tensor,
        mouths: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Judge one face.

        Args:
            picture: (1, 3, 192, 192) in [0, 1], of ``region`` (1, 5), from
                :class:`~dithead.face.mesh.FaceRegion`. mesh: (1, 468, 3) in frame pixels; score:
                (1,). last_mesh: (468, 3). last_looks, reference: LOOKS_SHAPE, of the last frame
                and of the frame that the model is shown (zeros: there is none). person: (GALLERY,
                *LOOKS_SHAPE), looks of the person who is followed. mouths: (GALLERY,
                *MOUTH_SHAPE), looks of that person's mouth.

        Returns:
            Looks, LOOKS_SHAPE, in levels; looks of the mouth, MOUTH_SHAPE; light (2, 3), the factor
            and offset that bring colours in [-1, 1] to the reference's light; the region (1, 5)
            in which to look for the face next; measures, in the order of :class:`Measures`, then
            the mesh's left, top, right and bottom, and its middle's x and y, in frame pixels.
        """
        points = _in_picture(mesh, region)  # (1, 468, 2)
        placement = placement_from_mesh(points, self.template)
        transform = transform_from_placement(placement)
        columns, rows = LOOKS_SHAPE[2], LOOKS_SHAPE[1]
        seen = crop_face(picture * 255.0, transform, columns, _DENSITY, _VIEW)[0]
        looks = seen[:, _FIRST_ROW : _FIRST_ROW + rows]
        grey = looks.mean(0)
        contrast = (grey - grey.mean()).square().mean().sqrt()
        light = light_to(reference, looks)
        mouth = self.mouth(picture, points, looks, light)
        last = mesh[0, :, :2], last_mesh[:, :2]
        middle, unlike_mouth = last[0].mean(0), _unlike_mouth(mouths, mouth)
        measures = [
            score[0],
            (middle - last[1].mean(0)).norm() / _width(last_mesh),
            unlikeness(last_looks[None], looks)[0],
            unlikeness(person, looks).amin(0),
            _light_step(last_looks, looks),
            grey.mean(),
            contrast,
            _sharpness(picture) / (contrast + NOISE),
            unlike_mouth.amin(0),
            unlike_mouth[0],
            _redness(mouth),
            _turn(points[0], placement[0]),
        ]
        place = torch.cat([last[0].amin(0), last[0].amax(0), middle])
        return looks, mouth, light, roi_from_mesh(mesh), torch.cat([torch.stack(measures), place])

    def mouth(self, picture: Tensor, points: Tensor, looks: Tensor, light: Tensor) -> Tensor:
        """Colours of lips and skin, MOUTH_SHAPE: logarithms of their ratios to the colours of the
        upper face, in the reference's light."""
        places = torch.index_select(points[0], 0, self.spots)[:, None] + self.around  # (P, 9, 2)
        grid = places * (2.0 / INPUT_SIZE) - 1.0
        seen = F.grid_sample(picture, grid[None], padding_mode="border", align_corners=False)
        seen = torch.cat([seen[0].mean(2), looks.mean((1, 2))[:, None] / 255.0], dim=1)  # (3, P+1)
        lit = (seen * 2.0 - 1.0) * light[0, :, None] + light[1, :, None]
        levels = (127.5 * (lit + 1.0)).clamp(min=0.0) + 8.0
        return (levels[:, :-1] / levels[:, -1:]).log()


def _in_picture(mesh: Tensor, region: Tensor) -> Tensor:
    """Map a mesh (1, 468, 3) from frame pixels to pixels of its region's picture: (1, 468, 2)."""
    off = mesh[..., :2] - region[:, None, :2]
    cos, sin = region[:, 4:].cos(), region[:, 4:].sin()  # (1, 1)
    x = off[..., 0] * cos + off[..., 1] * sin
    y = off[..., 1] * cos - off[..., 0] * sin
    scale = INPUT_SIZE / region[:, None, 2:4]
    return torch.stack([x, y], dim=-1) * scale + INPUT_SIZE / 2


def _width(mesh: Tensor) -> Tensor:
    return (mesh[:, 0].amax(0) - mesh[:, 0].amin(0)).clamp(min=1.0)


def _light_step(before: Tensor, after: Tensor) -> Tensor:
    levels = torch.stack([before, after]).mean((2, 3)) + 8.0  # (2, 3)
    return (levels[1] / levels[0]).log().abs().amax(0)


def _sharpness(picture: Tensor) -> Tensor:
    grey = 255.0 * picture[:, :, _SHARP_ROWS, _SHARP_COLUMNS].mean(1, keepdim=True)
    bend = 4.0 * grey[..., 1:-1, 1:-1] - grey[..., :-2, 1:-1] - grey[..., 2:, 1:-1]
    return (bend - grey[..., 1:-1, :-2] - grey[..., 1:-1, 2:]).abs().mean()


def _unlike_mouth(known: Tensor, mouth: Tensor) -> Tensor:
    """How much a mouth differs from others (N, *MOUTH_SHAPE): (N,)."""
    return (mouth - known).square().mean((1, 2)).sqrt()


def _redness(mouth: Tensor) -> Tensor:
    redder = mouth[0] - mouth[1]
    return redder[:_LIPS].mean() - redder[_LIPS : 2 * _LIPS].mean()


def _turn(points: Tensor, placement: Tensor) -> Tensor:
    """The turn of a head, from its mesh (468, 2) and placement (4,): ()."""
    along = torch.stack([placement[3].cos(), placement[3].sin()])
    left, right = (points[temple] @ along for temple in _TEMPLES)
    nose = points[_NOSE_TIP] @ along
    return ((nose - left) - (right - nose)) / (right - left).clamp(min=1.0)

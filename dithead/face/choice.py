"""How a caller says whom to follow."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from dithead.errors import ConfigError
from dithead.face.search import Sighting, overlap

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright frame."""
FaceChoice = Literal["largest"] | int | tuple[float, float] | Box
"""Whom to follow: the largest face, one by its index from the left, one at a point or in a box."""


def checked_choice(choice: FaceChoice) -> FaceChoice:
    """The same choice, if it is valid. Raises ConfigError: no such choice."""
    if choice == "largest" or (isinstance(choice, int) and choice >= 0):
        return choice
    if isinstance(choice, tuple):
        has_area = len(choice) == 4 and choice[0] < choice[2] and choice[1] < choice[3]
        if len(choice) == 2 or has_area:
            return choice
    raise ConfigError(
        "face must be 'largest', an index from 0, a point (x, y) or a box (left, top, right, "
        f"bottom) in pixels, not {choice!r}"
    )


def checked_box(box: Sequence[float]) -> Box:
    """A box as four numbers. Raises ConfigError: not a box."""
    edges = tuple(float(edge) for edge in box) if len(box) == 4 else ()
    if len(edges) != 4 or not all(map(isfinite, edges)):
        raise ConfigError(f"expected a box (left, top, right, bottom) in pixels, found {box!r}")
    return edges


def chosen(seen: list[Sighting], choice: FaceChoice) -> Sighting | None:
    """The face of a frame that a choice means, if any."""
    if choice == "largest":
        return max(seen, key=lambda face: face.area, default=None)
    if isinstance(choice, int):
        from_left = sorted(seen, key=lambda face: float(face.box[0] + face.box[2]))
        return from_left[choice] if choice < len(from_left) else None
    if len(choice) == 2:
        point = torch.tensor(choice * 2, dtype=torch.float32)
        holding = [face for face in seen if inside(point[:2], _wider(face.box))]
        return min(holding, key=lambda face: float((face.box - point).abs().sum()), default=None)
    box = torch.tensor(choice, dtype=torch.float32)
    middles = ((face, (face.box[:2] + face.box[2:]) / 2) for face in seen)
    within = [face for face, middle in middles if inside(middle, choice)]
    return max(within, key=lambda face: overlap(box, face.box), default=None)


def inside(point: Tensor, box: Tensor | Box) -> bool:
    """Whether a point (2,) on the host lies in a box."""
    left, top, right, bottom = (float(edge) for edge in box)
    return left <= float(point[0]) <= right and top <= float(point[1]) <= bottom


def _wider(box: Tensor) -> Tensor:
    """A box extended to the forehead and chin, which the detector leaves out."""
    side = 0.3 * (box[2:] - box[:2])
    return torch.cat([box[:2] - side, box[2:] + side])

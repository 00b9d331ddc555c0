"""How a caller says whom to follow."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Literal

from dithead.errors import ConfigError
from dithead.face.search import Box, Point, Sighting, overlap

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
        from_left = sorted(seen, key=lambda face: face.box[0] + face.box[2])
        return from_left[choice] if choice < len(from_left) else None
    if len(choice) == 2:
        x, y = choice
        holding = [face for face in seen if inside((x, y), _wider(face.box))]
        return min(holding, key=lambda face: _off((x, y), face.box), default=None)
    middles = ((face, _middle(face.box)) for face in seen)
    within = [face for face, middle in middles if inside(middle, choice)]
    return max(within, key=lambda face: overlap(choice, face.box), default=None)


def inside(point: Point, box: Box) -> bool:
    """Whether a point lies in a box."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def _middle(box: Box) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _off(point: Point, box: Box) -> float:
    """How far a point is from the edges of a box, in sum."""
    x, y = point
    return abs(box[0] - x) + abs(box[1] - y) + abs(box[2] - x) + abs(box[3] - y)


def _wider(box: Box) -> Box:
    """A box extended to the forehead and chin, which the detector leaves out."""
    left, top, right, bottom = box
    x, y = 0.3 * (right - left), 0.3 * (bottom - top)
    return left - x, top - y, right + x, bottom + y

"""Searches a whole frame for faces: upright, on their side, upside down, and small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dithead.face.mesh import region_side, samples_for
from dithead.hosttodevice import to_device

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright frame."""
Point = tuple[float, float]
Run = Callable[..., tuple[Tensor, ...]]
"""Runs a graph: its name, its inputs -> its outputs."""
Read = Callable[[Tensor], Tensor]
"""Gives a tensor's values on the host: a few numbers per frame that decide what to run next."""

Tile = tuple[int, int, int]
"""A square of a frame: left, top, side."""
SMALLEST_SHARE = 7
"""The detector finds faces of at least about one part in this many of a picture's longer side."""
SMALLEST_PX = 48
"""Smaller faces are not searched for."""
_SMALLER = 1.8  # by this factor tiles get smaller at each level
_CLOSE, _CLOSE_PX = 4.0, 128  # side of the tile round a face: in face sizes, and at least
_TURNS = (1, 3, 2)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face as the detector sees it."""

    box: Box
    keypoints: tuple[Point, ...]
    """Six, in frame pixels."""
    score: float

    @property
    def area(self) -> float:
        """Area of the box, in pixels."""
        return area(self.box)

    @property
    def samples(self) -> int:
        """Samples along each side of a pixel of its region (:meth:`FaceSearch.region`)."""
        return samples_for(region_side(self.box))


class FaceSearch:
    """Searches for faces with the detector.

    Args:
        run: runs the graphs ``face_detector``, ``face_sighting``, ``face_region``, ``face_look``,
            ``face_picture``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def upright(self, frame: Tensor, read: Read) -> list[Sighting]:
        """Faces of a frame (H, W, 3) uint8 that are roughly upright, the surest first."""
        found = (read(values).tolist() for values in self._run("face_detector", frame))
        return [
            Sighting(tuple(box), tuple((x, y) for x, y in keypoints), score)
            for box, score, keypoints in zip(*found, strict=True)
            if score > 0
        ]

    def region(self, seen: Sighting, device: torch.device) -> Tensor:
        """The region (1, 5) in which to fit a mesh to a sighting, on a device."""
        places = (to_device(torch.tensor(v), device) for v in (seen.box, seen.keypoints))
        (region,) = self._run("face_sighting", *places)
        return region

    def turned(self, frame: Tensor, read: Read) -> list[Sighting]:
        """Faces on their side or upside down; upright faces may be among them."""
        height, width = frame.shape[:2]
        found = []
        for turns in _TURNS:
            picture = torch.rot90(frame, turns).contiguous()
            for seen in self.upright(picture, read):
                (x, y), (u, v) = turned_back((seen.box[:2], seen.box[2:]), turns, height, width)
                box = min(x, u), min(y, v), max(x, u), max(y, v)
                points = turned_back(seen.keypoints, turns, height, width)
                found.append(Sighting(box, points, seen.score))
        return sorted(found, key=lambda seen: -seen.score)

    def small(self, frame: Tensor, read: Read) -> Iterator[list[Sighting]]:
        """Faces too small to be seen in the whole frame: searched for in smaller and smaller
        tiles."""
        for tiles in self.levels(frame):
            yield self.in_tiles(frame, tiles, read)

    def closer(self, frame: Tensor, place: Box, seen: list[Sighting], read: Read) -> list[Sighting]:
        """Faces that were seen in the whole frame. If the face at a place was of a size that is
        easily missed there, faces seen close up round that place are added."""
        height, width = frame.shape[:2]
        across = max(place[2] - place[0], place[3] - place[1])
        if across * SMALLEST_SHARE > 2 * max(height, width):
            return seen
        side = max(_CLOSE_PX, round(_CLOSE * across))
        left, top = (
            max(0, min(length - side, round((low + high) / 2 - side / 2)))
            for low, high, length in zip(place[:2], place[2:], (width, height), strict=True)
        )
        close = self.in_tiles(frame, [(left, top, side)], read)
        new = [f for f in close if not any(overlap(f.box, other.box) > 0.2 for other in seen)]
        return seen + new

    def levels(self, frame: Tensor) -> list[list[Tile]]:
        """Tiles that cover a frame, for each tile size."""
        height, width = frame.shape[:2]
        before, least = max(height, width), SMALLEST_SHARE * SMALLEST_PX
        levels = []
        while before > 1.2 * least:
            side = max(least, round(before / _SMALLER))
            common = before // SMALLEST_SHARE  # a face of this size was found before
            tops, lefts = _starts(height, side, common), _starts(width, side, common)
            levels.append([(left, top, side) for top in tops for left in lefts])
            before = side
        return levels

    def in_tiles(self, frame: Tensor, tiles: Sequence[Tile], read: Read) -> list[Sighting]:
        """Faces in tiles of a frame."""
        found: list[Sighting] = []
        for left, top, side in tiles:
            tile = frame[top : top + side, left : left + side].contiguous()
            for seen in self.upright(tile, read):
                a, b, c, d = seen.box
                box = a + left, b + top, c + left, d + top
                if not any(overlap(box, other.box) > 0.2 for other in found):
                    points = tuple((x + left, y + top) for x, y in seen.keypoints)
                    found.append(Sighting(box, points, seen.score))
        return found

    def doubt(self, frame: Tensor, mesh: Tensor, read: Read) -> float:
        """How much the detector disagrees with a mesh (468, 3) when it looks at that face alone,
        turned upright: 0 if it fully agrees, infinite if it sees no face at all.

        In 22 clips it is 0.09 at most for right fits, at any angle, and 0.1 at least where the mesh
        was upside down or lay on its side; in the dark it is 0.1 to 0.2.
        """
        region, look = self._run("face_look", mesh)
        *places, face_width, side = read(look).tolist()
        (picture,) = self._run(f"face_region.{samples_for(side)}", frame, region)
        (upright,) = self._run("face_picture", picture)
        wanted = list(zip(places[::2], places[1::2], strict=True))
        doubts = (
            _mean_distance(face.keypoints[:4], wanted) / face_width + 0.3 * (1.0 - face.score)
            for face in self.upright(upright, read)
        )
        return min(doubts, default=math.inf)


def turned_back(points: Sequence[Point], turns: int, height: int, width: int) -> tuple[Point, ...]:
    """Map points of a picture that was turned counter-clockwise by ``turns`` quarter turns to
    pixels of the original picture (height, width)."""
    if turns == 1:
        return tuple((width - y, x) for x, y in points)
    if turns == 2:
        return tuple((width - x, height - y) for x, y in points)
    return tuple((y, height - x) for x, y in points)


def area(box: Box) -> float:
    """Area of a box, in pixels."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    shared = area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / max(area(a) + area(b) - shared, 1e-9)


def _mean_distance(a: Sequence[Point], b: Sequence[Point]) -> float:
    total = 0.0
    for (x, y), (u, v) in zip(a, b, strict=True):
        total += math.sqrt((x - u) * (x - u) + (y - v) * (y - v))
    return total / len(a)


def _starts(length: int, side: int, common: int) -> list[int]:
    """Where tiles of one side length begin so that they cover a length and overlap by at least
    ``common``."""
    if length <= side:
        return [0]
    count = -(-(length - side) // (side - common)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]

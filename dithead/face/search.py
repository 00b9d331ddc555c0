"""Searches a whole frame for faces: upright, on their side, upside down, and small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dithead.face.mesh import INPUT_SIZE, roi_from_detection, roi_from_mesh, samples_for
from dithead.hosttodevice import to_device

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
_LOOK_SCALE = 1.4  # of the mesh's region: suits the detector best
_KEYPOINTS = ((33, 133), (263, 362), (1,), (13, 14))  # mesh points for the detector's first four
_TURNS = (1, 3, 2)


@dataclass(frozen=True, slots=True)
class Sighting:
    """A face as the detector sees it, on the host."""

    box: Tensor
    """(4,) left, top, right, bottom in frame pixels."""
    keypoints: Tensor
    """(6, 2) in frame pixels."""
    score: float

    @property
    def region(self) -> Tensor:
        """(1, 5), the region in which to fit a mesh."""
        return roi_from_detection(self.keypoints[None], self.box[None])

    @property
    def area(self) -> float:
        """Area of the box, in pixels."""
        return area(self.box)


class FaceSearch:
    """Searches for faces with the detector.

    Args:
        run: runs the graphs ``face_detector`` and ``face_region``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    def upright(self, frame: Tensor, read: Read) -> list[Sighting]:
        """Faces of a frame (H, W, 3) uint8 that are roughly upright, the surest first."""
        boxes, scores, keypoints = (read(found) for found in self._run("face_detector", frame))
        return [
            Sighting(box, points, float(score))
            for box, score, points in zip(boxes, scores, keypoints, strict=True)
            if float(score) > 0
        ]

    def turned(self, frame: Tensor, read: Read) -> list[Sighting]:
        """Faces on their side or upside down; upright faces may be among them."""
        height, width = frame.shape[:2]
        found = []
        for turns in _TURNS:
            picture = torch.rot90(frame, turns).contiguous()
            for seen in self.upright(picture, read):
                corners = turned_back(seen.box.view(2, 2), turns, height, width)
                box = torch.cat([corners.amin(0), corners.amax(0)])
                points = turned_back(seen.keypoints, turns, height, width)
                found.append(Sighting(box, points, seen.score))
        return sorted(found, key=lambda seen: -seen.score)

    def small(self, frame: Tensor, read: Read) -> Iterator[list[Sighting]]:
        """Faces too small to be seen in the whole frame: searched for in smaller and smaller
        tiles."""
        for tiles in self.levels(frame):
            yield self.in_tiles(frame, tiles, read)

    def closer(
        self, frame: Tensor, place: Tensor, seen: list[Sighting], read: Read
    ) -> list[Sighting]:
        """Faces that were seen in the whole frame. If the face at a place (4,) on the host was of a
        size that is easily missed there, faces seen close up round that place are added."""
        height, width = frame.shape[:2]
        across = float((place[2:] - place[:2]).amax())
        if across * SMALLEST_SHARE > 2 * max(height, width):
            return seen
        side = max(_CLOSE_PX, round(_CLOSE * across))
        left, top = (
            max(0, min(length - side, round(float(low + high) / 2 - side / 2)))
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
            offset = torch.tensor([left, top], dtype=torch.float32)
            for seen in self.upright(tile, read):
                box = seen.box + offset.repeat(2)
                if not any(overlap(box, other.box) > 0.2 for other in found):
                    found.append(Sighting(box, seen.keypoints + offset, seen.score))
        return found

    def doubt(self, frame: Tensor, mesh: Tensor, read: Read) -> float:
        """How much the detector disagrees with a mesh (468, 3) when it looks at that face alone,
        turned upright: 0 if it fully agrees, infinite if it sees no face at all.

        In 22 clips it is 0.09 at most for right fits, at any angle, and 0.1 at least where the mesh
        was upside down or lay on its side; in the dark it is 0.1 to 0.2.
        """
        region = roi_from_mesh(mesh[None]).clone()
        region[:, 2:4] *= _LOOK_SCALE
        samples = samples_for(read(region))
        (picture,) = self._run(f"face_region.{samples}", frame, region)
        upright = (picture[0].permute(1, 2, 0) * 255.0).round().to(torch.uint8).contiguous()
        seen = self.upright(upright, read)
        wanted = torch.stack(
            [torch.stack([mesh[p, :2] for p in points]).mean(0) for points in _KEYPOINTS]
        )
        off = wanted - region[:, :2]  # (4, 2)
        cos, sin = region[0, 4].cos(), region[0, 4].sin()
        turned = torch.stack([off[:, 0] * cos + off[:, 1] * sin, off[:, 1] * cos - off[:, 0] * sin])
        scale = INPUT_SIZE / region[0, 2]
        width = (mesh[:, 0].amax() - mesh[:, 0].amin()).clamp(min=1.0) * scale
        values = read(torch.cat([turned.T.flatten() * scale + INPUT_SIZE / 2, width[None]]))
        points, face_width = values[:8].view(4, 2), float(values[8])
        doubts = (
            float((face.keypoints[:4] - points).norm(dim=1).mean()) / face_width
            + 0.3 * (1.0 - face.score)
            for face in seen
        )
        return min(doubts, default=float("inf"))


def turned_back(points: Tensor, turns: int, height: int, width: int) -> Tensor:
    """Map points (N, 2) of a picture that was turned counter-clockwise by ``turns`` quarter turns
    to pixels of the original picture (height, width)."""
    x, y = points[:, 0], points[:, 1]
    return torch.stack(
        {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}[turns], dim=1
    )


def region_on(sighting: Sighting, device: torch.device) -> Tensor:
    """The region (1, 5) of a sighting, on a device."""
    return to_device(sighting.region, device)


def area(box: Tensor) -> float:
    """Area of a box (4,) on the host, in pixels."""
    return float((box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0))


def overlap(a: Tensor, b: Tensor) -> float:
    """Intersection over union of two boxes (4,) on the host."""
    shared = area(torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])]))
    return shared / max(area(a) + area(b) - shared, 1e-9)


def _starts(length: int, side: int, common: int) -> list[int]:
    """Where tiles of one side length begin so that they cover a length and overlap by at least
    ``common``."""
    if length <= side:
        return [0]
    count = -(-(length - side) // (side - common)) + 1
    return [round(i * (length - side) / (count - 1)) for i in range(count)]

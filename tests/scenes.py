"""What the tests of the judgement share: packaged footage as it goes wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.face.detector import crop_rotated
from dithead.face.tracker import FaceTracker, TrackedFace
from dithead.torchgraphs import TorchGraphs

GREY = 128


def scaled(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture (H, W, 3) uint8 in another size."""
    planes = picture.permute(2, 0, 1)[None].float()
    made = F.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return made[0].permute(1, 2, 0).round().byte()


def turned(picture: Tensor, degrees: float) -> Tensor:
    """A picture on a square that holds it at any angle, turned counter-clockwise as seen."""
    height, width = picture.shape[:2]
    side = math.ceil(math.hypot(height, width)) + 2
    region = torch.tensor([[[width / 2, height / 2, side, side, math.radians(degrees)]]])
    planes = picture.permute(2, 0, 1)[None].float()
    made = crop_rotated(planes, region, side, 1, "zeros")[0]
    return made.permute(1, 2, 0).round().byte()


def lit(picture: Tensor, gain: float | Sequence[float], more: float = 0.0) -> Tensor:
    """A picture with other levels: a factor (of each colour) and an offset."""
    return (picture.float() * torch.tensor(gain) + more).clamp(0, 255).round().byte()


def fading_in(frames: list[Tensor], over: int) -> list[Tensor]:
    return [lit(frame, min(1.0, i / over)) for i, frame in enumerate(frames)]


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    return torch.cat([left, right], dim=1)


def covered(
    picture: Tensor, left: int, top: int, width: int, height: int, colour: Tensor
) -> Tensor:
    """A picture with something in front of it."""
    made = picture.clone()
    made[top : top + height, left : left + width] = colour
    return made


def cut_out(picture: Tensor, models: TorchGraphs) -> tuple[Tensor, Tensor]:
    """Head and shoulders of a picture: where they are, (H, W) bool; the face's middle, (2,)."""
    found = FaceTracker(models.run)(picture)
    assert found is not None
    points = found.mesh[:, :2]
    middle, width = points.mean(0), float(points[:, 0].max() - points[:, 0].min())
    height, breadth = picture.shape[:2]
    y = torch.arange(height)[:, None] + 0.5 - middle[1]
    x = torch.arange(breadth) + 0.5 - middle[0]
    head = (x / (0.8 * width)).square() + ((y + 0.1 * width) / (1.1 * width)).square() < 1
    return head | ((x.abs() < 0.9 * width) & (y > 0.6 * width)), middle


def placed(
    background: Tensor, people: Sequence[tuple[Tensor, Tensor, Tensor, float]]
) -> tuple[Tensor, Tensor]:
    """People (picture, from :func:`cut_out` where and middle, x of the middle) before a background,
    the last in front: the frame, and whose each pixel is (H, W), from 1."""
    frame = background.clone()
    owner = torch.zeros(frame.shape[:2], dtype=torch.uint8)
    for number, (picture, where, middle, x) in enumerate(people, 1):
        shift = round(x - float(middle[0]))
        height = min(frame.shape[0], picture.shape[0])
        left, right = max(0, shift), min(frame.shape[1], shift + picture.shape[1])
        if left >= right:
            continue
        part = where[:height, left - shift : right - shift]
        frame[:height, left:right][part] = picture[:height, left - shift : right - shift][part]
        owner[:height, left:right][part] = number
    return frame, owner


def roll_degrees(found: TrackedFace) -> float:
    """How far a face is turned clockwise as seen, by its outer eye corners."""
    across = found.mesh[263, :2] - found.mesh[33, :2]
    return math.degrees(math.atan2(float(across[1]), float(across[0])))

"""The graphs that put a generated face into the picture."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dithead.config import FaceConfig
from dithead.face.crop import blend_polygon, crop_mask, transform_from_placement
from dithead.graphs import FaceBlend, FaceCrop, own_light

SIDE = 128
CONFIG = FaceConfig(crop_px=128)
TRANSFORM = transform_from_placement(torch.tensor([[64.0, 64.0, math.log(100.0), 0.1]]))[0]
POLYGON = blend_polygon(torch.tensor([[-0.03, -0.32, 0.32, 0.4]]))[0]


@pytest.fixture
def rectangle() -> Tensor:
    """Skin: smooth and never far from its mean."""
    line = torch.linspace(0, 1, SIDE)
    ramp = 120 + 40 * line[:, None] + 30 * line
    return torch.stack([ramp, 0.8 * ramp, 0.7 * ramp], -1).round().to(torch.uint8)


def blend(face: Tensor, rectangle: Tensor) -> tuple[Tensor, Tensor]:
    crop, _ = FaceCrop(CONFIG, SIDE)(rectangle, TRANSFORM, own_light())
    return FaceBlend(CONFIG, SIDE)(face, rectangle, crop, TRANSFORM, POLYGON)


def test_the_true_face_blends_into_itself(rectangle: Tensor) -> None:
    crop, _ = FaceCrop(CONFIG, SIDE)(rectangle, TRANSFORM, own_light())
    image, mask = blend(crop, rectangle)
    assert (image.int() - rectangle.int()).abs().max() <= 1
    assert mask.max() == 1
    assert 0.1 < (mask > 0).float().mean() < 0.4


def test_nothing_changes_outside_the_soft_mask(rectangle: Tensor) -> None:
    image, mask = blend(torch.rand(1, 3, 128, 128) * 2 - 1, rectangle)
    assert torch.equal(image[mask == 0], rectangle[mask == 0])
    assert (image[mask == 1].int() - rectangle[mask == 1].int()).abs().float().mean() > 20


def test_a_wrong_light_is_put_right(rectangle: Tensor) -> None:
    crop, _ = FaceCrop(CONFIG, SIDE)(rectangle, TRANSFORM, own_light())
    image, mask = blend((crop + torch.tensor([0.12, 0.0, -0.08])[:, None, None]), rectangle)
    off = (image.float() - rectangle.float())[mask == 1].abs().mean(0)
    assert off[0] < 0.35 * 0.12 * 127.5
    assert off[2] < 0.35 * 0.08 * 127.5


def test_what_is_behind_the_jaw_does_not_shine_through(rectangle: Tensor) -> None:
    crop, _ = FaceCrop(CONFIG, SIDE)(rectangle, TRANSFORM, own_light())
    lit = rectangle.clone()
    lit[:, 104:] = 255  # a bright window, which the generated face does not show
    dark, bright = blend(crop, rectangle)[0], blend(crop, lit)[0]
    where = crop_mask(SIDE, 0.02, POLYGON[None])[0, 0] == 1
    assert (bright.int() - dark.int())[where].abs().float().mean() < 4


def test_nothing_of_the_source_inside_is_read(rectangle: Tensor) -> None:
    face = torch.rand(1, 3, 128, 128) * 2 - 1
    image, mask = blend(face, rectangle)
    other = rectangle.clone()
    other[mask == 1] = torch.randint(0, 256, (3,), dtype=torch.uint8)
    changed, _ = blend(face, other)
    off = (image[mask == 1].int() - changed[mask == 1].int()).abs()
    assert off.max() <= 1  # a last digit may round to another level
    assert (off != 0).sum() <= 3

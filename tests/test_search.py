"""Faces any way up and small ones, and meshes that are fitted the wrong way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import roll_degrees, scaled, turned
from torch import Tensor

from dithead.face.mesh import roi_from_mesh
from dithead.face.search import FaceSearch, turned_back
from dithead.face.tracker import CERTAIN, FaceTracker
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs


@pytest.fixture(scope="module")
def man(carphone_clip: Path) -> Tensor:
    with VideoSource(carphone_clip) as video:
        return torch.from_numpy(next(iter(video)).rgb())


@pytest.fixture
def woman(astronaut: np.ndarray) -> Tensor:
    return torch.from_numpy(astronaut[20:320, 70:370].copy())


def off_by(found_degrees: float, degrees: float) -> float:
    return abs((found_degrees - degrees + 180.0) % 360.0 - 180.0)


@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_a_face_is_found_the_right_way_up_at_any_angle(
    degrees: int, man: Tensor, woman: Tensor, random_models: TorchGraphs
) -> None:
    for picture in (man, woman):
        found = FaceTracker(random_models.run)(turned(picture, degrees))
        assert found is not None
        assert off_by(roll_degrees(found), -degrees) < 25


def test_a_face_that_rolls_over_is_followed(woman: Tensor, random_models: TorchGraphs) -> None:
    locate = FaceTracker(random_models.run)
    for degrees in range(0, 400, 8):
        found = locate(turned(woman, degrees))
        assert found is not None
        assert off_by(roll_degrees(found), -degrees) < 25


@pytest.mark.parametrize("width", [48, 70, 120])
def test_a_small_face_is_found_in_a_large_frame(
    width: int, woman: Tensor, random_models: TorchGraphs
) -> None:
    part = scaled(woman, round(300 * width / 105), round(300 * width / 105))  # a face 105 wide
    frame = torch.full((1080, 1920, 3), 90, dtype=torch.uint8)
    frame[610 : 610 + len(part), 1333 : 1333 + len(part)] = part
    locate = FaceTracker(random_models.run)
    for _ in range(3):
        found = locate(frame)
        assert found is not None
        points = found.mesh[:, :2] - torch.tensor([1333.0, 610.0])
        assert bool(((points > -5) & (points < len(part) + 5)).all())
        assert float(points[:, 0].max() - points[:, 0].min()) == pytest.approx(width, rel=0.3)


def test_where_there_is_no_face_none_is_found(random_models: TorchGraphs) -> None:
    noise = torch.randint(0, 256, (90, 160, 3), dtype=torch.uint8)
    locate = FaceTracker(random_models.run)
    assert locate(scaled(noise, 720, 1280)) is None
    assert locate.absence == "no face"


def test_a_mesh_the_wrong_way_round_is_doubted(woman: Tensor, random_models: TorchGraphs) -> None:
    search = FaceSearch(random_models.run)
    found = FaceTracker(random_models.run)(woman)
    assert found is not None
    assert search.doubt(woman, found.mesh, Tensor.cpu) < CERTAIN
    middle = found.mesh[:, :2].mean(0)
    for wrong in (2 * middle - found.mesh[:, :2], found.mesh[:, :2] + 80):
        mesh = torch.cat([wrong, found.mesh[:, 2:]], 1)
        assert roi_from_mesh(mesh[None]).isfinite().all()
        assert search.doubt(woman, mesh, Tensor.cpu) > CERTAIN


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_places_in_a_turned_picture_are_turned_back(turns: int) -> None:
    picture = torch.zeros(5, 9, 3, dtype=torch.uint8)
    picture[1, 7] = 255
    row, column = torch.nonzero(torch.rot90(picture, turns)[..., 0])[0].tolist()
    assert turned_back([(column + 0.5, row + 0.5)], turns, 5, 9) == ((7.5, 1.5),)

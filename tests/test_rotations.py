"""Of a face that lies any way up, or rolls over, nothing above the nose bridge is changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import scaled, turned
from torch import Tensor

from dithead.face.tracker import FaceTracker
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs

BRIDGE = 6
EYES = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
)
"""Mesh points between the eyes, and round each of them."""


@pytest.fixture(scope="module")
def man(carphone_clip: Path) -> list[Tensor]:
    with VideoSource(carphone_clip) as video:
        return [torch.from_numpy(frame.rgb()) for frame in video]


@pytest.fixture(scope="module")
def woman() -> list[Tensor]:
    data = pytest.importorskip("skimage.data", reason="the portrait comes with scikit-image")
    portrait = torch.from_numpy(np.array(data.astronaut()))
    return [portrait[20 + i : 320 + i, 70:370].contiguous() for i in range(8)]


def upright_mesh(picture: Tensor, models: TorchGraphs) -> Tensor:
    found = FaceTracker(models.run)(picture)
    assert found is not None
    return found.mesh[:, :2]


def turned_back(changed: Tensor, picture: Tensor, degrees: float) -> Tensor:
    """Where changed pixels of a turned picture (S, S) are in the picture itself: (N, 2)."""
    rows, columns = torch.nonzero(changed, as_tuple=True)
    x, y = (torch.stack([columns, rows]) + 0.5 - len(changed) / 2).unbind()
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = picture.shape[:2]
    return torch.stack([x * cos - y * sin + width / 2, x * sin + y * cos + height / 2], dim=1)


def within(points: Tensor, polygon: Tensor) -> Tensor:
    """Which points (N, 2) lie in a polygon (P, 2): (N,) bool."""
    x, y = points[:, :1], points[:, 1:]
    a, b = polygon, polygon.roll(-1, 0)
    at = a[:, 0] + (b[:, 0] - a[:, 0]) * (y - a[:, 1]) / (b[:, 1] - a[:, 1])
    return (((a[:, 1] > y) != (b[:, 1] > y)) & (x < at)).sum(1) % 2 == 1


def wrong(points: Tensor, mesh: Tensor) -> int:
    """How many changed places are of the forehead or the eyes of an upright mesh (468, 2)."""
    across = mesh[263] - mesh[33]
    down = torch.stack([-across[1], across[0]])
    bad = (points - mesh[BRIDGE]) @ down < 0
    for eye in EYES:
        bad |= within(points, mesh[list(eye)])
    return int(bad.sum())


def check(
    pictures: Sequence[Tensor], angles: Sequence[float], models: TorchGraphs, options: Options
) -> None:
    """Turn pictures, each by its angle, re-voice them, and turn back what is changed."""
    frames = [turned(picture, angle) for picture, angle in zip(pictures, angles, strict=True)]
    timed = [(frame, index / 25) for index, frame in enumerate(frames)]
    made = list(revoice(timed, torch.zeros(640 * len(frames) + 1600), models, options))
    for picture, angle, frame, image in zip(pictures, angles, frames, made, strict=True):
        points, mesh = (
            turned_back((image != frame).any(2), picture, angle),
            upright_mesh(picture, models),
        )
        assert wrong(points, mesh) == 0
        mouth = mesh[[61, 291, 0, 17]].mean(0)
        size = float(mesh[:, 0].amax() - mesh[:, 0].amin())
        assert len(points) > 0.05 * size**2  # it is re-voiced, and round the mouth
        assert float((points.mean(0) - mouth).norm()) < 0.25 * size


def test_what_is_wrong_is_told(woman: list[Tensor], random_models: TorchGraphs) -> None:
    mesh = upright_mesh(woman[0], random_models)
    for point, bad in ((151, 1), (159, 1), (1, 0), (152, 0)):  # forehead, eyelid, nose, chin
        assert wrong(mesh[[point]] + 0.5, mesh) == bad
    spot = torch.zeros(300, 300, dtype=torch.uint8)
    spot[210:214, 80:84] = 200
    there = turned(spot[..., None].expand(-1, -1, 3), 75)[..., 0] > 100
    assert (turned_back(there, spot, 75).mean(0) - torch.tensor([82.0, 212.0])).abs().max() < 0.5


@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_eyes_and_forehead_of_a_turned_face_stay_as_they_are(
    degrees: int, man: list[Tensor], woman: list[Tensor], random_models: TorchGraphs
) -> None:
    options = Options(steps=1, detail=False)
    for pictures in (man[:2], woman[:2]):
        check(pictures, [degrees] * 2, random_models, options)


@pytest.mark.parametrize("step", [6, 15])
def test_eyes_and_forehead_of_a_face_that_rolls_over_stay_as_they_are(
    step: int, man: list[Tensor], random_models: TorchGraphs
) -> None:
    angles = range(0, 361, step)
    check(man[: len(angles)], angles, random_models, Options(steps=1, detail=False))


PEOPLE = [
    *("grid_new_p1", "grid_s31_lbig7s", "grid_other_brbk7n", "grid_s34_lbwh5n"),
    *("grid_other_lbax4n", "grid_s33_bwwy3s", "elo_01_T1_matrix1306", "elo_02_T4_matrix0509"),
    *("hdtf_pose2", "hdtf_radio10", "hdtf_av2av11"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", PEOPLE)
def test_eyes_and_forehead_of_anybody_stay_as_they_are(name: str, shared_footage: Path) -> None:
    with VideoSource(shared_footage / "clips" / f"{name}.mp4") as video:
        pictures = [
            torch.from_numpy(frame.rgb()) for _, frame in zip(range(91), video, strict=False)
        ]
    height, width = pictures[0].shape[:2]
    share = min(1.0, 640 / max(height, width))
    pictures = [scaled(one, round(share * height), round(share * width)) for one in pictures]
    models, options = TorchGraphs.load(), Options(steps=1, detail=False)
    for degrees in range(0, 360, 15):
        check(pictures[:2], [degrees] * 2, models, options)
    for step in (4, 15):
        angles = list(range(0, 361, step))[: len(pictures)]
        check(pictures[: len(angles)], angles, models, options)

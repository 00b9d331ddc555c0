"""Following one face from frame to frame, and telling when it is another."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.face.tracker import FaceTracker
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.patch import Patch
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs

PLACE = (128.0, 110.0)  # of the middle of every face here
WIDTH = 110.0


def placed(picture: Tensor, models: TorchGraphs) -> Tensor:
    """A picture (H, W, 3), so scaled and moved that its face is in the place: (256, 256, 3)."""
    found = FaceTracker(models.run)(picture)
    assert found is not None
    mesh = found.mesh
    low, high = mesh[:, :2].amin(0), mesh[:, :2].amax(0)
    scale = WIDTH / float(high[0] - low[0])
    height, width = picture.shape[:2]
    corner = (low + high) / 2 - torch.tensor(PLACE) / scale
    x, y = (
        (2 * (start + torch.arange(256) / scale) / size - 1)
        for start, size in zip(corner, (width, height), strict=True)
    )
    grid = torch.stack([x.expand(256, -1), y[:, None].expand(-1, 256)], dim=-1)[None]
    planes = picture.permute(2, 0, 1)[None].float()
    found = F.grid_sample(planes, grid, padding_mode="border", align_corners=False)[0]
    return found.permute(1, 2, 0).round().byte()


@pytest.fixture(scope="module")
def drive(carphone_clip: Path) -> list[Tensor]:
    """A man who talks and moves, 120 frames of 30 a second."""
    with VideoSource(carphone_clip) as video:
        return [torch.from_numpy(frame.rgb()) for frame in video]


@pytest.fixture
def woman(astronaut: np.ndarray, random_models: TorchGraphs) -> Tensor:
    return placed(torch.from_numpy(astronaut[:300, 80:380].copy()), random_models)


@pytest.fixture
def man(drive: list[Tensor], random_models: TorchGraphs) -> Tensor:
    return placed(drive[10], random_models)


def locator(models: TorchGraphs) -> FaceTracker:
    return FaceTracker(models.run)


def changes(locate: FaceTracker, frames: list[Tensor]) -> list[bool]:
    """Whether each frame's face is begun with afresh; every frame has one."""
    found = [locate(frame) for frame in frames]
    assert None not in found
    return [face.changed for face in found if face is not None]


def patches(generate: FrameGenerator, frames: list[Tensor], first: int) -> list[Patch]:
    window = torch.zeros(11, 768)
    made = [generate(f, 0.04 * i, i, lambda _: window) for i, f in enumerate(frames, first)]
    assert None not in made
    return [patch for patch in made if patch is not None]


@pytest.mark.parametrize("reference", ["previous", "fixed"])
def test_after_a_cut_to_somebody_else_in_the_same_place_all_is_as_at_the_start(
    reference: Literal["previous", "fixed"], woman: Tensor, man: Tensor, random_models: TorchGraphs
) -> None:
    options = Options(steps=1, reference=reference)
    before, after = [woman] * 3, [man, man.roll(1, 1), man]
    cut = patches(FrameGenerator(random_models, options), before + after, 0)[3:]
    alone = patches(FrameGenerator(random_models, options), after, 3)
    for found, expected in zip(cut, alone, strict=True):
        assert (found.left, found.top) == (expected.left, expected.top)
        assert torch.equal(found.image, expected.image)


def test_only_the_frame_of_the_cut_is_fresh(
    woman: Tensor, man: Tensor, random_models: TorchGraphs
) -> None:
    changed = changes(locator(random_models), [woman, woman, man, man, woman, woman])
    assert changed == [True, False, True, False, True, False]


@pytest.mark.parametrize("shift", [40, -40])
def test_a_head_that_leaps_is_looked_at_anew(
    shift: int, woman: Tensor, random_models: TorchGraphs
) -> None:
    locate, afresh = locator(random_models), locator(random_models)
    assert locate(woman) is not None
    leapt = woman.roll(shift, 1)
    found, expected = locate(leapt), afresh(leapt)
    assert found is not None
    assert expected is not None
    assert not found.changed  # it looks like the same person
    assert (found.mesh - expected.mesh).abs().max() < 1.0


def test_a_cut_that_only_the_mesh_network_sees_loses_no_frame(
    woman: Tensor, man: Tensor, random_models: TorchGraphs
) -> None:
    blind = False

    def run(name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = random_models.run(name, *inputs)
        if name == "face_detector" and blind:
            return found[0], torch.zeros_like(found[1]), found[2]
        return found

    locate = FaceTracker(run)
    assert locate(woman) is not None
    blind = True
    found = locate(man)
    assert found is not None
    assert found.changed


@pytest.mark.parametrize("every", [1, 2])
def test_ordinary_motion_is_no_cut(
    every: int, drive: list[Tensor], random_models: TorchGraphs
) -> None:
    assert not any(changes(locator(random_models), drive[::every])[1:])


@pytest.mark.parametrize(("gain", "more"), [(1.5, 30.0), (0.3, 0.0), (0.6, 80.0)])
def test_a_change_of_light_is_no_cut(
    gain: float, more: float, drive: list[Tensor], woman: Tensor, random_models: TorchGraphs
) -> None:
    for lit in (drive[40], woman):
        other = (lit.float() * gain + more).clamp(0, 255).byte()
        assert changes(locator(random_models), [lit, other, lit]) == [True, False, False]


def test_another_shot_of_the_same_face_is_begun_with_afresh(
    drive: list[Tensor], random_models: TorchGraphs
) -> None:
    def graded(frame: Tensor) -> Tensor:
        """Darker mid-tones, little colour, a blue cast."""
        levels = (frame.float() / 255) ** (1 / 0.55)
        grey = levels.mean(2, keepdim=True)
        levels = grey + 0.2 * (levels - grey) + torch.tensor([0.0, 0.0, 0.1])
        return (levels.clamp(0, 1) * 255).round().byte()

    frames = [*drive[:18], *map(graded, drive[:6])]
    begun = changes(locator(random_models), frames)
    assert [index for index, afresh in enumerate(begun) if afresh] == [0, 18]

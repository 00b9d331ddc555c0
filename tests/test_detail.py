"""The detail layer: the frame's own pixels in the shape of the generated mouth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.bundle.manifest import read_manifest
from dithead.config import FaceConfig
from dithead.controls import CONTROLS, MEMORY_S, WIDER, FaceShape, in_crop
from dithead.detail import FaceDetail
from dithead.export.bundle import ExportOptions, export_bundle
from dithead.face.crop import (
    blend_anchors,
    blend_polygon,
    placement_from_mesh,
    rectangle_mask,
    stable_template,
    transform_from_placement,
)
from dithead.face.mesh import INNER_LOWER, INNER_UPPER, roi_from_mesh
from dithead.options import Options
from dithead.pipeline import revoice
from dithead.torchgraphs import TorchGraphs

SIDE = 256
CONFIG = FaceConfig(crop_px=128)
STEP = torch.tensor(0.04)


class Portrait:
    """A portrait's rectangle, and what the stages before know of it."""

    def __init__(self, astronaut: np.ndarray, models: TorchGraphs) -> None:
        self.rectangle = torch.from_numpy(astronaut[:SIDE, 96 : 96 + SIDE].copy())
        region = torch.tensor([[128.0, 120.0, 240.0, 240.0, 0.0]])
        for _ in range(3):
            (picture,) = models.run("face_region.2", self.rectangle, region)
            mesh, _ = models.run("face_landmarks", picture, region)
            region = roi_from_mesh(mesh)
        placement = placement_from_mesh(mesh, stable_template())
        self.mesh = mesh[0]
        self.transform = transform_from_placement(placement)[0]
        self.polygon = blend_polygon(blend_anchors(mesh, placement))[0]
        size = (SIDE, SIDE, CONFIG.mask_softness)
        mask = rectangle_mask(self.transform[None], *size, self.polygon[None])
        self.mask = mask[0, 0]
        self.unit = float(self.transform[0].norm())
        self.detail = FaceDetail(CONFIG, SIDE)

    def own(self) -> Tensor:
        """Where the controls are: (CONTROLS, 2) in pixels."""
        return self.mesh[self.detail.controls, :2].clone()

    def opened(self, by: float) -> Tensor:
        """The mesh with the lower lip so many crop sides further down."""
        mesh = self.mesh.clone()
        across = (mesh[:, 0] - mesh[14, 0]) / (0.2 * self.unit)
        part = torch.where(mesh[:, 1] >= mesh[14, 1] - 0.5, (1 - across.square()).clamp(min=0), 0)
        part[list(INNER_LOWER)] = torch.sin(torch.linspace(0, math.pi, len(INNER_LOWER)))
        mesh[:, 1] += by * self.unit * part
        return mesh

    def warped(
        self,
        target: Tensor,
        wanted: Tensor | None = None,
        blended: Tensor | None = None,
        rectangle: Tensor | None = None,
    ) -> Tensor:
        rectangle = self.rectangle if rectangle is None else rectangle
        blended = rectangle if blended is None else blended
        wanted = self.mesh if wanted is None else wanted
        frame = (self.mask, self.transform, self.polygon, self.mesh, wanted, target)
        return self.detail(rectangle, blended, *frame)[0]

    def away_from_the_lips(self, image: Tensor) -> Tensor:
        """A picture (H, W, ...) with zeros on the lips and round them."""
        image, lips = image.clone(), self.mesh[[*INNER_UPPER, *INNER_LOWER], :2]
        low, high = lips.amin(0) - 4, lips.amax(0) + 4
        image[int(low[1]) : int(high[1]), int(low[0]) : int(high[0])] = 0
        return image


@pytest.fixture
def portrait(astronaut: np.ndarray, random_models: TorchGraphs) -> Portrait:
    return Portrait(astronaut, random_models)


def levels_apart(a: Tensor, b: Tensor) -> Tensor:
    """(H, W), the largest difference of the three colours."""
    return (a.int() - b.int()).abs().amax(-1)


def greenness(image: Tensor) -> float:
    return float((image[..., 1].float() - image[..., 0].float()).clamp(min=0).sum())


def test_a_shape_that_is_the_own_gives_the_frame_back(portrait: Portrait) -> None:
    strange = 255 - portrait.rectangle
    made = portrait.warped(portrait.own(), blended=strange)
    off = levels_apart(made, portrait.rectangle)
    assert portrait.away_from_the_lips(off).max() == 0
    assert levels_apart(portrait.warped(portrait.own()), portrait.rectangle).max() == 0


@pytest.mark.parametrize("shift_px", [0.0, 0.2, 0.5, 0.7])
def test_between_pixels_a_picture_is_as_sharp_as_on_them(
    portrait: Portrait, shift_px: float
) -> None:
    picture = portrait.rectangle.permute(2, 0, 1)[None].float()
    line = (torch.arange(SIDE) + 0.5 + shift_px) * (2 / SIDE) - 1
    places = torch.stack(torch.meshgrid(line, line, indexing="xy")).clamp(-1, 1)
    detail = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])

    def sharpness(image: Tensor) -> float:
        return float(F.conv2d(image.mean(1, keepdim=True), detail[None, None]).var())

    found = sharpness(portrait.detail.sharp(picture, places)) / sharpness(picture)
    assert 0.65 < found < 1.15  # linear between pixels: 0.4 in the middle


def test_nothing_changes_outside_the_soft_mask(portrait: Portrait) -> None:
    noise = torch.randint(-20, 21, (SIDE, SIDE, 3)) + portrait.rectangle.int()
    noise = noise.clamp(0, 255).byte()
    target = portrait.own() + 6 * torch.randn(CONTROLS, 2)
    made = portrait.warped(target, blended=noise)
    outside = portrait.mask == 0
    assert torch.equal(made[outside], portrait.rectangle[outside])
    assert not torch.equal(made, portrait.rectangle)


def test_a_spot_on_the_chin_moves_with_the_chin(portrait: Portrait) -> None:
    x, y = (round(float(v)) for v in portrait.mesh[200, :2])
    spotted = torch.full_like(portrait.rectangle, 200)
    spotted[y - 2 : y + 3, x - 2 : x + 3] = 0
    target = portrait.own()
    below = target[:, 1] > float(portrait.mesh[17, 1])
    target[below, 1] += 6.0
    made = portrait.warped(target, rectangle=spotted)

    def middle(image: Tensor) -> Tensor:
        dark = (200 - image[:, :, 0].float()).clamp(min=0)
        rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
        return torch.stack([(columns * dark).sum(), (rows * dark).sum()]) / dark.sum()

    moved = middle(made) - middle(spotted)
    assert abs(float(moved[0])) < 0.7
    assert 4.5 < float(moved[1]) < 7.5


def test_a_mouth_that_closes_hides_what_was_between_the_lips(portrait: Portrait) -> None:
    """The source's lips are apart, and what is between them is green."""
    opened = portrait.opened(0.10)
    lower, upper = opened[list(INNER_LOWER), :2], opened[list(INNER_UPPER), :2]
    green = portrait.rectangle.clone()
    centres = torch.arange(SIDE) + 0.5
    for column in range(int(upper[0, 0]) + 3, int(upper[-1, 0]) - 3):
        top, bottom = (
            float(np.interp(column, edge[:, 0].numpy(), edge[:, 1].numpy()))
            for edge in (upper, lower)
        )
        green[(centres > top) & (centres < bottom), column] = torch.tensor(
            [0, 255, 0], dtype=torch.uint8
        )
    closed, portrait.mesh = portrait.mesh, opened
    target = closed[portrait.detail.controls, :2].clone()

    made = portrait.warped(target, wanted=closed, blended=portrait.rectangle, rectangle=green)
    before = greenness(portrait.rectangle)
    assert greenness(green) > 2 * before
    assert greenness(made) - before < 0.03 * (greenness(green) - before)


def test_a_mouth_that_closes_hides_what_was_beyond_its_corners(portrait: Portrait) -> None:
    """The mesh's corners lie within the source's: what is dark there, here green, goes on."""
    closed = portrait.mesh
    portrait.mesh = portrait.opened(0.10)
    green = portrait.rectangle.clone()
    for corner, side in ((78, -1), (308, 1)):
        x, y = (int(value) for value in closed[corner, :2])
        beyond = slice(x - 4, x + 1) if side < 0 else slice(x, x + 5)  # 0.03 crop units
        green[y - 1 : y + 2, beyond] = torch.tensor([0, 255, 0], dtype=torch.uint8)
    target = closed[portrait.detail.controls, :2].clone()
    made = portrait.warped(target, wanted=closed, blended=portrait.rectangle, rectangle=green)
    before = greenness(portrait.rectangle)
    assert greenness(made) - before < 0.15 * (greenness(green) - before)


@pytest.mark.parametrize("colour", [(20, 20, 20), (200, 40, 60), (60, 110, 200)])
@pytest.mark.parametrize("sides", ["both", "left", "right"])
def test_what_covers_the_mouth_is_left_as_it_is(
    portrait: Portrait, colour: tuple[int, int, int], sides: str
) -> None:
    lips = portrait.mesh[[*INNER_UPPER, *INNER_LOWER], :2]
    (left, top), (right, bottom) = ((lips.amin(0) - 20).int(), (lips.amax(0) + 20).int())
    middle = (left + right) // 2
    columns = {"both": (left, right), "left": (left, middle), "right": (middle, right)}[sides]
    covered = portrait.rectangle.clone()
    covered[top:bottom, slice(*columns)] = torch.tensor(colour, dtype=torch.uint8)
    wanted = portrait.opened(0.06)
    target = wanted[portrait.detail.controls, :2].clone()
    made = portrait.warped(target, wanted, blended=portrait.rectangle, rectangle=covered)
    assert torch.equal(made, covered)


@pytest.mark.parametrize("gain", [0.85, 1.15])
def test_a_face_that_is_generated_a_little_lighter_or_darker_is_not_taken_for_covered(
    portrait: Portrait, gain: float
) -> None:
    wanted = portrait.opened(0.06)
    target = wanted[portrait.detail.controls, :2].clone()
    blended = (portrait.rectangle.float() * gain).clamp(0, 255).byte()
    expected, made = portrait.warped(target, wanted), portrait.warped(target, wanted, blended)
    moved = portrait.away_from_the_lips(levels_apart(expected, portrait.rectangle))
    assert (moved > 20).sum() > 50
    below = portrait.away_from_the_lips(levels_apart(made, expected))
    below[: int(portrait.mesh[17, 1]) + 12] = 0  # the opened mouth reaches so far down
    assert below.max() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e6, 0.0])
def test_an_absurd_mesh_does_not_tear_the_picture(portrait: Portrait, value: float) -> None:
    shape, habit = FaceShape(), FaceShape.initial_habit()
    wanted = portrait.mesh.clone()
    wanted[100:] = value
    target, habit = shape(portrait.mesh, wanted, portrait.transform, habit, STEP)
    assert target.isfinite().all()
    assert habit.isfinite().all()
    assert (target - portrait.own()).norm(dim=1).max() < 0.15 * portrait.unit
    frame = (portrait.mask, portrait.transform, portrait.polygon, portrait.mesh, wanted)
    image, _ = portrait.detail(portrait.rectangle, portrait.rectangle, *frame, target)
    outside = portrait.mask == 0
    assert torch.equal(image[outside], portrait.rectangle[outside])


def gap_of(target: Tensor, portrait: Portrait) -> Tensor:
    """How far apart the lips are (pairs,) whose controls are wanted there."""
    made = portrait.mesh.clone()
    made[portrait.detail.controls, :2] = target
    return FaceShape().gap(in_crop(made, portrait.transform))


def speaks(
    portrait: Portrait, source: float, generated: float, seconds: float, rest: float = 0.0
) -> Tensor:
    """Gaps (T, pairs) of the result, where the person's mouth and the generated one open so far, at
    different times; the generated one is never further closed than by ``rest``."""
    shape, habit, own, gaps = FaceShape(), FaceShape.initial_habit(), portrait.mesh.clone(), []
    for frame in range(round(seconds / 0.04)):
        portrait.mesh = own
        wanted = portrait.opened(rest + generated * (1 - math.cos(0.9 * frame)) / 2)
        portrait.mesh = portrait.opened(source * (1 - math.cos(1.1 * frame)) / 2)
        target, habit = shape(portrait.mesh, wanted, portrait.transform, habit, STEP)
        gaps.append(gap_of(target, portrait))
    portrait.mesh = own
    return torch.stack(gaps)


def test_the_gap_between_the_lips_is_the_generated_one(portrait: Portrait) -> None:
    shape, habit, own = FaceShape(), FaceShape.initial_habit(), portrait.mesh
    for by in 50 * (0.0, 0.03, 0.06):
        wanted = portrait.opened(by)
        target, habit = shape(own, wanted, portrait.transform, habit, STEP)
        gap = shape.gap(in_crop(wanted, portrait.transform))
        torch.testing.assert_close(gap_of(target, portrait), gap, atol=2e-3, rtol=0)


def test_lips_that_are_generated_apart_close_when_they_are_closest(portrait: Portrait) -> None:
    own = FaceShape().gap(in_crop(portrait.mesh, portrait.transform))
    gaps = speaks(portrait, source=0.0, generated=0.03, seconds=6, rest=0.02)[100:]
    assert (gaps.amin(0) - own).abs().max() < 4e-3
    assert gaps[:, 4].max() - own[4] > 0.025


def test_who_opens_the_mouth_wide_speaks_with_a_mouth_open_wide(portrait: Portrait) -> None:
    meshes = [portrait.mesh, portrait.opened(0.03)]
    own, generated = (FaceShape().gap(in_crop(m, portrait.transform))[4] for m in meshes)
    usual, wide = (speaks(portrait, by, 0.03, 6)[75:, 4].max() - own for by in (0.03, 0.09))
    assert usual == pytest.approx(float(generated - own), abs=2e-3)
    assert 1.5 * usual < wide < 2 * usual + WIDER


@pytest.mark.parametrize("source", [0.03, 0.09])
def test_a_silent_mouth_stays_closed_whatever_the_source_does(
    portrait: Portrait, source: float
) -> None:
    own = FaceShape().gap(in_crop(portrait.mesh, portrait.transform))
    gaps = speaks(portrait, source, generated=0.0, seconds=6)
    assert (gaps - own).abs().max() < WIDER + 1e-4
    assert gaps.diff(dim=0).abs().max() < 2e-3


def test_a_laugh_is_no_rest(portrait: Portrait) -> None:
    """A source whose mouth is never closed: the result's is, but for a little."""
    shape, habit = FaceShape(), FaceShape.initial_habit()
    closed = portrait.mesh
    portrait.mesh = portrait.opened(0.08)
    for _ in range(50):
        target, habit = shape(portrait.mesh, closed, portrait.transform, habit, STEP)
        apart = gap_of(target, portrait) - shape.gap(in_crop(closed, portrait.transform))
        assert apart.max() < 8e-3


def test_a_face_that_is_generated_elsewhere_is_in_its_place_from_the_first_frame_on(
    portrait: Portrait,
) -> None:
    shape, habit = FaceShape(), FaceShape.initial_habit()
    elsewhere = portrait.mesh.clone()
    below = elsewhere[:, 1] > elsewhere[2, 1]
    elsewhere[below, :2] += torch.tensor([3.0, 4.0])
    elapsed = torch.tensor(0.0)
    for _ in range(10):
        target, habit = shape(portrait.mesh, elsewhere, portrait.transform, habit, elapsed)
        elapsed = STEP
        assert (target - portrait.own()).norm(dim=1).max() < 0.5


def test_a_face_that_moves_elsewhere_comes_back_to_its_place(portrait: Portrait) -> None:
    shape, habit = FaceShape(), FaceShape.initial_habit()
    wanted = portrait.mesh.clone()
    below = wanted[:, 1] > wanted[2, 1]
    for _ in range(50):
        _, habit = shape(portrait.mesh, wanted, portrait.transform, habit, STEP)
    wanted[below, :2] += torch.tensor([3.0, 4.0])
    off = []
    for _ in range(round(3 * MEMORY_S / 0.04)):
        target, habit = shape(portrait.mesh, wanted, portrait.transform, habit, STEP)
        off.append(float((target - portrait.own()).norm(dim=1).max()))
    assert off[0] > 3
    assert off[-1] < 0.5


def test_a_closed_mouth_beside_one_that_moves_is_closed(portrait: Portrait) -> None:
    """What the source does with its mouth does not decide how far the result's is open."""
    shape, habit, source = FaceShape(), FaceShape.initial_habit(), portrait.mesh.clone()
    for frame in range(50):
        portrait.mesh = source
        portrait.mesh = portrait.opened(0.04 * (1 + math.sin(frame)))
        target, habit = shape(portrait.mesh, source, portrait.transform, habit, STEP)
        wanted = shape.gap(in_crop(source, portrait.transform)).clamp(min=0)
        assert (gap_of(target, portrait) - wanted).abs().max() < 0.01


@pytest.mark.parametrize("shift", [-150, 0, 150])
def test_faces_that_reach_out_of_the_frame(
    random_models: TorchGraphs, astronaut: np.ndarray, shift: int
) -> None:
    frame = torch.full((150, 200, 3), 90, dtype=torch.uint8)
    part = torch.from_numpy(astronaut[20:220, 120:320].copy())
    frame[:, :] = part[:150] if shift == 0 else torch.roll(part, shift // 3, dims=1)[:150]
    made = list(
        revoice([(frame, 0.0), (frame, 0.04)], torch.zeros(1600), random_models, Options(steps=1))
    )
    assert [image.shape for image in made] == [frame.shape] * 2


def test_without_the_detail_layer_the_generated_face_is_shown(
    random_models: TorchGraphs, astronaut: np.ndarray
) -> None:
    frame = torch.from_numpy(astronaut[20:260, 104:344].copy())
    on, off = (
        next(revoice([(frame, 0.0)], torch.zeros(1600), random_models, Options(1, detail=detail)))
        for detail in (True, False)
    )
    changed = (off.int() - frame.int()).abs().amax(-1) > 24
    assert changed.float().mean() > 0.03  # what random weights make
    assert (on.int() - frame.int()).abs()[changed].float().mean() < 0.6 * (
        (off.int() - frame.int()).abs()[changed].float().mean()
    )


def test_both_graphs_are_exported_as_they_are(checkpoint_file: Path, tmp_path: Path) -> None:
    graphs = ("face_shape", "face_detail.64", "face_detail.192")
    options = ExportOptions(graphs=graphs, targets=("cpu",))
    export_bundle(str(checkpoint_file), tmp_path / "bundle", options)
    made = read_manifest(tmp_path / "bundle").graphs
    assert {entry.name for entry in made} == set(graphs)
    assert max(entry.onnx[0].error for entry in made) < 1e-5

"""Crop, mask and tracker: geometry that can be checked by hand."""

import math

import pytest
import torch

from dithead.config import FaceConfig, View
from dithead.face.crop import (
    _TEMPLATE,
    BLEND_POINTS,
    MASK_POLYGON,
    STABLE_POINTS,
    WHOLE,
    blend_anchors,
    blend_polygon,
    crop_face,
    crop_mask,
    crop_positions,
    mask_polygon,
    paste_matrix,
    placement_from_mesh,
    rectangle_mask,
    stable_template,
    transform_from_placement,
)
from dithead.face.cropsmoother import CropSmoother
from dithead.graphs import RECTANGLE_SIZES, face_rectangle
from dithead.kernels.sampling import invert_similarity, pixel_centres, resample


def mesh_at(cx: float, cy: float, side: float, roll: float) -> torch.Tensor:
    """A mesh (1, 468, 2) whose stable points are the template, placed."""
    placement = torch.tensor([[cx, cy, math.log(side), roll]])
    matrix = transform_from_placement(placement)[0]
    mesh = torch.full((1, 468, 2), 1e4)  # every other point is far off and must not matter
    points = torch.tensor(_TEMPLATE) @ matrix[:, :2].T + matrix[:, 2]
    mesh[0, list(STABLE_POINTS)] = points
    return mesh


@pytest.mark.parametrize("roll", [0.0, 0.4, -2.0])
def test_placement_is_recovered_from_the_stable_points(roll: float) -> None:
    found = placement_from_mesh(mesh_at(81.5, 60.25, 97.0, roll), stable_template())[0]
    expected = torch.tensor([81.5, 60.25, math.log(97.0), roll])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-5)


def test_no_moving_point_carries_the_crop() -> None:
    lips_and_jaw = {0, 13, 14, 17, 78, 82, 87, 152, 172, 308, 312, 317, 397}
    assert not lips_and_jaw & set(STABLE_POINTS)


@pytest.mark.parametrize("view", [WHOLE, View(0.84, 0.065)])
def test_crop_then_paste_gives_the_picture_back(view: View) -> None:
    ramp = torch.linspace(0, 1, 160)
    image = torch.stack(
        [ramp.expand(160, 160), ramp[:, None].expand(160, 160), ramp.expand(160, 160)]
    )
    transform = transform_from_placement(torch.tensor([[80.0, 78.0, math.log(100.0), 0.3]]))
    crop = crop_face(image[None], transform, 128, view=view)
    centres = pixel_centres(160, 160, 1, crop.device)
    back = resample(crop, paste_matrix(transform, 128, view), centres, 160)
    ys, xs = torch.meshgrid(torch.arange(160) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    inverse = invert_similarity(transform)[0]
    units = torch.stack([xs, ys, torch.ones_like(xs)], -1) @ inverse.T
    middle = torch.tensor([0.0, view.down])
    inside = ((units - middle).abs() < 0.48 * view.span).all(-1)
    assert inside.sum() > 5000
    assert (back[0] - image).abs().amax(0)[inside].max() < 1e-3


def test_a_view_is_a_part_of_the_whole_crop() -> None:
    image = torch.rand(1, 3, 160, 160)
    transform = transform_from_placement(torch.tensor([[80.0, 78.0, math.log(100.0), 0.3]]))
    whole = crop_face(image, transform, 200)
    part = crop_face(image, transform, 160, view=View(0.8, 0.1))
    torch.testing.assert_close(part, whole[:, :, 40:200, 20:180], atol=1e-4, rtol=0)
    polygon = mask_polygon(1)
    mask = crop_mask(160, 0.02, polygon, View(0.8, 0.1))
    drawn = crop_mask(200, 0.02, polygon)[:, :, 40:200, 20:180]
    torch.testing.assert_close(mask, drawn, atol=1e-4, rtol=0)
    x, y = crop_positions(160, View(0.8, 0.1))
    assert (float(x[0, 0]), float(y[0, 0])) == pytest.approx((-0.3975, -0.2975))


def test_shrinking_is_antialiased() -> None:
    stripes = (torch.arange(512) % 2).float().expand(1, 3, 512, 512)
    transform = transform_from_placement(torch.tensor([[256.0, 256.0, math.log(505.0), 0.0]]))
    assert crop_face(stripes, transform, 128, 4).std() < 0.1
    assert crop_face(stripes, transform, 128, 1).std() > 0.2


def test_mask_is_exactly_zero_outside_and_one_inside() -> None:
    mask = crop_mask(128, 0.02, mask_polygon(1))[0, 0]
    assert mask[90, 64] == 1
    assert (mask[:30] == 0).all()
    assert ((mask > 0) & (mask < 1)).float().mean() > 0.02
    assert (mask[:, 0] == 0).all()
    assert (mask[-1, :20] == 0).all()


def is_convex_and_clockwise(points: torch.Tensor) -> bool:
    edges = points.roll(-1, 0) - points
    following = edges.roll(-1, 0)
    return bool((edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all())


def test_mask_polygon_is_convex_and_clockwise() -> None:
    assert is_convex_and_clockwise(torch.tensor(MASK_POLYGON))


ANCHORS = [
    (0.0, -0.33, 0.33, 0.42),
    (-0.08, -0.22, 0.36, 0.38),  # a turned head
    (0.1, -0.2, 0.2, 0.0),
    (5.0, 5.0, 5.0, 5.0),
    (-5.0, -5.0, -5.0, -5.0),
]


@pytest.mark.parametrize("anchors", ANCHORS)
def test_blend_is_convex_and_lies_in_the_mask(anchors: tuple[float, ...]) -> None:
    polygon = blend_polygon(torch.tensor([anchors]))
    assert is_convex_and_clockwise(polygon[0])
    hidden = crop_mask(256, 0.02, mask_polygon(1)) > 0
    blend = crop_mask(256, 0.02, polygon) > 0
    assert not (blend & ~hidden).any()
    assert blend.sum() < 0.8 * hidden.sum()


@pytest.mark.parametrize("roll", [0.0, 0.4, -2.0])
def test_blend_lies_between_nose_jaw_and_chin(roll: float) -> None:
    mesh = mesh_at(81.5, 60.25, 97.0, roll)
    placement = torch.tensor([[81.5, 60.25, math.log(97.0), roll]])
    matrix = transform_from_placement(placement)[0]
    points = torch.tensor([[0.02, -0.03], [-0.25, 0.2], [0.34, 0.18], [0.01, 0.38]])
    mesh[0, list(BLEND_POINTS)] = points @ matrix[:, :2].T + matrix[:, 2]
    expected = torch.tensor([-0.03, -0.25, 0.34, 0.38])
    torch.testing.assert_close(blend_anchors(mesh, placement)[0], expected, atol=1e-4, rtol=0)
    tracker = CropSmoother(FaceConfig())
    _, polygon, _ = tracker(mesh[0], tracker.initial_state(), torch.tensor(0.0))
    mask = crop_mask(100, 0.02, polygon[None])[0, 0]

    def at(x: float, y: float) -> float:
        return float(mask[round((y + 0.5) * 100), round((x + 0.5) * 100)])

    assert at(0.02, -0.17) == 0  # the bridge of the nose
    assert at(0.02, -0.05) > 0.8  # its tip
    assert at(0.02, 0.05) == 1  # the upper lip
    assert at(0.01, 0.41) > 0.8  # the chin, should the mouth open
    assert at(-0.31, 0.2) == 0 < at(0.31, 0.2)  # beyond the jaw, and within
    assert at(0.4, 0.0) == at(-0.4, 0.0) == 0  # the ears


def test_the_two_masks_agree() -> None:
    transform = transform_from_placement(torch.tensor([[64.0, 64.0, math.log(128.0), 0.0]]))
    polygon = mask_polygon(1)
    a = crop_mask(128, 0.02, polygon)
    torch.testing.assert_close(
        a, rectangle_mask(transform, 128, 128, 0.02, polygon), atol=1e-4, rtol=0
    )


def test_tracker_starts_at_the_first_face_and_calms_jitter() -> None:
    tracker = CropSmoother(FaceConfig())
    state = tracker.initial_state()
    jitter = 0.25 * torch.randn(100, 2)  # what the mesh shows on a still head
    centres = []
    for i in range(100):
        mesh = mesh_at(80 + float(jitter[i, 0]), 60 + float(jitter[i, 1]), 90, 0.0)[0]
        transform, _, state = tracker(mesh, state, torch.tensor(0.04 if i else 0.0))
        if i == 0:
            expected = torch.tensor([80.0, 60.0]) + jitter[0]
            torch.testing.assert_close(transform[:, 2], expected, atol=1e-3, rtol=0)
        centres.append(transform[:, 2])
    assert torch.stack(centres)[20:].std(0).max() < 0.6 * jitter.std()


def test_tracker_follows_a_moving_head() -> None:
    tracker = CropSmoother(FaceConfig())
    state = tracker.initial_state()
    for i in range(50):
        mesh = mesh_at(80 + 2.0 * i, 60, 90, 0.0)[0]
        transform, _, state = tracker(mesh, state, torch.tensor(0.04 if i else 0.0))
    assert abs(float(transform[0, 2]) - (80 + 98)) < 5.0


def test_tracker_calms_the_blend() -> None:
    tracker = CropSmoother(FaceConfig())
    state = tracker.initial_state()
    jitter = 0.01 * torch.randn(100)
    tops = []
    for i in range(100):
        mesh = mesh_at(80, 60, 90, 0.0)[0]
        mesh[BLEND_POINTS[0]] = torch.tensor([80.0, 60.0 + 90 * float(jitter[i])])
        _, polygon, state = tracker(mesh, state, torch.tensor(0.04 if i else 0.0))
        tops.append(polygon[0, 1])
    assert torch.stack(tops)[20:].std() < 0.6 * jitter.std()


def test_tracker_turns_the_short_way_round() -> None:
    tracker = CropSmoother(FaceConfig())
    state = tracker.initial_state()
    for roll in (3.1, -3.1):
        transform, _, state = tracker(mesh_at(80, 60, 90, roll)[0], state, torch.tensor(0.04))
    angle = math.atan2(float(transform[1, 0]), float(transform[0, 0]))
    assert abs(abs(angle) - math.pi) < 0.1


@pytest.mark.parametrize("roll", [0.0, 0.7])
@pytest.mark.parametrize("side", [20.0, 57.0, 131.0, 660.0])
@pytest.mark.parametrize("config", [FaceConfig(), FaceConfig(crop_span=0.84, crop_down=0.065)])
def test_rectangle_holds_the_crop_and_the_blend(
    config: FaceConfig, side: float, roll: float
) -> None:
    placement = torch.tensor([[333.3, 250.9, math.log(side), roll]])
    transform = transform_from_placement(placement)[0]
    left, top, size = face_rectangle(transform, config)
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = config.crop_span * corners + torch.tensor([0.0, config.crop_down])
    lowest = blend_polygon(torch.tensor([[0.1, -0.4, 0.4, 0.5]]))[0]
    soft_edge = 2.5 * config.mask_softness
    corners = torch.cat([corners, lowest - soft_edge, lowest + soft_edge])
    points = corners @ transform[:, :2].T + transform[:, 2]
    assert size in RECTANGLE_SIZES
    assert left % 2 == 0
    assert top % 2 == 0
    assert points[:, 0].min() >= left
    assert points[:, 1].min() >= top
    assert points[:, 0].max() <= left + size
    assert points[:, 1].max() <= top + size

"""S3FD and FAN against the package face-alignment, and the geometry round them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dithead.errors import ConfigError
from dithead.face.fan import Fan, HeatmapPeaks
from dithead.face.fanregion import FanLandmarks, FanSighting, fan_region
from dithead.face.mesh import LANDMARKS_68, FaceMesh, FaceRegion, load_face_mesh, to_frame
from dithead.face.s3fd import S3fdConfig, S3fdDetector, anchors
from dithead.face.spread import MeshSpread, mean_face

SIDE = 64  # of S3FD's picture; the published weights would take any multiple of 32


@pytest.fixture(scope="module")
def package() -> object:
    reason = "face-alignment, with which the networks are compared, is not installed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes longer than all these tests
        return pytest.importorskip("face_alignment", reason=reason)


@pytest.fixture(scope="module")
def detector() -> S3fdDetector:
    """S3FD with random weights that see faces of many sizes."""
    torch.manual_seed(5)
    config = S3fdConfig(SIDE, candidates=len(anchors(SIDE)))
    detector = S3fdDetector(config).eval().requires_grad_(False)
    for name, part in detector.net.named_modules():
        if name.endswith(("_conf", "_loc")):
            part.weight.mul_(20.0)
    return detector


@pytest.fixture
def picture(astronaut: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(astronaut[:256, 96:352])


@pytest.fixture(scope="module")
def fitter() -> FaceMesh:
    return load_face_mesh()


def theirs(net: nn.Module, ours: nn.Module) -> nn.Module:
    """The package's network with our weights, whose names must be the same."""
    net.load_state_dict(ours.state_dict())
    return net.eval()


def aligner(fan: Fan) -> Any:
    """The package's front door round a network of ours; it looks at mirrored pictures, too."""
    from face_alignment import FaceAlignment, LandmarksType
    from face_alignment.detection.core import FaceDetector
    from face_alignment.models import FAN

    made = FaceAlignment.__new__(FaceAlignment)
    made.device, made.dtype, made.max_batch_size = "cpu", torch.float32, 1
    made.flip_input, made.landmarks_type = True, LandmarksType.TWO_D
    made.face_detector = FaceDetector("cpu", False)
    made.face_alignment_net = theirs(FAN(fan.hourglasses), fan)
    return made


def test_s3fd_sees_what_the_package_sees(package: object, detector: S3fdDetector) -> None:
    from face_alignment.detection.sfd.net_s3fd import s3fd
    from face_alignment.detection.sfd.sfd_detector import SFDDetector

    other = SFDDetector.__new__(SFDDetector)
    other.device, other.filter_threshold = "cpu", detector.config.min_score
    other.face_detector = theirs(s3fd(), detector.net)
    frame = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)

    found = np.stack(other.detect_from_image(frame))[: detector.config.max_faces]
    boxes, scores, keypoints = detector(torch.from_numpy(frame))
    assert len(found) > 3
    count = min(len(found), detector.config.max_faces)
    # float32; scores up to 1, pixels up to 100
    np.testing.assert_allclose(scores[:count], found[:count, 4], rtol=0, atol=1e-5)
    np.testing.assert_allclose(boxes[:count], found[:count, :4], rtol=0, atol=2e-3)
    assert (scores[count:] == 0).all()
    assert (keypoints[:count, 0, 0] < keypoints[:count, 1, 0]).all()


def test_s3fd_maps_boxes_back_to_the_frame(detector: S3fdDetector) -> None:
    """What lies outside the frame is seen in the colour of the training pictures' mean."""
    torch.manual_seed(2)
    small = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8)
    top = small[: SIDE // 2]
    alone = detector(top)
    padded = torch.tensor([123, 117, 104], dtype=torch.uint8).repeat(SIDE, SIDE, 1)
    padded[SIDE // 4 : SIDE // 4 + SIDE // 2] = top
    boxes, scores, _ = detector(padded)
    assert scores[0] > 0
    torch.testing.assert_close(alone[1], scores, rtol=0, atol=1e-4)
    seen = scores > 0
    moved = boxes[seen] - torch.tensor([0.0, SIDE / 4, 0.0, SIDE / 4])
    torch.testing.assert_close(alone[0][seen], moved, rtol=0, atol=1e-2)


def test_an_impossible_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiples of 32 pixels, found 100"):
        S3fdConfig(100)
    with pytest.raises(ConfigError, match="max_faces=300, candidates=256"):
        S3fdConfig(max_faces=300)
    with pytest.raises(ConfigError, match=r"found 2\.0 and 0\.3"):
        S3fdConfig(min_score=2.0)


def test_fan_draws_what_the_package_draws(package: object) -> None:
    from face_alignment.models import FAN

    torch.manual_seed(3)
    fan = Fan(2).eval()  # one hourglass that is followed by another, and the last
    picture = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        expected = theirs(FAN(2), fan)(picture)[-1]
        torch.testing.assert_close(fan(picture), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


def test_peaks_are_read_as_the_package_reads_them(package: object) -> None:
    from face_alignment.utils import get_preds_fromhm

    torch.manual_seed(4)
    heatmaps = torch.rand(2, 68, 64, 64)
    for i, (x, y) in enumerate([(0, 0), (63, 20), (20, 63), (63, 63), (1, 62), (62, 1), (30, 30)]):
        heatmaps[:, i, y, x] = 2.0
    heatmaps[:, 6, 30, 29] = heatmaps[:, 6, 30, 31]  # level across: moved down or up alone
    points, _, heights = get_preds_fromhm(heatmaps.numpy())
    landmarks, found = HeatmapPeaks()(heatmaps)
    np.testing.assert_array_equal(landmarks, 4 * points)
    np.testing.assert_array_equal(found, heights)


def test_landmarks_are_those_of_the_package(package: object, picture: np.ndarray) -> None:
    """The package cuts regions at whole pixels and rounds landmarks down to such."""
    from face_alignment.utils import crop

    torch.manual_seed(8)
    fan = Fan(1).eval().requires_grad_(False)
    box = torch.tensor([80.0, 60.0, 170.0, 175.0])
    find = aligner(fan).get_landmarks_from_image
    (points,), (heights,), _ = find(picture, [box.double().numpy()], True, True)
    middle = np.array([125.0, 117.5 - 0.12 * 115.0])
    cropped = torch.from_numpy(crop(picture, middle, (90.0 + 115.0) / 195))
    seen = cropped.permute(2, 0, 1)[None] / 255
    region = FanSighting()(box, torch.tensor([[100.0, 90.0], [150.0, 90.0]]).repeat(3, 1))
    graph = FanLandmarks(fan, mirrored=True)
    landmarks, _ = graph.peaks(graph.heatmaps(seen))
    landmarks = torch.cat([landmarks, torch.zeros(1, 68, 1)], 2)
    off = to_frame(landmarks, region, 256)[0, :, :2] - torch.from_numpy(points)
    assert (off > -1e-3).all()
    assert (off < 1 + 1e-3).all()
    mesh, score = graph(seen, region)
    expected = float(np.clip(heights.mean() / 2, 0, 1))
    assert float(score) == pytest.approx(expected, abs=1e-5)
    assert mesh.shape == (1, 468, 3)

    cut = FaceRegion(2, 256)(torch.from_numpy(picture), region)
    assert (cut - seen)[..., 4:-4, 4:-4].abs().mean() < 0.02  # off by at most a pixel


def test_the_first_region_is_that_of_the_package() -> None:
    box = torch.tensor([10.0, 20.0, 90.0, 140.0])
    eyes = torch.tensor([[30.0, 60.0], [70.0, 60.0]])
    side = 200 * (80 + 120) / 195
    upright = torch.tensor([[50.0, 80.0 - 0.12 * 120.0, side, side, 0.0]])
    torch.testing.assert_close(FanSighting()(box, eyes.repeat(3, 1)), upright)

    # The same face on its side: the picture's left eye is above the other.
    lying = torch.tensor([-140.0, 10.0, -20.0, 90.0])
    turned = torch.stack([-eyes[:, 1], eyes[:, 0]], 1)
    expected = torch.tensor([[-(80.0 - 0.12 * 120.0), 50.0, side, side, math.pi / 2]])
    torch.testing.assert_close(FanSighting()(lying, turned.repeat(3, 1)), expected)


def test_later_regions_turn_with_the_face() -> None:
    mesh = 100 * mean_face()[None]
    mesh[0, 33, 1] = mesh[0, 263, 1]  # level, as the box of a detection is
    region = fan_region(mesh)
    low, high = mesh[0, :, :2].amin(0), mesh[0, :, :2].amax(0)
    upright = FanSighting()(torch.cat([low, high]), mesh[0, [33, 263] * 3, :2])
    torch.testing.assert_close(region, upright)
    angle = 0.7
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = mesh.clone()
    turned[..., :2] = mesh[..., :2] @ turn + torch.tensor([300.0, 200.0])
    expected = region.clone()
    expected[:, :2] = region[:, :2] @ turn + torch.tensor([300.0, 200.0])
    expected[:, 4] += angle
    torch.testing.assert_close(fan_region(turned), expected, rtol=0, atol=1e-3)


def test_the_mean_face_keeps_its_shape_under_affine_maps() -> None:
    face = mean_face()
    matrix = torch.tensor([[90.0, 20.0], [-15.0, 70.0]])
    moved = face[:, :2] @ matrix + torch.tensor([200.0, 150.0])
    spread = MeshSpread()(moved[None, list(LANDMARKS_68)])
    torch.testing.assert_close(spread[0, :, :2], moved, rtol=0, atol=2e-3)
    scaled = MeshSpread()(80 * face[None, list(LANDMARKS_68), :2])
    torch.testing.assert_close(scaled[0], 80 * face, rtol=0, atol=2e-3)


def test_a_real_mesh_is_regained_from_its_landmarks(fitter: FaceMesh, picture: np.ndarray) -> None:
    region = torch.tensor([[128.0, 120.0, 150.0, 150.0, 0.1]])
    (mesh,), score = fitter(torch.from_numpy(picture), region)
    assert score > 0.9
    (spread,) = MeshSpread()(mesh[None, list(LANDMARKS_68), :2])
    width = float((mesh[356] - mesh[127])[:2].norm())
    error = (spread - mesh)[:, :2].norm(dim=1) / width
    assert error.mean() < 0.012, error.mean()
    assert error.max() < 0.06, error.max()
    depth = (spread - mesh)[:, 2] / width
    assert (depth - depth.mean()).abs().mean() < 0.06

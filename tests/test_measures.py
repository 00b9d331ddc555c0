"""What finished frames are judged by: each measure on what it must tell apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dithead.config import FaceConfig
from dithead.errors import MediaError
from dithead.train.evaluation import theval
from dithead.train.evaluation.colour import colour_distance, lab, skin_area
from dithead.train.evaluation.motion import LIPS, jitter, moving, on_grid
from dithead.train.evaluation.reconstruction import lower_face, lower_face_psnr
from dithead.train.evaluation.sound import loudness, silent_stretches, speech_frames
from dithead.train.metrics import (
    PERCEPTUAL_MAX_PX,
    best_lag,
    box_scores,
    face_box,
    fine_correlation,
    laplacian_variance,
    mouth_box,
    opening,
)
from dithead.train.perceptual import MIN_SIDE_PX


def test_a_mouth_too_small_to_judge_is_named() -> None:
    frame = torch.zeros(36, 36, 3, dtype=torch.uint8)
    with pytest.raises(MediaError, match="11 pixels"):
        box_scores(frame, frame, np.full((468, 2), 18.0))


def test_opening_reads_the_lips() -> None:
    mesh = np.zeros((2, 468, 2))
    mesh[:, 152] = (0, 100)
    for upper, lower in ((13, 14), (82, 87), (312, 317)):
        mesh[0, lower] = mesh[0, upper] + (0, 3)
        mesh[1, lower] = mesh[1, upper] + (0, 12)
    np.testing.assert_allclose(opening(mesh), [0.03, 0.12])


def test_fine_correlation_ignores_the_trend() -> None:
    time = np.arange(200)
    slow, quick = 10 * np.sin(time / 60), np.sin(time * 1.3)
    other = np.cos(time * 2.1)
    assert fine_correlation([(slow + quick, slow + quick)]) == pytest.approx(1.0)
    assert abs(fine_correlation([(slow + quick, slow + other)])) < 0.2
    assert np.corrcoef(slow + quick, slow + other)[0, 1] > 0.9
    assert fine_correlation([(quick, -quick[:150])]) == pytest.approx(-1.0)


@pytest.mark.parametrize("lag", [-4, -1, 0, 3])
def test_the_lag_of_a_recording_is_found(lag: int) -> None:
    noise = np.random.default_rng(lag + 4).standard_normal(70)
    lips, recorded = noise[10:60], noise[10 - lag : 60 - lag]
    found, fine = best_lag([(lips, recorded), (lips, recorded + 1)])
    assert (found, fine) == (lag, pytest.approx(1.0, abs=0.02))
    assert lag == 0 or abs(fine_correlation([(lips, recorded)])) < 0.5


def test_mouth_box_scales_with_the_frame() -> None:
    mesh = np.zeros((468, 2))
    mesh[[78, 308, 0, 17]] = [(100, 150), (140, 150), (120, 140), (120, 160)]
    assert mouth_box(mesh, 360, 288) == (88, 128, 152, 172)
    assert mouth_box(2 * mesh, 720, 576) == (176, 256, 304, 344)
    assert mouth_box(mesh, 130, 165)[2:] == (130, 165)


def test_ssim_and_psnr_by_hand() -> None:
    true = torch.randint(0, 255, (60, 60, 3), dtype=torch.uint8)
    mesh = np.zeros((468, 2))
    mesh[[78, 308, 0, 17]] = [(15, 30), (45, 30), (30, 15), (30, 45)]
    same = box_scores(true, true, mesh)
    left, top, right, bottom = face_box(mesh, 10_000, 10_000)
    assert (left, top) <= tuple(mesh.min(0)) and (right, bottom) >= tuple(mesh.max(0))
    assert same["ssim"] == pytest.approx(1.0)
    off = box_scores(true.clamp(max=245), (true.clamp(max=245) + 5), mesh)
    assert off["psnr_db"] == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    noisy = (true.float() + 60 * torch.randn(60, 60, 3)).clamp(0, 255).byte()
    assert box_scores(true, noisy, mesh)["ssim"] < 0.9


def test_speech_frames_are_read_from_an_alignment(tmp_path: Path) -> None:
    align = tmp_path / "a.align"
    align.write_text(
        "0 10000 sil\n10000 20000 bin\n20000 22000 sp\n22000 30000 blue\n30000 75000 sil\n"
    )
    spoken = speech_frames(align, [0.0, 0.4, 0.79, 0.84, 0.9, 1.19, 1.2])
    assert spoken.tolist() == [False, True, True, False, True, True, False]


@pytest.fixture
def face() -> np.ndarray:
    """A mesh (468, 2) whose lips are a ring round (50, 60)."""
    mesh = np.full((468, 2), 50.0)
    angles = np.arange(len(LIPS)) * 2 * np.pi / len(LIPS)
    mesh[list(LIPS)] = np.stack([50 + 12 * np.cos(angles), 60 + 6 * np.sin(angles)], axis=1)
    mesh[[78, 308, 0, 17]] = [(38, 60), (62, 60), (50, 54), (50, 66)]
    mesh[[61, 291]] = [(38, 60), (62, 60)]
    return mesh


def test_sharpness_falls_with_blur_and_rises_with_grain(
    astronaut: np.ndarray, face: np.ndarray
) -> None:
    true = torch.from_numpy(astronaut[80:190, 180:290].copy())
    planes = true.permute(2, 0, 1)[None].float()
    blurred = F.avg_pool2d(planes, 3, 1, 1)[0].permute(1, 2, 0).byte()
    grainy = (true.float() + 8 * torch.randn(true.shape)).clamp(0, 255).byte()
    value = laplacian_variance(true, face)
    assert laplacian_variance(blurred, face) < 0.5 * value < value
    assert laplacian_variance(grainy, face) > 1.2 * value
    ramp = torch.arange(110).expand(110, -1)[..., None].expand(-1, -1, 3).byte()
    assert laplacian_variance(ramp, face) == pytest.approx(0, abs=1e-4)


def test_lab_is_that_of_scikit_image() -> None:
    colour = pytest.importorskip("skimage.color", reason="what it is compared with")
    rgb = torch.rand(1000, 3)
    rgb[:3] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.01, 0.02, 0.03]])
    # float32 against float64
    np.testing.assert_allclose(lab(rgb).numpy(), colour.rgb2lab(rgb.double().numpy()), atol=2e-3)


def test_colour_is_judged_inside_the_blend_and_away_from_the_lips(face: np.ndarray) -> None:
    outline = np.array([[20.0, 30], [80, 30], [80, 90], [20, 90]])
    rows, columns, area = skin_area(outline, [face], 100, 100)
    assert (rows, columns) == (slice(30, 90), slice(20, 80))
    inside = torch.zeros(100, 100, dtype=torch.bool)
    inside[rows, columns] = area
    assert inside[40, 30] and inside[88, 78]
    assert not inside[60, 50] and not inside[60, 63]  # the lips, and just beside them
    true = torch.full((100, 100, 3), 120, dtype=torch.uint8)
    made = true.clone()
    made[~inside] = 0
    assert colour_distance(true, made, outline, [face]) == 0
    # Grey 120 and grey 140 differ in lightness alone.
    made[inside] = 140
    lightness = [float(lab(torch.full((3,), v / 255))[0]) for v in (120, 140)]
    expected = lightness[1] - lightness[0]
    assert colour_distance(true, made, outline, [face]) == pytest.approx(expected, abs=1e-3)


def test_jitter_of_the_footage_is_one(face: np.ndarray) -> None:
    true = face + np.random.randn(30, 468, 2)
    assert jitter(true, true) == pytest.approx(1)
    assert jitter(true, true + np.arange(30)[:, None, None]) == pytest.approx(1)  # steady motion
    assert jitter(true, face + 2 * (true - face)) == pytest.approx(2)
    lips = true.copy()
    lips[:, list(LIPS)] += 20 * np.random.randn(30, len(LIPS), 2)
    assert jitter(true, lips) == pytest.approx(1)


def test_a_mouth_moves_where_its_opening_changes() -> None:
    opened = np.concatenate([np.full(20, 0.01), np.linspace(0.01, 0.05, 10), np.full(20, 0.05)])
    where = moving(opened)
    assert not where[:16].any() and where[20:30].all() and not where[34:].any()
    assert not moving(opened[:20] + 0.001 * np.random.rand(20)).any()


@pytest.mark.parametrize("rate", [25, 30, 50])
def test_series_of_any_frame_rate_share_a_grid(rate: int) -> None:
    times = [i / rate for i in range(2 * rate + 1)]
    series = on_grid(np.array(times), times)
    np.testing.assert_allclose(series, np.arange(51) / 25, atol=1e-9)
    assert len(on_grid(np.array(times), times, 1.0)) == 26


def test_silence_is_found_by_loudness() -> None:
    times = np.arange(75) / 25
    samples = 0.001 * np.random.randn(48000)  # a noisy room
    speech = (times >= 1) & (times < 2)
    samples[16000:32000] += 0.1 * np.random.randn(16000)
    samples[22400:24000] = 0.001 * np.random.randn(1600)  # a pause of 0.1 s
    assert (silent_stretches(samples, times) == ~speech).mean() > 0.95
    assert loudness(np.full(16000, 0.5), [0.5, 2.0]).tolist() == [pytest.approx(0.5), 0]


def test_theval_measures_motion_and_not_size(face: np.ndarray) -> None:
    meshes = face + np.zeros((40, 1, 1))
    meshes[:, [33, 133]] -= (20, 20)
    meshes[:, [263, 362]] += (20, -20)
    still = meshes.copy()
    wave = np.sin(np.arange(40) / 3)
    upper = list(theval._UPPER_LIP)
    meshes[:, upper, 1] -= 3 + 3 * wave[:, None]
    meshes[:, list(theval._BROWS[0]), 1] -= 3 + 3 * wave[:, None]
    silent = np.arange(40) < 20
    for measure in (
        theval.lip_dynamics,
        theval.eyebrow_dynamics,
        lambda m: theval.silent_lip_stability(m, silent),
    ):
        assert measure(still) == pytest.approx(0, abs=1e-9)
        value = measure(meshes)
        assert value is not None and value > 1e-4
        assert measure(3 * meshes + 7) == pytest.approx(value)
    assert theval.silent_lip_stability(meshes, np.zeros(40, bool)) is None
    # Lips that follow the loudness are in step; against it they are not.
    gap = np.abs(meshes[:, upper, 1].mean(1) - meshes[:, list(theval._LOWER_LIP), 1].mean(1))
    speech = np.zeros(40, bool)
    assert theval.lip_sync(meshes, gap, speech) == pytest.approx(0, abs=1e-6)
    assert theval.lip_sync(meshes, -gap, speech) > 0.3
    assert theval.lip_sync(meshes, gap, ~speech) is None


def test_stage_1_is_judged_in_the_lower_face_alone() -> None:
    area = lower_face(FaceConfig(crop_px=64))
    assert 0.3 < float(area.float().mean()) < 0.7 and not area[:16].any()
    crop = 2 * torch.rand(1, 3, 64, 64) - 1
    elsewhere = torch.where(area, crop, torch.zeros(()))
    assert lower_face_psnr(crop, elsewhere, area) == 100
    assert lower_face_psnr(crop, crop + 0.2, area) == pytest.approx(20, abs=1e-3)


def test_perceptual_distance_takes_a_mouth_of_any_size() -> None:
    seen = []

    def metric(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(a.shape[2:]))
        return torch.zeros(1)

    for scale in (0.5, 1, 12):
        mesh = np.zeros((468, 2))
        mesh[[78, 308, 0, 17]] = scale * np.array([(30, 40), (70, 40), (50, 30), (50, 50)])
        size = round(100 * scale)
        frame = torch.randint(0, 255, (size, size, 3), dtype=torch.uint8)
        box_scores(frame, frame, mesh, metric)
    assert min(min(size) for size in seen) >= MIN_SIDE_PX
    assert max(max(size) for size in seen) <= PERCEPTUAL_MAX_PX
    assert seen[1] == (28, 48)  # its own

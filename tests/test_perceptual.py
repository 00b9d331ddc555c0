"""ST-LPIPS against the original's answers, and what one expects of such a distance."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import autoencoders
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import BackendUnavailable, CheckpointError, ConfigError
from dithead.face.crop import crop_mask, mask_out, mask_polygon
from dithead.train import losses, packaged, perceptual
from dithead.train.packaged import packaged_file
from dithead.train.perceptual import MIN_SIDE_PX, STLPIPS, load_stlpips, unit_length
from dithead.train.settings import PLAIN, Kind, Seen, VQGANTraining

# What stlpips-pytorch 0.0.2 itself answers, LPIPS(net="alex", variant="shift_tolerant"), on
# :func:`reference_pairs`; torch 2.13.0, float32, CPU.
ORIGINAL_DISTANCES = {
    "noise": 0.0420243,
    "noisy": 0.1947967,
    "flat": 1.0426602,
    "darker": 0.0484745,
    "blurred": 0.1205224,
    "shifted": 0.0033264,
    "unlike": 0.6363782,
    "smallest": 0.8029255,
}
TOLERANCE = 1e-5  # float32


@pytest.fixture(scope="module")
def metric() -> STLPIPS:
    """The metric with its published weights; its tests are skipped where they are not installed."""
    try:
        return load_stlpips()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def portrait(astronaut: np.ndarray) -> Tensor:
    """The portrait, (1, 3, 512, 512) in [-1, 1]."""
    return torch.from_numpy(astronaut).permute(2, 0, 1)[None].float() / 127.5 - 1


def crop(picture: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """Cut out a rectangle."""
    return picture[:, :, top : top + height, left : left + width]


def noise(seed: int, height: int, width: int) -> Tensor:
    """Uniform noise in [-1, 1] that is the same with every version of numpy and torch."""
    values = np.random.RandomState(seed).uniform(-1, 1, (1, 3, height, width))
    return torch.from_numpy(values).float()


def reference_pairs(portrait: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The pairs of :data:`ORIGINAL_DISTANCES`, made without resampling: the same everywhere."""
    face = crop(portrait, 80, 190, 64, 64)
    odd = crop(portrait, 75, 185, 67, 75)
    wide = crop(portrait, 60, 160, 128, 128)
    return {
        "noise": (noise(0, 64, 64), noise(1, 64, 64)),
        "noisy": (face, (face + 0.2 * noise(2, 64, 64)).clamp(-1, 1)),
        "flat": (face, torch.zeros_like(face)),
        "darker": (odd, 0.8 * odd - 0.2),
        "blurred": (
            crop(portrait, 70, 180, 96, 80),
            F.avg_pool2d(crop(portrait, 69, 179, 98, 82), 3, stride=1),
        ),
        "shifted": (wide, crop(portrait, 60, 161, 128, 128)),
        "unlike": (wide, crop(portrait, 300, 20, 128, 128)),
        "smallest": (crop(portrait, 100, 200, 21, 21), noise(3, 21, 21)),
    }


def test_distances_are_the_originals(metric: STLPIPS, portrait: Tensor) -> None:
    pairs = reference_pairs(portrait)
    assert pairs.keys() == ORIGINAL_DISTANCES.keys()
    with torch.no_grad():
        found = {name: metric(a, b) for name, (a, b) in pairs.items()}
    assert all(distance.shape == (1,) for distance in found.values())
    for name, expected in ORIGINAL_DISTANCES.items():
        assert found[name].item() == pytest.approx(expected, abs=TOLERANCE, rel=0), name


def test_each_pair_of_a_batch_is_judged_alone(metric: STLPIPS, portrait: Tensor) -> None:
    corners = ((60, 160), (300, 20), (200, 350))
    a = torch.cat([crop(portrait, top, left, 64, 64) for top, left in corners])
    b = torch.cat([noise(4, 64, 64), crop(portrait, 80, 190, 64, 64), a[2:]])
    with torch.no_grad():
        together, swapped = metric(a, b), metric(b, a)
        alone = torch.cat([metric(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)])
    assert together.shape == (3,)
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(together, swapped, atol=TOLERANCE, rtol=0)
    assert together[2] == 0 and bool((together[:2] > 0.1).all())


def test_same_picture_is_at_distance_zero(metric: STLPIPS, portrait: Tensor) -> None:
    face = crop(portrait, 80, 190, 64, 96)
    with torch.no_grad():
        assert metric(face, face.clone()).item() == 0


@pytest.mark.parametrize(("top", "left"), [(60, 160), (20, 20), (300, 20), (350, 300)])
def test_shift_counts_far_less_than_blur_or_noise_of_equal_error(
    metric: STLPIPS, portrait: Tensor, top: int, left: int
) -> None:
    picture = crop(portrait, top, left, 128, 128)
    shifted = crop(portrait, top, left + 1, 128, 128)
    blurred = F.avg_pool2d(crop(portrait, top - 8, left - 8, 144, 144), 17, stride=1)
    error = (shifted - picture).square().mean()

    def of_equal_error(change: Tensor) -> Tensor:
        return picture + change * (error / change.square().mean()).sqrt()

    with torch.no_grad():
        shift = metric(picture, shifted)
        blur = metric(picture, of_equal_error(blurred - picture))
        grain = metric(picture, of_equal_error(noise(9, 128, 128)))
    assert 0 < shift < 0.01
    assert blur > 20 * shift
    assert grain > 20 * shift


def test_distance_grows_with_the_distortion(metric: STLPIPS, portrait: Tensor) -> None:
    face, grain = crop(portrait, 60, 160, 128, 128), noise(5, 128, 128)
    with torch.no_grad():
        distances = [metric(face, face + k * grain).item() for k in (0.02, 0.05, 0.1, 0.2)]
    assert distances == sorted(set(distances))


def test_gradient_reaches_the_picture_and_leads_towards_the_other(
    metric: STLPIPS, portrait: Tensor
) -> None:
    face = crop(portrait, 80, 190, 64, 64)
    start = (face + 0.2 * noise(2, 64, 64)).requires_grad_()
    before = metric(face, start)
    before.sum().backward()
    assert start.grad is not None and bool(start.grad.isfinite().all())
    assert all(parameter.grad is None for parameter in metric.parameters())
    with torch.no_grad():
        after = metric(face, start - 0.02 * start.grad / start.grad.square().mean().sqrt())
    assert after < 0.9 * before


def test_gradient_is_that_of_finite_differences(metric: STLPIPS, portrait: Tensor) -> None:
    precise = load_stlpips().double()
    face = crop(portrait, 80, 190, 32, 32).double()
    start = (face + 0.2 * noise(6, 32, 32)).requires_grad_()
    precise(face, start).sum().backward()
    assert start.grad is not None
    step = 1e-6 * noise(7, 32, 32).double()
    with torch.no_grad():
        change = precise(face, start + step) - precise(face, start - step)
    slope = 2 * (start.grad * step).sum()
    torch.testing.assert_close(change.squeeze(), slope, atol=0, rtol=1e-4)  # float64


def test_pixels_without_features_have_no_gradient_rather_than_nan() -> None:
    features = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).view(1, 2, 1, 2).requires_grad_()
    scaled = unit_length(features)
    scaled[:, 0].sum().backward()
    torch.testing.assert_close(scaled.flatten(), torch.tensor([0.6, 0.0, 0.8, 0.0]))
    assert features.grad is not None
    assert bool(features.grad.isfinite().all()) and bool((features.grad[..., 0] != 0).all())


def test_loaded_metric_is_frozen_and_in_evaluation_mode(metric: STLPIPS) -> None:
    assert not metric.training
    assert not any(parameter.requires_grad for parameter in metric.parameters())
    assert sum(p.numel() for p in metric.parameters()) == 2_470_848


def test_original_code_is_not_imported(metric: STLPIPS) -> None:
    code = (
        "import sys; from dithead.train.perceptual import load_stlpips; load_stlpips();"
        "sys.exit('stlpips_pytorch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_loss_uses_it_round_the_mouth(metric: STLPIPS) -> None:
    a, b = noise(0, 64, 64), noise(1, 64, 64)
    used = losses.perceptual_metric(torch.device("cpu"))
    assert isinstance(used, STLPIPS)
    torch.testing.assert_close(used(a, b), metric(a, b))
    expected = metric(losses.mouth_window(a), losses.mouth_window(b)).item()
    loss = losses.ReconstructionLoss(torch.ones(1, 1, 64, 64), 0.5, 0.0, torch.device("cpu"))
    total, parts = loss(a, b)
    plain, _ = losses.ReconstructionLoss(torch.ones(1, 1, 64, 64), 0.0, 0.0, torch.device("cpu"))(
        a, b
    )
    assert parts["perceptual"] == pytest.approx(expected)
    assert float(total - plain) == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["face", "masked"])
def test_the_whole_picture_is_compared_where_that_is_asked_for(metric: STLPIPS, kind: Kind) -> None:
    """Two pictures that differ at the brow alone, which a masked face shows, too."""
    a, b = noise(0, 64, 64), noise(0, 64, 64)
    b[:, :, :8] = noise(1, 8, 64)
    if kind == "masked":
        hidden = crop_mask(64, 0.02, mask_polygon(1))
        a, b = mask_out(a, hidden), mask_out(b, hidden)
        assert float(losses.mouth_window(a).std()) < 0.02  # nothing to be learnt there
    one, cpu = torch.ones(1, 1, 64, 64), torch.device("cpu")
    distances = {}
    for sees in ("auto", "whole"):
        whole = VQGANTraining(kind, perceptual_sees=sees).perceptual_whole  # type: ignore[arg-type]
        loss = losses.ReconstructionLoss(one, 1.0, 0.0, cpu, whole=whole)
        distances[sees] = loss(a, b)[1]["perceptual"]
    assert distances["whole"] == pytest.approx(metric(a, b).item()) and distances["whole"] > 1e-3
    assert distances["auto"] == (distances["whole"] if kind == "masked" else 0.0)


def test_the_mouth_of_a_masked_face_cannot_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"constant grey.*whole or auto"):
        VQGANTraining("masked", perceptual_sees="mouth")
    with pytest.raises(ConfigError, match="one of auto, mouth, whole, not 'nose'"):
        VQGANTraining(perceptual_sees="nose")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "sees", "side"), [("face", "auto", 32), ("face", "whole", 64), ("masked", "auto", 64)]
)
def test_stage_1_compares_what_its_settings_say(
    kind: Kind, sees: Seen, side: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compared: list[tuple[int, float]] = []

    class Squares(torch.nn.Module):
        """Notes the side of the true pictures, and how much a pixel of theirs varies."""

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            compared.append((a.shape[3], float(a.std((2, 3)).min())))
            return (a - b).square().mean((1, 2, 3))

    monkeypatch.setattr(losses, "perceptual_metric", lambda device: Squares())
    training = VQGANTraining(
        kind, math.inf, steps=1, batch=2, perceptual_weight=1.0, perceptual_sees=sees
    )
    autoencoders.random_footage(tmp_path / "data")
    autoencoders.train_small(tmp_path / "out", tmp_path / "data", training, PLAIN)
    (found, spread), *_ = compared
    assert found == side and spread > 0.1


def test_training_loss_sees_only_the_mouth_that_is_given() -> None:
    a, b = noise(0, 64, 64), noise(1, 64, 64)
    mouth = slice(20, 52), slice(10, 50)
    loss = losses.ReconstructionLoss(torch.ones(1, 1, 64, 64), 0.0, 1.0, torch.device("cpu"), mouth)
    other = noise(2, 64, 64)
    other[:, :, 20:52, 10:50] = b[:, :, 20:52, 10:50]
    assert loss(a, b)[1]["fooled"] == loss(a, other)[1]["fooled"]
    assert loss(a, b)[1]["fooled"] != loss(a, a)[1]["fooled"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 3, 64, 64), (1, 3, 64, 65)),
        ((1, 3, 64, 64), (2, 3, 64, 64)),
        ((1, 1, 64, 64), (1, 1, 64, 64)),
        ((3, 64, 64), (3, 64, 64)),
        ((1, 3, 64, MIN_SIDE_PX - 1), (1, 3, 64, MIN_SIDE_PX - 1)),
    ],
)
def test_misshapen_pictures_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"sides at least {MIN_SIDE_PX} px"):
        STLPIPS()(torch.zeros(first), torch.zeros(second))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    for answer in (missing, lambda name: None, lambda name: []):
        monkeypatch.setattr(packaged, "files", answer)
        with pytest.raises(BackendUnavailable, match=r"pip install 'dithead\[train\]'"):
            load_stlpips()


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def refused(what: str) -> None:
        with pytest.raises(CheckpointError, match=what) as caught:
            load_stlpips(path)
        line = str(caught.value)
        assert str(path) in line and "\n" not in line
        assert "`pip install --no-deps --force-reinstall stlpips-pytorch==0.0.2`" in line

    refused("No such file")
    path.write_bytes(b"no pickle")
    refused("does not hold ST-LPIPS")
    path.write_bytes(b"")
    refused("does not hold ST-LPIPS")
    torch.save(torch.zeros(1), path)
    refused("found a Tensor")
    torch.save({"net.slice1.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    refused("missing")


def test_weights_are_read_from_a_given_path(metric: STLPIPS, tmp_path: Path) -> None:
    installed = packaged_file(perceptual._PACKAGE, perceptual._WEIGHTS_NAME, "a test", "train")
    path = tmp_path / "copy.pth"
    path.write_bytes(installed.read_bytes())
    copied = load_stlpips(path).state_dict()
    for name, tensor in metric.state_dict().items():
        assert torch.equal(tensor, copied[name]), name

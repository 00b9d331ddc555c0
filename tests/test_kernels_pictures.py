"""The sampler's step, upsampling and the picture's last step equal their references."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exactness import DEVICE, DTYPES, close, numbers

from dithead.kernels.composite import composite
from dithead.kernels.ddim_step import ddim_step
from dithead.kernels.upsampled_convolution import FoldedWeight, upsampled_convolution
from dithead.vqgan import UpsampledConv2d

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("predicts", ["noise", "velocity"])
def test_ddim_step(predicts: Any, dtype: torch.dtype) -> None:
    levels = torch.linspace(0.99, 0.02, 20, dtype=torch.float64)
    signal, sigma = levels.sqrt().float().to(DEVICE), (1 - levels).sqrt().float().to(DEVICE)
    noisy, found = numbers(3, 4, 9, 9, dtype=dtype), numbers(3, 4, 9, 9, dtype=dtype)
    now = torch.tensor([19, 7, 3], device=DEVICE)
    following = torch.tensor([12, -1, 0], device=DEVICE)
    given = found, signal, sigma, now, following, predicts
    made = ddim_step(noisy, *given, impl="triton")
    expected = ddim_step(noisy.float(), found.float(), *given[1:], impl="reference")
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected, atol=5e-6, rtol=5e-6)
    other = torch.empty_like(noisy)
    assert ddim_step(noisy, *given, out=other, impl="triton") is other
    kept = noisy.clone()
    assert ddim_step(noisy, *given, out=noisy, impl="triton") is noisy
    assert torch.equal(noisy, other) and not torch.equal(noisy, kept)
    close(noisy, expected, dtype, scale=4.0)


@pytest.mark.parametrize(("now", "following"), [(20, 3), (-1, 3), (7, 20), (1000, -1)])
def test_a_step_that_is_not_in_the_tables_gives_nan(now: int, following: int) -> None:
    table = torch.linspace(0.9, 0.1, 20, device=DEVICE)
    steps = (torch.tensor([step], device=DEVICE) for step in (now, following))
    noisy = numbers(1, 4, 3, 3)
    made = ddim_step(noisy, noisy, table, table, *steps, "noise", impl="triton")
    assert made.isnan().all()


def test_a_step_of_nothing() -> None:
    table, none = torch.ones(5, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    noisy = numbers(0, 4, 3, 3)
    made = ddim_step(noisy, noisy, table, table, none, none, "noise", impl="triton")
    assert made.shape == noisy.shape


@pytest.mark.parametrize("density", [1, 2, 3])
def test_composite(density: int) -> None:
    face = numbers(1, 3, 24, 24, scale=0.5)
    rectangle = torch.randint(0, 256, (37, 45, 3), dtype=torch.uint8, device=DEVICE)
    weight = torch.rand(37, 45, device=DEVICE) * (torch.rand(37, 45, device=DEVICE) < 0.7)
    matrix = torch.tensor([[[0.6, 0.2, -3.0], [-0.2, 0.6, 2.0]]], device=DEVICE)
    given = face, matrix, rectangle, weight, density
    found = composite(*given, impl="triton")
    expected = composite(*given, impl="reference")
    off = (found.int() - expected.int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < 2e-3  # where a half is rounded
    assert torch.equal(found[weight == 0], rectangle[weight == 0])


def test_composite_of_a_part_of_a_frame() -> None:
    face = numbers(1, 3, 16, 16, dtype=torch.float16)
    rectangle = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, device=DEVICE)
    rectangle = rectangle[3:36, 5:70]
    weight = torch.ones(40, 80, device=DEVICE)[:33, 7:72]
    matrix = torch.tensor([[[0.3, 0.0, 0.0], [0.0, 0.4, 1.0]]], device=DEVICE)
    found = composite(face, matrix, rectangle, weight, impl="triton")
    expected = composite(face.float(), matrix, rectangle, weight, impl="reference")
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "channels", "out", "height", "width"), [(1, 32, 16, 8, 8), (2, 3, 5, 1, 7)]
)
def test_upsampled_convolution(
    batch: int, channels: int, out: int, height: int, width: int, dtype: torch.dtype
) -> None:
    x = numbers(batch, channels, height, width, dtype=dtype)
    weight, bias = numbers(out, channels, 3, 3, dtype=dtype, scale=0.1), numbers(out, dtype=dtype)
    found = upsampled_convolution(x, weight, bias)
    assert found.dtype == dtype
    # At float64 PyTorch's own interpolation is exact: it repeats pixels.
    exact = (part.double() for part in (x, weight, bias))
    close(found, upsampled_convolution(*exact, impl="reference"), dtype, scale=2.0)
    if dtype == torch.float32:
        assert not torch.equal(found, upsampled_convolution(x, weight, bias, impl="reference"))


def test_a_folded_weight_is_kept_until_the_weight_changes() -> None:
    weight, kept = numbers(4, 3, 3, 3), FoldedWeight()
    first = kept.of(weight)
    assert kept.of(weight) is first
    weight.mul_(2.0)
    assert torch.equal(kept.of(weight), 2.0 * first)
    assert kept.of(weight.half()).dtype == torch.float16
    with torch.inference_mode():
        assert torch.equal(kept.of(weight.clone()), 2.0 * first)


def test_a_folded_weight_is_exact_under_autocast_and_not_copied() -> None:
    layer = UpsampledConv2d(3, 4).to(DEVICE).requires_grad_(False)
    x = numbers(1, 3, 5, 6)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        layer(x)
    expected = upsampled_convolution(x, layer.weight, layer.bias, impl="reference")
    close(layer(x), expected, torch.float32)
    other = copy.deepcopy(layer)
    assert other._folded._made is None
    other.weight.mul_(0.0)
    assert not other(x).sub(layer.bias[None, :, None, None]).any()


def test_a_layer_learns_through_the_reference() -> None:
    layer = UpsampledConv2d(3, 4).to(DEVICE)
    x = numbers(1, 3, 5, 6)
    expected = upsampled_convolution(x, layer.weight, layer.bias, impl="reference")
    assert torch.equal(layer(x), expected)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()
    with torch.no_grad():
        close(layer(x), expected.detach(), torch.float32)
        layer.weight.add_(1.0)  # as an optimiser's step does
        expected = upsampled_convolution(x, layer.weight, layer.bias, impl="reference")
        close(layer(x), expected, torch.float32, scale=4.0)
    assert layer.state_dict().keys() == {"weight", "bias"}

"""Norms by Triton equal their definitions: under the interpreter, or on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch
from exactness import DEVICE, DTYPES, close, numbers
from torch import Tensor

from dithead.kernels.group_norm_silu import group_norm_silu
from dithead.kernels.modulated_layer_norm import modulated_layer_norm

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan")


def wide(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.double() for tensor in tensors]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "width"), [(1, 64, 256), (2, 3, 1024), (3, 17, 40), (1, 1, 1), (1, 2, 3000)]
)
@pytest.mark.parametrize("kind", ["plain", "affine", "adaptive", "whole"])
def test_modulated_layer_norm(
    batch: int, tokens: int, width: int, kind: str, dtype: torch.dtype
) -> None:
    x = numbers(batch, tokens, width, dtype=dtype)
    given: dict[str, Tensor | None] = {}
    if kind in ("adaptive", "whole"):
        shift, scale, gate = numbers(batch, 3, width, dtype=dtype).chunk(3, dim=1)
        given |= {"shift": shift, "scale": scale, "gate": gate}
        given |= {"branch": numbers(batch, tokens, width, dtype=dtype)}
    if kind in ("affine", "whole"):
        weight, bias = numbers(2, width, dtype=dtype)
        given |= {"weight": weight, "bias": bias}
    if kind == "affine":
        given |= {"branch": numbers(batch, tokens, width, dtype=dtype)}
    found = modulated_layer_norm(x, **given, impl="triton")
    names, tensors = list(given), wide(*given.values())
    total = x.double()
    exact = dict(zip(names, tensors, strict=True))
    if exact.get("branch") is not None:
        gate = exact.get("gate")
        total = total + (exact["branch"] if gate is None else gate * exact["branch"])
    mean = total.mean(2, keepdim=True)
    normed = (total - mean) / ((total - mean).square().mean(2, keepdim=True) + 1e-6).sqrt()
    if exact.get("weight") is not None:
        normed = normed * exact["weight"] + exact["bias"]
    if exact.get("scale") is not None:
        normed = normed * (1 + exact["scale"]) + exact["shift"]
    close(found[0], total, dtype, scale=2.0)
    close(found[1], normed, dtype, scale=4.0)  # of a product and a sum


def test_statistics_of_a_layer_norm_leave_float16s_range() -> None:
    x = (numbers(1, 5, 300) * 2e4).clamp(-6e4, 6e4).half()
    found = modulated_layer_norm(x, impl="triton")[1]
    expected = torch.nn.functional.layer_norm(x.double(), (300,), eps=1e-6)
    close(found, expected, torch.float16)


def test_a_layer_norm_far_from_zero_keeps_its_digits() -> None:
    x = 1000.0 + numbers(1, 4, 512)
    found = modulated_layer_norm(x, impl="triton")[1]
    expected = torch.nn.functional.layer_norm(x.double(), (512,), eps=1e-6)
    close(found, expected, torch.float32, scale=10.0)  # the mean is rounded at 6e-5


def test_a_layer_norm_of_rows_that_are_not_dense() -> None:
    x, branch = numbers(2, 9, 130)[:, ::2, 1:97], numbers(2, 5, 200)[:, :, 3:99]
    gate = numbers(1, 1, 96)
    found = modulated_layer_norm(x, branch=branch, gate=gate, impl="triton")
    expected = modulated_layer_norm(x, branch=branch, gate=gate, impl="reference")
    close(found[0], expected[0], torch.float32)
    close(found[1], expected[1], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [False, True], ids=["channels-first", "channels-last"])
@pytest.mark.parametrize(
    ("batch", "channels", "groups", "height", "width"),
    [(1, 128, 32, 16, 16), (2, 24, 6, 5, 7), (1, 8, 2, 1, 1), (1, 512, 32, 3, 90)],
)
def test_group_norm_silu(
    batch: int, channels: int, groups: int, height: int, width: int, last: bool, dtype: torch.dtype
) -> None:
    x = numbers(batch, channels, height, width, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if last else x
    weight, bias = numbers(2, channels, dtype=dtype)
    for silu in (True, False):
        found = group_norm_silu(x, groups, weight, bias, silu=silu, impl="triton")
        assert found.dtype == dtype
        expected = torch.nn.functional.group_norm(
            x.double(), groups, weight.double(), bias.double(), 1e-6
        )
        expected = torch.nn.functional.silu(expected) if silu else expected
        close(found, expected, dtype, scale=4.0)


def test_statistics_of_a_group_norm_leave_float16s_range() -> None:
    x = (numbers(1, 16, 32, 33) * 1.5e4).clamp(-6e4, 6e4).half()
    weight, bias = torch.ones(16, device=DEVICE), torch.zeros(16, device=DEVICE)
    found = group_norm_silu(x, 4, weight, bias, impl="triton")
    expected = torch.nn.functional.silu(torch.nn.functional.group_norm(x.double(), 4, eps=1e-6))
    close(found, expected, torch.float16)


def test_a_group_norm_far_from_zero_keeps_its_digits() -> None:
    x = 1000.0 + numbers(1, 8, 40, 40)
    weight, bias = torch.ones(8, device=DEVICE), torch.zeros(8, device=DEVICE)
    found = group_norm_silu(x, 2, weight, bias, silu=False, impl="triton")
    expected = torch.nn.functional.group_norm(x.double(), 2, eps=1e-6)
    close(found, expected, torch.float32, scale=10.0)  # the mean is rounded at 6e-5


def test_a_group_norm_of_a_part_of_a_picture() -> None:
    x = numbers(2, 20, 12, 14)[:, 2:18, 1:10, ::2]
    weight, bias = numbers(2, 16)
    found = group_norm_silu(x, 4, weight, bias, impl="triton")
    close(found, group_norm_silu(x, 4, weight, bias, impl="reference"), torch.float32)

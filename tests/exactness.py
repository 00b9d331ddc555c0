"""What the tests of kernels compare with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Against float64: half a unit in the last place of the result, and what sums of the inputs' size
# lose.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def numbers(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers on the device that is tested."""
    return (scale * torch.randn(*shape)).to(DEVICE, dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """Assert that a result of a type is as near as its digits allow."""
    assert found.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        found.double(), expected.double(), atol=tolerance * scale, rtol=tolerance
    )


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v (B, N, heads, D), in float64 -> (B, N, heads * D)."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


def enlarge_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and larger programs: the interpreter takes its time for each."""
    if DEVICE.type == "cuda":
        return
    kernels = "dithead.kernels"
    for name, value in (
        ("attention.triton.BLOCK_QUERIES", 256),
        ("attention.triton.BLOCK_KEYS", 512),
        ("attention.triton.MOST_FLOAT32", 1 << 16),
        ("attention.triton.ENOUGH_PROGRAMS", 1),
        ("attention.tritonaudio.BLOCKS_FLOAT32", (256, 1024)),
        ("attention.tritonaudio.BLOCKS", (256, 1024)),
        ("attention.tritonaudio.ENOUGH_PROGRAMS", 1),
        ("group_norm_silu.triton.BLOCK_POSITIONS", 512),
        ("modulated_layer_norm.triton._AT_ONCE", 1 << 16),
        ("composite.triton.BLOCK_ROWS", 64),
        ("composite.triton.BLOCK_COLUMNS", 128),
    ):
        monkeypatch.setattr(f"{kernels}.{name}", value)

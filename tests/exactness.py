"""What the tests of kernels compare with."""

from __future__ import annotations

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

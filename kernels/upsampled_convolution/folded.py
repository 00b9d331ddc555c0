"""The same as one transposed convolution of the small picture, with 4 of 9 products.

Along each axis, the three weights of a pixel meet two of the small picture's pixels, one of which
counts twice. With u the picture whose pixels are repeated, y[n] = w0 u[n-1] + w1 u[n] + w2 u[n+1]
is w0 x[i-1] + (w1 + w2) x[i] for n = 2 i, and (w0 + w1) x[i] + w2 x[i+1] for n = 2 i + 1: a
transposed convolution with the kernel (w2, w1 + w2, w0 + w1, w0), stride 2 and padding 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SUMS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Which of the three weights each of the four is the sum of."""


def fold(weight: Tensor) -> Tensor:
    """Weight (O, C, 3, 3) -> kernel of the transposed convolution (C, O, 4, 4), added up in
    float32."""
    sums = torch.tensor(_SUMS, device=weight.device)
    kernel = torch.einsum("pk,ockl,ql->copq", sums, weight.float(), sums)
    return kernel.to(weight.dtype).contiguous()


def upsampled_convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """As :func:`dithead.kernels.upsampled_convolution.upsampled_convolution`, with the result of
    :func:`fold`."""
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


class FoldedWeight:
    """What :func:`fold` makes of one layer's weight, made again when the weight is another."""

    def __init__(self) -> None:
        self._made: tuple[object, Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The kernel (C, O, 4, 4) of a weight (O, C, 3, 3)."""
        if torch.compiler.is_compiling() or weight.requires_grad:
            return fold(weight)
        version = None if weight.is_inference() else weight._version
        key = weight.device, weight.dtype, weight.data_ptr(), version
        if self._made is None or self._made[0] != key:
            self._made = key, fold(weight)
        return self._made[1]

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


def fold(weight: Tensor) -> Tensor:
    """Weight (O, C, 3, 3) -> kernel of the transposed convolution (C, O, 4, 4), added up in
    float32."""
    summed = _summed(_summed(weight.float(), 2), 3)  # (O, C, 4, 4)
    return summed.to(weight.dtype).transpose(0, 1).contiguous()


def _summed(weight: Tensor, axis: int) -> Tensor:
    first, second, third = weight.unbind(axis)
    return torch.stack([third, second + third, first + second, first], axis)


def upsampled_convolution(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """As :func:`dithead.kernels.upsampled_convolution.upsampled_convolution`, with the result of
    :func:`fold`."""
    return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)


class FoldedWeight:
    """What :func:`fold` makes of one layer's weight, made again when the weight is another or was
    changed in place (through ``weight.data``, PyTorch does not tell)."""

    def __init__(self) -> None:
        self._made: tuple[Tensor, tuple[object, ...], Tensor] | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The kernel (C, O, 4, 4) of a weight (O, C, 3, 3)."""
        if torch.compiler.is_compiling() or weight.requires_grad or weight.is_inference():
            return fold(weight)
        state = weight.device, weight.dtype, weight.data_ptr(), weight._version
        made = self._made
        if made is None or made[0] is not weight or made[1] != state:
            kernel = fold(weight)
            if weight.is_cuda:  # work on other streams may use it next
                torch.cuda.current_stream(weight.device).synchronize()
            self._made = made = weight, state, kernel
        return made[2]

    def __reduce__(self) -> tuple[type[FoldedWeight], tuple[()]]:
        return FoldedWeight, ()  # copies and files begin without one

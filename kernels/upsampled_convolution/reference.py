"""Nearest upsampling, then the convolution, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def upsampled_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As :func:`dithead.kernels.upsampled_convolution.upsampled_convolution`."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)

"""A face warped onto a rectangle of a frame, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from dithead.kernels.sampling import pixel_centres, resample


def composite(
    face: Tensor, matrix: Tensor, rectangle: Tensor, weight: Tensor, density: int
) -> Tensor:
    """As :func:`dithead.kernels.composite.composite`."""
    height, width = rectangle.shape[0], rectangle.shape[1]
    samples = pixel_centres(height, width, density, face.device)
    pasted = resample(face.float(), matrix, samples, width, density)  # (1, 3, H, W)
    source = rectangle.float().permute(2, 0, 1)  # (3, H, W); TensorRT permutes no uint8
    new = (pasted[0] + 1.0) * 127.5
    blended = (source + weight * (new - source)).round().clamp(0, 255)
    return blended.permute(1, 2, 0).to(torch.uint8)

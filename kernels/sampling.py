"""Resamples pictures at positions that are affine functions of the output's pixels, computed as one
matrix product.

An affine map is a matrix of coefficients whose last column is the constant term: it is applied to
(x, y, 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_centres(height: int, width: int, density: int, device: torch.device) -> Tensor:
    """Centres of density x density sub-pixels per pixel: (3, height * density * width * density).
    The rows are x and y in pixels, and 1."""
    ys = (torch.arange(height * density, device=device) + 0.5) / density
    xs = (torch.arange(width * density, device=device) + 0.5) / density
    x, y = torch.meshgrid(xs, ys, indexing="xy")
    return torch.stack([x, y, torch.ones_like(x)]).flatten(1).float()


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The map that applies ``inner`` (B, 2, 3) first, then ``outer`` (B, K, 3): (B, K, 3)."""
    linear, offset = inner[..., :2], inner[..., 2:]
    return torch.cat([outer[..., :2] @ linear, outer[..., :2] @ offset + outer[..., 2:]], dim=-1)


def invert_similarity(transform: Tensor) -> Tensor:
    """The inverse (B, 2, 3) of a similarity transform (B, 2, 3)."""
    a, b = transform[:, 0, 0], transform[:, 1, 0]
    rows = torch.stack([a, b, -b, a], dim=1).view(-1, 2, 2)
    linear = rows / (a.square() + b.square()).view(-1, 1, 1)
    return torch.cat([linear, -linear @ transform[:, :, 2:]], dim=-1)


def resample(
    image: Tensor,
    matrix: Tensor,
    coordinates: Tensor,
    width: int,
    density: int = 1,
    padding_mode: str = "border",
) -> Tensor:
    """Sample a picture bilinearly and average density x density samples per output pixel.

    Args:
        image: (B, C, H, W) float.
        matrix: (B, 2, K), maps coordinates to positions x and y in the picture's pixels; or (B, R,
            2, K) for R results from each picture.
        coordinates: (K, N), of the N = height * density * width * density samples, row by row; the
            last of the K is 1.
        width: of the result.
        padding_mode: what lies outside the picture, ``"border"`` or ``"zeros"``.

    Returns:
        (B, C, height, width) float; R results are stacked one below the other.
    """
    size = frame_size(image)[:, None]  # (2, 1)
    linear, offset = matrix[..., :-1] * (2.0 / size), matrix[..., -1:] * (2.0 / size) - 1.0
    positions = torch.cat([linear, offset], dim=-1) @ coordinates  # (B, ..., 2, N) in [-1, 1]
    if padding_mode == "border":
        # Half a pixel inside the edge, what lies outside has no weight.
        limit = 1.0 - 1.0 / size
        positions = torch.minimum(torch.maximum(positions, -limit), limit)
    grid = positions.transpose(-1, -2).reshape(matrix.shape[0], -1, width * density, 2)
    out = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return F.avg_pool2d(out, density) if density > 1 else out


def frame_size(frames: Tensor) -> Tensor:
    """Width and height of (..., H, W) frames as a tensor (2,): stays dynamic in a traced graph."""
    height, width = frames.shape[-2:]
    return torch.stack([frames.new_full((), width), frames.new_full((), height)])

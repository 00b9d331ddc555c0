"""How alike the looks of two faces are, and how differently they are lit: the graphs
``face_likeness`` and ``face_light``. No weights.

The *looks* of a face are its upper half as a few coarse pixels; :mod:`dithead.face.judge` takes
them down.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOOKS_SHAPE = (3, 18, 24)
"""Shape of a face's looks: colours, rows and columns."""
MOST_COMPARED = 8
"""How many looks ``face_likeness`` compares at once."""
_CLIPPED = 250.0  # levels; from here on a picture may have lost detail
NOISE = 3.0
"""Levels; contrast below it is noise."""
LIGHT_STEADY, LIGHT_CHANGED = 0.15, 0.30
"""Light that differs from the reference's by less than the first counts as the same; by more than
the second, as different. The difference is a logarithm of the level. Contrast counts half, because
it also changes when a head turns. In 40 clips the light wanders by 0.13 at most."""
MOST_LIGHT = 8.0
"""Contrast is raised or lowered by this factor at most."""


class FaceLikeness(nn.Module):
    """``face_likeness``: compares looks with those of several faces."""

    def forward(self, known: Tensor, looks: Tensor) -> Tensor:
        """Known looks (MOST_COMPARED, *LOOKS_SHAPE), zeros where there are fewer; others,
        LOOKS_SHAPE -> (MOST_COMPARED,), see :func:`unlikeness`."""
        return unlikeness(known, looks)


class FaceLight(nn.Module):
    """``face_light``: :func:`light_to` as a graph."""

    def forward(self, reference: Tensor, looks: Tensor) -> Tensor:
        """Looks of the reference and of a face, LOOKS_SHAPE each -> light (2, 3)."""
        return light_to(reference, looks)


def unlikeness(before: Tensor, after: Tensor) -> Tensor:
    """1 minus the correlation of looks (N, *LOOKS_SHAPE) with other looks, LOOKS_SHAPE: (N,).
    Brightness and contrast do not count, nor does what is clipped in either of them. The less can
    be seen of both, the closer the result is to 0.

    Within the 40 clips at hand (25 to 30 frames a second), a face differs from the frame before by
    0.08 at most, and from any other frame mostly by less than 0.1. Of pairs of different people,
    1 in 100 differs by less than 0.22, and half differ by more than 0.7.
    """
    both = (torch.maximum(before, after).amax(1, keepdim=True) < _CLIPPED).to(after.dtype)
    count = both.sum((2, 3), keepdim=True)  # (N, 1, 1, 1), with both (N, 1, rows, columns)
    a, b = (
        (seen - (seen * both).sum((2, 3), keepdim=True) / count.clamp(min=1.0)) * both
        for seen in (before, after.expand_as(before))
    )
    noise = NOISE**2 * after.numel()
    size = (a.square().sum((1, 2, 3)) * b.square().sum((1, 2, 3))).sqrt()
    alike = ((a * b).sum((1, 2, 3)) + noise) / (size + noise)
    return (1.0 - alike) * (count.flatten() / both[0].numel())


def light_to(reference: Tensor, looks: Tensor) -> Tensor:
    """Factor and offset (2, 3) that bring a picture's colours in [-1, 1] to the light of a
    reference. As long as the two differ little they are (1, 0), which changes nothing. They come
    from the mean and contrast of each colour, where neither of the looks is clipped."""
    both = (torch.maximum(reference, looks).amax(0) < _CLIPPED).to(looks.dtype)
    count = both.sum().clamp(min=1)
    stacked = torch.stack([reference, looks])  # (2, 3, rows, columns)
    mean = (stacked * both).sum((2, 3)) / count  # (2, 3)
    spread = ((stacked - mean[:, :, None, None]).square() * both).sum((2, 3)) / count
    spread = (spread + NOISE**2).sqrt()
    level = mean + 8.0
    ratio = spread[0] / spread[1]  # (3,)
    off = torch.maximum(0.5 * ratio.log().abs(), (level[0] / level[1]).log().abs()).amax(0)
    share = ((off - LIGHT_STEADY) / (LIGHT_CHANGED - LIGHT_STEADY)).clamp(0.0, 1.0)
    share = share * (reference.flatten().amax(0) > 0)
    ratio = ratio.clamp(1 / MOST_LIGHT, MOST_LIGHT)
    factor = torch.lerp(torch.ones_like(ratio), ratio, share)
    offset = share * (mean[0] - mean[1] * ratio)  # levels
    return torch.stack([factor, factor - 1.0 + offset / 127.5])

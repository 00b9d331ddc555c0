"""Layers spelt out for export, in what ONNX Runtime does well.

Group norms with sums that keep their digits: ONNX Runtime adds up a whole group in float32, one
value after the other, and takes the variance from the difference of two such sums: over a 256 px
feature map that is off by 3e-4. Here rows are averaged first, then their means, then those of the
channels, and deviations are squared.

PReLUs as a ReLU and a product: its own takes longer than the convolutions round it.
"""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn


class RowwiseGroupNorm(nn.Module):
    """:class:`torch.nn.GroupNorm` of (B, C, ..., W), by rows of length W."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        maps = x.unflatten(1, (self.groups, -1))  # (B, G, C / G, ..., W)
        deviation = maps - _mean(maps)
        normed = deviation * (_mean(deviation.square()) + self.eps).rsqrt()
        shape = (-1,) + (1,) * (x.dim() - 2)
        return normed.reshape(x.shape) * self.weight.view(shape) + self.bias.view(shape)


def _mean(maps: Tensor) -> Tensor:
    """Mean of each group of (B, G, C / G, ..., W), the last axis first: (B, G, 1, ..., 1)."""
    for axis in range(maps.dim() - 1, 1, -1):
        maps = maps.mean(axis, keepdim=True)
    return maps


class SpeltPReLU(nn.Module):
    """:class:`torch.nn.PReLU` of (B, C, ...)."""

    def __init__(self, activation: nn.PReLU) -> None:
        super().__init__()
        self.weight = activation.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + self.weight.view((-1,) + (1,) * (x.dim() - 2)) * x.clamp(max=0.0)


_SPELT = {nn.GroupNorm: RowwiseGroupNorm, nn.PReLU: SpeltPReLU}


def spelt_out(module: nn.Module) -> nn.Module:
    """A copy of a module with such layers spelt out; the module itself where it has none."""
    if not any(type(part) in _SPELT for part in module.modules()):
        return module
    copied = copy.deepcopy(module)
    for part in list(copied.modules()):
        for name, child in part.named_children():
            if type(child) in _SPELT:
                setattr(part, name, _SPELT[type(child)](child))
    return copied

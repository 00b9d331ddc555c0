"""Group norms spelt out for export, with sums that keep their digits.

ONNX Runtime adds up a whole group in float32, one value after the other, and takes the variance
from the difference of two such sums: over a 256 px feature map that is off by 3e-4. Here rows are
averaged first, then their means, then those of the channels, and deviations are squared.
"""

from __future__ import annotations

import copy

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


def with_rowwise_norms(module: nn.Module) -> nn.Module:
    """A copy of a module with its group norms spelt out; the module itself where it has none."""
    if not any(isinstance(part, nn.GroupNorm) for part in module.modules()):
        return module
    spelt_out = copy.deepcopy(module)
    for part in list(spelt_out.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(part, name, RowwiseGroupNorm(child))
    return spelt_out

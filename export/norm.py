"""Group norms spelt out for export, with sums that keep their digits.

ONNX Runtime adds up a whole group in float32, one value after the other, and takes the variance
from the difference of two such sums: over a 256 px feature map that is off by 3e-4. Here rows are
averaged first and their means then, after which the deviations are squared.
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
        rows = x.reshape(x.shape[0], self.groups, -1, x.shape[-1])
        deviation = rows - _mean(rows)
        normed = deviation * (_mean(deviation.square()) + self.eps).rsqrt()
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return normed.reshape(x.shape) * self.weight.view(shape) + self.bias.view(shape)


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(-1, keepdim=True).mean(-2, keepdim=True)


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

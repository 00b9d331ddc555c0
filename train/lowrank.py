"""Low-rank changes of a network's weights (LoRA, arXiv 2106.09685): small files, and little that a
few minutes of footage could spoil."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dithead.checkpoint import DOWN, UP


class LowRank(nn.Module):
    """Adds ``up @ down`` to a weight (R, C); nothing at first."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_low_rank(model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
    """Freeze a model, and let each of its linear layers learn a low-rank change.

    Returns:
        The new parameters, by the names under which :func:`dithead.checkpoint.load` expects them.
    """
    model.requires_grad_(False)
    added: dict[str, nn.Parameter] = {}
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, layer in layers:
        rows, columns = layer.weight.shape
        change = LowRank(rows, columns, min(rank, rows, columns))
        parametrize.register_parametrization(layer, "weight", change)
        added |= {f"{name}.weight{UP}": change.up, f"{name}.weight{DOWN}": change.down}
    return added

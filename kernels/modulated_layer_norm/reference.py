"""Residual, layer norm and modulation in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_branch(x: Tensor, branch: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * branch: x, branch (B, N, D); gate (B, 1, D), None for 1."""
    return x + (branch if gate is None else gate * branch)


def modulated_layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    """As :func:`dithead.kernels.modulated_layer_norm.modulated_layer_norm`, without a branch.

    Statistics are float32.
    """
    wide = (None if weight is None else weight.float()), (None if bias is None else bias.float())
    normed = F.layer_norm(x.float(), x.shape[-1:], *wide, eps).to(x.dtype)  # (B, N, D)
    return normed if scale is None or shift is None else normed * (1 + scale) + shift


def added_layer_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The same with a branch: the sum, and the result."""
    total = add_branch(x, branch, gate)
    return total, modulated_layer_norm(total, weight, bias, scale, shift, eps)

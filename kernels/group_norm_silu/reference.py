"""Group norm and SiLU in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """As :func:`dithead.kernels.group_norm_silu.group_norm_silu`. Statistics are float32."""
    normed = F.group_norm(x.float(), groups, weight.float(), bias.float(), eps).to(x.dtype)
    return F.silu(normed) if silu else normed

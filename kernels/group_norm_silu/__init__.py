"""Group norm (arXiv 1803.08494), and the SiLU that follows it in a VQGAN."""

from __future__ import annotations

from torch import Tensor

from dithead.kernels.choice import Impl, triton_is_chosen
from dithead.kernels.group_norm_silu import reference

__all__ = ["group_norm_silu"]


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    *,
    silu: bool = True,
    impl: Impl = "auto",
) -> Tensor:
    """SiLU(GroupNorm(x)), with statistics in float32.

    Args:
        x: (B, C, H, W), in any layout; the kernel is fastest with channels last.
        groups: of channels; must divide C.
        weight, bias: (C,).
        eps: added to the variance.
        silu: whether the SiLU follows.

    Returns:
        (B, C, H, W), in the type and layout of ``x``.
    """
    if triton_is_chosen(impl, x, weight, bias):
        from dithead.kernels.group_norm_silu import triton

        return triton.group_norm_silu(x, groups, weight, bias, eps, silu)
    return reference.group_norm_silu(x, groups, weight, bias, eps, silu)

"""Layer norm with adaLN's scale and shift (arXiv 2212.09748), and the gated residual before it."""

from __future__ import annotations

from torch import Tensor

from dithead.kernels.choice import Impl, triton_is_chosen
from dithead.kernels.modulated_layer_norm import reference
from dithead.kernels.modulated_layer_norm.reference import add_branch

__all__ = ["add_branch", "modulated_layer_norm"]


def modulated_layer_norm(
    x: Tensor,
    *,
    branch: Tensor | None = None,
    gate: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]:
    """The residual stream x + gate * branch, and its norm: LayerNorm(...) * (1 + scale) + shift.

    Args:
        x: (B, N, D), the residual stream.
        branch: (B, N, D), what is added to it; None adds nothing.
        gate: (B, 1, D), factor of the branch; None is 1.
        weight, bias: (D,) of the norm, or both None.
        scale, shift: (B, 1, D), or both None.
        eps: added to the variance.

    Returns:
        The stream (B, N, D), in the wider type of ``x`` and ``gate * branch``; its norm (B, N, D).
    """
    tensors = x, branch, gate, weight, bias, scale, shift
    if triton_is_chosen(impl, *tensors):
        from dithead.kernels.modulated_layer_norm import triton

        return triton.modulated_layer_norm(*tensors, eps)
    if branch is None:
        return x, reference.modulated_layer_norm(x, weight, bias, scale, shift, eps)
    return reference.added_layer_norm(x, branch, gate, weight, bias, scale, shift, eps)

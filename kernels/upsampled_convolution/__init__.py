"""Convolution of a picture whose pixels were repeated: how a VQGAN's decoder doubles its size."""

from __future__ import annotations

from torch import Tensor

from dithead.kernels.checks import check_shape
from dithead.kernels.choice import Impl, inference_form_is_chosen
from dithead.kernels.upsampled_convolution import folded, reference
from dithead.kernels.upsampled_convolution.folded import FoldedWeight

__all__ = ["FoldedWeight", "upsampled_convolution"]


def upsampled_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    kept: FoldedWeight | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The convolution, padded by 1, of nearest 2x upsampling.

    Args:
        x: (B, C, H, W).
        weight: (O, C, 3, 3). bias: (O,).
        kept: keeps what is computed from the weight alone, for the next call.
        impl: ``auto`` and ``triton`` fold the upsampling into the convolution, on any device, by
            PyTorch's own transposed convolution: no kernel of ours is needed.

    Returns:
        (B, O, 2 H, 2 W).

    Raises:
        ValueError: a tensor has another shape.
    """
    check_shape("x", x, ("B", "C", "H", "W"))
    check_shape("weight", weight, ("O", x.shape[1], 3, 3))
    check_shape("bias", bias, weight.shape[:1])
    if inference_form_is_chosen(impl, x, weight, bias):
        kernel = folded.fold(weight) if kept is None else kept.of(weight)
        return folded.upsampled_convolution(x, kernel, bias)
    return reference.upsampled_convolution(x, weight, bias)

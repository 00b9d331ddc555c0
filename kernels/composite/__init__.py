"""A generated face, warped back onto a rectangle of the frame and blended into it."""

from __future__ import annotations

from torch import Tensor

from dithead.kernels.choice import Impl, triton_is_chosen
from dithead.kernels.composite import reference

__all__ = ["composite"]


def composite(
    face: Tensor,
    matrix: Tensor,
    rectangle: Tensor,
    weight: Tensor,
    density: int = 1,
    *,
    impl: Impl = "auto",
) -> Tensor:
    """The rectangle with the face in it, rounded to the nearest level.

    Args:
        face: (1, 3, S, S) float in [-1, 1]; beyond its edge, its edge pixels are repeated.
        matrix: (1, 2, 3) float32, maps the rectangle's pixels to the face's.
        rectangle: (H, W, 3) uint8.
        weight: (H, W) float in [0, 1]; where it is 0, the rectangle stays as it is.
        density: samples along each side of a pixel of the rectangle, which are averaged.

    Returns:
        (H, W, 3) uint8.
    """
    tensors = face, matrix, rectangle, weight
    if triton_is_chosen(impl, *tensors):
        from dithead.kernels.composite import triton

        return triton.composite(*tensors, density)
    return reference.composite(*tensors, density)

"""Warp, blend, round and store a rectangle in one pass; pixels that the mask leaves out are only
copied."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.checks import (
    check_device,
    check_float,
    check_no_gradients,
    check_rows,
    check_shape,
    check_type,
)
from dithead.kernels.launch import Launch
from dithead.kernels.settings import Settings, launch

BLOCK_ROWS, BLOCK_COLUMNS = 8, 32
"""Pixels of a program."""
CANDIDATES = tuple(map(Settings, ((2, 64), (4, 32), (4, 64), (8, 64), (16, 16), (16, 32))))
"""Others that may be better."""
MOST_DENSITY = 16
_ROUNDING = tl.constexpr(12582912.0)
"""1.5 * 2**23: added and taken away again, it rounds a float32 to the nearest even integer."""


@triton.jit
def _composite(
    face_ptr,  # (3, S, S)
    matrix_ptr,  # (2, 3) float32
    rectangle_ptr,  # (H, W, 3) uint8
    weight_ptr,  # (H, W)
    out_ptr,  # (H, W, 3) uint8, dense
    face_channel,  # strides
    face_row,
    rectangle_row,
    weight_row,
    side,  # S
    height,  # H
    width,  # W
    DENSITY: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    row = (tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    column = (tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS))[None, :]
    there = (row < height) & (column < width)
    weight = tl.load(weight_ptr + row.to(tl.int64) * weight_row + column, mask=there, other=0.0)
    weight = weight.to(tl.float32)
    touched = weight != 0.0
    xx, xy, x0 = tl.load(matrix_ptr), tl.load(matrix_ptr + 1), tl.load(matrix_ptr + 2)
    yx, yy, y0 = tl.load(matrix_ptr + 3), tl.load(matrix_ptr + 4), tl.load(matrix_ptr + 5)
    red = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    green = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    blue = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    last = side - 1.0
    for sample in range(DENSITY * DENSITY):
        across = column + (sample % DENSITY + 0.5) / DENSITY
        down = row + (sample // DENSITY + 0.5) / DENSITY
        # Of the middle of the face's first pixel.
        x = tl.minimum(tl.maximum(xx * across + xy * down + x0 - 0.5, 0.0), last)
        y = tl.minimum(tl.maximum(yx * across + yy * down + y0 - 0.5, 0.0), last)
        left, top = tl.floor(x), tl.floor(y)
        share_x, share_y = x - left, y - top
        x_at, y_at = left.to(tl.int32), top.to(tl.int32)
        to_right = tl.where(x_at < side - 1, 1, 0)
        to_below = tl.where(y_at < side - 1, face_row, 0)
        at = face_ptr + y_at.to(tl.int64) * face_row + x_at
        red += _bilinear(at, to_right, to_below, share_x, share_y, touched)
        at += face_channel
        green += _bilinear(at, to_right, to_below, share_x, share_y, touched)
        at += face_channel
        blue += _bilinear(at, to_right, to_below, share_x, share_y, touched)
    from_at = rectangle_ptr + row.to(tl.int64) * rectangle_row + column * 3
    to_at = out_ptr + (row.to(tl.int64) * width + column) * 3
    _blend(from_at, to_at, red / (DENSITY * DENSITY), weight, there)
    _blend(from_at + 1, to_at + 1, green / (DENSITY * DENSITY), weight, there)
    _blend(from_at + 2, to_at + 2, blue / (DENSITY * DENSITY), weight, there)


@triton.jit
def _bilinear(at, to_right, to_below, share_x, share_y, touched):
    a = tl.load(at, mask=touched, other=0.0).to(tl.float32)
    b = tl.load(at + to_right, mask=touched, other=0.0).to(tl.float32)
    c = tl.load(at + to_below, mask=touched, other=0.0).to(tl.float32)
    d = tl.load(at + to_below + to_right, mask=touched, other=0.0).to(tl.float32)
    upper, lower = a + share_x * (b - a), c + share_x * (d - c)
    return upper + share_y * (lower - upper)


@triton.jit
def _blend(from_at, to_at, face, weight, there):
    source = tl.load(from_at, mask=there, other=0).to(tl.float32)
    made = source + weight * ((face + 1.0) * 127.5 - source)
    made = tl.minimum(tl.maximum(made, 0.0), 255.0)
    tl.store(to_at, ((made + _ROUNDING) - _ROUNDING).to(tl.uint8), mask=there)


def plan(
    face: Tensor,
    matrix: Tensor,
    rectangle: Tensor,
    weight: Tensor,
    density: int,
    out: Tensor,
    settings: Settings | None = None,
) -> list[Launch]:
    """What is launched; without settings, with fixed ones."""
    settings = settings or Settings((BLOCK_ROWS, BLOCK_COLUMNS))
    block_rows, block_columns = settings.blocks
    height, width = rectangle.shape[:2]
    arguments: dict[str, Tensor | int | float | None] = {
        "face_ptr": face,
        "matrix_ptr": matrix,
        "rectangle_ptr": rectangle,
        "weight_ptr": weight,
        "out_ptr": out,
        "face_channel": face.stride(1),
        "face_row": face.stride(2),
        "rectangle_row": rectangle.stride(0),
        "weight_row": weight.stride(0),
        "side": face.shape[2],
        "height": height,
        "width": width,
    }
    blocks = {"DENSITY": density, "BLOCK_ROWS": block_rows, "BLOCK_COLUMNS": block_columns}
    grid = triton.cdiv(width, block_columns), triton.cdiv(height, block_rows)
    return [Launch(_composite, grid, arguments, blocks, settings.num_warps)]


@torch.library.custom_op("dithead::composite", mutates_args=())
def _operation(
    face: Tensor, matrix: Tensor, rectangle: Tensor, weight: Tensor, density: int
) -> Tensor:
    given = face, matrix, rectangle, weight, density
    out = _fake(*given)
    shape = (*rectangle.shape[:2], face.shape[2], density)
    launch("composite", shape, (out,), lambda blocks: plan(*given, out, blocks), CANDIDATES)
    return out


@_operation.register_fake
def _fake(face: Tensor, matrix: Tensor, rectangle: Tensor, weight: Tensor, density: int) -> Tensor:
    return torch.empty(rectangle.shape, dtype=torch.uint8, device=rectangle.device)


def composite(
    face: Tensor, matrix: Tensor, rectangle: Tensor, weight: Tensor, density: int
) -> Tensor:
    """As :func:`dithead.kernels.composite.composite`; rows of the tensors must be dense.

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    check_shape("face", face, (1, 3, "S", "S"))
    check_shape("face", face, (1, 3, face.shape[2], face.shape[2]))
    if face.shape[2] == 0:
        raise ValueError("face: expected at least one pixel, found none")
    check_no_gradients("composite", face, matrix, weight)
    check_shape("matrix", matrix, (1, 2, 3))
    check_shape("rectangle", rectangle, ("H", "W", 3))
    check_shape("weight", weight, rectangle.shape[:2])
    if not 1 <= density <= MOST_DENSITY:
        raise ValueError(f"density: expected 1 to {MOST_DENSITY} samples, found {density}")
    check_float(face=face, weight=weight)
    check_type(torch.float32, matrix=matrix)
    check_type(torch.uint8, rectangle=rectangle)
    check_rows(face=face, rectangle=rectangle, weight=weight)
    if rectangle.stride(1) != 3:
        raise ValueError(f"rectangle: expected dense rows, found strides {rectangle.stride()}")
    check_device(face.device, matrix=matrix, rectangle=rectangle, weight=weight)
    return _operation(face, matrix.contiguous(), rectangle, weight, density)

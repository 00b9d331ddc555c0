"""Residual, layer norm and modulation in one pass over the stream."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.checks import (
    check_device,
    check_float,
    check_row,
    check_rows,
    check_shape,
    common_type,
)
from dithead.kernels.gradients import differentiate
from dithead.kernels.launch import Launch, batch_stride
from dithead.kernels.modulated_layer_norm import reference
from dithead.kernels.settings import Settings, launch

MOST_WIDTH = 8192
"""Numbers of a token that a program holds in registers."""
_AT_ONCE = 1024
"""Numbers that a program takes at least, in several rows if they are short."""
CANDIDATES = (
    *(Settings((1,), num_warps=warps) for warps in (1, 2, 4, 8)),
    *(Settings((rows,), num_warps=4) for rows in (2, 4)),
)
"""Rows of a program that may be better."""


@triton.jit
def _modulated_layer_norm(
    x_ptr,  # (B, N, D)
    branch_ptr,  # (B, N, D), or None
    gate_ptr,  # (B, 1, D), or None
    weight_ptr,  # (D,), or None
    bias_ptr,  # (D,), or None
    scale_ptr,  # (B, 1, D), or None
    shift_ptr,  # (B, 1, D), or None
    total_ptr,  # (B, N, D) dense, or None
    out_ptr,  # (B, N, D) dense
    x_batch,  # strides
    x_row,
    branch_batch,
    branch_row,
    gate_batch,
    scale_batch,
    shift_batch,
    rows,  # N
    eps,
    WIDTH: tl.constexpr,  # D
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    batch = tl.program_id(1).to(tl.int64)
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None].to(tl.int64)
    column = tl.arange(0, BLOCK_WIDTH)[None, :]
    inside = column < WIDTH
    there = (row < rows) & inside
    x = tl.load(x_ptr + batch * x_batch + row * x_row + column, mask=there, other=0.0)
    x = x.to(tl.float32)
    dense = (batch * rows + row) * WIDTH + column
    if branch_ptr is not None:
        branch = tl.load(
            branch_ptr + batch * branch_batch + row * branch_row + column, mask=there, other=0.0
        ).to(tl.float32)
        if gate_ptr is not None:
            gate = tl.load(gate_ptr + batch * gate_batch + column, mask=inside, other=0.0)
            branch *= gate.to(tl.float32)
        x += branch
        tl.store(total_ptr + dense, x.to(total_ptr.dtype.element_ty), mask=there)
    mean = tl.sum(x, axis=1)[:, None] / WIDTH
    off = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(off * off, axis=1)[:, None] / WIDTH
    y = off * (1.0 / tl.sqrt(variance + eps))
    if weight_ptr is not None:
        y *= tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if bias_ptr is not None:
        y += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + batch * scale_batch + column, mask=inside, other=0.0)
        shift = tl.load(shift_ptr + batch * shift_batch + column, mask=inside, other=0.0)
        y = y * (1.0 + scale.to(tl.float32)) + shift.to(tl.float32)
    tl.store(out_ptr + dense, y.to(out_ptr.dtype.element_ty), mask=there)


def plan(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    total: Tensor | None,
    out: Tensor,
    settings: Settings | None = None,
) -> list[Launch]:
    """What is launched; without settings, with fixed ones."""
    batch, rows, width = x.shape
    block_width = triton.next_power_of_2(width)
    settings = settings or _fixed(rows, block_width)
    (block_rows,) = settings.blocks
    arguments: dict[str, Tensor | int | float | None] = {
        "x_ptr": x,
        "branch_ptr": branch,
        "gate_ptr": gate,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "scale_ptr": scale,
        "shift_ptr": shift,
        "total_ptr": total,
        "out_ptr": out,
        "x_batch": x.stride(0),
        "x_row": x.stride(1),
        "branch_batch": 0 if branch is None else branch.stride(0),
        "branch_row": 0 if branch is None else branch.stride(1),
        "gate_batch": batch_stride(gate),
        "scale_batch": batch_stride(scale),
        "shift_batch": batch_stride(shift),
        "rows": rows,
        "eps": eps,
    }
    blocks = {"WIDTH": width, "BLOCK_ROWS": block_rows, "BLOCK_WIDTH": block_width}
    grid = triton.cdiv(rows, block_rows), batch
    return [Launch(_modulated_layer_norm, grid, arguments, blocks, settings.num_warps)]


def _fixed(rows: int, block_width: int) -> Settings:
    block_rows = max(1, min(_AT_ONCE // block_width, triton.next_power_of_2(rows)))
    # Numbers that a thread holds: 8 where the row is short, more only in rows above 8192.
    return Settings((block_rows,), max(1, min(16, block_rows * block_width // 256)))


@torch.library.custom_op("dithead::modulated_layer_norm", mutates_args=())
def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    out = _fake_norm(x, weight, bias, scale, shift, eps)
    given = x, None, None, weight, bias, scale, shift, eps, None, out
    launch(
        "modulated_layer_norm", (*x.shape,), (out,), lambda blocks: plan(*given, blocks), CANDIDATES
    )
    return out


@_norm.register_fake
def _fake_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> Tensor:
    return torch.empty(x.shape, dtype=common_type(x, scale, shift), device=x.device)


@torch.library.custom_op("dithead::added_layer_norm", mutates_args=())
def _added_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    total, out = _fake_added_norm(x, branch, gate, weight, bias, scale, shift, eps)
    given = x, branch, gate, weight, bias, scale, shift, eps, total, out
    outs = total, out
    launch("added_layer_norm", (*x.shape,), outs, lambda blocks: plan(*given, blocks), CANDIDATES)
    return total, out


@_added_norm.register_fake
def _fake_added_norm(
    x: Tensor,
    branch: Tensor,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    total = torch.empty(x.shape, dtype=common_type(x, branch, gate), device=x.device)
    dtype = common_type(total, scale, shift)
    return total, torch.empty(x.shape, dtype=dtype, device=x.device)


differentiate(_norm, reference.modulated_layer_norm)
differentiate(_added_norm, reference.added_layer_norm)


def modulated_layer_norm(
    x: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """As :func:`dithead.kernels.modulated_layer_norm.modulated_layer_norm`. Numbers of the last
    dimension must lie side by side, and there may be at most :data:`MOST_WIDTH` of them.

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    check_shape("x", x, ("B", "N", "D"))
    width = x.shape[2]
    if not 1 <= width <= MOST_WIDTH:
        raise ValueError(f"x: expected 1 to {MOST_WIDTH} numbers in a token, found {width}")
    if branch is not None:
        check_shape("branch", branch, x.shape)
    check_row(x.shape[0], width, gate=gate, scale=scale, shift=shift)
    for name, line in (("weight", weight), ("bias", bias)):
        if line is not None:
            check_shape(name, line, (width,))
    if gate is not None and branch is None:
        raise ValueError("gate: expected None where there is no branch")
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift: expected both or none")
    others = {"branch": branch, "gate": gate, "weight": weight, "bias": bias}
    others |= {"scale": scale, "shift": shift}
    check_float(x=x, **others)
    check_rows(x=x, **others)
    check_device(x.device, **others)
    if branch is None:
        return x, _norm(x, weight, bias, scale, shift, eps)
    return _added_norm(x, branch, gate, weight, bias, scale, shift, eps)

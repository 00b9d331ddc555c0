"""Attention to a handful of audio tokens, its projection and the gated residual in one launch.

A program makes a piece of the result: for each head it finds what its tokens hear, and adds that
head's part of the projection. What is heard is found again for every piece of the columns, which
costs less than writing it and reading it in another launch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.attention import reference
from dithead.kernels.attention.reference import MOST_AUDIO_TOKENS, MOST_WIDTH
from dithead.kernels.attention.triton import ENOUGH_PROGRAMS, dot, dot_settings
from dithead.kernels.checks import (
    autocast_type,
    check_device,
    check_float,
    check_row,
    check_rows,
    check_shape,
    check_type,
    common_type,
)
from dithead.kernels.gradients import differentiate
from dithead.kernels.launch import Launch, batch_stride
from dithead.kernels.modulated_layer_norm import add_branch
from dithead.kernels.settings import Settings, launch

BLOCKS, BLOCKS_FLOAT32 = (32, 64), (16, 32)
"""Tokens and columns of a program. Products of float32, without tensor cores, hold more in
registers."""
CANDIDATES = (
    *(Settings((16, columns)) for columns in (32, 64, 128)),
    *(Settings((32, columns)) for columns in (32, 64, 128)),
    *(Settings((64, columns), num_warps=warps) for columns in (32, 64) for warps in (4, 8)),
)
CANDIDATES_FLOAT32 = tuple(map(Settings, ((16, 16), (16, 64), (32, 32))))
"""Others that may be better."""


@triton.jit
def _audio_attention(
    x_ptr,  # (B, N, D), the residual stream
    q_ptr,  # (B, N, D)
    k_ptr,  # (B, heads, M, D / heads)
    v_ptr,  # (B, heads, M, D / heads)
    gate_ptr,  # (B, 1, D), or None
    weight_ptr,  # (D, D), of the projection
    bias_ptr,  # (D,), or None
    out_ptr,  # (B, N, D) dense
    x_batch,  # strides
    x_row,
    q_batch,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    gate_batch,
    weight_row,
    queries,  # N
    keys,  # M
    width,  # D
    scale,  # of the scores, times log2(e)
    HEADS: tl.constexpr,
    HEAD_WIDTH: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    row = (tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES))[:, None].to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inner = tl.arange(0, BLOCK_HEAD)[None, :]
    key = tl.arange(0, BLOCK_KEYS)
    inside = inner < HEAD_WIDTH
    made = tl.zeros((BLOCK_QUERIES, BLOCK_COLUMNS), tl.float32)
    for head in range(HEADS):
        first = head * HEAD_WIDTH
        q_at = batch * q_batch + row * q_row + first + inner
        q = tl.load(q_ptr + q_at, mask=(row < queries) & inside, other=0.0)
        there = (key < keys)[:, None] & inside
        k_at = batch * k_batch + head * k_head + key[:, None] * k_row + inner
        v_at = batch * v_batch + head * v_head + key[:, None] * v_row + inner
        k = tl.load(k_ptr + k_at, mask=there, other=0.0)
        v = tl.load(v_ptr + v_at, mask=there, other=0.0)
        scores = dot(q, tl.trans(k), PRECISION, WIDEN) * scale
        scores = tl.where((key < keys)[None, :], scores, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
        weights /= tl.sum(weights, axis=1)[:, None]
        heard = dot(weights.to(v.dtype), v, PRECISION, WIDEN)
        part_at = column[:, None].to(tl.int64) * weight_row + first + inner
        part = tl.load(weight_ptr + part_at, mask=(column < width)[:, None] & inside, other=0.0)
        made += dot(heard.to(part.dtype), tl.trans(part), PRECISION, WIDEN)
    here = (row < queries) & (column < width)[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, mask=column < width, other=0.0)
        made += bias.to(tl.float32)[None, :]
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + batch * gate_batch + column, mask=column < width, other=0.0)
        made *= gate.to(tl.float32)[None, :]
    x_at = batch * x_batch + row * x_row + column[None, :]
    made += tl.load(x_ptr + x_at, mask=here, other=0.0).to(tl.float32)
    out_at = (batch * queries + row) * width + column[None, :]
    tl.store(out_ptr + out_at, made.to(out_ptr.dtype.element_ty), mask=here)


def plan(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    settings: Settings | None = None,
) -> list[Launch]:
    """What is launched; without settings, with fixed ones."""
    batch, queries, width = x.shape
    heads, head_width = keys.shape[1], keys.shape[3]
    block_head = max(16, triton.next_power_of_2(head_width))
    settings = settings or Settings(_fixed_blocks(x, q))
    block_queries, block_columns = settings.blocks
    arguments: dict[str, Tensor | int | float | None] = {
        "x_ptr": x,
        "q_ptr": q,
        "k_ptr": keys,
        "v_ptr": values,
        "gate_ptr": gate,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "out_ptr": out,
        "x_batch": x.stride(0),
        "x_row": x.stride(1),
        "q_batch": q.stride(0),
        "q_row": q.stride(1),
        **{f"k_{name}": keys.stride(i) for i, name in enumerate(("batch", "head", "row"))},
        **{f"v_{name}": values.stride(i) for i, name in enumerate(("batch", "head", "row"))},
        "gate_batch": batch_stride(gate),
        "weight_row": weight.stride(0),
        "queries": queries,
        "keys": keys.shape[2],
        "width": width,
        "scale": math.log2(math.e) / math.sqrt(head_width),
    }
    blocks = {
        "HEADS": heads,
        "HEAD_WIDTH": head_width,
        "BLOCK_QUERIES": block_queries,
        "BLOCK_COLUMNS": block_columns,
        "BLOCK_KEYS": MOST_AUDIO_TOKENS,
        "BLOCK_HEAD": block_head,
        **dot_settings(q.dtype),
    }
    grid = triton.cdiv(queries, block_queries), triton.cdiv(width, block_columns), batch
    return [
        Launch(_audio_attention, grid, arguments, blocks, settings.num_warps, settings.num_stages)
    ]


def _fixed_blocks(x: Tensor, q: Tensor) -> tuple[int, int]:
    batch, queries, width = x.shape
    block_queries, block_columns = BLOCKS_FLOAT32 if q.dtype == torch.float32 else BLOCKS
    pieces = triton.cdiv(queries, block_queries) * triton.cdiv(width, block_columns) * batch
    return (16 if pieces < ENOUGH_PROGRAMS else block_queries), block_columns


@torch.library.custom_op("dithead::audio_attention", mutates_args=())
def _operation(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    given = x, q, keys, values, gate, weight, bias
    out = _fake(*given)
    shape, candidates = (*x.shape, *keys.shape[1:3]), CANDIDATES
    if q.dtype == torch.float32:
        candidates = CANDIDATES_FLOAT32
    launch("audio_attention", shape, (out,), lambda blocks: plan(*given, out, blocks), candidates)
    return out


@_operation.register_fake
def _fake(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    return torch.empty(x.shape, dtype=common_type(x, q, gate), device=x.device)


def _reference(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    split = reference.split_heads(q, keys.shape[1])
    heard = reference.merge_heads(reference.FUNCTIONS["math"](split, keys, values))
    return add_branch(x, torch.nn.functional.linear(heard, weight, bias), gate)


differentiate(_operation, _reference)


def audio_attention(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    gate: Tensor | None,
    out: Callable[[Tensor], Tensor],
) -> Tensor:
    """As :func:`dithead.kernels.attention.audio_attention`, for at most 16 audio tokens and a
    projection ``out`` of D numbers to D.

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    if not isinstance(out, torch.nn.Linear):
        raise TypeError(f"out: expected a torch.nn.Linear, found {type(out).__name__}")
    weight, bias = out.weight, out.bias
    if (dtype := autocast_type(x.device)) is not None:
        q, keys, values, weight = (part.to(dtype) for part in (q, keys, values, weight))
    check_shape("x", x, ("B", "N", "D"))
    batch, _, width = x.shape
    check_shape("q", q, x.shape)
    check_shape("keys", keys, (batch, "heads", "M", "D / heads"))
    _, heads, count, head_width = keys.shape
    if heads * head_width != width or head_width > MOST_WIDTH:
        raise ValueError(
            f"keys: expected heads of at most {MOST_WIDTH} numbers, {width} together, found "
            f"{heads} of {head_width}"
        )
    if not 1 <= count <= MOST_AUDIO_TOKENS:
        raise ValueError(f"keys: expected 1 to {MOST_AUDIO_TOKENS} audio tokens, found {count}")
    check_shape("values", values, keys.shape)
    check_shape("out.weight", weight, (width, width))
    check_row(batch, width, gate=gate)
    check_float(x=x, q=q, gate=gate, bias=bias)
    check_type(q.dtype, keys=keys, values=values, weight=weight)
    others = {"q": q, "keys": keys, "values": values, "gate": gate, "weight": weight, "bias": bias}
    check_rows(x=x, **others)
    check_device(x.device, **others)
    return _operation(x, q, keys, values, gate, weight, bias)

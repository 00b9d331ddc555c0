"""Attention in one pass over the keys, with a running softmax (flash attention, arXiv 2205.14135).

Queries, keys and values are read where the packed projection left them, and what is found is
written as the next projection reads it: nothing is transposed or copied.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.attention import reference
from dithead.kernels.attention.reference import MOST_WIDTH
from dithead.kernels.checks import (
    autocast_type,
    check_device,
    check_float,
    check_rows,
    check_shape,
    check_type,
)
from dithead.kernels.choice import interpreted
from dithead.kernels.gradients import differentiate
from dithead.kernels.launch import Launch
from dithead.kernels.settings import Settings, launch

BLOCK_QUERIES, BLOCK_KEYS = 64, 64
"""Tokens of a program, and keys that it takes at once; fewer where numbers are wide."""
MOST_FLOAT32 = 2048
"""Numbers of the queries of a program in float32, whose products go without tensor cores."""
ENOUGH_PROGRAMS = 96
"""Blocks of queries become smaller until there are so many programs: a GPU has about a hundred
multiprocessors, and one picture few tokens."""
CANDIDATES = (
    *(Settings((16, keys)) for keys in (32, 64)),
    *(Settings((32, keys)) for keys in (32, 64)),
    *(Settings((64, keys), num_stages=stages) for keys in (32, 64) for stages in (2, 3)),
    *(Settings((128, keys), num_warps=8) for keys in (32, 64)),
)
CANDIDATES_FLOAT32 = tuple(map(Settings, ((16, 32), (16, 64), (32, 32))))
"""Queries and keys of a program that may be better; of float32, registers hold less."""


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """Product of two blocks, added up in float32."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


def dot_settings(dtype: torch.dtype) -> dict[str, object]:
    """Constants of :func:`dot`: no TF32 for float32, and no product of bfloat16 in the interpreter,
    which takes it for an integer."""
    return {"PRECISION": "ieee", "WIDEN": interpreted() and dtype == torch.bfloat16}


@triton.jit
def _attention(
    q_ptr,  # (B, N, heads, D)
    k_ptr,  # (B, M, heads, D)
    v_ptr,  # (B, M, heads, D)
    out_ptr,  # (B, N, heads, D) dense
    q_batch,  # strides
    q_row,
    q_head,
    k_batch,
    k_row,
    k_head,
    v_batch,
    v_row,
    v_head,
    heads,
    queries,  # N
    keys,  # M
    scale,  # of the scores, times log2(e)
    WIDTH: tl.constexpr,  # D
    KEY_BLOCKS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    batch, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    row = (tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)).to(tl.int64)
    column = tl.arange(0, BLOCK_WIDTH)
    inside = column < WIDTH
    here = (row < queries)[:, None] & inside[None, :]
    q_at = batch * q_batch + row[:, None] * q_row + head * q_head + column[None, :]
    q = tl.load(q_ptr + q_at, mask=here, other=0.0)
    # Finite: where all scores so far are -inf, none of them counts.
    most = tl.full((BLOCK_QUERIES,), -3.0e38, tl.float32)
    total = tl.zeros((BLOCK_QUERIES,), tl.float32)
    found = tl.zeros((BLOCK_QUERIES, BLOCK_WIDTH), tl.float32)
    k_ptr += batch * k_batch + head * k_head
    v_ptr += batch * v_batch + head * v_head
    for block in range(KEY_BLOCKS):
        key = (block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)).to(tl.int64)
        there = (key < keys)[:, None] & inside[None, :]
        k = tl.load(k_ptr + key[:, None] * k_row + column[None, :], mask=there, other=0.0)
        v = tl.load(v_ptr + key[:, None] * v_row + column[None, :], mask=there, other=0.0)
        scores = dot(q, tl.trans(k), PRECISION, WIDEN) * scale
        scores = tl.where((key < keys)[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(most - higher)
        total = total * fade + tl.sum(weights, axis=1)
        found *= fade[:, None]
        found += dot(weights.to(v.dtype), v, PRECISION, WIDEN)
        most = higher
    found /= total[:, None]
    out_at = ((batch * queries + row[:, None]) * heads + head) * WIDTH + column[None, :]
    tl.store(out_ptr + out_at, found.to(out_ptr.dtype.element_ty), mask=here)


def plan(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, settings: Settings | None = None
) -> list[Launch]:
    """What is launched; without settings, with fixed ones."""
    batch, queries, heads, width = q.shape
    block_width = max(16, triton.next_power_of_2(width))
    settings = settings or Settings(_fixed_blocks(q, k, block_width))
    block_queries, block_keys = settings.blocks
    arguments: dict[str, Tensor | int | float | None] = {
        "q_ptr": q,
        "k_ptr": k,
        "v_ptr": v,
        "out_ptr": out,
        **_strides("q", q),
        **_strides("k", k),
        **_strides("v", v),
        "heads": heads,
        "queries": queries,
        "keys": k.shape[1],
        "scale": math.log2(math.e) / math.sqrt(width),
    }
    blocks = {
        "WIDTH": width,
        "KEY_BLOCKS": triton.cdiv(k.shape[1], block_keys),
        "BLOCK_QUERIES": block_queries,
        "BLOCK_KEYS": block_keys,
        "BLOCK_WIDTH": block_width,
        **dot_settings(q.dtype),
    }
    grid = triton.cdiv(queries, block_queries), batch * heads
    return [Launch(_attention, grid, arguments, blocks, settings.num_warps, settings.num_stages)]


def _fixed_blocks(q: Tensor, k: Tensor, block_width: int) -> tuple[int, int]:
    batch, queries, heads, _ = q.shape
    # Products of float32 without tensor cores hold more in registers.
    wide = q.dtype == torch.float32
    block_queries = BLOCK_QUERIES
    while block_queries > 16 and (
        triton.cdiv(queries, block_queries) * batch * heads < ENOUGH_PROGRAMS
        or block_queries >= 2 * queries
        or (wide and block_queries * block_width > MOST_FLOAT32)
    ):
        block_queries //= 2
    return block_queries, BLOCK_KEYS // 2 if wide or block_width > 64 else BLOCK_KEYS


def _strides(name: str, x: Tensor) -> dict[str, int]:
    return {f"{name}_batch": x.stride(0), f"{name}_row": x.stride(1), f"{name}_head": x.stride(2)}


@torch.library.custom_op("dithead::attention", mutates_args=())
def _operation(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = _fake(q, k, v)
    shape, candidates = (*q.shape, k.shape[1]), CANDIDATES
    if q.dtype == torch.float32:
        candidates = CANDIDATES_FLOAT32
    launch("attention", shape, (out,), lambda blocks: plan(q, k, v, out, blocks), candidates)
    return out


@_operation.register_fake
def _fake(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, queries, heads, width = q.shape
    return torch.empty(batch, queries, heads * width, dtype=q.dtype, device=q.device)


def _reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    math_attention = reference.FUNCTIONS["math"]
    return reference.merge_heads(math_attention(*(x.transpose(1, 2) for x in (q, k, v))))


differentiate(_operation, _reference)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, with the softmax in float32.

    Args:
        q: (B, N, heads, D), k, v: (B, M, heads, D); the D numbers of a head side by side, at most
            128 of them.

    Returns:
        (B, N, heads * D).

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    check_shape("q", q, ("B", "N", "heads", "D"))
    if (dtype := autocast_type(q.device)) is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    batch, _, heads, width = q.shape
    if width > MOST_WIDTH:
        raise ValueError(f"q: expected heads of at most {MOST_WIDTH} numbers, found {width}")
    check_shape("k", k, (batch, "M", heads, width))
    check_shape("v", v, k.shape)
    if k.shape[1] == 0 and q.numel() > 0:
        raise ValueError(f"k: expected at least one key, found the shape {tuple(k.shape)}")
    check_float(q=q)
    check_type(q.dtype, k=k, v=v)
    check_rows(q=q, k=k, v=v)
    check_device(q.device, k=k, v=v)
    return _operation(q, k, v)

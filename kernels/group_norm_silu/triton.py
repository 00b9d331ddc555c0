"""Group norm and SiLU in three launches: moments of each channel in chunks of positions, moments of
each group from those, and the result. The input is read twice and the result written once.

Moments are a mean and squared deviations from it, never a sum of squares: nothing overflows, and a
mean far from zero costs no digits. They are put together as by Chan, Golub and LeVeque (1979).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dithead.kernels.checks import check_device, check_float, check_shape
from dithead.kernels.gradients import differentiate
from dithead.kernels.group_norm_silu import reference
from dithead.kernels.launch import Launch
from dithead.kernels.settings import Settings, launch

_Arguments = dict[str, Tensor | int | float | None]

BLOCK_POSITIONS, BLOCK_CHANNELS = 64, 64
"""Of a program, with channels last."""
CHUNKS = 64
"""Parts of a picture whose moments are taken separately, at most."""
CANDIDATES = (
    *(Settings((64, 64, chunks)) for chunks in (128, 256)),
    *(Settings((32, channels, 256)) for channels in (64, 128)),
    Settings((128, 32, 64)),
)
"""The three in other numbers that may be better."""


@triton.jit
def _channel_moments(
    x_ptr,  # (B, C, P), P positions
    mean_ptr,  # (B, CHUNKS, C) float32
    spread_ptr,  # (B, CHUNKS, C) float32: sum of squared deviations
    x_batch,  # strides
    x_channel,
    x_position,
    channels,  # C
    positions,  # P
    BLOCKS: tl.constexpr,  # of a chunk
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    batch, chunk = tl.program_id(2).to(tl.int64), tl.program_id(1)
    channel = (tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    first = chunk * (BLOCKS * BLOCK_POSITIONS)
    end = tl.minimum(first + BLOCKS * BLOCK_POSITIONS, positions)
    mean = tl.zeros((1, BLOCK_CHANNELS), tl.float32)
    spread = tl.zeros((1, BLOCK_CHANNELS), tl.float32)
    for block in range(BLOCKS):
        before = tl.minimum(block * BLOCK_POSITIONS, end - first).to(tl.float32)
        start = first + block * BLOCK_POSITIONS
        position = (start + tl.arange(0, BLOCK_POSITIONS))[:, None].to(tl.int64)
        there = (position < end) & (channel < channels)
        at = batch * x_batch + channel.to(tl.int64) * x_channel + position * x_position
        x = tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
        # The last chunk may end before its last block.
        count = tl.maximum(tl.minimum(end - start, BLOCK_POSITIONS), 0).to(tl.float32)
        new = tl.sum(x, axis=0)[None, :] / tl.maximum(count, 1.0)
        off = tl.where(there, x - new, 0.0)
        share = count / (before + count)
        apart = new - mean
        mean += apart * share
        spread += tl.sum(off * off, axis=0)[None, :] + apart * apart * before * share
    out = (batch * tl.num_programs(1) + chunk) * channels + channel
    tl.store(mean_ptr + out, mean, mask=channel < channels)
    tl.store(spread_ptr + out, spread, mask=channel < channels)


@triton.jit
def _group_moments(
    mean_ptr,  # (B, CHUNKS, C) float32, of channels
    spread_ptr,  # (B, CHUNKS, C) float32
    group_mean_ptr,  # (B, G) float32
    group_scale_ptr,  # (B, G) float32: 1 / sqrt(variance + eps)
    channels,  # C
    positions,  # P
    per_chunk,
    chunks,
    eps,
    PER_GROUP: tl.constexpr,  # C / G
    BLOCK_CHUNKS: tl.constexpr,
    BLOCK_PER_GROUP: tl.constexpr,
):
    group, batch = tl.program_id(0), tl.program_id(1)
    inner = tl.arange(0, BLOCK_PER_GROUP)[None, :]
    chunk = tl.arange(0, BLOCK_CHUNKS)[:, None]
    there = (inner < PER_GROUP) & (chunk < chunks)
    at = (batch.to(tl.int64) * chunks + chunk) * channels + group * PER_GROUP + inner
    mean = tl.load(mean_ptr + at, mask=there, other=0.0)
    spread = tl.load(spread_ptr + at, mask=there, other=0.0)
    count = tl.minimum(positions - chunk * per_chunk, per_chunk).to(tl.float32)
    count = tl.where(there, count, 0.0)
    total = positions * 1.0 * PER_GROUP  # Triton takes a number that is 1 for a constant
    middle = tl.sum(tl.sum(mean * (count / total), axis=1), axis=0)
    apart = mean - middle
    squared = tl.sum(tl.sum(tl.where(there, spread + count * apart * apart, 0.0), axis=1), axis=0)
    out = batch * tl.num_programs(0) + group
    tl.store(group_mean_ptr + out, middle)
    tl.store(group_scale_ptr + out, 1.0 / tl.sqrt(squared / total + eps))


@triton.jit
def _normalise(
    x_ptr,  # (B, C, P)
    group_mean_ptr,  # (B, G) float32
    group_scale_ptr,  # (B, G) float32
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    out_ptr,  # (B, C, P), strides as x
    x_batch,
    x_channel,
    x_position,
    out_batch,
    channels,  # C
    positions,  # P
    PER_GROUP: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    batch = tl.program_id(2).to(tl.int64)
    channel = (tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    position = (tl.program_id(0) * BLOCK_POSITIONS + tl.arange(0, BLOCK_POSITIONS))[:, None]
    inside = channel < channels
    there = (position < positions) & inside
    at = channel.to(tl.int64) * x_channel + position.to(tl.int64) * x_position
    x = tl.load(x_ptr + batch * x_batch + at, mask=there, other=0.0).to(tl.float32)
    group = batch * (channels // PER_GROUP) + channel // PER_GROUP
    mean = tl.load(group_mean_ptr + group, mask=inside, other=0.0)
    scale = tl.load(group_scale_ptr + group, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    y = (x - mean) * (scale * weight) + bias
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(out_ptr + batch * out_batch + at, y.to(out_ptr.dtype.element_ty), mask=there)


def plan(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    out: Tensor,
    settings: Settings | None = None,
) -> list[Launch]:
    """What is launched; without settings, with fixed ones. The positions of ``x`` must lie at equal
    distances, and ``out`` as they do."""
    batch, channels, height, width = x.shape
    positions = height * width
    # Threads of a warp take neighbours in memory.
    tall = 1 if x.stride(1) == 1 else 4
    settings = settings or Settings((BLOCK_POSITIONS, BLOCK_CHANNELS, CHUNKS))
    block_positions, block_channels, most_chunks = settings.blocks
    blocks = {
        "BLOCK_POSITIONS": block_positions * tall,
        "BLOCK_CHANNELS": min(block_channels // tall, triton.next_power_of_2(channels)),
    }
    whole = triton.cdiv(positions, blocks["BLOCK_POSITIONS"])
    blocks_per_chunk = triton.cdiv(whole, min(most_chunks, whole))
    chunks = triton.cdiv(whole, blocks_per_chunk)
    per_chunk = blocks_per_chunk * blocks["BLOCK_POSITIONS"]
    moments = torch.empty(2, batch, chunks, channels, dtype=torch.float32, device=x.device)
    of_groups = torch.empty(2, batch, groups, dtype=torch.float32, device=x.device)
    layout: _Arguments = {"x_batch": x.stride(0), "x_channel": x.stride(1)}
    layout["x_position"] = x.stride(3) if width > 1 else x.stride(2)
    size: _Arguments = {"channels": channels, "positions": positions}
    per_group = channels // groups
    across = triton.cdiv(channels, blocks["BLOCK_CHANNELS"])
    first = Launch(
        _channel_moments,
        (across, chunks, batch),
        {"x_ptr": x, "mean_ptr": moments[0], "spread_ptr": moments[1]} | layout | size,
        {"BLOCKS": blocks_per_chunk, **blocks},
        settings.num_warps,
    )
    second = Launch(
        _group_moments,
        (groups, batch),
        {"mean_ptr": moments[0], "spread_ptr": moments[1]}
        | {"group_mean_ptr": of_groups[0], "group_scale_ptr": of_groups[1]}
        | size
        | {"per_chunk": per_chunk, "chunks": chunks, "eps": eps},
        {
            "PER_GROUP": per_group,
            "BLOCK_CHUNKS": triton.next_power_of_2(chunks),
            "BLOCK_PER_GROUP": triton.next_power_of_2(per_group),
        },
    )
    third = Launch(
        _normalise,
        (triton.cdiv(positions, blocks["BLOCK_POSITIONS"]), across, batch),
        {"x_ptr": x, "group_mean_ptr": of_groups[0], "group_scale_ptr": of_groups[1]}
        | {"weight_ptr": weight, "bias_ptr": bias, "out_ptr": out}
        | layout
        | {"out_batch": out.stride(0)}
        | size,
        {"PER_GROUP": per_group, "SILU": silu, **blocks},
        settings.num_warps,
    )
    return [first, second, third]


@torch.library.custom_op("dithead::group_norm_silu", mutates_args=())
def _operation(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    out = _fake(x, groups, weight, bias, eps, silu)
    # Positions at equal distances, channels where the result has them.
    strides = out.stride()
    if x.stride()[1:] != strides[1:]:
        x = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
    given = x, groups, weight, bias, eps, silu, out
    last = int(x.stride(1) == 1)
    launch(
        "group_norm_silu", (*x.shape, last), (out,), lambda blocks: plan(*given, blocks), CANDIDATES
    )
    return out


@_operation.register_fake
def _fake(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout)


differentiate(_operation, reference.group_norm_silu)


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool
) -> Tensor:
    """As :func:`dithead.kernels.group_norm_silu.group_norm_silu`. A layout that is neither
    channels first nor last is copied first.

    Raises:
        TypeError, ValueError: the tensors do not fit; each says what was expected.
    """
    check_shape("x", x, ("B", "C", "H", "W"))
    if groups < 1 or x.shape[1] % groups != 0:
        raise ValueError(f"groups: expected a divisor of {x.shape[1]} channels, found {groups}")
    for name, line in (("weight", weight), ("bias", bias)):
        check_shape(name, line, x.shape[1:2])
    check_float(x=x, weight=weight, bias=bias)
    check_device(x.device, weight=weight, bias=bias)
    return _operation(x, groups, weight.contiguous(), bias.contiguous(), eps, silu)

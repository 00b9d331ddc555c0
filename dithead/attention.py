"""Attention by name: PyTorch's fused kernel by default; flash-attn or xFormers by explicit choice,
never by accident."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError

AttentionBackend = Literal["sdpa", "math", "flash-attn", "xformers"]


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, M)
    return scores.float().softmax(-1).to(v.dtype) @ v


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise BackendUnavailable(
            "attention backend 'flash-attn' needs the package flash-attn: "
            "pip install 'dithead[flash]'"
        ) from error
    out = flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    try:
        from xformers.ops import memory_efficient_attention
    except ImportError as error:
        raise BackendUnavailable(
            "attention backend 'xformers' needs the package xformers: "
            "pip install 'dithead[xformers]'"
        ) from error
    out = memory_efficient_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "math": _math,
    "flash-attn": _flash,
    "xformers": _xformers,
}


def attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, heads, N, D). k, v: (B, heads, M, D).
        backend: ``sdpa`` is torch.nn.functional.scaled_dot_product_attention, which itself uses
            flash attention on a GPU where the shapes allow; ``math`` is the formula spelt out,
            whose backward pass is several times faster on a CPU at our sizes; the others call the
            named package and raise where it is absent.

    Raises:
        ConfigError: unknown backend. BackendUnavailable: its package is not installed.
    """
    if backend not in _BACKENDS:
        raise ConfigError(
            f"unknown attention backend {backend!r}; choose one of {', '.join(_BACKENDS)}"
        )
    return _BACKENDS[backend](q, k, v)

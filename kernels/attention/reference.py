"""Attention by PyTorch, and by the packages whose kernels it can be handed to."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import BackendUnavailable

PACKAGES = {"flash": ("flash-attn", "flash_attn"), "xformers": ("xformers", "xformers.ops")}
MOST_WIDTH, MOST_AUDIO_TOKENS = 128, 16
"""Numbers of a head, and audio tokens, that the Triton kernels hold in registers."""
_HALF = (torch.float16, torch.bfloat16)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads), a view."""
    b, n, d = x.shape
    return x.reshape(b, n, heads, d // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, N, D / heads) -> (B, N, D)."""
    b, h, n, d = x.shape
    return x.transpose(1, 2).reshape(b, n, h * d)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, M)
    return scores.float().softmax(-1).to(v.dtype) @ v


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flash_attn = package("flash")
    dtype = q.dtype if q.dtype in _HALF else torch.float16  # its kernels support no other
    out = flash_attn.flash_attn_func(*(x.to(dtype).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).to(q.dtype)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = package("xformers")
    out = ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def package(backend: str) -> Any:
    """The package behind a back end. Raises BackendUnavailable: it is not installed."""
    name, module = PACKAGES[backend]
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"attention {backend!r} needs the package {name}",
            hint=f"pip install 'dithead[{backend}]'",
        ) from error


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "math": _math,
    "flash": _flash,
    "xformers": _xformers,
}
"""q (B, heads, N, D); k, v (B, heads, M, D) -> (B, heads, N, D), by name."""

"""Attention by PyTorch, and by the packages whose kernels it can be handed to."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import BackendUnavailable
from dithead.kernels.attention.flash import capability, flash_attention

PACKAGES = ("flash", "xformers")
"""Back ends that a package of that name runs on CUDA devices."""
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
    _, attend = flash_attention(capability(q.device), q.shape[-1])
    dtype = q.dtype if q.dtype in _HALF else torch.float16  # its kernels support no other
    made = attend(*(x.to(dtype).transpose(1, 2) for x in (q, k, v)))
    out: Tensor = made[0] if isinstance(made, tuple) else made  # with the scores' logarithmic sum
    return out.transpose(1, 2).to(q.dtype)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = require_xformers().memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def require_xformers() -> Any:
    """xFormers' operators. Raises BackendUnavailable: the package is not installed."""
    try:
        return import_module("xformers.ops")
    except ImportError as error:
        raise BackendUnavailable(
            "attention 'xformers' needs the package xformers",
            hint="pip install 'dithead[xformers]'",
        ) from error


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "math": _math,
    "flash": _flash,
    "xformers": _xformers,
}
"""q (B, heads, N, D); k, v (B, heads, M, D) -> (B, heads, N, D), by name."""

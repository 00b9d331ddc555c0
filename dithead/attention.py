"""Attention by name: PyTorch's fused kernel by default; flash-attn or xFormers only by explicit
choice."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError

AttentionBackend = Literal["sdpa", "math", "flash", "xformers"]
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = get_args(AttentionBackend)

_PACKAGES = {"flash": ("flash-attn", "flash_attn"), "xformers": ("xformers", "xformers.ops")}
_HALF = (torch.float16, torch.bfloat16)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, heads, N, M)
    return scores.float().softmax(-1).to(v.dtype) @ v


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    flash_attn = _package("flash")
    dtype = q.dtype if q.dtype in _HALF else torch.float16  # its kernels support no other
    out = flash_attn.flash_attn_func(*(x.to(dtype).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).to(q.dtype)


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = _package("xformers")
    out = ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2)


def _package(backend: str) -> Any:
    package, module = _PACKAGES[backend]
    try:
        return import_module(module)
    except ImportError as error:
        raise BackendUnavailable(
            f"attention {backend!r} needs the package {package}",
            hint=f"pip install 'dithead[{backend}]'",
        ) from error


_FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "sdpa": _sdpa,
    "math": _math,
    "flash": _flash,
    "xformers": _xformers,
}


def check_attention(backend: str, device: torch.device) -> None:
    """Refuse what cannot run on a device, before anything is loaded.

    Raises:
        ConfigError: unknown backend.
        BackendUnavailable: its package is not installed, or it does not run on this device.
    """
    if backend not in _FUNCTIONS:
        raise ConfigError(
            f"unknown attention {backend!r}", hint=f"choose one of {', '.join(_FUNCTIONS)}"
        )
    if backend not in _PACKAGES:
        return
    _package(backend)
    if device.type != "cuda":
        raise BackendUnavailable(
            f"attention {backend!r} runs on a CUDA device, not on {device}",
            hint="choose the device cuda, or the attention sdpa",
        )


def attention(q: Tensor, k: Tensor, v: Tensor, backend: AttentionBackend = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q: (B, heads, N, D). k, v: (B, heads, M, D).
        backend: ``sdpa`` is torch.nn.functional.scaled_dot_product_attention, which itself uses
            flash attention on a GPU if the shapes allow; ``math`` is the formula written out, whose
            backward pass is several times faster on a CPU at our sizes; ``flash`` and ``xformers``
            call the package of that name and raise an error if it is missing. ``flash`` computes in
            float16 if the inputs are float32.

    Raises:
        ConfigError: unknown backend. BackendUnavailable: its package is not installed.
    """
    if backend not in _FUNCTIONS:
        raise ConfigError(
            f"unknown attention {backend!r}", hint=f"choose one of {', '.join(_FUNCTIONS)}"
        )
    return _FUNCTIONS[backend](q, k, v)

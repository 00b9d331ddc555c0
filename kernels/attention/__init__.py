"""Attention by name: over the tokens of a picture, and over a handful of audio tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError
from dithead.kernels.attention import reference
from dithead.kernels.attention.flash import capability, flash_attention
from dithead.kernels.attention.reference import (
    MOST_AUDIO_TOKENS,
    MOST_WIDTH,
    merge_heads,
    split_heads,
)
from dithead.kernels.choice import missing, triton_is_chosen
from dithead.kernels.modulated_layer_norm import add_branch

AttentionBackend = Literal["auto", "sdpa", "math", "flash", "xformers", "triton"]
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = get_args(AttentionBackend)

LEAST_WIDTH = 8
"""Numbers of a head for which ``auto`` takes the Triton kernels."""

__all__ = [
    "ATTENTION_BACKENDS",
    "AttentionBackend",
    "attention",
    "audio_attention",
    "check_attention",
    "merge_heads",
    "self_attention",
    "split_heads",
]


def check_attention(backend: str, device: torch.device) -> None:
    """Refuse what cannot run on a device, before anything is loaded.

    Raises:
        ConfigError: unknown back end.
        BackendUnavailable: its package is not installed, or it does not run on this device.
    """
    _check_name(backend)
    if backend == "triton" and (reason := missing(device)) is not None:
        raise BackendUnavailable(
            f"attention 'triton' cannot run on {device}: {reason}", hint="choose the attention sdpa"
        )
    if backend not in reference.PACKAGES:
        return
    if backend == "flash":
        flash_attention(capability(device))
    else:
        reference.require_xformers()
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
            call the package of that name and raise an error if it is missing. ``flash`` is the
            version of FlashAttention that is there and suits the GPU (see
            :mod:`dithead.kernels.attention.flash`), in float16 if the inputs are float32.
            ``triton`` is this package's kernel, for heads of at most 128 numbers; ``auto`` is that
            where it is made for the device (see :mod:`dithead.kernels.choice`), and otherwise
            ``sdpa``.

    Raises:
        ConfigError: unknown back end. BackendUnavailable: it cannot run here.
    """
    if _triton(backend, q.shape[-1], q, k, v):
        from dithead.kernels.attention import triton

        tokens_first = (x.transpose(1, 2) for x in (q, k, v))  # (B, N, heads, D)
        return split_heads(triton.attention(*tokens_first), q.shape[1])
    return reference.FUNCTIONS[_fallback(backend)](q, k, v)


def self_attention(qkv: Tensor, heads: int, backend: AttentionBackend = "sdpa") -> Tensor:
    """Attention of tokens among themselves, from their packed projection.

    Args:
        qkv: (B, N, 3 D), queries, keys and values, each of all heads one after the other.
        backend: see :func:`attention`.

    Returns:
        (B, N, D).
    """
    if _triton(backend, qkv.shape[-1] // (3 * heads), qkv):
        from dithead.kernels.attention import triton

        parts = qkv.unflatten(-1, (3, heads, -1)).unbind(2)  # (B, N, heads, D / heads)
        return triton.attention(*parts)
    q, k, v = (split_heads(part, heads) for part in qkv.chunk(3, dim=-1))
    return merge_heads(attention(q, k, v, _fallback(backend)))


def audio_attention(
    x: Tensor,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    out: Callable[[Tensor], Tensor],
    gate: Tensor | None,
    backend: AttentionBackend = "sdpa",
) -> Tensor:
    """x + gate * out(attention of the tokens to the audio).

    Args:
        x: (B, N, D), the residual stream. q: (B, N, D), queries.
        keys, values: (B, heads, M, D / heads).
        out: the projection of what was found; a ``torch.nn.Linear`` where the kernel is to run.
        gate: (B, 1, D), None for 1.
        backend: see :func:`attention`. The kernel takes up to 16 audio tokens.

    Returns:
        (B, N, D).
    """
    # Where only products run in a lower precision, the context is float32.
    keys, values = keys.to(q.dtype), values.to(q.dtype)
    takes = isinstance(out, torch.nn.Linear) and keys.shape[2] <= MOST_AUDIO_TOKENS
    given = (x, q, keys, values, gate)
    learnt = (out.weight, out.bias) if isinstance(out, torch.nn.Linear) else ()
    if (takes or backend == "triton") and _triton(backend, keys.shape[3], *given, *learnt):
        from dithead.kernels.attention import tritonaudio

        return tritonaudio.audio_attention(*given, out)
    found = attention(split_heads(q, keys.shape[1]), keys, values, _fallback(backend))
    return add_branch(x, out(merge_heads(found)), gate)


def _fallback(backend: AttentionBackend) -> AttentionBackend:
    return "sdpa" if backend == "auto" else backend


def _triton(backend: AttentionBackend, width: int, *tensors: Tensor | None) -> bool:
    """Whether the Triton kernel is to run; width: numbers of a head."""
    _check_name(backend)
    if backend == "auto":
        return LEAST_WIDTH <= width <= MOST_WIDTH and triton_is_chosen("auto", *tensors)
    return backend == "triton" and triton_is_chosen("triton", *tensors)


def _check_name(backend: str) -> None:
    if backend not in ATTENTION_BACKENDS:
        raise ConfigError(
            f"unknown attention {backend!r}", hint=f"choose one of {', '.join(ATTENTION_BACKENDS)}"
        )

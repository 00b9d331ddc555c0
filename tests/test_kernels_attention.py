"""Attention by Triton equals its definition: under the interpreter, or on a GPU if there is one."""

from __future__ import annotations

import pytest
import torch
from exactness import DEVICE, DTYPES, close, exact_attention, numbers
from torch import nn

from dithead.kernels.attention import attention, audio_attention, self_attention

pytestmark = pytest.mark.usefixtures("unwritten_memory_is_nan")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width"),
    [(1, 64, 4, 64), (2, 1, 1, 32), (1, 77, 3, 40), (1, 200, 2, 128), (2, 33, 2, 72)],
)
def test_self_attention(
    batch: int, tokens: int, heads: int, width: int, dtype: torch.dtype
) -> None:
    qkv = numbers(batch, tokens, 3 * heads * width, dtype=dtype)
    found = self_attention(qkv, heads, "triton")
    assert found.dtype == dtype
    parts = qkv.unflatten(2, (3, heads, width)).unbind(2)
    close(found, exact_attention(*parts), dtype)


def test_self_attention_of_many_tokens() -> None:
    qkv = numbers(1, 1024, 3 * 32, dtype=torch.float16)
    parts = qkv.unflatten(2, (3, 1, 32)).unbind(2)
    close(self_attention(qkv, 1, "triton"), exact_attention(*parts), torch.float16)


def test_attention_of_parts_that_are_not_dense_nor_aligned() -> None:
    memory = numbers(2, 3, 50, 41, dtype=torch.float16)
    q, k, v = (part[:, :, i : 37 + i, i : 32 + i] for i, part in enumerate([memory] * 3))
    found = attention(q, k, v, "triton")
    expected = exact_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    close(found.transpose(1, 2).flatten(2), expected, torch.float16)


def test_scores_that_are_large_and_alike() -> None:
    """The softmax is taken from the largest score, which may leave float16's range."""
    qkv = 30.0 + numbers(1, 40, 3 * 64, dtype=torch.float16)
    parts = qkv.unflatten(2, (3, 1, 64)).unbind(2)
    found = self_attention(qkv, 1, "triton")
    assert found.isfinite().all()
    close(found, exact_attention(*parts), torch.float16, scale=30.0)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_keys_that_do_not_count_come_first() -> None:
    """A whole block of scores of -inf."""
    q, k, v = numbers(1, 1, 4, 32), numbers(1, 1, 70, 32), numbers(1, 1, 70, 32)
    q[...], k[:, :, :64], k[:, :, 64:] = 1e20, -1e20, 0.0
    found = attention(q, k, v, "triton")
    torch.testing.assert_close(found, v[:, :, 64:].mean(2, keepdim=True).expand_as(found))


def test_no_tokens_or_no_batch_give_nothing() -> None:
    q, k = numbers(0, 2, 3, 32), numbers(0, 2, 5, 32)
    assert attention(q, k, k, "triton").shape == (0, 2, 3, 32)
    assert self_attention(numbers(2, 0, 3 * 64), 2, "triton").shape == (2, 0, 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "width", "keys", "gated"),
    [(1, 64, 4, 64, 11, True), (2, 37, 3, 40, 1, False), (1, 5, 1, 32, 16, True)],
)
def test_audio_attention(
    batch: int, tokens: int, heads: int, width: int, keys: int, gated: bool, dtype: torch.dtype
) -> None:
    d = heads * width
    x, q = numbers(batch, tokens, d, dtype=dtype), numbers(batch, tokens, d, dtype=dtype)
    k, v = numbers(2, batch, heads, keys, width, dtype=dtype)
    gate = numbers(batch, 7, d, dtype=dtype)[:, 3:4] if gated else None
    out = nn.Linear(d, d).to(DEVICE, dtype).requires_grad_(False)
    found = audio_attention(x, q, k, v, out, gate, "triton")
    heard = exact_attention(q.unflatten(2, (heads, width)), k.transpose(1, 2), v.transpose(1, 2))
    sent = heard @ out.weight.double().T + out.bias.double()
    expected = x.double() + (sent if gate is None else gate.double() * sent)
    close(found, expected, dtype, scale=2.0)  # of a sum of three


def test_a_stream_in_float32_hears_in_half_precision() -> None:
    x = numbers(1, 16, 64)
    q, gate = numbers(1, 16, 64, dtype=torch.float16), numbers(1, 1, 64)
    k, v = numbers(2, 1, 2, 11, 32)
    out = nn.Linear(64, 64).to(DEVICE, torch.float16).requires_grad_(False)
    found = audio_attention(x, q, k, v, out, gate, "triton")
    assert found.dtype == torch.float32
    close(found, audio_attention(x, q, k, v, out, gate, "math"), torch.float16)

"""Whisper's encoder (Radford et al., 2022, section 2.2), with the weights' names from transformers.
Importing transformers' own takes longer than PyTorch, and 150 MB."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.kernels.attention import attention
from dithead.linear import Linear


class WhisperBody(nn.Module):
    """Two convolutions and a stack of transformer blocks; returns hidden states.

    Args:
        mels: bins of the spectrogram.
        width: width of a feature.
        depth: number of blocks.
        heads: heads of each attention.
        hidden: width of each block's MLP.
        length: features of a chunk.
    """

    def __init__(
        self, mels: int, width: int, depth: int, heads: int, hidden: int, length: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(WhisperBlock(width, heads, hidden) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(width)
        # Computed, so not part of any checkpoint.
        self.positions: Tensor
        self.register_buffer("positions", sinusoids(length, width), persistent=False)

    def forward(self, mel: Tensor, layers: Sequence[int], rows: slice) -> list[Tensor]:
        """Some of a spectrogram's hidden states; only what they depend on is computed.

        Args:
            mel: (B, mels, 2 * length).
            layers: i for the input of block i, the depth (or -1) for the normed output of the last
                one.
            rows: which features.

        Returns:
            (B, rows, width) of each layer.
        """
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))  # (B, width, 2 * length)
        x = F.gelu(self.conv2(x)).transpose(1, 2) + self.positions  # (B, length, width)
        depth = len(self.layers)
        wanted = [layer % (depth + 1) for layer in layers]
        last, states = max(wanted), [x]
        for number, block in enumerate(self.layers[:last], 1):
            # Of the last block, only these rows are needed; the others are keys and values.
            states.append(block(states[-1], rows if number == last else slice(None)))
        found = [states[i] if 0 < i == last else states[i][:, rows] for i in wanted]
        return [self.layer_norm(x) if i == depth else x for i, x in zip(wanted, found, strict=True)]


class WhisperBlock(nn.Module):
    """Attention and an MLP, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, hidden, gelu="none")
        self.fc2 = Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, rows: slice) -> Tensor:
        """(B, N, width) -> those rows of the result (B, M, width)."""
        x = x[:, rows] + self.self_attn(self.self_attn_layer_norm(x), rows)
        out: Tensor = x + self.fc2(self.fc1(self.final_layer_norm(x)))
        return out


class WhisperAttention(nn.Module):
    """Attention of all features to all; keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(width, width)
        self.k_proj = Linear(width, width, bias=False)
        self.v_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, rows: slice) -> Tensor:
        """(B, N, width) -> those rows of the result (B, M, width)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, M or N, D)
            for part in (self.q_proj(x[:, rows]), self.k_proj(x), self.v_proj(x))
        )
        out: Tensor = self.out_proj(attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's position encodings: (length, width) float32, sines then cosines."""
    step = math.log(10_000.0) / (width // 2 - 1)
    rates = torch.exp(-step * torch.arange(width // 2, dtype=torch.float64))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()

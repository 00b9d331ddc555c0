"""What the tests of speech features share: a sound, and an encoder that costs nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from dithead.audio import (
    AudioConfig,
    AudioEncoder,
)

CONFIG = AudioConfig()


def voiced(seconds: float, seed: int = 0) -> Tensor:
    """A harmonic sound of gliding pitch and changing loudness, with a little noise: (S,)."""
    count = round(seconds * 16_000)
    time = torch.arange(count, dtype=torch.float64) / 16_000
    phase = 2 * torch.pi * (120 * time + 6 * torch.sin(5 * time + seed))
    sound = sum(torch.sin(k * phase) / k for k in range(1, 10))
    loudness = 0.1 * (0.55 + 0.45 * torch.sin(20 * time))
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sound * loudness + 0.003 * noise).float()


class PowerEncoder(AudioEncoder):
    """A cheap stand-in whose features depend on a chunk's sound, positions and context."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(7)
        self.mix = torch.nn.Parameter(torch.randn(320, config.feature_dim, generator=generator))

    def encode(self, samples: Tensor) -> Tensor:
        parts = samples.unflatten(1, (-1, 320))  # (B, chunk_features, 320)
        context = parts.square().mean(dim=(1, 2), keepdim=True)
        return (parts @ self.mix + context)[:, self.hop]

"""The diffusion process: schedules, the training loss, DDIM sampling for any number of steps, and
the noise graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from dithead.config import DiffusionConfig
from dithead.errors import ConfigError
from dithead.kernels.ddim_step import ddim_step, split


def signal_levels(config: DiffusionConfig) -> Tensor:
    """Cumulative signal levels alpha-bar of the training schedule: (timesteps,) float64, falling.

    ``linear`` is ADM's (Dhariwal and Nichol, arXiv 2105.05233), ``cosine`` Nichol and Dhariwal's
    (arXiv 2102.09672).
    """
    n = config.timesteps
    if config.schedule == "linear":
        scale = 1000.0 / n
        betas = torch.linspace(scale * 1e-4, scale * 2e-2, n, dtype=torch.float64).clamp(max=0.999)
        return torch.cumprod(1.0 - betas, 0)
    t = torch.arange(n + 1, dtype=torch.float64) / n
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    betas = (1.0 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.cumprod(1.0 - betas, 0)


def ddim_timesteps(config: DiffusionConfig, steps: int) -> list[int]:
    """Timesteps visited by a sampler of so many steps, from the noisiest down ("trailing" spacing,
    arXiv 2305.08891).

    Raises:
        ConfigError: steps not in 1..timesteps.
    """
    if not 1 <= steps <= config.timesteps:
        raise ConfigError(f"steps must lie in 1..{config.timesteps}, not {steps}")
    spacing = config.timesteps / steps
    return [round(config.timesteps - i * spacing) - 1 for i in range(steps)]


class Diffusion(nn.Module):
    """The forward process and its inversion; has the schedule, but no weights.

    The network's output is the noise or the velocity sqrt(a) * noise - sqrt(1 - a) * clean, by
    ``config.prediction``.
    """

    signal: Tensor
    sigma: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        levels = signal_levels(config)
        self.register_buffer("signal", levels.sqrt().float(), persistent=False)
        self.register_buffer("sigma", (1.0 - levels).sqrt().float(), persistent=False)

    def _at(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, 1, 1, 1)
        return self.signal[timestep].view(shape), self.sigma[timestep].view(shape)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """q(x_t | x_0): clean, noise (B, C, S, S); timestep (B,) -> (B, C, S, S)."""
        signal, sigma = self._at(timestep)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the network should predict, (B, C, S, S)."""
        if self.config.prediction == "noise":
            return noise
        signal, sigma = self._at(timestep)
        return signal * noise - sigma * clean

    def split(self, noisy: Tensor, prediction: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Estimated clean latent and noise, each (B, C, S, S), in float32."""
        tables = self.signal, self.sigma
        return split(noisy, prediction, *tables, timestep, self.config.prediction)

    def noise_in(self, noisy: Tensor, clean: Tensor, timestep: Tensor) -> Tensor:
        """The noise with which a clean latent becomes a noisy one, all (B, C, S, S): inverse of
        :meth:`add_noise`."""
        signal, sigma = self._at(timestep)
        return (noisy - signal * clean) / sigma

    def ddim_update(
        self, noisy: Tensor, prediction: Tensor, timestep: Tensor, following: Tensor
    ) -> Tensor:
        """One deterministic DDIM step (eta = 0; arXiv 2010.02502, eq. 12).

        Args:
            following: (B,) the next timestep; -1 means the clean latent.
        """
        tables = self.signal, self.sigma
        return ddim_step(noisy, prediction, *tables, timestep, following, self.config.prediction)

    def sample(
        self, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int
    ) -> Tensor:
        """DDIM from pure noise to a clean latent.

        Args:
            predict: (noisy (B, C, S, S), timestep (B,)) -> network output. noise: (B, C, S, S).
        """
        visits = [*ddim_timesteps(self.config, steps), -1]
        latent = noise
        for now, following in pairwise(visits):
            t = torch.full((noise.shape[0],), now, device=noise.device, dtype=torch.long)
            latent = self.ddim_update(latent, predict(latent, t), t, torch.full_like(t, following))
        return latent


class InitialNoise(nn.Module):
    """The ``noise`` graph: standard normal noise keyed by (seed, frame), the same on every device
    and in every language.

    Counter-based: each output is a hash (the finaliser of MurmurHash3, twice, in 32-bit arithmetic
    held in int64) of seed, frame and position, converted to a normal value by the Box-Muller
    transform in float64, so every back end rounds the same way.
    """

    counter: Tensor

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.register_buffer(
            "counter", torch.arange(channels * size * size, dtype=torch.int64), persistent=False
        )

    def forward(self, seed: Tensor, frame: Tensor) -> Tensor:
        """seed, frame: (B,) int64, at least 0, of which the lower 32 bits count -> noise (B, C, S,
        S) float32."""
        key = _hash32(_hash32(seed & _MASK32) ^ (frame & _MASK32))[:, None]  # (B, 1)
        first = _hash32(key ^ _hash32(2 * self.counter))  # (B, C*S*S)
        second = _hash32(key ^ _hash32(2 * self.counter + 1))
        u1 = (first.double() + 1.0) / 4294967296.0  # (0, 1]
        u2 = second.double() / 4294967296.0
        normal = torch.sqrt(-2.0 * torch.log(u1)) * torch.cos(2.0 * math.pi * u2)
        return normal.float().view(-1, *self.shape)


_MASK32 = 0xFFFFFFFF


def _multiply32(x: Tensor, factor: int) -> Tensor:
    # (x * factor) mod 2**32 without leaving int64: 32 x 16 bits at a time.
    low = x * (factor & 0xFFFF)
    high = (x * (factor >> 16)) & 0xFFFF
    return (low + (high << 16)) & _MASK32


def _hash32(x: Tensor) -> Tensor:
    x = (x + 0x9E3779B9) & _MASK32
    x = _multiply32(x ^ (x >> 16), 0x85EBCA6B)
    x = _multiply32(x ^ (x >> 13), 0xC2B2AE35)
    return x ^ (x >> 16)

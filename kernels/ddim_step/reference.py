"""One step of DDIM in plain PyTorch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["noise", "velocity"]


def split(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    predicts: Prediction,
) -> tuple[Tensor, Tensor]:
    """Estimated clean latent and noise, each (B, C, S, S), in float32; arguments as
    :func:`dithead.kernels.ddim_step.ddim_step`."""
    level, deviation = signal[timestep].view(-1, 1, 1, 1), sigma[timestep].view(-1, 1, 1, 1)
    noisy, prediction = noisy.float(), prediction.float()
    if predicts == "noise":
        return (noisy - deviation * prediction) / level, prediction
    return level * noisy - deviation * prediction, deviation * noisy + level * prediction


def ddim_step(
    noisy: Tensor,
    prediction: Tensor,
    signal: Tensor,
    sigma: Tensor,
    timestep: Tensor,
    following: Tensor,
    predicts: Prediction,
) -> Tensor:
    """As :func:`dithead.kernels.ddim_step.ddim_step`."""
    clean, noise = split(noisy, prediction, signal, sigma, timestep, predicts)
    after = following.clamp(min=0)
    level, deviation = signal[after].view(-1, 1, 1, 1), sigma[after].view(-1, 1, 1, 1)
    last = (following < 0).view(-1, 1, 1, 1)
    return torch.where(last, clean, level * clean + deviation * noise)

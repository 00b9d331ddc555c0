"""Copies from the host to a device without waiting.

A copy from ordinary memory makes the host wait for a GPU, and cannot be captured into a CUDA graph.
So graphs use buffers, or numbers written on the device, never ``torch.tensor(..., device=...)``,
nor a list as an index, which is such a copy, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """A copy of a host tensor on a device, in the order of the current stream's work."""
    if device.type == "cuda":
        return value.pin_memory().to(device, non_blocking=True)
    return value.to(device, copy=True)


def written(values: Sequence[float], device: torch.device) -> Tensor:
    """A few numbers (N,) float32, written on the device itself."""
    parts = [torch.full((), value, dtype=torch.float32, device=device) for value in values]
    return torch.stack(parts)

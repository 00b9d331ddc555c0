"""FlashAttention: which of its versions is there, and suits a GPU.

All three have ``flash_attn_func`` of (B, N, heads, D) in half precision; 3 and 4 may return the
logarithm of the sum of the scores beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from dithead.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class FlashVersion:
    """A version, and what its kernels are made for."""

    number: int
    module: str
    capabilities: tuple[int, ...] | None = None
    """Major numbers of compute capabilities; None: not asked."""
    widths: tuple[int, ...] | None = None
    """Numbers of a head; None: not asked."""

    def suits(self, capability: tuple[int, int] | None, width: int | None) -> bool:
        """Whether it is made for a GPU, None for none, and for heads of a width, None for any."""
        fits = width is None or self.widths is None or width in self.widths
        if self.capabilities is None:
            return fits
        return fits and capability is not None and capability[0] in self.capabilities


VERSIONS = (
    FlashVersion(3, "flash_attn_interface", (9,)),
    FlashVersion(4, "flash_attn.cute", (9, 10), (64, 96, 128)),
    FlashVersion(2, "flash_attn"),
)
"""In the order in which they are looked for. 3 is made for Hopper (9.0), 4 for that and for data
centres' Blackwell (10.x), with the widths of heads that its interface lists."""


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of a CUDA device; None where there is none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def installed() -> list[FlashVersion]:
    """The versions that can be imported."""
    return [version for version in VERSIONS if _function(version) is not None]


@cache
def flash_attention(
    capability: tuple[int, int] | None, width: int | None = None
) -> tuple[FlashVersion, Callable[..., Any]]:
    """The first version that is installed and suits, and its function.

    Args:
        capability: compute capability of the GPU; None where there is none.
        width: numbers of a head; None does not ask.

    Raises:
        BackendUnavailable: there is none; it says what was looked for.
    """
    wanted = [version for version in VERSIONS if version.suits(capability, width)]
    for version in wanted:
        if (function := _function(version)) is not None:
            return version, function
    modules = ", ".join(f"{one.module} (FlashAttention {one.number})" for one in wanted)
    gpu = "" if capability is None else f" on compute capability {capability[0]}.{capability[1]}"
    heads = "" if width is None else f" for heads of {width} numbers"
    raise BackendUnavailable(
        f"attention 'flash' needs the package flash-attn{gpu}{heads}; looked for {modules}",
        hint="pip install 'dithead[flash]'",
    )


def _function(version: FlashVersion) -> Callable[..., Any] | None:
    try:
        function: Callable[..., Any] = import_module(version.module).flash_attn_func
    except (ImportError, AttributeError, OSError):  # a folder without it; a library that is missing
        return None
    return function

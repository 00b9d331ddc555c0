"""A module in reduced precision: weights and matrix products in float16 or bfloat16, the rest in
float32.

What must not lose digits stays float32: statistics of norms, the denoiser's softmax, its residual
stream (its fixed positions are float32), the DDIM update, the codebook's distances, and every input
and output. The casts are part of the graph, so an engine
that is strongly typed runs exactly this.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from dithead.dit import Block
from dithead.errors import ConfigError
from dithead.export.specs import graph_specs
from dithead.torchgraphs import TorchGraphs

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)
_KEPT = ("log_mel",)
"""Parts that stay float32: the spectrogram, whose powers overflow."""


class _Reduced(nn.Module):
    """A product whose weights, input and output are of a lower precision."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner.to(dtype)
        self.dtype = dtype

    @property
    def weight(self) -> Tensor:
        return self.inner.weight  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.to(self.dtype))


class _Float32(nn.Module):
    """A norm that works in float32 and gives back the precision it was given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.float()).to(x.dtype)


class _Outputs32(nn.Module):
    """Casts floating outputs to float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        outputs = self.inner(*inputs)
        if isinstance(outputs, tuple):
            return tuple(o.float() if o.is_floating_point() else o for o in outputs)
        return outputs.float()


def check_precision(precision: str) -> None:
    """Raise ConfigError where a precision is unknown."""
    if precision not in DTYPES:
        raise ConfigError(f"unknown precision {precision!r}; choose one of {', '.join(DTYPES)}")


def reduce_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """A copy of a module in a precision, with the same inputs and outputs; float32 is the module
    itself.

    Raises:
        ConfigError: unknown precision.
    """
    check_precision(precision)
    if precision == "fp32":
        return module
    reduced = copy.deepcopy(module)
    _convert(reduced, DTYPES[precision])
    return _Outputs32(reduced).eval()


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    if isinstance(module, Block):
        module.attention_backend = "math"  # its softmax is float32
    for name, child in module.named_children():
        if name in _KEPT:
            continue
        if isinstance(child, _PRODUCTS):
            setattr(module, name, _Reduced(child, dtype))
        elif isinstance(child, _NORMS):
            setattr(module, name, _Float32(child))
        elif isinstance(child, nn.PReLU):
            child.to(dtype)
        else:
            _convert(child, dtype)


class ReducedGraphs(TorchGraphs):
    """Graphs in reduced precision in PyTorch, which rounds as a GPU does: what a precision costs
    can be measured with them on any machine.

    Args:
        models: the graphs in float32; those that stay float32 in a bundle are run as they are.
    """

    def __init__(self, models: TorchGraphs, precision: Precision) -> None:
        check_precision(precision)
        super().__init__(models.dithead, models.audio, models.detector, models.mesh)
        self._precision: Precision = precision
        self._reduced = {spec.name for spec in graph_specs() if spec.reduced}

    def _build(self, name: str) -> nn.Module:
        module = super()._build(name)
        return reduce_precision(module, self._precision) if name in self._reduced else module

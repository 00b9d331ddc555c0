"""Changes to layers for an export: products in reduced precision, and layers that ONNX Runtime
computes well.

In reduced precision, weights and matrix products are float16 or bfloat16. What must not lose digits
stays float32: statistics of norms, the denoiser's softmax, its residual stream (its fixed positions
are float32), the DDIM update, the codebook's distances, and every input and output. The casts are
part of the graph, so a strongly typed engine runs exactly this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.bundle.graphspecs import graph_specs
from dithead.dit import Block, ModulatedLayerNorm
from dithead.errors import ConfigError
from dithead.torchgraphs import TorchGraphs
from dithead.vqgan import GroupNormSiLU

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_FLOAT32_PARTS = ("log_mel",)
"""Parts that stay float32: the spectrogram, whose powers overflow."""


class _Reduced(nn.Module):
    """A product whose weights, input and output have a lower precision."""

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
    """A norm that computes in float32 and returns the precision of its input."""

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
    """Raise ConfigError if a precision is unknown."""
    if precision not in DTYPES:
        raise ConfigError(f"unknown precision {precision!r}; choose one of {', '.join(DTYPES)}")


def reduce_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """A copy of a module in a precision, with the same inputs and outputs; for float32 the module
    itself.

    Raises:
        ConfigError: unknown precision.
    """
    check_precision(precision)
    if precision == "fp32":
        return module
    dtype, reduced = DTYPES[precision], copy.deepcopy(module)

    def replacement(name: str, child: nn.Module) -> nn.Module | None:
        if isinstance(child, _PRODUCTS):
            return _Reduced(child, dtype)
        if isinstance(child, ModulatedLayerNorm | GroupNormSiLU):
            return child  # float32 inside
        if isinstance(child, nn.LayerNorm | nn.GroupNorm):
            return _Float32(child)
        if isinstance(child, nn.PReLU):
            return child.to(dtype)
        return child if name in _FLOAT32_PARTS else None

    for part in reduced.modules():
        if isinstance(part, Block):
            part.attention_backend = "math"  # its softmax is float32
    _replace_children(reduced, replacement)
    return _Outputs32(reduced).eval()


def _replace_children(
    module: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]
) -> None:
    """Replace each child that has a replacement; otherwise go on inside it."""
    for name, child in list(module.named_children()):
        new = replacement(name, child)
        if new is None:
            _replace_children(child, replacement)
        else:
            setattr(module, name, new)


class ReducedGraphs(TorchGraphs):
    """Graphs in reduced precision in PyTorch, which rounds as a GPU does, so that any machine can
    measure what a precision costs.

    Args:
        models: the graphs in float32; those that stay float32 in a bundle run as they are.
    """

    def __init__(self, models: TorchGraphs, precision: Precision) -> None:
        check_precision(precision)
        super().__init__(models.dithead, models.audio, models.faces)
        self._precision: Precision = precision
        self._reduced = {spec.name for spec in graph_specs() if spec.reduced}

    def _build(self, name: str) -> nn.Module:
        module = super()._build(name)
        return reduce_precision(module, self._precision) if name in self._reduced else module


class RowwiseGroupNorm(nn.Module):
    """:class:`torch.nn.GroupNorm` of (B, C, ..., W), with sums that keep their digits.

    ONNX Runtime adds up a whole group in float32, one value after the other, and computes the
    variance from the difference of two such sums: over a 256 px feature map that is off by 3e-4.
    Here the mean is taken over rows first, then over their means, then over channels, and
    deviations are squared.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.silu = isinstance(norm, GroupNormSiLU) and norm.silu
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        maps = x.float().unflatten(1, (self.groups, -1))  # (B, G, C / G, ..., W)
        deviation = maps - _mean(maps)
        normed = deviation * (_mean(deviation.square()) + self.eps).rsqrt()
        shape = (-1,) + (1,) * (x.dim() - 2)
        out = normed.reshape(x.shape) * self.weight.view(shape) + self.bias.view(shape)
        out = out.to(x.dtype)
        return F.silu(out) if self.silu else out


def _mean(maps: Tensor) -> Tensor:
    """Mean of each group of (B, G, C / G, ..., W), the last axis first: (B, G, 1, ..., 1)."""
    for axis in range(maps.dim() - 1, 1, -1):
        maps = maps.mean(axis, keepdim=True)
    return maps


class SpelledOutPReLU(nn.Module):
    """:class:`torch.nn.PReLU` of (B, C, ...) as a ReLU and a product. ONNX Runtime's own takes
    longer than the convolutions around it."""

    def __init__(self, activation: nn.PReLU) -> None:
        super().__init__()
        self.weight = activation.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x) + self.weight.view((-1,) + (1,) * (x.dim() - 2)) * x.clamp(max=0.0)


_SPELLED_OUT = {
    nn.GroupNorm: RowwiseGroupNorm,
    GroupNormSiLU: RowwiseGroupNorm,
    nn.PReLU: SpelledOutPReLU,
}


def spell_out(module: nn.Module) -> nn.Module:
    """A copy of a module with such layers instead of PyTorch's; if there are none, the module
    itself."""
    if not any(type(part) in _SPELLED_OUT for part in module.modules()):
        return module
    copied = copy.deepcopy(module)

    def replacement(_: str, child: nn.Module) -> nn.Module | None:
        kind = _SPELLED_OUT.get(type(child))
        return None if kind is None else kind(child)

    _replace_children(copied, replacement)
    return copied

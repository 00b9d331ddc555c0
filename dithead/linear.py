"""A linear layer that is as fast on the CPU as the convolutions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ONEDNN = (
    torch.backends.mkl.is_available()
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
"""Whether PyTorch by itself uses MKL's products, which on some processors reach half the possible
speed, and oneDNN is available, too."""


class Linear(nn.Linear):
    """``torch.nn.Linear``; in float32 on the CPU, outside training and tracing, through oneDNN.

    Args:
        gelu: whether a GELU follows, and if so, which: ``none`` and ``tanh`` are its
            approximations, as PyTorch calls them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        gelu: Literal["none", "tanh"] | None = None,
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        learnt = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if _ONEDNN and _plain(x) and _plain(self.weight) and not learnt:
            then = ("none", "") if self.gelu is None else ("gelu", self.gelu)
            product = torch.ops.mkldnn._linear_pointwise
            made: Tensor = product(x, self.weight, self.bias, then[0], [], then[1])
            return made
        out = super().forward(x)
        return out if self.gelu is None else F.gelu(out, approximate=self.gelu)


def _plain(x: Tensor) -> bool:
    """Whether a tensor holds float32 on the CPU."""
    return type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" and x.dtype == torch.float32

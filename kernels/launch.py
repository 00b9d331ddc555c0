"""One launch of a Triton kernel, ready to run or to be compiled for a GPU that is not here."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
_INT32 = 2**31
_INTERPRETER = threading.Lock()
"""Triton's interpreter keeps the running program's place in one variable of the process."""
ALIGNED = 16
"""Bytes. Triton compiles for pointers and numbers that this divides, where it does."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with all that it needs."""

    kernel: Any
    """A ``triton.jit`` function."""
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | int | float | None]
    """What differs from launch to launch; None stands for a tensor that is not there."""
    constants: Mapping[str, Any]
    """What the kernel is compiled for."""
    num_warps: int = 4
    num_stages: int = 2

    def run(self) -> None:
        """Launch it on the current stream of its tensors' device."""
        device = next(x.device for x in self.arguments.values() if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else _INTERPRETER:
            self.kernel[self.grid](
                **self.arguments,
                **self.constants,
                num_warps=self.num_warps,
                num_stages=self.num_stages,
            )

    def signature(self) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list[list[Any]]]]:
        """What Triton's compiler wants to know of the arguments: types, constants, and which are
        divisible by 16 (tensors are taken to begin at such an address)."""
        types, constants = {}, dict(self.constants)
        divisible: dict[tuple[int], list[list[Any]]] = {}
        for position, name in enumerate(self.kernel.arg_names):
            value = self.arguments.get(name)
            if name in self.constants or value is None or (type(value) is int and value == 1):
                constants.setdefault(name, value)
                types[name] = "constexpr"
                continue
            if isinstance(value, Tensor):
                types[name], aligned = _POINTERS[value.dtype], True
            elif isinstance(value, int):
                types[name] = "i32" if -_INT32 <= value < _INT32 else "i64"
                aligned = value % ALIGNED == 0
            else:
                types[name], aligned = "fp32", False
            if aligned:
                divisible[(position,)] = [["tt.divisibility", ALIGNED]]
        return types, constants, divisible


def batch_stride(row: Tensor | None) -> int:
    """Distance of the batch's rows (B or 1, 1, D): 0 where all of it shares one, or has none."""
    return 0 if row is None or row.shape[0] == 1 else row.stride(0)

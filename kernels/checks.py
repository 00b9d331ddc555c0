"""Checks of what the Triton kernels are given: each error says what was expected and found; and the
type of what comes of it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_float(**tensors: Tensor | None) -> None:
    """Raise TypeError if a tensor is not float32, float16 or bfloat16."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in FLOATS:
            raise TypeError(
                f"{name}: expected float32, float16 or bfloat16, found {_named(tensor.dtype)}"
            )


def check_type(dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raise TypeError if a tensor has another element type."""
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{name}: expected {_named(dtype)}, found {_named(tensor.dtype)}")


def check_device(device: torch.device, **tensors: Tensor | None) -> None:
    """Raise ValueError if a tensor is on another device."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name}: expected on {device}, found on {tensor.device}")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int | str]) -> None:
    """Raise ValueError if a tensor has another shape; words stand for any length."""
    fits = tensor.dim() == len(expected) and all(
        isinstance(want, str) or want == found
        for want, found in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
        raise ValueError(f"{name}: expected the shape ({wanted}), found {tuple(tensor.shape)}")


def check_rows(**tensors: Tensor | None) -> None:
    """Raise ValueError if numbers of a tensor's last dimension do not lie side by side."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{name}: expected the stride 1 in the last dimension, found strides "
                f"{tensor.stride()}; .contiguous() helps"
            )


def check_row(batch: int, width: int, **rows: Tensor | None) -> None:
    """Raise ValueError if a row is not (B, 1, D), or (1, 1, D) for all of the batch."""
    for name, row in rows.items():
        if row is not None:
            shared = row.dim() == 3 and row.shape[0] == 1
            check_shape(name, row, (1 if shared else batch, 1, width))


def needs_gradients(tensors: Iterable[Tensor]) -> bool:
    """Whether gradients of what comes of these tensors will be asked for."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def check_no_gradients(operation: str, *tensors: Tensor) -> None:
    """Raise ValueError if gradients of an operation that has none are needed."""
    if needs_gradients(tensors):
        raise ValueError(
            f"{operation}: the kernel has no gradients: expected tensors that need none; "
            "choose the implementation reference, or call it under torch.no_grad()"
        )


def autocast_type(device: torch.device) -> torch.dtype | None:
    """The type in which autocast has products computed on a device; None where it is off."""
    if not torch.amp.is_autocast_available(device.type):
        return None
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def common_type(*tensors: Tensor | None) -> torch.dtype:
    """The type in which PyTorch would combine them."""
    types = [tensor.dtype for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, types)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

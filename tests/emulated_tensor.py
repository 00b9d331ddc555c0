"""Tensors that say they are on ``cuda:0``; see :mod:`emulated_cuda`, which runs their kernels."""

from __future__ import annotations

import operator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class Runs(Protocol):
    """What runs kernels."""

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a kernel, on the device or on the host."""

    def address_of(self, tensor: DeviceTensor) -> int:
        """Where a tensor's values are; libraries are given it."""


_running: list[Runs] = []


def set_device(device: Runs | None) -> None:
    """Choose what runs the kernels of tensors on the device from now on."""
    _running[:] = [] if device is None else [device]


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    assert _running, f"{func}: a tensor has outlived the emulated device"
    return _running[0].run(func, args, kwargs or {})


class DeviceTensor(Tensor):
    """A tensor on the emulated device."""

    inner: Tensor
    """Its values, on the host."""
    key: str
    """Names the memory; views share it."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, key: str) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda", 0),
        )
        made.inner, made.key = inner, key
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner})"

    def data_ptr(self) -> int:
        return _running[0].address_of(self)

    # PyTorch's own methods of the following names ask CUDA for the current device.

    def copy_(self, source: Tensor, non_blocking: bool = False) -> Any:
        return aten.copy_.default(self, source, non_blocking)

    def contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        return aten.contiguous.default(self, memory_format=memory_format)

    def nonzero(self) -> Tensor:
        return aten.nonzero.default(self)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __getitem__(self, where: Any) -> Any:
        parts = where if isinstance(where, tuple) else (where,)
        taken = sum(part is not None and part is not Ellipsis for part in parts)
        value: Tensor = self
        dim, indices = 0, []
        for part in parts:
            if part is Ellipsis:
                dim += self.dim() - taken
            elif part is None:
                value, dim = value.unsqueeze(dim), dim + 1
            elif isinstance(part, slice):
                value, dim = aten.slice(value, dim, part.start, part.stop, part.step or 1), dim + 1
            elif isinstance(part, (Tensor, list)):
                if isinstance(part, list):  # PyTorch copies it to the device, and waits
                    part = torch.tensor(part, device=self.device)
                indices += [None] * (dim - len(indices)) + [part]
                dim += 1
            else:
                value = value.select(dim, operator.index(part))
        return aten.index(value, indices) if indices else value

    def __setitem__(self, where: Any, value: Any) -> None:
        part = self[where]
        if isinstance(value, Tensor):
            part.copy_(value)
        else:
            part.fill_(value)


class DeviceMode(TorchDispatchMode):
    """Brings what makes tensors to the emulated device, too, where it asks for one; for the thread
    that enters it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_numbered, (args, kwargs or {}))
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # in inference mode these come whole
                return func.decompose(*args, **kwargs)
        return _run(func, args, kwargs)


def _numbered(value: Any) -> Any:
    """A device with its number, for which PyTorch would else ask CUDA."""
    is_cuda = isinstance(value, torch.device) and value.type == "cuda"
    return torch.device("cuda", 0) if is_cuda else value


def on_device(value: Any) -> bool:
    """Whether something is a tensor on the emulated device."""
    return isinstance(value, DeviceTensor)


def inner(value: Any) -> Any:
    """A tensor's values on the host; anything else as it is."""
    return value.inner if isinstance(value, DeviceTensor) else value


def memory(tensor: Tensor) -> int:
    """Where a tensor's storage begins; views share it."""
    return inner(tensor).untyped_storage().data_ptr()


def accesses(func: Any, args: Any, kwargs: Any, made: Any) -> list[tuple[str, Tensor]]:
    """What a kernel reads and writes; nothing where it only looks at memory in another way. A
    library's work reads what it is given, and writes what it made."""
    if not hasattr(func, "_schema"):
        return [("read", value) for value in args] + [("write", value) for value in made]
    found: list[tuple[str, Tensor]] = []
    named = [*zip(func._schema.arguments, args, strict=False)]
    by_name = {argument.name: argument for argument in func._schema.arguments}
    named += [(by_name[name], value) for name, value in kwargs.items()]
    written = False
    for argument, value in named:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        written |= writes
        found += [("write" if writes else "read", leaf) for leaf in _tensors(value)]
    before = {memory(value) for _, value in found}
    fresh = [value for value in _tensors(made) if memory(value) not in before]
    if not written and not fresh:
        return []
    return found + [("write", value) for value in fresh]


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.numel()]

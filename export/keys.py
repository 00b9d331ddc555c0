"""Keys: hashes of all that a file is made from, so that only what changed is made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import dithead
from dithead.export.manifest import hash_of

_T = TypeVar("_T")


@cache
def source_hash() -> str:
    """Hash of the source that graphs and files are made by."""
    root = Path(dithead.__file__).parent
    here = Path(__file__).parent
    files = [*root.glob("*.py"), *root.glob("audio/*.py"), *root.glob("face/*.py")]
    files += here.glob("*.py")
    named = sorted((f"{p.parent.name}/{p.name}", p.read_text()) for p in set(files))
    return hash_of(*(f"{name}\n{text}" for name, text in named))


def versions() -> dict[str, str]:
    """Versions of the packages that a bundle is made with."""
    found = {"dithead": dithead.__version__}
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of tensors by name and value."""
    parts = []
    for name, tensor in sorted(tensors.items()):
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        parts.append(
            f"{name} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
        )
    return hash_of(*parts)


class _Reads(TorchFunctionMode):
    """Notes which tensors PyTorch's functions are given, by their ids."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") != "__get__":  # a shape or a dtype is no value
            leaves = pytree.tree_leaves((args, kwargs))
            self.ids.update(id(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return function(*args, **(kwargs or {}))


def weights_read(module: nn.Module, run: Callable[[], _T]) -> tuple[_T, dict[str, Tensor]]:
    """Run a module and find which of its parameters and buffers the computation reads.

    A graph takes what it needs out of larger parts: an encoder's graph holds no decoder's weights,
    though its module does.

    Args:
        run: runs ``module``, and nothing else that matters.

    Returns:
        What ``run`` returns; the tensors by name.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with _Reads() as reads:
        result = run()
    return result, {name: value for name, value in tensors.items() if id(value) in reads.ids}

"""Which files of an earlier export are still valid. A key is a hash of everything that a file is
made from: a file is made again when its key has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import dithead
from dithead import kernels
from dithead.bundle.manifest import BundleFile, Manifest, check_file, read_manifest
from dithead.errors import ExportError

_T = TypeVar("_T")


class EarlierBundle:
    """An earlier export in a folder: the manifest, and the files that are intact."""

    def __init__(self, folder: Path) -> None:
        self.manifest: Manifest | None = None
        with suppress(ExportError):
            self.manifest = read_manifest(folder)
        graphs = self.manifest.graphs if self.manifest else ()
        files = self.manifest.files() if self.manifest else ()
        self.whole = {file.path for file in files if _is_whole(folder, file)}
        """Names of the files that match the manifest."""
        self.onnx = {
            onnx.file.key: onnx
            for entry in graphs
            for onnx in entry.onnx
            if self.whole.issuperset(part.path for part in onnx.files())
        }
        """The intact ONNX files, by key."""
        self.engines = {
            engine.file.key: engine
            for entry in graphs
            for engine in entry.engines
            if engine.file.path in self.whole
        }
        """The intact engines, by key."""


def _is_whole(folder: Path, file: BundleFile) -> bool:
    try:
        check_file(folder, file)
    except ExportError:
        return False
    return True


def hash_of(*parts: str) -> str:
    """A key, from everything that a file is made from."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def source_files() -> set[Path]:
    """Our source files that determine what is in a file."""
    root, here = Path(dithead.__file__).parent, Path(__file__).parent
    folders = (root, root / "audio", root / "face", root / "bundle", here)
    operations = Path(kernels.__file__).parent.rglob("*.py")
    return {path for folder in folders for path in folder.glob("*.py")} | set(operations)


@cache
def source_hash() -> str:
    """Hash of :func:`source_files`."""
    named = sorted((f"{p.parent.name}/{p.name}", p.read_text()) for p in source_files())
    return hash_of(*(f"{name}\n{text}" for name, text in named))


def versions() -> dict[str, str]:
    """Versions of the packages that a bundle is made with."""
    found = {"dithead": dithead.__version__}
    for name in ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "transformers"):
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
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        parts.append(f"{name} {array.dtype} {array.shape} {digest}")
    return hash_of(*parts)


class _Reads(TorchFunctionMode):
    """Records the ids of the tensors passed to PyTorch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(function, "__name__", "") != "__get__":  # a shape or a dtype is not a value
            leaves = pytree.tree_leaves((args, kwargs))
            self.ids.update(id(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        return function(*args, **(kwargs or {}))


def weights_read(module: nn.Module, run: Callable[[], _T]) -> tuple[_T, dict[str, Tensor]]:
    """Run a module and find which of its parameters and buffers the computation reads.

    A graph uses only some of a larger part's weights: an encoder's graph has no decoder weights,
    though its module does.

    Args:
        run: runs ``module`` and nothing else of importance.

    Returns:
        What ``run`` returns; the tensors by name.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with _Reads() as reads:
        result = run()
    return result, {name: value for name, value in tensors.items() if id(value) in reads.ids}

"""Opens a bundle's TensorRT engines on a GPU and runs them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dithead.bundle.libraries import load_flavour
from dithead.bundle.manifest import EngineFile, GraphEntry, check_file
from dithead.bundle.ports import allocate, check_inputs, open_sizes
from dithead.errors import ExportError, StreamError


class _TensorRTContext(Protocol):
    """The part of TensorRT's IExecutionContext in use."""

    def set_input_shape(self, name: str, shape: tuple[int, ...], /) -> bool: ...
    def set_tensor_address(self, name: str, address: int, /) -> bool: ...
    def update_device_memory_size_for_shapes(self) -> int: ...
    def set_device_memory(self, address: int, size: int, /) -> None: ...
    def execute_async_v3(self, stream: int, /) -> bool: ...


class _TensorRTEngine(Protocol):
    """The part of TensorRT's ICudaEngine in use."""

    def create_execution_context(self, strategy: object, /) -> _TensorRTContext | None: ...


class Engines:
    """A bundle's engines on one GPU. Each is opened on first use, and stays open.

    Args:
        bundle: folder written by dithead-export.
        device: the GPU, with its number.
        flavour: ``tensorrt-rtx`` or ``tensorrt``, the one the bundle was made with.

    Raises:
        BackendUnavailable: the flavour is not installed.
    """

    def __init__(self, bundle: Path, device: torch.device, flavour: str) -> None:
        self._bundle = bundle
        self._device = device
        self._flavour = flavour
        self._trt = load_flavour(flavour)
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        with torch.cuda.device(device):
            self._runtime = self._trt.Runtime(self._logger)
        self._opening = threading.Lock()  # streams and their stages ask from several threads
        self._engines: dict[tuple[str, int], _TensorRTEngine] = {}  # by graph and batch
        self._contexts: dict[tuple[str, int, int], _Context] = {}  # and by CUDA stream

    def preload(self, entry: GraphEntry) -> None:
        """Open the engine of a graph for one stream at a time.

        Raises:
            ExportError: it is missing, damaged or does not open here.
        """
        with torch.cuda.device(self._device), self._opening:
            self._engine(entry, 1)

    def run(self, entry: GraphEntry, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queue a graph's engine on the current CUDA stream: inputs -> outputs.

        Raises:
            ExportError: the bundle has no such engine, or it cannot be opened here.
            StreamError: the inputs do not fit, or the engine did not run.
        """
        check_inputs(entry, inputs, self._device)
        with torch.cuda.device(self._device):
            batch = open_sizes(entry, inputs).get("B", 1)
            context = self._context(entry, batch)
            with context.lock:
                return context.queue(entry, inputs, self._device)

    def _context(self, entry: GraphEntry, batch: int) -> _Context:
        """The context that runs a graph on the current CUDA stream. It lives as long as the bundle
        is open, because a captured CUDA graph goes on using it."""
        key = entry.name, batch, torch.cuda.current_stream(self._device).cuda_stream
        if found := self._contexts.get(key):  # without the lock, as an engine may be opening
            return found
        with self._opening:
            if key not in self._contexts:
                strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
                context = self._engine(entry, batch).create_execution_context(strategy)
                if context is None:
                    raise StreamError(
                        f"graph '{entry.name}': no memory on {self._device} to run its engine in"
                    )
                self._contexts[key] = _Context(context)
            return self._contexts[key]

    def _engine(self, entry: GraphEntry, batch: int) -> _TensorRTEngine:
        """An engine, opened once; its contexts do not keep it alive."""
        key = entry.name, batch
        if key not in self._engines:
            version = str(self._trt.__version__)
            file = find_engine(entry, self._flavour, version, self._bundle, batch)
            path = check_file(self._bundle, file.file)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                capability = ".".join(map(str, torch.cuda.get_device_capability(self._device)))
                raise ExportError(
                    f"{path} does not open on this GPU (compute capability {capability}; built "
                    f"for {file.compute_capability})",
                    hint=f"export again on this machine with --engines {self._flavour}",
                )
            self._engines[key] = engine
        return self._engines[key]


class _Context:
    """An engine's state on one CUDA stream, for one thread at a time.

    PyTorch provides an engine's working memory, for each run as much as its shapes need. TensorRT
    itself would allocate it for the largest shapes at once, and must not allocate any while a CUDA
    graph is captured.
    """

    def __init__(self, context: _TensorRTContext) -> None:
        self.lock = threading.Lock()
        self._context = context
        self._shapes: tuple[tuple[int, ...], ...] | None = None  # of the last run's inputs
        self._bytes = 0  # memory that they need

    def queue(
        self, entry: GraphEntry, inputs: Sequence[Tensor], device: torch.device
    ) -> tuple[Tensor, ...]:
        """Queue a run on the current stream: inputs -> outputs."""
        context, stream = self._context, torch.cuda.current_stream(device)
        kept = [value.detach().contiguous() for value in inputs]
        results = allocate(entry, kept, device)
        for port, tensor in zip(entry.inputs, kept, strict=True):
            if not context.set_input_shape(port.name, tuple(tensor.shape)):
                raise StreamError(
                    f"graph '{entry.name}': its engine was not built for '{port.name}' of shape "
                    f"{tuple(tensor.shape)} (docs/export.md has the ranges)"
                )
        for port, tensor in zip((*entry.inputs, *entry.outputs), (*kept, *results), strict=True):
            context.set_tensor_address(port.name, tensor.data_ptr())
        shapes = tuple(tuple(tensor.shape) for tensor in kept)
        if shapes != self._shapes:
            self._bytes = context.update_device_memory_size_for_shapes()
            self._shapes = shapes
        working = torch.empty(self._bytes, dtype=torch.uint8, device=device)
        context.set_device_memory(working.data_ptr(), working.numel())
        if not context.execute_async_v3(stream.cuda_stream):
            raise StreamError(f"graph '{entry.name}': its engine did not run on {device}")
        return tuple(results)


def find_engine(
    entry: GraphEntry, flavour: str, version: str, bundle: Path, batch: int = 1
) -> EngineFile:
    """The engine of a graph, for so many streams at once, that a version of a flavour can open.

    Raises:
        ExportError: there is none; the message says which there are.
    """
    fitting = [e for e in entry.engines if e.flavour == flavour and e.version == version]
    for engine in fitting:
        if engine.batch == batch:
            return engine
    if fitting:
        have = ",".join(str(engine.batch) for engine in fitting)
        raise ExportError(
            f"{bundle} has engines of graph '{entry.name}' for {have} streams at once, not for "
            f"{batch}",
            hint=f"export again with --batch {have},{batch}",
        )
    found = ", ".join(f"{e.flavour} {e.version}" for e in entry.engines) or "no engine"
    raise ExportError(
        f"{bundle} has {found} for graph '{entry.name}', here {flavour} {version} is installed",
        hint=f"export again with --engines {flavour}",
    )

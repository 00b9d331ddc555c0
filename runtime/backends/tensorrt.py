"""Graphs of a bundle through its TensorRT engines, on one GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dithead.audio import AudioWindow
from dithead.controls import FaceShape
from dithead.diffusion import InitialNoise
from dithead.errors import ConfigError, ExportError, StreamError
from dithead.export.manifest import EngineFile, GraphEntry, check_file
from dithead.export.tensorrt import Flavour, load_flavour
from dithead.face.tracker import FaceTracker
from dithead.graphs import Noise
from dithead.runtime.backends.binding import BundleGraphs, allocate, check_inputs, open_sizes


class EngineGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's engines.

    The graphs that are no engines (face_tracker, face_shape, audio_window, noise) carry no weights
    and run in PyTorch on the same GPU. Everything is queued on PyTorch's current stream.

    Args:
        bundle: folder written by dithead-export.
        device: ``cuda`` or ``cuda:N``.
        flavour: ``tensorrt-rtx`` or ``tensorrt``, as the bundle was made with.

    Raises:
        BackendUnavailable: the flavour or a GPU is not there.
        ConfigError: another kind of device.
        ExportError: the bundle cannot be used here; says why and what to do.
    """

    def __init__(self, bundle: Path, device: torch.device | str, flavour: Flavour) -> None:
        where = torch.device(device)
        if where.type != "cuda":
            raise ConfigError(
                f"the back end {flavour!r} runs on a GPU alone: --device cuda, not {device}"
            )
        super().__init__(bundle, where)
        self._trt = load_flavour(flavour)
        self.flavour = flavour
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        with torch.cuda.device(self._device):
            self._runtime = self._trt.Runtime(self._logger)
        self._engines: dict[tuple[str, int], Any] = {}
        self._opening = threading.Lock()  # streams, and their stages, ask from their own threads
        self._contexts: dict[tuple[str, int, int], _Context] = {}  # graph, batch, CUDA stream
        noise = InitialNoise(self._config.vqgan.latent_channels, self._config.latent_size)
        self._modules: dict[str, nn.Module] = {
            "face_tracker": FaceTracker(self._config.face),
            "face_shape": FaceShape(),
            "audio_window": AudioWindow(self._config.audio),
            "noise": Noise(self._config.diffusion, noise),
        }
        for module in self._modules.values():
            module.to(self._device).eval()

    @property
    def precision(self) -> str:
        """What the weights are computed in."""
        return self._manifest.precision

    @property
    def replayable(self) -> bool:
        """Engines are queued like kernels, and may be captured."""
        return True

    def preload(self) -> None:
        """Open the engines that every stream runs, so that its first frame need not wait for them.

        Raises:
            ExportError: one is missing, damaged or does not open here.
        """
        with torch.cuda.device(self._device):
            for name in self.sizes_to_preload():
                if (entry := self._entry(name)).engines:
                    with self._opening:
                        self._engine(entry, 1)

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Queue a graph on the current stream: its inputs -> its outputs, in the table's order.

        Raises:
            ExportError: the bundle has no such engine, or it cannot be opened here.
        """
        if name in self._modules:
            outputs = self._modules[name](*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)
        entry = self._entry(name)
        check_inputs(entry, inputs, self._device)
        with torch.cuda.device(self._device):
            batch = open_sizes(entry, inputs).get("B", 1)
            context = self._context(entry, batch)
            with context.lock:
                return context.queue(entry, inputs, self._device)

    def _context(self, entry: GraphEntry, batch: int) -> _Context:
        """What runs a graph on the current stream. It lives as long as the back end: a CUDA graph
        that was captured goes on using it."""
        key = entry.name, batch, torch.cuda.current_stream(self._device).cuda_stream
        if found := self._contexts.get(key):  # others may be opening an engine meanwhile
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

    def _engine(self, entry: GraphEntry, batch: int) -> Any:
        """An engine, opened once; its contexts do not keep it alive."""
        key = entry.name, batch
        if key not in self._engines:
            version = str(self._trt.__version__)
            file = find_engine(entry, self.flavour, version, self._bundle, batch)
            path = check_file(self._bundle, file.file)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                capability = ".".join(map(str, torch.cuda.get_device_capability(self._device)))
                raise ExportError(
                    f"{path} does not open on this GPU (compute capability {capability}; built "
                    f"for {file.compute_capability})",
                    hint=f"export again on this machine with --engines {self.flavour}",
                )
            self._engines[key] = engine
        return self._engines[key]


class _Context:
    """An engine's state on one CUDA stream, for one thread at a time.

    The memory that an engine works in is PyTorch's, taken for each run in the size that the shapes
    ask for: TensorRT would take it once for the largest shapes, and may not take any while a CUDA
    graph is captured.
    """

    def __init__(self, context: Any) -> None:
        self.lock = threading.Lock()
        self._context = context
        self._shapes: tuple[tuple[int, ...], ...] | None = None  # of the inputs of the last run
        self._bytes = 0  # that they ask for

    def queue(
        self, entry: GraphEntry, inputs: tuple[Tensor, ...], device: torch.device
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
            context.set_tensor_address(port.name, tensor.data_ptr())
        for port, tensor in zip(entry.outputs, results, strict=True):
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
    """The engine of a graph for so many streams that a flavour in a version can open.

    Raises:
        ExportError: there is none; says what there is.
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

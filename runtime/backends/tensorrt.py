"""Graphs of a bundle through its TensorRT engines, on one GPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dithead.audio import AudioWindow
from dithead.diffusion import InitialNoise
from dithead.errors import BackendUnavailable, ConfigError, ExportError, StreamError
from dithead.export.manifest import EngineFile, GraphEntry, check_file
from dithead.export.tensorrt import Flavour, load_flavour
from dithead.face.tracker import FaceTracker
from dithead.graphs import Noise
from dithead.runtime.backends.binding import BundleGraphs, allocate, check_inputs, open_sizes


class EngineGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's engines.

    The three graphs that are no engines (face_tracker, audio_window, noise) carry no weights and
    run in PyTorch on the same GPU. Everything is queued on PyTorch's current stream.

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
        if not torch.cuda.is_available():
            raise BackendUnavailable(
                f"the back end {flavour!r} needs a GPU, its driver and a CUDA build of torch: "
                "torch.cuda.is_available() is False"
            )
        self._logger = self._trt.Logger(self._trt.Logger.ERROR)
        with torch.cuda.device(self._device):
            self._runtime = self._trt.Runtime(self._logger)
        self._engines: dict[tuple[str, int], Any] = {}
        self._opening = threading.Lock()  # streams, and their stages, ask from their own threads
        self._own = threading.local()  # a context is for one CUDA stream, thus for one thread
        noise = InitialNoise(self._config.vqgan.latent_channels, self._config.latent_size)
        self._modules: dict[str, nn.Module] = {
            "face_tracker": FaceTracker(self._config.face),
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
            return self._execute(self._context(entry, batch), entry, inputs)

    def _execute(
        self, context: Any, entry: GraphEntry, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        kept = [value.detach().contiguous() for value in inputs]
        results = allocate(entry, kept, self._device)
        for port, tensor in zip(entry.inputs, kept, strict=True):
            if not context.set_input_shape(port.name, tuple(tensor.shape)):
                raise StreamError(
                    f"graph '{entry.name}': its engine was not built for '{port.name}' of shape "
                    f"{tuple(tensor.shape)} (docs/export.md has the ranges)"
                )
            context.set_tensor_address(port.name, tensor.data_ptr())
        for port, tensor in zip(entry.outputs, results, strict=True):
            context.set_tensor_address(port.name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not context.execute_async_v3(stream.cuda_stream):
            raise StreamError(f"graph '{entry.name}': its engine did not run on {self._device}")
        for tensor in kept:
            tensor.record_stream(stream)
        return tuple(results)

    def _context(self, entry: GraphEntry, batch: int) -> Any:
        key = entry.name, batch
        if not hasattr(self._own, "contexts"):
            self._own.contexts = {}
        contexts: dict[tuple[str, int], Any] = self._own.contexts
        if key not in contexts:
            context = self._engine(entry, batch).create_execution_context()
            if context is None:
                raise StreamError(
                    f"graph '{entry.name}': no memory on {self._device} to run its engine in"
                )
            contexts[key] = context
        return contexts[key]

    def _engine(self, entry: GraphEntry, batch: int) -> Any:
        """An engine, opened once; its contexts do not keep it alive."""
        key = entry.name, batch
        with self._opening:
            if key in self._engines:
                return self._engines[key]
            version = str(self._trt.__version__)
            file = find_engine(entry, self.flavour, version, self._bundle, batch)
            path = check_file(self._bundle, file.file)
            engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                capability = ".".join(map(str, torch.cuda.get_device_capability(self._device)))
                raise ExportError(
                    f"{path} does not open on this GPU (compute capability {capability}; built "
                    f"for {file.compute_capability}): export again on this machine, or with "
                    f"--compute-capability {capability}"
                )
            self._engines[key] = engine
            return engine


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
            f"{batch}: export again with --batch {have},{batch}"
        )
    found = ", ".join(f"{e.flavour} {e.version}" for e in entry.engines) or "no engine"
    raise ExportError(
        f"{bundle} has {found} for graph '{entry.name}', here {flavour} {version} is installed: "
        f"export again with --engines {flavour}"
    )

"""What runs a bundle's graphs on the emulated device: TensorRT's runtime, and ONNX Runtime's CUDA
provider. Both compute with ONNX Runtime on the CPU, on the memory whose addresses they were given,
and are as strict as the originals about names, shapes and streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch
from emulated_cuda import EmulatedCuda
from emulated_tensor import DeviceTensor
from torch import Tensor

from dithead.bundle import engines as bundle_engines
from dithead.bundle import manifest as mf
from dithead.runtime.backends import onnxruntime as onnxruntime_back_end


class Context:
    """Stands in for TensorRT's IExecutionContext."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._stream: int | None = None
        self._working: DeviceTensor | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        port = self._engine.inputs[name]
        sizes = [self._engine.batch if n == "B" else n for n in port.shape]
        fits = len(shape) == len(sizes) and all(
            isinstance(n, str) or n == m for n, m in zip(sizes, shape, strict=True)
        )
        if fits:
            self._shapes[name] = shape
        return fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert name in self._engine.inputs or name in self._engine.outputs
        self._addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._shapes.keys() == self._engine.inputs.keys()
        return 64 * max(map(math.prod, self._shapes.values()))

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == self.update_device_memory_size_for_shapes()
        self._working = self._engine.device.addressed(address)
        assert self._working.numel() == size

    def execute_async_v3(self, stream: int) -> bool:
        assert self._stream in (None, stream), "a context is used on two streams"
        self._stream = stream
        device, engine = self._engine.device, self._engine
        assert stream == device.stream.cuda_stream
        assert self._working is not None
        inputs = [device.addressed(self._addresses[name]) for name in engine.inputs]
        outputs = [device.addressed(self._addresses[name]) for name in engine.outputs]
        for name, value in zip(engine.inputs, inputs, strict=True):
            assert tuple(value.shape) == self._shapes[name]
        # The working memory is written, too, which orders it like everything else.
        results = [*outputs, self._working]
        self._working = None  # for each run anew
        device.run_library(engine.compute, inputs, results, self)
        return True


class Engine:
    """Stands in for TensorRT's ICudaEngine, with a graph's float32 file in its place."""

    def __init__(
        self, device: EmulatedCuda, entry: mf.GraphEntry, engine: mf.EngineFile, bundle: Path
    ) -> None:
        self.device = device
        self.batch = engine.batch
        self.inputs = {port.name: port for port in entry.inputs}
        self.outputs = {port.name: port for port in entry.outputs}
        file = entry.onnx_for("fp32")
        assert file is not None
        self._session = onnxruntime.InferenceSession(str(bundle / file.file.path))

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        return Context(self)

    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        feeds = dict(zip(self.inputs, (value.numpy() for value in inputs), strict=True))
        found = map(torch.from_numpy, self._session.run(list(self.outputs), feeds))
        return *found, torch.zeros((), dtype=torch.uint8)


def emulate_tensorrt(monkeypatch: pytest.MonkeyPatch, device: EmulatedCuda, bundle: Path) -> None:
    """Let the back end open a bundle's engines on the emulated device."""
    manifest = mf.read_manifest(bundle)
    engines = {
        (bundle / engine.file.path).read_bytes(): (entry, engine)
        for entry in manifest.graphs
        for engine in entry.engines
    }
    versions = {engine.version for _, engine in engines.values()}

    class Logger:
        ERROR = 2

        def __init__(self, severity: int) -> None:
            pass

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            pass

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            return Engine(device, *engines[data], bundle) if data in engines else None

    library = SimpleNamespace(
        __version__=versions.pop(),
        Logger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user managed"),
    )
    monkeypatch.setattr(bundle_engines, "load_flavour", lambda flavour: library)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())


class Binding:
    """Stands in for ONNX Runtime's IOBinding of a session on CUDA."""

    def __init__(self, device: EmulatedCuda, session: Any) -> None:
        self.real = session.io_binding()
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._device = device

    def bind_input(self, name: str, kind: str, number: int, *rest: Any) -> None:
        assert (kind, number) == ("cuda", 0)
        self.inputs.append(self._device.addressed(rest[-1]))
        self.real.bind_input(name, "cpu", 0, *rest)

    def bind_output(self, name: str, kind: str, number: int, *rest: Any) -> None:
        assert (kind, number) == ("cuda", 0)
        self.outputs.append(self._device.addressed(rest[-1]))
        self.real.bind_output(name, "cpu", 0, *rest)


class Session:
    """Stands in for ONNX Runtime's InferenceSession on CUDA."""

    def __init__(
        self, device: EmulatedCuda, path: str, options: Options, providers: Sequence[Any]
    ) -> None:
        [(name, values)] = providers
        assert name == "CUDAExecutionProvider"
        assert values["device_id"] == 0
        assert options.entries.pop("session.disable_cpu_ep_fallback") == "1"
        real = onnxruntime.SessionOptions()
        real.log_severity_level = options.log_severity_level
        for key, value in options.entries.items():
            real.add_session_config_entry(key, value)
        for dimension, size in options.sizes.items():
            real.add_free_dimension_override_by_name(dimension, size)
        self._device = device
        self._session = onnxruntime.InferenceSession(path, real)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def io_binding(self) -> Binding:
        return Binding(self._device, self._session)

    def run_with_iobinding(self, binding: Binding) -> None:
        self._session.run_with_iobinding(binding.real)
        self._device.ran_by_itself(binding.inputs, binding.outputs)


class Options:
    """Stands in for ONNX Runtime's SessionOptions, which cannot be read back."""

    def __init__(self) -> None:
        self.log_severity_level = 2
        self.intra_op_num_threads = 0
        self.entries: dict[str, str] = {}
        self.sizes: dict[str, int] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.sizes[name] = size


def emulate_onnxruntime(monkeypatch: pytest.MonkeyPatch, device: EmulatedCuda) -> None:
    """Let the back end run graphs on the emulated device."""
    library = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=Options,
        InferenceSession=lambda path, options, providers: Session(device, path, options, providers),
    )
    monkeypatch.setattr(onnxruntime_back_end, "load_onnxruntime", lambda: library)

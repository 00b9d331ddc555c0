"""Builds one TensorRT engine from one ONNX file: TensorRT-RTX, or TensorRT 10 and 11, with the same
code.

TensorRT-RTX builds without a GPU or driver; the device-specific part is compiled when an engine
first runs. Opening an engine always needs a driver. Networks are strongly typed: the ONNX file says
which precision is used where, and its casts are kept.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dithead.bundle.graphspecs import Axis, GraphSpec
from dithead.bundle.libraries import load_flavour
from dithead.bundle.manifest import Port
from dithead.errors import BackendUnavailable, ConfigError, ExportError

PORTABLE = "portable"
WORKSPACE_BYTES = 4 << 30


def this_gpu() -> str:
    """Compute capability and name of the first GPU, such as ``9.0 (NVIDIA H200)``.

    Raises:
        BackendUnavailable: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise BackendUnavailable(
            "tensorrt builds its engines on the GPU that they run on, and PyTorch sees none",
            hint="export there, or with --engines tensorrt-rtx here",
        )
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return f"{capability} ({torch.cuda.get_device_name()})"


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM until a piece of work is done.

    TensorRT calls our logger while it builds, and drops the exceptions that are raised in it: an
    interrupt would be lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: came.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    if came:
        signal.raise_signal(came[0])


@dataclass(slots=True)
class BuildLog:
    """TensorRT's messages from the build."""

    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """A serialised engine and the ports of its network."""

    data: memoryview
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    log: BuildLog


def _logger(trt: Any, log: BuildLog) -> Any:
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                log.errors.append(message)
            if severity != severities.VERBOSE:
                log.lines.append(f"{severity.name}: {message}")

    return Logger()


def compute_capability_name(trt: Any, capability: str) -> Any:
    """``8.9`` as the flavour's own constant.

    Raises:
        ConfigError: the flavour does not know it.
    """
    known = {
        f"{name[2:-1]}.{name[-1]}": value
        for name, value in vars(trt.ComputeCapability).items()
        if name.startswith("SM")
    }
    if capability not in known:
        raise ConfigError(
            f"unknown compute capability {capability!r}",
            hint=f"choose one of {', '.join(sorted(known))}",
        )
    return known[capability]


@_signals_wait()
def build_engine(
    path: Path,
    spec: GraphSpec,
    flavour: str,
    compute_capability: str = PORTABLE,
    timing_cache: Path | None = None,
    sizes: Mapping[str, int] | None = None,
) -> BuiltEngine:
    """Build an engine from an ONNX file.

    Args:
        compute_capability: such as ``8.9``, to restrict a TensorRT-RTX engine to one kind of GPU.
        timing_cache: read if it exists, and written; TensorRT only.
        sizes: sizes of open dimensions that are fixed in this engine, by name; the others stay
            open.

    Raises:
        ConfigError: unknown flavour or compute capability.
        BackendUnavailable: the flavour is not installed, or needs a GPU to build.
        ExportError: the file cannot be parsed or built; the message has the graph's name and
            TensorRT's reason.
    """
    trt = load_flavour(flavour)
    log = BuildLog()
    logger = _logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what classic TensorRT raises if it finds no GPU
        raise BackendUnavailable(f"{flavour} cannot build here: {_reason(log)}") from error
    flags = 0
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    # A file that is not a protobuf is parsed without an error, into an empty network.
    if not parser.parse_from_file(str(path)) or network.num_outputs == 0:
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise ExportError(
            f"graph '{spec.name}': {flavour} cannot parse {path.name}: "
            + ("; ".join(errors) or _reason(log))
        )
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    if sizes:
        for tensor in inputs:
            fixed = {d: sizes.get(axis.name) for d, axis in _axes(spec, tensor).items()}
            tensor.shape = [fixed.get(d) or n for d, n in enumerate(tensor.shape)]
        kept = {
            name: {d: axis for d, axis in axes.items() if axis.name not in sizes}
            for name, axes in spec.dynamic.items()
        }
        spec = replace(spec, dynamic={name: axes for name, axes in kept.items() if axes})
    ports_in = tuple(_port(spec, tensor) for tensor in inputs)
    ports_out = tuple(_port(spec, tensor) for tensor in outputs)
    config = builder.create_builder_config()
    # TF32 has only float16's digits: float32 graphs must be float32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX: required for an engine that CUDA graphs can capture.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    if spec.dynamic:
        profile = builder.create_optimization_profile()
        for tensor in inputs:
            if axes := _axes(spec, tensor):
                limits = (
                    [getattr(axes[d], pick) if d in axes else n for d, n in enumerate(tensor.shape)]
                    for pick in ("least", "typical", "most")
                )
                profile.set_shape(tensor.name, *limits)
        config.add_optimization_profile(profile)
    if compute_capability != PORTABLE:
        config.num_compute_capabilities = 1
        config.set_compute_capability(compute_capability_name(trt, compute_capability), 0)
    cache = None
    if flavour == "tensorrt" and timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        cache = config.create_timing_cache(known) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    data = builder.build_serialized_network(network, config)
    if data is None:
        raise ExportError(f"graph '{spec.name}': {flavour} cannot build an engine: {_reason(log)}")
    if cache is not None and timing_cache is not None:
        timing_cache.write_bytes(memoryview(cache.serialize()))
    return BuiltEngine(memoryview(data), ports_in, ports_out, log)


def _reason(log: BuildLog) -> str:
    return "; ".join(log.errors[:3]) or "it gives no reason"


def _axes(spec: GraphSpec, tensor: Any) -> Mapping[int, Axis]:
    return spec.dynamic.get(tensor.name, {})


_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "UINT8": "uint8",
    "BOOL": "bool",
}


def _port(spec: GraphSpec, tensor: Any) -> Port:
    axes = _axes(spec, tensor)
    shape = tuple(
        axes[d].name if d in axes else int(n) if n >= 0 else "?" for d, n in enumerate(tensor.shape)
    )
    return Port(tensor.name, _DTYPES[tensor.dtype.name], shape)

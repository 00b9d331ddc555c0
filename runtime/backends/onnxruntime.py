"""Graphs of a bundle through ONNX Runtime, only on the provider that was asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dithead.bundle.libraries import load_onnxruntime
from dithead.bundle.manifest import GraphEntry, check_onnx
from dithead.bundle.ports import allocate, check_inputs, open_sizes
from dithead.errors import BackendUnavailable, ConfigError, ExportError, StreamError
from dithead.runtime.backends.bundlegraphs import BundleGraphs

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
KEPT_SIZES = 4
"""For how many sizes, such as frame sizes, each thread keeps a graph open."""


class _Binding(Protocol):
    """The part of ONNX Runtime's IOBinding in use; memory is given by name, kind and number of the
    device, type, shape and address."""

    bind_input: Callable[[str, str, int, str, tuple[int, ...], int], None]
    bind_output: Callable[[str, str, int, str, tuple[int, ...], int], None]


class _Session(Protocol):
    """The part of ONNX Runtime's InferenceSession in use."""

    def get_providers(self) -> list[str]: ...
    def io_binding(self) -> _Binding: ...
    def run(self, names: list[str], feeds: Mapping[str, object], /) -> list[object]: ...
    def run_with_iobinding(self, binding: _Binding, /) -> None: ...


_T = TypeVar("_T")
_Sizes = tuple[tuple[str, int], ...]
_Latest = dict[str, OrderedDict[_Sizes, _T]]


class OnnxGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's ONNX files.

    The CPU runs the float32 files, CUDA those in the bundle's precision. Files are checked against
    the manifest and opened by :meth:`preload` or on first use. A graph with open dimensions is
    opened for each size that occurs: then there is no shape arithmetic left, which the CUDA
    provider would pass to the CPU. Each thread keeps a graph open for the latest sizes that it
    used, so streams of different sizes do not close each other's graphs.

    Args:
        bundle: folder written by dithead-export.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of a graph; None takes PyTorch's number.

    Raises:
        BackendUnavailable: ONNX Runtime or its provider for the device is not there.
        ConfigError: another kind of device.
        ExportError: the bundle cannot be used, or was not made for the device.
    """

    replayable = False
    """ONNX Runtime waits for its own CUDA stream, which CUDA graphs cannot capture."""

    def __init__(
        self, bundle: Path, device: torch.device | str = "cpu", threads: int | None = None
    ) -> None:
        self._ort: ModuleType = load_onnxruntime()
        where = torch.device(device)
        if where.type not in PROVIDERS:
            raise ConfigError(f"the back end 'onnxruntime' runs on cpu or cuda, not {device}")
        self._provider = PROVIDERS[where.type]
        available = self._ort.get_available_providers()
        if self._provider not in available:
            raise BackendUnavailable(
                f"this ONNX Runtime has no {self._provider}, only {', '.join(available)}",
                hint="pip install 'dithead[gpu]' in place of 'dithead[cpu]', or choose "
                "--device cpu",
            )
        super().__init__(bundle, where)
        target = "cpu" if where.type == "cpu" else "gpu"
        if target not in self._manifest.targets:
            raise ExportError(
                f"{bundle} was made only for {', '.join(self._manifest.targets)}",
                hint=f"export again with --targets {target}",
            )
        if target == "cpu":
            self.precision = "fp32"
        self._threads = threads or torch.get_num_threads()
        self._paths: dict[str, Path] = {}
        self._sessions: _Opened[_Session] = _Opened(KEPT_SIZES)

    def preload(self, names: Iterable[str] | None = None) -> None:
        """Open graphs, so that a stream's first frame need not wait for them. ``names``: which ones
        of those that have one size; None takes all.

        Raises:
            ExportError: the bundle has no such graph, or its file is missing or damaged.
        """
        sizes = self.sizes_to_preload()
        for name in sizes if names is None else names:
            self._session(self._entry(name), sizes[name])

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs, in the table's order.

        Raises:
            ExportError: the bundle has no such graph, or its file is missing or damaged.
            StreamError: the inputs do not fit, or ONNX Runtime failed.
        """
        entry = self._entry(name)
        check_inputs(entry, inputs, self.device)
        session = self._session(entry, open_sizes(entry, inputs))
        run = self._run_on_cpu if self.device.type == "cpu" else self._run_on_gpu
        kept = [value.detach().contiguous() for value in inputs]
        try:
            return run(session, entry, kept)
        except Exception as error:  # ONNX Runtime's own classes, which are undocumented
            raise StreamError(f"graph '{name}' failed in ONNX Runtime: {error}") from error

    def _run_on_cpu(
        self, session: _Session, entry: GraphEntry, inputs: list[Tensor]
    ) -> tuple[Tensor, ...]:
        feeds = {p.name: value.numpy() for p, value in zip(entry.inputs, inputs, strict=True)}
        values = session.run([port.name for port in entry.outputs], feeds)
        return tuple(torch.from_numpy(value) for value in values)

    def _run_on_gpu(
        self, session: _Session, entry: GraphEntry, inputs: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Inputs are read and outputs written in place, on the device."""
        binding = session.io_binding()
        outputs = allocate(entry, inputs, self.device)
        ports = [*zip(entry.inputs, inputs, strict=True), *zip(entry.outputs, outputs, strict=True)]
        for number, (port, tensor) in enumerate(ports):
            bind = binding.bind_input if number < len(inputs) else binding.bind_output
            shape, address = tuple(tensor.shape), tensor.data_ptr()
            bind(port.name, "cuda", self.device.index, port.dtype, shape, address)
        # ONNX Runtime's own CUDA stream starts from here.
        torch.cuda.current_stream(self.device).synchronize()
        session.run_with_iobinding(binding)
        return tuple(outputs)

    def _session(self, entry: GraphEntry, open_to: dict[str, int]) -> _Session:
        sizes = tuple(sorted(open_to.items()))
        return self._sessions.get(
            entry.name, sizes, lambda: self._open(self._path(entry), entry.name, sizes)
        )

    def _path(self, entry: GraphEntry) -> Path:
        """The file of a graph, checked once."""
        if entry.name not in self._paths:
            file = entry.onnx_for(self.precision)
            if file is None:
                raise ExportError(
                    f"{self._bundle} has graph '{entry.name}' not in {self.precision}",
                    hint="export again",
                )
            self._paths[entry.name] = check_onnx(self._bundle, file)
        return self._paths[entry.name]

    def _open(self, path: Path, name: str, sizes: _Sizes) -> _Session:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        for dimension, size in sizes:
            options.add_free_dimension_override_by_name(dimension, size)
        provider: str | tuple[str, dict[str, int]] = self._provider
        options.intra_op_num_threads = self._threads
        # Every graph has its own threads, which would keep busy-waiting while the next one runs.
        # (With one pool for the whole process, the process could open no sessions of its own.)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.device.type == "cuda":
            # A node that the provider cannot run is an error, and never runs on the CPU instead.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # TF32 has only float16's digits, too few for coordinates.
            provider = (self._provider, {"device_id": self.device.index, "use_tf32": 0})
        try:
            session: _Session = self._ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # as above
            raise ExportError(
                f"ONNX Runtime cannot open graph '{name}' on {self._provider}: {error}"
            ) from error
        if session.get_providers()[0] != self._provider:
            raise BackendUnavailable(
                f"ONNX Runtime opened graph '{name}' on {session.get_providers()[0]}, not on "
                f"{self._provider}, which was asked for: its CUDA or cuDNN libraries are missing"
            )
        return session


class _Opened(Generic[_T]):
    """Opens a graph once for each size, and keeps the latest sizes open.

    No caller closes what another one is using: every thread keeps the sizes that it used last for
    as long as it lives. The sizes that any thread used last also stay open for the next caller.

    Args:
        most: how many sizes of a graph each thread keeps.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._opening = threading.Lock()
        self._open: WeakValueDictionary[tuple[str, _Sizes], _T] = WeakValueDictionary()
        self._shared: _Latest[_T] = {}
        self._own = threading.local()

    def get(self, name: str, sizes: _Sizes, opener: Callable[[], _T]) -> _T:
        """A graph for its sizes, opened unless it is already open."""
        own: _Latest[_T] = self._own.__dict__.setdefault("latest", {})
        # Before the lock, as another thread may be opening something.
        found = own[name].get(sizes) if name in own else None
        if found is None:
            with self._opening:
                found = self._open.get((name, sizes))
                if found is None:
                    found = self._open[name, sizes] = opener()
                self._keep(self._shared, name, sizes, found)
        self._keep(own, name, sizes, found)
        return found

    def kept(self, name: str) -> list[_Sizes]:
        """The sizes for which a graph is open in any thread."""
        return [sizes for of, sizes in list(self._open) if of == name]

    def _keep(self, latest: _Latest[_T], name: str, sizes: _Sizes, opened: _T) -> None:
        kept = latest.setdefault(name, OrderedDict())
        kept[sizes] = opened
        kept.move_to_end(sizes)
        if len(kept) > self._most:
            kept.popitem(last=False)

"""Graphs of a bundle through ONNX Runtime, on the provider that was asked for and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError, ExportError, StreamError
from dithead.export.manifest import GraphEntry, check_file
from dithead.export.onnx import load_onnxruntime
from dithead.runtime.backends.binding import BundleGraphs, allocate, check_inputs, open_sizes
from dithead.runtime.backends.opened import Opened, Sizes

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
KEPT_SIZES = 4
"""Sizes, such as a frame's, for which a graph is kept open at a time, for each thread."""


class OnnxGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's ONNX files.

    On the CPU the float32 files run, on CUDA those in the bundle's precision. Files are opened by
    :meth:`preload` or at their first use, and checked against the manifest before. Where a graph
    leaves dimensions open, it is opened for each size that it meets: then no arithmetic on shapes
    is left to run, which the CUDA provider would hand to the CPU. Of each graph a thread's latest
    sizes stay open, so streams of different sizes do not close each other's.

    Args:
        bundle: folder written by dithead-export.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of a graph on the CPU; None takes PyTorch's number.

    Raises:
        BackendUnavailable: ONNX Runtime or its provider for the device is not there.
        ConfigError: another kind of device.
        ExportError: the bundle cannot be used, or was not made for the device.
    """

    def __init__(
        self, bundle: Path, device: torch.device | str = "cpu", threads: int | None = None
    ) -> None:
        self._ort = load_onnxruntime()
        where = torch.device(device)
        if where.type not in PROVIDERS:
            raise ConfigError(f"the back end 'onnxruntime' runs on cpu or cuda, not {device}")
        self.provider = PROVIDERS[where.type]
        if self.provider not in self._ort.get_available_providers():
            raise BackendUnavailable(
                f"this ONNX Runtime has no {self.provider}, only "
                f"{', '.join(self._ort.get_available_providers())}",
                hint="pip install 'dithead[gpu]' in place of 'dithead[cpu]', or choose "
                "--device cpu",
            )
        super().__init__(bundle, where)
        target = "cpu" if where.type == "cpu" else "gpu"
        if target not in self._manifest.targets:
            raise ExportError(
                f"{bundle} was made for {', '.join(self._manifest.targets)} alone",
                hint=f"export again with --targets {target}",
            )
        self._precision = "fp32" if target == "cpu" else self._manifest.precision
        self._threads = threads or torch.get_num_threads()
        self._paths: dict[str, Path] = {}
        self._sessions: Opened[Any] = Opened(KEPT_SIZES)

    @property
    def precision(self) -> str:
        """What the weights are computed in."""
        return self._precision

    @property
    def replayable(self) -> bool:
        """ONNX Runtime waits for its own stream, which cannot be captured."""
        return False

    def preload(self) -> None:
        """Open what every stream runs, so that its first frame need not wait for it.

        Raises:
            ExportError: a file is missing or damaged.
        """
        for name, sizes in self.sizes_to_preload().items():
            self._session(self._entry(name), sizes)

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs, in the table's order.

        Raises:
            ExportError: the bundle has no such graph, or its file is missing or damaged.
        """
        entry = self._entry(name)
        check_inputs(entry, inputs, self._device)
        session = self._session(entry, open_sizes(entry, inputs))
        names = [port.name for port in entry.outputs]
        if self._device.type == "cpu":
            feeds = {
                port.name: value.detach().contiguous().numpy()
                for port, value in zip(entry.inputs, inputs, strict=True)
            }
            try:
                values = session.run(names, feeds)
            except Exception as error:  # ONNX Runtime's own classes, which it does not document
                raise StreamError(f"graph '{name}' failed in ONNX Runtime: {error}") from error
            return tuple(torch.from_numpy(value) for value in values)
        return self._run_bound(session, entry, inputs)

    def _run_bound(
        self, session: Any, entry: GraphEntry, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Inputs are read and outputs written where they are, on the device."""
        binding = session.io_binding()
        index = self._device.index
        kept = [value.detach().contiguous() for value in inputs]
        outputs = allocate(entry, kept, self._device)
        ports = [*zip(entry.inputs, kept, strict=True), *zip(entry.outputs, outputs, strict=True)]
        for number, (port, tensor) in enumerate(ports):
            bind = binding.bind_input if number < len(kept) else binding.bind_output
            bind(port.name, "cuda", index, port.dtype, tuple(tensor.shape), tensor.data_ptr())
        torch.cuda.current_stream(self._device).synchronize()  # its own stream starts from here
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # as above; memory that runs out included
            raise StreamError(f"graph '{entry.name}' failed in ONNX Runtime: {error}") from error
        return tuple(outputs)

    def _session(self, entry: GraphEntry, open_to: dict[str, int]) -> Any:
        sizes = tuple(sorted(open_to.items()))
        return self._sessions.get(
            entry.name, sizes, lambda: self._open(self._path(entry), entry.name, sizes)
        )

    def _path(self, entry: GraphEntry) -> Path:
        """The file of a graph, checked once."""
        if entry.name not in self._paths:
            file = entry.onnx_for(self._precision)
            if file is None:
                raise ExportError(
                    f"{self._bundle} has graph '{entry.name}' not in {self._precision}",
                    hint="export again",
                )
            path = check_file(self._bundle, file.file)
            if file.weights is not None:
                check_file(self._bundle, file.weights)
            self._paths[entry.name] = path
        return self._paths[entry.name]

    def _open(self, path: Path, name: str, sizes: Sizes) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        for dimension, size in sizes:
            options.add_free_dimension_override_by_name(dimension, size)
        provider: Any = self.provider
        options.intra_op_num_threads = self._threads
        # Every graph has its threads, which would go on waiting busily while the next one runs.
        # (One pool for the whole process would not let it open sessions of its own any more.)
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._device.type == "cuda":
            # A node that the provider cannot take is an error, never a slip to the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # TF32 has float16's digits, too few for coordinates.
            provider = (self.provider, {"device_id": self._device.index, "use_tf32": 0})
        try:
            session = self._ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's own classes, which it does not document
            raise ExportError(
                f"ONNX Runtime cannot open graph '{name}' on {self.provider}: {error}"
            ) from error
        if session.get_providers()[0] != self.provider:
            raise BackendUnavailable(
                f"ONNX Runtime opened graph '{name}' on {session.get_providers()[0]}, not on "
                f"{self.provider}, which was asked for: its CUDA or cuDNN libraries are missing"
            )
        return session

"""Graphs of a bundle through ONNX Runtime, on the provider that was asked for and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead.errors import BackendUnavailable, ConfigError, ExportError, StreamError
from dithead.export.manifest import GraphEntry, check_file
from dithead.export.onnx import load_onnxruntime
from dithead.runtime.backends.binding import BundleGraphs, allocate, check_inputs

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's ONNX files.

    On the CPU the float32 files run, on CUDA those in the bundle's precision. Files are opened at
    their first use, and checked against the manifest before.

    Args:
        bundle: folder written by dithead-export.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of one graph on the CPU; None takes PyTorch's number.

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
                f"{', '.join(self._ort.get_available_providers())}: pip install 'dithead[gpu]' "
                "in place of 'dithead[cpu]', or choose --device cpu"
            )
        super().__init__(bundle, where)
        target = "cpu" if where.type == "cpu" else "gpu"
        if target not in self._manifest.targets:
            raise ExportError(
                f"{bundle} was made for {', '.join(self._manifest.targets)} alone: export again "
                f"with --targets {target}"
            )
        self._precision = "fp32" if target == "cpu" else self._manifest.precision
        self._threads = threads or torch.get_num_threads()
        self._sessions: dict[str, Any] = {}
        self._entries: dict[str, GraphEntry] = {}

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs, in the table's order.

        Raises:
            ExportError: the bundle has no such graph, or its file is missing or damaged.
        """
        session = self._session(name)
        entry = self._entries[name]
        check_inputs(entry, inputs, self._device)
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
        index = self._device.index or 0
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

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            entry = self._manifest.graph(name)
            file = entry.onnx_in(self._precision) or entry.onnx_in("fp32")
            if file is None:
                raise ExportError(
                    f"{self._bundle} has graph '{name}' neither in {self._precision} nor in fp32: "
                    "export again"
                )
            path = check_file(self._bundle, file.file)
            if file.weights is not None:
                check_file(self._bundle, file.weights)
            self._sessions[name] = self._open(path, name)
            self._entries[name] = entry
        return self._sessions[name]

    def _open(self, path: Path, name: str) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        provider: Any = self.provider
        if self._device.type == "cuda":
            # A node that the provider cannot take is an error, never a slip to the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            # TF32 has float16's digits, too few for coordinates.
            provider = (self.provider, {"device_id": self._device.index or 0, "use_tf32": 0})
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

"""Graphs of a bundle through its TensorRT engines, on one GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dithead.bundle.engines import Engines
from dithead.bundle.libraries import Flavour
from dithead.errors import ConfigError
from dithead.runtime.backends.bundlegraphs import BundleGraphs
from dithead.torchgraphs import weightless


class EngineGraphs(BundleGraphs):
    """:class:`~dithead.graphs.Graphs` from a bundle's engines.

    The graphs without an engine have no weights and run in PyTorch on the same GPU. Everything is
    queued on PyTorch's current CUDA stream.

    Args:
        bundle: folder written by dithead-export.
        device: ``cuda`` or ``cuda:N``.
        flavour: ``tensorrt-rtx`` or ``tensorrt``, the one the bundle was made with.

    Raises:
        BackendUnavailable: the flavour or a GPU is missing.
        ConfigError: another kind of device.
        ExportError: the bundle cannot be used here; the message says why and what to do.
    """

    replayable = True
    """Engines are queued like kernels, so CUDA graphs can capture them."""

    def __init__(self, bundle: Path, device: torch.device | str, flavour: Flavour) -> None:
        where = torch.device(device)
        if where.type != "cuda":
            raise ConfigError(
                f"the back end {flavour!r} runs only on a GPU: --device cuda, not {device}"
            )
        super().__init__(bundle, where)
        self._engines = Engines(bundle, self.device, flavour)
        self._modules: dict[str, nn.Module] = {
            name: make().to(self.device).eval()
            for name, make in weightless(self.config, self.face_models).items()
            if not (name in self._entries and self._entries[name].engine)
        }

    def preload(self) -> None:
        """Open the engines that every stream runs, so that its first frame need not wait for them.

        Raises:
            ExportError: one is missing, damaged or does not open here.
        """
        for name in self.sizes_to_preload():
            if (entry := self._entry(name)).engines:
                self._engines.preload(entry)

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Queue a graph on the current CUDA stream: its inputs -> its outputs, in the table's
        order.

        Raises:
            ExportError: the bundle has no such engine, or it cannot be opened here.
        """
        if name in self._modules:
            outputs = self._modules[name](*inputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)
        return self._engines.run(self._entry(name), inputs)

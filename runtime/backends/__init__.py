"""Back ends that run the graphs: PyTorch from a checkpoint, ONNX Runtime or TensorRT from a
bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch

from dithead.errors import ConfigError
from dithead.graphs import Graphs
from dithead.kernels.attention import AttentionBackend

Backend = Literal["torch", "onnxruntime", "tensorrt", "tensorrt-rtx"]


class RuntimeGraphs(Graphs, Protocol):
    """:class:`~dithead.graphs.Graphs` as run by a back end."""

    @property
    def precision(self) -> str:
        """The precision of the computation: fp32, fp16 or bf16."""

    @property
    def replayable(self) -> bool:
        """Whether work queued on a GPU may be captured once and replayed (CUDA graphs)."""

    @property
    def random_weights(self) -> bool:
        """Whether the weights were drawn, and never trained: the result is noise."""


def limit_threads(backend: Backend, threads: int) -> None:
    """Set the number of CPU threads of each stage. ONNX Runtime has its own threads, and PyTorch's
    would busy-wait beside them: there PyTorch gets one."""
    torch.set_num_threads(1 if backend == "onnxruntime" else threads)


def check_backend(backend: Backend, from_bundle: bool, attention: AttentionBackend | None) -> None:
    """Raise ConfigError if there is no such back end, or it reads no bundle, or takes no
    attention."""
    if backend not in get_args(Backend):
        raise ConfigError(
            f"unknown back end {backend!r}",
            hint=f"choose one of {', '.join(get_args(Backend))}",
        )
    if backend == "torch" and from_bundle:
        raise ConfigError(
            "the back end 'torch' reads a checkpoint, not a bundle",
            hint="leave one out",
        )
    if backend != "torch" and attention is not None:
        raise ConfigError(
            f"the back end {backend!r} takes its attention from the bundle",
            hint="choose an attention with the back end torch only",
        )


def open_graphs(
    backend: Backend,
    *,
    checkpoint: str = "tiny",
    bundle: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    audio_weights: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    attention: AttentionBackend | None = None,
) -> RuntimeGraphs:
    """Open a model for a back end, never for another one instead.

    Args:
        checkpoint, audio_weights: read by ``torch`` only.
        bundle: folder written by dithead-export; read by the others.
        threads: CPU threads of a graph, for ``onnxruntime``; None takes PyTorch's number.
        attention: attention of the denoiser, for ``torch`` only; see
            :func:`dithead.kernels.attention.attention`.

    Raises:
        ConfigError: unknown back end, a missing bundle, a bundle for a back end that reads none, or
            an attention where none can be chosen.
        BackendUnavailable: a package or device is missing.
        CheckpointError, ExportError: the checkpoint or the bundle cannot be used.
    """
    check_backend(backend, bundle is not None, attention)
    where = torch.device(device)
    if backend == "torch":
        from dithead.torchgraphs import TorchGraphs

        weights = None if audio_weights is None else Path(audio_weights)
        return TorchGraphs.load(checkpoint, where, weights, attention or "auto")
    if bundle is None:
        raise ConfigError(
            f"the back end {backend!r} reads a bundle",
            hint="make one with dithead-export -o FOLDER and give it with --bundle FOLDER",
        )
    if backend == "onnxruntime" and where.type == "cpu":
        from dithead.runtime.backends.cpu import CpuGraphs

        on_cpu = CpuGraphs(Path(bundle), threads)
        on_cpu.preload()
        return on_cpu
    if backend == "onnxruntime":
        from dithead.runtime.backends.onnxruntime import OnnxGraphs

        graphs = OnnxGraphs(Path(bundle), where, threads)
        graphs.preload()
        return graphs
    from dithead.runtime.backends.tensorrt import EngineGraphs

    engines = EngineGraphs(Path(bundle), where, backend)
    engines.preload()
    return engines

"""Back ends that run the graphs: PyTorch from a checkpoint, ONNX Runtime or TensorRT from a
bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Protocol, get_args

import torch

from dithead.errors import ConfigError
from dithead.face.networks import FaceModels, FaceNetworks, checked_face_models
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


def check_face_models(models: str | None, weights: object, from_bundle: bool) -> None:
    """Raise ConfigError if there are no such networks that find faces, or none can be chosen, or
    weights are given for those that come with the package."""
    if models is not None:
        checked_face_models(models)
    if from_bundle and (models is not None or weights is not None):
        raise ConfigError(
            "a bundle holds its own face models",
            hint="export one with --face-models, or leave the face models and their weights out",
        )
    if weights is not None and models != "fan":
        raise ConfigError(
            "weights were given for face models that come with the package",
            hint="choose the face models fan, too",
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
    face_models: FaceModels | None = None,
    face_weights: str | os.PathLike[str] | None = None,
) -> RuntimeGraphs:
    """Open a model for a back end, never for another one instead.

    Args:
        checkpoint, audio_weights: read by ``torch`` only.
        bundle: folder written by dithead-export; read by the others.
        threads: CPU threads of a graph, for ``onnxruntime``; None takes PyTorch's number.
        attention: attention of the denoiser, for ``torch`` only; see
            :func:`dithead.kernels.attention.attention`.
        face_models, face_weights: the networks that find faces, for ``torch`` only; see
            :meth:`dithead.face.networks.FaceNetworks.load`. None takes ``mediapipe``.

    Raises:
        ConfigError: unknown back end, a missing bundle, a bundle for a back end that reads none, or
            an attention where none can be chosen.
        BackendUnavailable: a package or device is missing.
        CheckpointError, ExportError: the checkpoint or the bundle cannot be used.
    """
    check_backend(backend, bundle is not None, attention)
    check_face_models(face_models, face_weights, bundle is not None)
    where = torch.device(device)
    if backend == "torch":
        from dithead.torchgraphs import TorchGraphs

        weights = None if audio_weights is None else Path(audio_weights)
        faces = FaceNetworks.load(face_models or "mediapipe", face_weights)
        return TorchGraphs.load(checkpoint, where, weights, attention or "auto", faces)
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

"""A bundle on the CPU: ONNX Runtime runs the networks, PyTorch the other graphs.

Most of the other graphs read pictures at computed places (``grid_sample``) or have many small
steps. PyTorch takes 0.6 to 1.0 times as long as ONNX Runtime for those of them that cost most, and
has no file to be made and opened for every size of face.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dithead.bundle.graphspecs import networks
from dithead.face.networks import FaceNetworks
from dithead.runtime.backends.onnxruntime import OnnxGraphs
from dithead.torchgraphs import PackagedGraphs


class CpuGraphs:
    """:class:`~dithead.graphs.Graphs` from a bundle, on the CPU. Of the bundle's files, only those
    of the networks are read; a face detector that comes with the package runs in PyTorch.

    Args:
        bundle: folder written by dithead-export.
        threads: CPU threads of a network; None takes PyTorch's number.

    Raises:
        BackendUnavailable: ONNX Runtime is not installed.
        ExportError: the bundle cannot be used, or was not made for the CPU.
    """

    replayable = False

    def __init__(self, bundle: Path, threads: int | None = None) -> None:
        self._networks = OnnxGraphs(bundle, "cpu", threads)
        self.config, self.device = self._networks.config, self._networks.device
        self.precision = self._networks.precision
        self.random_weights = self._networks.random_weights
        self._in_files = networks(self.config.shape_head, self._networks.face_models)
        packaged = self._networks.face_models == "mediapipe"
        faces = FaceNetworks.load() if packaged else FaceNetworks(None, None, "fan")
        self._others = PackagedGraphs(self.config, faces)

    def preload(self) -> None:
        """Open the networks, so that the first frame need not wait for them.

        Raises:
            ExportError: a file is missing or damaged.
        """
        self._networks.preload(networks(self.config.shape_head))

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs, in the table's order.

        Raises:
            ExportError: the bundle has no such graph, or its file is missing or damaged.
            StreamError: the inputs do not fit, or ONNX Runtime failed.
        """
        graphs = self._networks if name in self._in_files else self._others
        return graphs.run(name, *inputs)

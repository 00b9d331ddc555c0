"""The graphs that find faces, run eagerly, for use when no complete model is loaded."""

from __future__ import annotations

from torch import Tensor, nn

from dithead.errors import ConfigError
from dithead.face.detector import FaceDetector, load_face_detector
from dithead.face.judge import FaceJudge
from dithead.face.mesh import FaceLandmarks, FaceMesh, FaceRegion, load_face_mesh


class FaceNetworks:
    """The face detector, the mesh network, and the graphs built from them."""

    def __init__(self, detector: FaceDetector, mesh: FaceMesh) -> None:
        self.detector = detector
        self.mesh = mesh
        self._modules: dict[str, nn.Module] = {}

    @classmethod
    def load(cls) -> FaceNetworks:
        """Load the packaged networks."""
        return cls(load_face_detector(), load_face_mesh())

    def build(self, name: str) -> nn.Module:
        """Build a graph, such as ``face_region.2``. Raises ConfigError: no such graph."""
        kind, _, samples = name.partition(".")
        if kind == "face_region" and samples.isdigit():
            return FaceRegion(int(samples))
        if name == "face_detector":
            return self.detector
        if name == "face_landmarks":
            return FaceLandmarks(self.mesh.net)
        if name == "face_judge":
            return FaceJudge()
        raise ConfigError(f"unknown graph {name!r}")

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs."""
        if name not in self._modules:
            self._modules[name] = self.build(name)
        outputs = self._modules[name](*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

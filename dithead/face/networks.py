"""The graphs that find faces, run eagerly, for use when no complete model is loaded."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dithead.errors import ConfigError
from dithead.face.detector import FaceDetector, load_face_detector
from dithead.face.judge import FaceJudge
from dithead.face.likeness import FaceLight, FaceLikeness
from dithead.face.mesh import (
    FaceLandmarks,
    FaceLook,
    FaceMesh,
    FacePicture,
    FaceRegion,
    FaceSighting,
    load_face_mesh,
)
from dithead.face.passing import FaceSides
from dithead.face.scene import FrameGlance, SceneChange

WEIGHTLESS: dict[str, Callable[[], nn.Module]] = {
    "face_sighting": FaceSighting,
    "face_judge": FaceJudge,
    "face_look": FaceLook,
    "face_picture": FacePicture,
    "face_likeness": FaceLikeness,
    "face_light": FaceLight,
    "face_sides": FaceSides,
    "frame_glance": FrameGlance,
    "scene_change": SceneChange,
}
"""Graphs of the search for faces that have no weights and one size."""


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
        if name in WEIGHTLESS:
            return WEIGHTLESS[name]()
        raise ConfigError(f"unknown graph {name!r}")

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs."""
        if name not in self._modules:
            self._modules[name] = self.build(name)
        outputs = self._modules[name](*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

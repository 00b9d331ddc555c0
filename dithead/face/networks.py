"""The graphs that find faces, run eagerly, for use when no complete model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dithead.errors import ConfigError
from dithead.face import fanweights
from dithead.face.detector import load_face_detector
from dithead.face.fan import INPUT_SIZE as FAN_SIZE
from dithead.face.fanregion import FanJudge, FanSighting
from dithead.face.judge import FaceJudge
from dithead.face.likeness import FaceLight, FaceLikeness
from dithead.face.mesh import (
    INPUT_SIZE,
    FaceLandmarks,
    FaceLook,
    FacePicture,
    FaceRegion,
    FaceSighting,
    load_face_mesh,
)
from dithead.face.passing import FaceSides
from dithead.face.scene import FrameGlance, SceneChange

FaceModels = Literal["mediapipe", "fan"]
"""Which networks find faces: MediaPipe's detector and mesh, which come with the package, or S3FD
and FAN, as in the DiT-Head paper."""
PICTURE_PX: Mapping[FaceModels, int] = {"mediapipe": INPUT_SIZE, "fan": FAN_SIZE}
"""Side of the picture of a region, which the landmark network sees."""

_COMMON: dict[str, Callable[[], nn.Module]] = {
    "face_picture": FacePicture,
    "face_likeness": FaceLikeness,
    "face_light": FaceLight,
    "face_sides": FaceSides,
    "frame_glance": FrameGlance,
    "scene_change": SceneChange,
}


def checked_face_models(models: str) -> FaceModels:
    """The name of networks, as such. Raises ConfigError: there are none of that name."""
    for known in PICTURE_PX:
        if models == known:
            return known
    raise ConfigError(
        f"unknown face models {models!r}", hint=f"choose one of {', '.join(PICTURE_PX)}"
    )


def weightless(models: FaceModels) -> dict[str, Callable[[], nn.Module]]:
    """What makes each graph of the search for faces that has no weights and one size."""
    with_fan = models == "fan"
    return {
        **_COMMON,
        "face_sighting": FanSighting if with_fan else FaceSighting,
        "face_judge": FanJudge if with_fan else FaceJudge,
        "face_look": lambda: FaceLook(PICTURE_PX[models]),
    }


class FaceNetworks:
    """A face detector, a landmark network, and the graphs built from them.

    Args:
        detector: the graph ``face_detector``; None if something else runs it.
        landmarks: the graph ``face_landmarks``, likewise.
        models: which networks these are.
    """

    def __init__(
        self,
        detector: nn.Module | None,
        landmarks: nn.Module | None,
        models: FaceModels = "mediapipe",
    ) -> None:
        self.detector = detector
        self.landmarks = landmarks
        self.models = models
        self._modules: dict[str, nn.Module] = {}

    @classmethod
    def load(
        cls, models: FaceModels = "mediapipe", weights: str | os.PathLike[str] | None = None
    ) -> FaceNetworks:
        """Load the packaged networks, or S3FD and FAN.

        Args:
            weights: folder of S3FD's and FAN's weights; None takes the one in the user's cache.

        Raises:
            ConfigError: no such networks, or weights for those that are packaged.
            CheckpointError: a file of weights is missing or does not fit.
        """
        if checked_face_models(models) == "fan":
            return cls(*fanweights.load_fan(weights), models)
        if weights is not None:
            raise ConfigError("MediaPipe's face models come with the package: give no folder")
        return cls(load_face_detector(), FaceLandmarks(load_face_mesh().net))

    @property
    def device(self) -> torch.device:
        """Where the weights are; the CPU if there are none."""
        parts = (part for part in (self.landmarks, self.detector) if part is not None)
        return next((next(part.parameters()).device for part in parts), torch.device("cpu"))

    def to(self, device: torch.device | str) -> FaceNetworks:
        """The same networks on another device."""
        detector = None if self.detector is None else self.detector.to(device)
        landmarks = None if self.landmarks is None else self.landmarks.to(device)
        return FaceNetworks(detector, landmarks, self.models)

    def build(self, name: str) -> nn.Module:
        """Build a graph, such as ``face_region.2``. Raises ConfigError: no such graph."""
        kind, _, samples = name.partition(".")
        if kind == "face_region" and samples.isdigit():
            return FaceRegion(int(samples), PICTURE_PX[self.models])
        networks = {"face_detector": self.detector, "face_landmarks": self.landmarks}
        if (network := networks.get(name)) is not None:
            return network
        graphs = weightless(self.models)
        if name in graphs:
            return graphs[name]()
        raise ConfigError(f"unknown graph {name!r}")

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs -> its outputs."""
        if name not in self._modules:
            self._modules[name] = self.build(name)
        outputs = self._modules[name](*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

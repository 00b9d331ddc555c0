"""Which face, and where: follows one face through a video, frame by frame."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dithead.errors import ConfigError
from dithead.face.detector import FaceDetector
from dithead.face.mesh import FaceMesh, roi_from_detection, roi_from_mesh

MIN_MESH_SCORE = 0.5
MIN_OVERLAP = 0.2

FaceChoice = Literal["largest"] | int


class FaceLocator:
    """Finds a face, then follows its mesh from frame to frame, and looks again when it is lost.

    Every ``redetect_every`` frames the detector must still see a face where the mesh is, so a mesh
    that has wandered onto the background is dropped.

    Args:
        choice: ``"largest"``, or the index of a face counted from the left of the frame in which it
            is first looked for.
        redetect_every: frames between two looks with the detector.
    """

    def __init__(
        self,
        detector: FaceDetector,
        mesh: FaceMesh,
        choice: FaceChoice = "largest",
        redetect_every: int = 10,
    ) -> None:
        if choice != "largest" and not (isinstance(choice, int) and choice >= 0):
            raise ConfigError(f"face must be 'largest' or an index from 0, not {choice!r}")
        self._detector = detector
        self._mesh = mesh
        self._choice = choice
        self._redetect_every = redetect_every
        self.reset()

    def reset(self) -> None:
        """Forget the face."""
        self._last: Tensor | None = None
        self._since_detection = 0

    def __call__(self, frame: Tensor) -> Tensor | None:
        """Mesh (468, 3) in frame pixels of the followed face in a frame (H, W, 3) uint8 RGB, or
        None."""
        mesh = self._follow(frame)
        if mesh is None:
            mesh = self._find(frame)
        self._last = mesh
        return mesh

    def _follow(self, frame: Tensor) -> Tensor | None:
        if self._last is None:
            return None
        mesh = self._fit(frame, roi_from_mesh(self._last[None]))
        self._since_detection += 1
        if mesh is not None and self._since_detection >= self._redetect_every:
            boxes = self._detect(frame)
            self._since_detection = 0
            if not any(_overlap(_bounds(mesh), box) > MIN_OVERLAP for box, _ in boxes):
                return None
        return mesh

    def _find(self, frame: Tensor) -> Tensor | None:
        faces = self._detect(frame)
        if self._choice == "largest":
            faces.sort(key=lambda face: -_area(face[0]))
            index = 0
        else:
            faces.sort(key=lambda face: float(face[0][0] + face[0][2]))
            index = self._choice
        if index >= len(faces):
            return None
        box, keypoints = faces[index]
        self._since_detection = 0
        mesh = self._fit(frame, roi_from_detection(keypoints[None], box[None]))
        if mesh is None:
            return None
        return self._fit(frame, roi_from_mesh(mesh[None]))  # a second look, framed by the first

    def _fit(self, frame: Tensor, roi: Tensor) -> Tensor | None:
        mesh, score = self._mesh(frame, roi)
        return mesh[0] if float(score[0]) >= MIN_MESH_SCORE else None

    def _detect(self, frame: Tensor) -> list[tuple[Tensor, Tensor]]:
        boxes, scores, keypoints = self._detector(frame)
        return [
            (box, points)
            for box, score, points in zip(boxes, scores, keypoints, strict=True)
            if float(score) > 0
        ]


def _bounds(mesh: Tensor) -> Tensor:
    points = mesh[:, :2]
    return torch.cat([points.amin(0), points.amax(0)])


def _area(box: Tensor) -> float:
    return float((box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0))


def _overlap(a: Tensor, b: Tensor) -> float:
    inner = torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])])
    shared = _area(inner)
    return shared / max(_area(a) + _area(b) - shared, 1e-9)

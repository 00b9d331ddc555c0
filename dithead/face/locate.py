"""Which face, and where: follows one face through a video, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dithead.errors import ConfigError
from dithead.face.mesh import roi_from_detection, roi_from_mesh
from dithead.transfer import to_device

MIN_MESH_SCORE = 0.5
MIN_OVERLAP = 0.2
MAX_JUMP = 0.5
"""A followed face does not move by more than this share of its width from one frame to the next."""

FaceChoice = Literal["largest"] | int
_Face = tuple[Tensor, Tensor]  # box (4,) and keypoints (6, 2) of the detector


class FaceLocator:
    """Finds a face, then follows its mesh from frame to frame, and looks again when it is lost.

    Every ``redetect_every`` frames the detector must still see a face where the mesh is, so a mesh
    that has wandered onto the background is dropped. A face that is lost is looked for where it
    was; if there is none, the choice is made anew.

    Attributes:
        changed: whether the face of the latest frame is not known to be that of the frame before.
        region: (1, 5), where in the latest frame its mesh was fitted.

    Args:
        detector, mesh: the graphs :class:`~dithead.face.detector.FaceDetector` and
            :class:`~dithead.face.mesh.FaceMesh`, or what runs them.
        choice: ``"largest"``, or the index of a face counted from the left of the frame in which it
            is first looked for.
        redetect_every: frames between two looks with the detector.
    """

    def __init__(
        self,
        detector: Callable[[Tensor], tuple[Tensor, ...]],
        mesh: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        choice: FaceChoice = "largest",
        redetect_every: int = 10,
    ) -> None:
        if choice != "largest" and not (isinstance(choice, int) and choice >= 0):
            raise ConfigError(f"face must be 'largest' or an index from 0, not {choice!r}")
        self._detector = detector
        self._mesh = mesh
        self._choice = choice
        self._redetect_every = redetect_every
        self._read: Callable[[Tensor], Tensor] = Tensor.cpu
        self.reset()

    def reset(self) -> None:
        """Forget the face."""
        self._last: Tensor | None = None
        self._since_detection = 0
        self.changed = True
        self.region: Tensor | None = None

    def __call__(
        self, frame: Tensor, read: Callable[[Tensor], Tensor] = Tensor.cpu
    ) -> Tensor | None:
        """Mesh (468, 3) in frame pixels of the followed face in a frame (H, W, 3) uint8 RGB, or
        None.

        Args:
            read: gives a tensor's values on the host, where it is decided what to run next.
        """
        self._read = read
        mesh = self._follow(frame)
        self.changed = False
        if mesh is None:
            mesh = self._find(frame)
        self._last = mesh
        return mesh

    def _follow(self, frame: Tensor) -> Tensor | None:
        if self._last is None:
            return None
        mesh = self._fit(frame, roi_from_mesh(self._last[None]), self._last)
        self._since_detection += 1
        if mesh is not None and self._since_detection >= self._redetect_every:
            boxes = self._detect(frame)
            self._since_detection = 0
            seen = self._read(_bounds(mesh))
            if not any(_overlap(seen, box) > MIN_OVERLAP for box, _ in boxes):
                return None
        return mesh

    def _find(self, frame: Tensor) -> Tensor | None:
        faces = self._detect(frame)
        face = self._face_where_it_was(faces)
        if face is None:
            self.changed = True
            face = self._chosen_face(faces)
        if face is None:
            return None
        box, keypoints = face
        self._since_detection = 0
        region = to_device(roi_from_detection(keypoints[None], box[None]), frame.device)
        mesh = self._fit(frame, region)
        if mesh is None:
            return None
        return self._fit(frame, roi_from_mesh(mesh[None]))  # a second look, framed by the first

    def _face_where_it_was(self, faces: list[_Face]) -> _Face | None:
        if self._last is None or not faces:
            return None
        before = self._read(_bounds(self._last))
        face = max(faces, key=lambda face: _overlap(before, face[0]))
        return face if _overlap(before, face[0]) > MIN_OVERLAP else None

    def _chosen_face(self, faces: list[_Face]) -> _Face | None:
        if self._choice == "largest":
            return max(faces, key=lambda face: _area(face[0]), default=None)
        from_left = sorted(faces, key=lambda face: float(face[0][0] + face[0][2]))
        return from_left[self._choice] if self._choice < len(from_left) else None

    def _fit(self, frame: Tensor, roi: Tensor, before: Tensor | None = None) -> Tensor | None:
        """Mesh in a region; None where there is none, or where it has jumped from ``before``."""
        self.region = roi
        mesh, score = self._mesh(frame, roi)
        jump = torch.zeros_like(score) if before is None else _jump(before, mesh[0])[None]
        certainty, moved = self._read(torch.cat([score, jump])).tolist()
        return mesh[0] if certainty >= MIN_MESH_SCORE and moved <= MAX_JUMP else None

    def _detect(self, frame: Tensor) -> list[_Face]:
        """The detector's faces, on the host."""
        boxes, scores, keypoints = (self._read(output) for output in self._detector(frame))
        return [
            (box, points)
            for box, score, points in zip(boxes, scores, keypoints, strict=True)
            if float(score) > 0
        ]


def _bounds(mesh: Tensor) -> Tensor:
    points = mesh[:, :2]
    return torch.cat([points.amin(0), points.amax(0)])


def _jump(before: Tensor, after: Tensor) -> Tensor:
    """How far a mesh has moved, as a share of the face's width: ()."""
    width = (before[:, 0].amax() - before[:, 0].amin()).clamp(min=1.0)
    return (after[:, :2].mean(0) - before[:, :2].mean(0)).norm() / width


def _area(box: Tensor) -> float:
    return float((box[2] - box[0]).clamp(min=0) * (box[3] - box[1]).clamp(min=0))


def _overlap(a: Tensor, b: Tensor) -> float:
    inner = torch.cat([torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])])
    shared = _area(inner)
    return shared / max(_area(a) + _area(b) - shared, 1e-9)

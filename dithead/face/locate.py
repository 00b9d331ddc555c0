"""Which face, and where: follows one face through a video, frame by frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
MAX_MOTION = 0.15
"""One that moves by more than this is looked at anew, and is another if that says so, too. The
liveliest talker at hand moves by 0.05 at 30 frames a second, by 0.11 at 10."""
MAX_UNLIKENESS = 0.12
"""And so is one of which :func:`glimpse` shows something more unlike than this plus its motion.
Within footage at 25 to 30 frames a second that is 0.04 at most, at 15 it is 0.11; of cuts between
two people in the same place, 19 of 20 are beyond."""

_COLUMNS, _ROWS, _EACH = 16, 8, 2
_CLIPPED = 250.0  # levels from which on a picture may have lost what it showed
_FAINT = 3.0  # levels; contrast below it is noise

FaceChoice = Literal["largest"] | int
_Face = tuple[Tensor, Tensor]  # box (4,) and keypoints (6, 2) of the detector


@dataclass(frozen=True, slots=True)
class _Fit:
    """A mesh in one frame, beside the face of the frame before."""

    mesh: Tensor
    """(468, 3) in frame pixels."""
    region: Tensor
    """(1, 5), where it was fitted."""
    around: Tensor
    """(1, 5), where to look for it next."""
    seen: Tensor
    """From :func:`glimpse`."""
    moved: float
    """How far from the last one, as a share of its width."""
    unlikeness: float
    """How little it looks like the last one, in [0, 2]."""

    @property
    def another(self) -> bool:
        """Whether it may be somebody else, or the same in another shot."""
        return self.moved > MAX_MOTION or self.unlikeness > MAX_UNLIKENESS + self.moved


class FaceLocator:
    """Finds a face, then follows its mesh from frame to frame, and looks again when it is lost.

    Every ``redetect_every`` frames the detector must still see a face where the mesh is, so a mesh
    that has wandered onto the background is dropped. A face that is lost is looked for where it
    was; if there is none, the choice is made anew. A face that leaps or suddenly looks different is
    looked at anew, too: after a cut, what is in its place may be somebody else.

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
        self._last: _Fit | None = None
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
        followed = fit = self._follow(frame)
        self.changed = False
        if followed is None or followed.another:
            fit = self._find(frame, followed or self._last)
        if fit is None and followed is not None:  # only the detector does not know it
            fit = self._fit(frame, followed.around) or followed
        self._last = fit
        if fit is None:
            return None
        self.changed = self.changed or fit.another
        self.region = fit.region
        return fit.mesh

    def _follow(self, frame: Tensor) -> _Fit | None:
        if self._last is None:
            return None
        fit = self._fit(frame, self._last.around)
        if fit is None or fit.moved > MAX_JUMP:
            return None
        self._since_detection += 1
        if self._since_detection >= self._redetect_every and not fit.another:
            boxes = self._detect(frame)
            self._since_detection = 0
            seen = self._read(_bounds(fit.mesh))
            if not any(_overlap(seen, box) > MIN_OVERLAP for box, _ in boxes):
                return None
        return fit

    def _find(self, frame: Tensor, place: _Fit | None) -> _Fit | None:
        faces = self._detect(frame)
        face = self._face_where_it_was(faces, place)
        if face is None:
            self.changed = True
            face = self._chosen_face(faces)
        if face is None:
            return None
        box, keypoints = face
        self._since_detection = 0
        region = to_device(roi_from_detection(keypoints[None], box[None]), frame.device)
        fit = self._fit(frame, region)
        if fit is None:
            return None
        # A second look, framed by the first.
        return self._fit(frame, fit.around)

    def _face_where_it_was(self, faces: list[_Face], place: _Fit | None) -> _Face | None:
        if place is None or not faces:
            return None
        before = self._read(_bounds(place.mesh))
        face = max(faces, key=lambda face: _overlap(before, face[0]))
        return face if _overlap(before, face[0]) > MIN_OVERLAP else None

    def _chosen_face(self, faces: list[_Face]) -> _Face | None:
        if self._choice == "largest":
            return max(faces, key=lambda face: _area(face[0]), default=None)
        from_left = sorted(faces, key=lambda face: float(face[0][0] + face[0][2]))
        return from_left[self._choice] if self._choice < len(from_left) else None

    def _fit(self, frame: Tensor, region: Tensor) -> _Fit | None:
        """The mesh in a region, or None where there is no face."""
        meshes, score = self._mesh(frame, region)
        mesh, around = meshes[0], roi_from_mesh(meshes)
        seen = glimpse(frame, around)
        last = self._last
        if last is None:
            beside = torch.zeros_like(score).expand(2)
        else:
            beside = torch.stack([_jump(last.mesh, mesh), _unlikeness(last.seen, seen)])
        certainty, moved, unlikeness = self._read(torch.cat([score, beside])).tolist()
        if certainty < MIN_MESH_SCORE:
            return None
        return _Fit(mesh, region, around, seen, moved, unlikeness)

    def _detect(self, frame: Tensor) -> list[_Face]:
        """The detector's faces, on the host."""
        boxes, scores, keypoints = (self._read(output) for output in self._detector(frame))
        return [
            (box, points)
            for box, score, points in zip(boxes, scores, keypoints, strict=True)
            if float(score) > 0
        ]


def glimpse(frame: Tensor, region: Tensor) -> Tensor:
    """A face from the nose upwards and what is beside it, as few coarse pixels: what speech does
    not move and a hand at the mouth does not hide.

    Args:
        frame: (H, W, 3) uint8. region: (1, 5), see :mod:`dithead.face.mesh`.

    Returns:
        (_ROWS * _COLUMNS, 3) float, levels.
    """
    x, y, side, _, angle = region[0]
    columns = torch.arange(_COLUMNS * _EACH, device=frame.device) + 0.5
    rows = torch.arange(_ROWS * _EACH, device=frame.device)[:, None] + 0.5
    across = side * (columns / len(columns) - 0.5)  # (columns,)
    down = side * (0.5 * rows / len(rows) - 0.5)  # (rows, 1), to the middle of the region
    cos, sin = angle.cos(), angle.sin()
    left = (x + across * cos - down * sin).long().clamp(0, frame.shape[1] - 1)
    top = (y + across * sin + down * cos).long().clamp(0, frame.shape[0] - 1)
    pixels = frame[top, left].float().view(_ROWS, _EACH, _COLUMNS, _EACH, 3)
    return pixels.mean((1, 3)).flatten(0, 1)


def _unlikeness(before: Tensor, after: Tensor) -> Tensor:
    """1 less the correlation of two glimpses, (): neither brightness nor contrast count, nor what
    one of them has clipped. The less can be seen of both, the nearer it is to 0."""
    both = torch.maximum(before, after).amax(1, keepdim=True) < _CLIPPED  # (N, 1)
    count = both.sum()
    a, b = ((seen - (seen * both).sum(0) / count.clamp(min=1)) * both for seen in (before, after))
    noise = _FAINT**2 * before.numel()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return (1.0 - ((a * b).sum() + noise) / (size + noise)) * (count / len(before))


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

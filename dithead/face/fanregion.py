"""Where FAN looks: its region of a frame, from a detection and from a mesh, and the graphs that
differ with it.

FAN's region is that of face-alignment: centred above the middle of the face's box by 12 % of its
height, with a side of 200 / 195 of the box's width and height together. The box is S3FD's at first,
and later the one round the mesh, which reaches from forehead to chin as S3FD's do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dithead.face.fan import INPUT_SIZE, Fan, HeatmapPeaks
from dithead.face.judge import FaceJudge
from dithead.face.mesh import INPUT_SIZE as JUDGED_SIZE
from dithead.face.mesh import to_frame
from dithead.face.spread import MeshSpread

_SCALE, _UP = 200 / 195, 0.12
_OUTER_EYE_CORNERS = (33, 263)  # on the left and on the right in a picture of an upright face
_SIDE_MARGIN = (INPUT_SIZE - JUDGED_SIZE) // 2  # beside the judged part of FAN's picture
_TOP_MARGIN = 48  # above it: the face is lower in FAN's picture than in the mesh network's
MIRRORED_68: tuple[int, ...] = (
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose
    *range(35, 30, -1),  # under the nose
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),  # outer lips
    *(64, 63, 62, 61, 60, 67, 66, 65),  # inner lips
)
"""For each landmark, the one that it becomes in a mirrored picture."""


class FanLandmarks(nn.Module):
    """``face_landmarks`` with FAN: landmarks from heatmaps, spread over the mesh.

    Args:
        net: the network.
        mirrored: look at the mirrored picture, too, and take the mean of both heatmaps, for twice
            the time: face-alignment's ``flip_input``.
    """

    partners: Tensor

    def __init__(self, net: Fan, mirrored: bool = False) -> None:
        super().__init__()
        self.net = net
        self.mirrored = mirrored
        self.register_buffer("partners", torch.tensor(MIRRORED_68), persistent=False)
        self.peaks = HeatmapPeaks()
        self.spread = MeshSpread()

    def forward(self, picture: Tensor, roi: Tensor) -> tuple[Tensor, Tensor]:
        """Fit meshes.

        Args:
            picture: (B, 3, 256, 256) RGB in [0, 1], of regions roi (B, 5).

        Returns:
            Meshes (B, 468, 3) in frame pixels, z on the same scale; scores (B,) in [0, 1]: the mean
            height of the heatmaps' peaks.
        """
        landmarks, heights = self.peaks(self.heatmaps(picture))  # (B, 68, 2), (B, 68)
        mesh = to_frame(self.spread(landmarks), roi, INPUT_SIZE)
        return mesh, heights.mean(1).clamp(0.0, 1.0)

    def heatmaps(self, picture: Tensor) -> Tensor:
        """Pictures (B, 3, 256, 256) -> heatmaps (B, 68, 64, 64)."""
        seen: Tensor = self.net(picture)
        if not self.mirrored:
            return seen
        other: Tensor = self.net(picture.flip(3))
        return (seen + other.index_select(1, self.partners).flip(3)) / 2


class FanSighting(nn.Module):
    """``face_sighting``: FAN's region for a face that S3FD sees."""

    def forward(self, box: Tensor, keypoints: Tensor) -> Tensor:
        """Box (4,), keypoints (6, 2) in frame pixels -> region (1, 5)."""
        across = (keypoints[1] - keypoints[0])[None]  # (1, 2), from eye to eye
        axis = across / across.norm(dim=1, keepdim=True).clamp_min(1e-6)
        extent = (box[2:] - box[:2])[None]  # (1, 2), width and height in the frame
        turned = torch.stack([axis[:, 0].abs(), axis[:, 1].abs()], 1)
        along = torch.stack([(turned * extent).sum(1), (turned.flip(1) * extent).sum(1)], 1)
        return _region((box[:2] + box[2:])[None] / 2, along, axis)


def fan_region(mesh: Tensor) -> Tensor:
    """FAN's region (B, 5) for the next frame, from meshes (B, 468, 2 or 3)."""
    xy = mesh[..., :2]
    left, right = (xy[:, corner] for corner in _OUTER_EYE_CORNERS)
    across = right - left
    axis = across / across.norm(dim=1, keepdim=True).clamp_min(1e-6)  # (B, 2), to the right
    turn = torch.stack([axis, _down(axis)], 1)  # (B, 2, 2)
    upright = xy @ turn.transpose(1, 2)  # (B, 468, 2)
    low, high = upright.amin(1), upright.amax(1)
    middle = (((low + high) / 2)[:, None] @ turn)[:, 0]
    return _region(middle, high - low, axis)


def _region(middle: Tensor, extent: Tensor, axis: Tensor) -> Tensor:
    """FAN's region of boxes: middle (B, 2); width and height along the face (B, 2); the direction
    (B, 2) to the face's right in the picture."""
    centre = middle - _UP * extent[:, 1:] * _down(axis)
    side = _SCALE * extent.sum(1, keepdim=True)
    angle = torch.atan2(axis[:, 1:], axis[:, :1])
    return torch.cat([centre, side, side, angle], 1)


def _down(axis: Tensor) -> Tensor:
    """The direction (B, 2) a quarter turn from another, clockwise as seen."""
    return torch.stack([-axis[:, 1], axis[:, 0]], 1)


class FanJudge(FaceJudge):
    """``face_judge`` with FAN's regions: judges the part of FAN's picture that the mesh network's
    would show, at the same scale within a tenth."""

    def forward(
        self,
        picture: Tensor,
        region: Tensor,
        mesh: Tensor,
        score: Tensor,
        last_mesh: Tensor,
        last_looks: Tensor,
        person: Tensor,
        reference: Tensor,
        mouths: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """As :class:`~dithead.face.judge.FaceJudge`, with a picture of (1, 3, 256, 256)."""
        rows = slice(_TOP_MARGIN, _TOP_MARGIN + JUDGED_SIZE)
        columns = slice(_SIDE_MARGIN, _SIDE_MARGIN + JUDGED_SIZE)
        lower = _TOP_MARGIN - _SIDE_MARGIN  # pixels
        axis = torch.cat([region[:, 4:].cos(), region[:, 4:].sin()], 1)
        centre = region[:, :2] + region[:, 2:3] * (lower / INPUT_SIZE) * _down(axis)
        side = region[:, 2:4] * (JUDGED_SIZE / INPUT_SIZE)
        looks, mouth, light, _, measures = super().forward(
            picture[:, :, rows, columns],
            torch.cat([centre, side, region[:, 4:]], 1),
            *(mesh, score, last_mesh, last_looks, person, reference, mouths),
        )
        return looks, mouth, light, fan_region(mesh), measures

"""Spreads 68 landmarks over the 468 points of a mesh."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dithead import checkpoint
from dithead.face.mesh import LANDMARKS_68

STIFFNESS = 0.003
"""How much the spline resists bending, which evens out landmarks that are off by a pixel of FAN's
picture: with 0 the mesh of exact landmarks is 0.02 % of the face's width nearer to the true one,
and that of such landmarks is 0.1 % further from it."""


def mean_face() -> Tensor:
    """The mean of frontal faces (468, 3), in distances between the temples; x points to the right
    of the picture, y down."""
    return checkpoint.load(checkpoint.asset_path("face_mean"))[0]["mesh"]


def spline_weights(face: Tensor, stiffness: float = STIFFNESS) -> Tensor:
    """Weights (N, 68) of a thin-plate spline: a face's points from its landmarks, whatever these
    become (Bookstein, "Principal Warps", 1989). Each row adds up to 1, and any affine map of the
    landmarks gives the same map of the points.

    Args:
        face: (468, 2 or 3), where the points lie at rest; the landmarks are among them.
    """
    points = face[:, :2].double()
    landmarks = points[list(LANDMARKS_68)]
    count = len(landmarks)
    affine = torch.cat([torch.ones(len(points), 1).double(), points], 1)  # (468, 3)
    beside = affine[list(LANDMARKS_68)]
    system = torch.zeros(count + 3, count + 3).double()
    system[:count, :count] = _bending(landmarks, landmarks) + stiffness * torch.eye(count).double()
    system[:count, count:], system[count:, :count] = beside, beside.T
    read = torch.cat([_bending(points, landmarks), affine], 1)  # (468, 71)
    return (read @ torch.linalg.inv(system))[:, :count].float()


def _bending(a: Tensor, b: Tensor) -> Tensor:
    """The spline's kernel between points (N, 2) and (M, 2): (N, M)."""
    squared = (a[:, None] - b).square().sum(-1)
    return 0.5 * squared * squared.clamp_min(1e-12).log()


class MeshSpread(nn.Module):
    """Gives landmarks the mesh of the mean face, bent to them by a spline. No weights.

    The spline is linear in the landmarks, so it is one product with a constant matrix.
    """

    weights: Tensor
    depth: Tensor

    def __init__(self) -> None:
        super().__init__()
        face = mean_face()
        landmarks = face[list(LANDMARKS_68), :2]
        size = (landmarks - landmarks.mean(0)).square().sum().sqrt()
        self.register_buffer("weights", spline_weights(face), persistent=False)
        self.register_buffer("depth", face[:, 2] / size, persistent=False)

    def forward(self, landmarks: Tensor) -> Tensor:
        """Landmarks (B, 68, 2) in pixels -> meshes (B, 468, 3) in the same pixels; z is that of the
        mean face, scaled to the landmarks' size."""
        off = landmarks - landmarks.mean(1, keepdim=True)
        size = off.square().sum((1, 2)).sqrt()[:, None, None]  # (B, 1, 1)
        return torch.cat([self.weights @ landmarks, size * self.depth[:, None]], 2)

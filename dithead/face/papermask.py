"""The paper's mask (DiT-Head, arXiv 2312.06400): in every frame a convex polygon round the lower
face's landmarks, with an edge softened by a Gaussian.

It is drawn on the jaw, so it shows how far the mouth is open, and a model trained on it watches the
video instead of hearing the audio (docs/architecture.md, "The mask"). It is kept for comparison, as
``FaceConfig.mask = "paper"``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.face.crop import convex_crop_mask
from dithead.face.mesh import LANDMARKS_68
from dithead.kernels.sampling import invert_similarity

LOWER_FACE: tuple[int, ...] = (*range(2, 15), 29)
"""The landmarks, of 68, that the polygon goes round: the jaw from under one ear to under the other,
and the lower half of the nose's bridge. *Assumed*: the paper says only that they are those of the
lower face."""
DIRECTIONS = 64
"""Edges of the polygon. Each lies where the landmarks reach furthest in its direction, so the
polygon is convex for any landmarks and is never smaller than their convex hull."""


def lower_face_planes(landmarks: Tensor) -> Tensor:
    """The polygon's edges.

    Args:
        landmarks: (B, 68, 2) in crop units.

    Returns:
        (B, DIRECTIONS, 3), see :func:`dithead.face.crop.polygon_planes`.
    """
    angle = torch.arange(DIRECTIONS, device=landmarks.device) * (2.0 * math.pi / DIRECTIONS)
    normal = torch.stack([angle.cos(), angle.sin()], dim=1)  # (K, 2)
    points = torch.stack([landmarks[:, i] for i in LOWER_FACE], dim=1)  # (B, P, 2)
    reach = (points @ normal.T).amax(1)  # (B, K)
    planes = normal.expand(len(landmarks), -1, -1)
    return torch.cat([planes, -reach[..., None]], dim=2)


def landmarks_68(mesh: Tensor) -> Tensor:
    """The 68 landmarks of meshes (B, 468, 2 or 3): (B, 68, 2)."""
    return torch.stack([mesh[:, point, :2] for point in LANDMARKS_68], dim=1).float()


def paper_mask(mesh: Tensor, config: FaceConfig) -> Tensor:
    """Soft masks of crops: meshes (B, 468, 2 or 3) in crop units -> (B, 1, S, S) in [0, 1]."""
    planes = lower_face_planes(landmarks_68(mesh))
    return convex_crop_mask(config.crop_px, config.mask_softness, planes, config.view)


def fade_out(image: Tensor, mask: Tensor) -> Tensor:
    """The masked face as the paper has it: mid-grey under the mask, weaker under its soft edge.

    image: (B, 3, S, S) in [-1, 1]. mask: (B, 1, S, S).
    """
    return image * (1.0 - mask)


class PaperMask(nn.Module):
    """``paper_mask``: hides the lower face of a crop by its landmarks, before ``masked_encoder``
    encodes it. No weights."""

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, crop: Tensor, mesh: Tensor, transform: Tensor) -> Tensor:
        """Face crop (1, 3, S, S) in [-1, 1], mesh (468, 3) in the rectangle's pixels, transform
        (2, 3) from crop units to those -> masked crop (1, 3, S, S)."""
        inverse = invert_similarity(transform[None])  # (1, 2, 3)
        points = mesh[None, :, :2].float() @ inverse[:, :, :2].transpose(1, 2)
        points = points + inverse[:, None, :, 2]  # (1, 468, 2)
        return fade_out(crop, paper_mask(points, self.config))

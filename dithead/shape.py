"""The shape of a generated face, read from its latent: the detail layer warps the frame to it.

The mesh network could read it from the picture, but takes much more time and is less reliable:
generated faces are soft. The head knows the latents and was trained on meshes of sharp pictures.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dithead.face.mesh import POINTS

DIRECTIONS = 96
"""A mesh is a mean and a mixture of this many directions."""


class ShapeHead(nn.Module):
    """``shape_head``: the mesh of the face in a latent.

    Args:
        channels, size: those of the latents; the size is a multiple of 4.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(channels, 48, 3, padding=1),
                nn.Conv2d(48, 64, 3, stride=2, padding=1),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.Conv2d(64, 96, 3, stride=2, padding=1),
            ]
        )
        self.hidden = nn.Linear(96 * (size // 4) ** 2, 256)
        self.directions = nn.Linear(256, DIRECTIONS)
        self.mesh = nn.Linear(DIRECTIONS, 2 * POINTS)

    def forward(self, latent: Tensor) -> Tensor:
        """Latent (B, C, s, s) -> mesh (B, 468, 2) in crop units."""
        x = latent
        for layer in self.layers:
            x = F.relu(layer(x))
        x = self.directions(F.relu(self.hidden(x.flatten(1))))
        return self.mesh(x).view(-1, POINTS, 2)


class GeneratedMesh(nn.Module):
    """``generated_mesh``: a shape from :class:`ShapeHead` in the rectangle's pixels."""

    def forward(self, shape: Tensor, transform: Tensor) -> Tensor:
        """A mesh (468, 2) in crop units, transform (2, 3) from these to pixels -> the mesh in
        pixels, in the mesh network's form but without depth: (468, 3)."""
        places = shape @ transform[:, :2].T + transform[:, 2]
        return F.pad(places, (0, 1))

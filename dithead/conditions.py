"""What a denoiser can be shown besides its own method's inputs: conditions of other papers.

DiffTalk (Shen et al., arXiv 2301.03786): landmarks of the face without the mouth,
sound that attention has smoothed over time, and the known part of the latent laid back in at every
step. (The frames before, of Diffused Heads, are channels of the input: see
:meth:`dithead.dit.DiT.forward`.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.controls import in_crop
from dithead.diffusion import Diffusion
from dithead.face.crop import fixed_mask, mask_out, visible
from dithead.face.mesh import LANDMARKS_68
from dithead.linear import Linear
from dithead.vqgan import VQGAN

UPPER_LANDMARKS: tuple[int, ...] = (*LANDMARKS_68[17:31], *LANDMARKS_68[36:48])
"""Mesh points of the landmarks that a denoiser is shown: brows, bridge of the nose, eyes.

DiffTalk leaves out the mouth alone. The jaw and the base of the nose are left out here, too: they
tell how far the mouth is open (docs/architecture.md, "The mask").
"""
MIRRORED: tuple[int, ...] = (
    *(9, 8, 7, 6, 5, 4, 3, 2, 1, 0),  # brows
    *(10, 11, 12, 13),  # bridge of the nose
    *(23, 22, 21, 20, 25, 24, 17, 16, 15, 14, 19, 18),  # eyes
)
"""Which of these landmarks is in the place of each in a mirrored picture."""
POINT_SCALE = 4.0
"""Brings crop units to about -1..1."""
FILTER_WIDTH = 64
"""Width of the queries and keys of the audio filter (*assumed*)."""


class UpperLandmarks(nn.Module):
    """``upper_landmarks``: the landmarks that a denoiser is shown. No weights."""

    points: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("points", torch.tensor(UPPER_LANDMARKS), persistent=False)

    def forward(self, mesh: Tensor, transform: Tensor) -> Tensor:
        """Mesh (468, 3) in pixels, transform (2, 3) from crop units to them -> landmarks
        (1, 26, 2) in crop units."""
        return in_crop(torch.index_select(mesh, 0, self.points), transform)[None]


class LandmarkToken(nn.Module):
    """Landmarks as one more token of the cross-attention (DiffTalk, section 3.3; the layers are
    *assumed*)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Linear(2 * len(UPPER_LANDMARKS), width)
        self.second = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, landmarks: Tensor) -> Tensor:
        """Landmarks (B, 26, 2) in crop units -> (B, 1, D)."""
        numbers = POINT_SCALE * landmarks.flatten(1).to(self.first.weight.dtype)  # (B, 52)
        return self.norm(self.second(F.silu(self.first(numbers))))[:, None, :]


class AudioFilter(nn.Module):
    """Smooths a window over time: each frame becomes a mean of all, weighted by self-attention
    (DiffTalk, section 3.3; one head, and a learnt weight for each pair of places: *assumed*).

    It begins as a filter of its places alone, in which a frame's own features have about half of
    the weight.
    """

    def __init__(self, window_frames: int, audio_dim: int) -> None:
        super().__init__()
        self.query = Linear(audio_dim, FILTER_WIDTH)
        self.key = Linear(audio_dim, FILTER_WIDTH)
        line = torch.arange(window_frames, dtype=torch.float32)
        self.places = nn.Parameter(-(line[:, None] - line).abs())

    def forward(self, window: Tensor) -> Tensor:
        """Window (B, window_frames, audio_dim) -> the same shape."""
        q, k = self.query(window), self.key(window)  # (B, W, 64)
        alike = q @ k.transpose(1, 2) / FILTER_WIDTH**0.5  # (B, W, W)
        weights = torch.softmax(alike.float() + self.places.float(), dim=-1)
        return weights.to(window.dtype) @ window


class KnownEncoder(nn.Module):
    """``known_encoder``: the latent of a face's visible part.

    The masked picture is encoded as a face is. The true picture is not: every position of its
    latent knows something of the mouth beside it.
    """

    mask: Tensor

    def __init__(self, config: FaceConfig, face_vqgan: VQGAN) -> None:
        super().__init__()
        self.face_vqgan = face_vqgan
        self.register_buffer("mask", fixed_mask(config), persistent=False)

    def forward(self, crop: Tensor) -> Tensor:
        """Face crop (B, 3, S, S) in [-1, 1] -> latent (B, C, s, s)."""
        return self.face_vqgan.encode(mask_out(crop, self.mask))


class LayBack(nn.Module):
    """``lay_back``: replaces the known part of a latent between two steps (DiffTalk, section 3.4;
    as in RePaint, arXiv 2201.09865, eq. 8). No weights.

    A position is known if neither it nor a neighbour has a pixel under the mask: convolutions look
    across (*assumed*). It gets the sample's own initial noise, as DDIM adds none.
    """

    known: Tensor

    def __init__(self, config: FaceConfig, factor: int, diffusion: Diffusion) -> None:
        super().__init__()
        self.diffusion = diffusion
        hidden = F.max_pool2d(1.0 - visible(fixed_mask(config)), factor)  # (1, 1, s, s)
        hidden = F.max_pool2d(hidden, 3, stride=1, padding=1)
        self.register_buffer("known", hidden == 0, persistent=False)

    def forward(self, latent: Tensor, known: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Replace it.

        Args:
            latent: after a step, (B, C, s, s). known: from :class:`KnownEncoder`. noise: with which
                sampling began. timestep: (B,) int64, of the latent; -1 is the clean one.

        Returns:
            (B, C, s, s).
        """
        noised = self.diffusion.add_noise(known, noise, timestep.clamp(min=0))
        clean = (timestep < 0)[:, None, None, None]
        return torch.where(self.known, torch.where(clean, known, noised), latent)

"""The graphs that pipelines schedule: traceable modules with fixed shapes. Every computation on
pixels and latents is here.

Names of inputs and outputs follow the table in docs/architecture.md. Rectangles are (H, W, 3) uint8
RGB, cast to float before anything else; transforms map crop units to rectangle pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import FaceConfig
from dithead.diffusion import Diffusion, ddim_timesteps
from dithead.dit import DiT
from dithead.face.crop import (
    crop_face,
    crop_mask,
    mask_out,
    mask_polygon,
    paste_face,
    rectangle_mask,
    visible,
)
from dithead.vqgan import VQGAN

SEAM_CELLS = 16
"""The seam correction works on a grid of so many cells along each side of the crop."""


class FaceEncoder(nn.Module):
    """``face_encoder``: cuts the crop out of a rectangle, masks its lower face, encodes what is
    left."""

    def __init__(self, config: FaceConfig, masked_vqgan: VQGAN, density: int) -> None:
        super().__init__()
        self.config = config
        self.masked_vqgan = masked_vqgan
        self.density = density

    def forward(self, rectangle: Tensor, transform: Tensor) -> tuple[Tensor, Tensor]:
        """rectangle (H, W, 3) uint8, transform (2, 3).

        Returns:
            Face crop (1, 3, S, S) in [-1, 1]; masked latent (1, C, s, s).
        """
        size = self.config.crop_px
        image = rectangle.float().permute(2, 0, 1)[None] / 127.5 - 1.0  # (1, 3, H, W)
        crop = crop_face(image, transform[None], size, self.density)
        mask = crop_mask(size, self.config.mask_softness, mask_polygon(1, transform.device))
        return crop, self.masked_vqgan.encode(mask_out(crop, mask))


class ReferenceEncoder(nn.Module):
    """``reference_encoder``: encodes a whole face."""

    def __init__(self, face_vqgan: VQGAN) -> None:
        super().__init__()
        self.face_vqgan = face_vqgan

    def forward(self, crop: Tensor) -> Tensor:
        """Face crop (1, 3, S, S) in [-1, 1] -> reference latent (1, C, s, s)."""
        return self.face_vqgan.encode(crop)


class DiTContext(nn.Module):
    """``dit_context``: what the denoiser hears, once a frame.

    With ``tokens`` conditioning these are the keys and values of every block; with ``paper``
    conditioning, where they depend on the timestep, the projected audio token.
    """

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, window: Tensor) -> Tensor:
        """Audio window (B, window_frames, features).

        Returns:
            ``tokens``: (depth, 2, B, heads, M, D / heads); ``paper``: (B, 1, D).
        """
        tokens = self.dit.audio_tokens(window)
        if self.dit.config.conditioning == "paper":
            return tokens
        pairs = self.dit.context(tokens, tokens[:, 0])
        return torch.stack([torch.stack(pair) for pair in pairs])


class DiTStep(nn.Module):
    """``dit_step``: one step of a DDIM sampler with a fixed number of steps; the timestep tables
    and the update are inside."""

    visits: Tensor

    def __init__(self, dit: DiT, diffusion: Diffusion, steps: int) -> None:
        super().__init__()
        self.dit = dit
        self.diffusion = diffusion
        self.steps = steps
        visits = [*ddim_timesteps(diffusion.config, steps), -1]
        self.register_buffer("visits", torch.tensor(visits), persistent=False)

    def forward(
        self, noisy: Tensor, masked: Tensor, reference: Tensor, context: Tensor, step: Tensor
    ) -> Tensor:
        """Latents (B, C, s, s), context from :class:`DiTContext`, step (B,) int64 from 0 -> next
        latent (B, C, s, s)."""
        now, following = self.visits[step], self.visits[step + 1]
        if self.dit.config.conditioning == "paper":
            keys = self.dit.context(context, self.dit.embed_timestep(now))
        else:
            keys = [(pair[0], pair[1]) for pair in context]
        prediction = self.dit(noisy, masked, reference, now, context=keys)
        return self.diffusion.ddim_update(noisy, prediction, now, following)


class FaceDecoder(nn.Module):
    """``face_decoder``: decodes a latent and blends the new lower face into the rectangle.

    Only the blend's polygon is replaced. Before, the slow part of the difference between the
    generated and the true face, seen outside of it, is carried on into it: colour and light meet at
    the seam. Nothing of the source inside it is read.
    """

    kernel: Tensor

    def __init__(self, config: FaceConfig, face_vqgan: VQGAN, density: int) -> None:
        super().__init__()
        self.config = config
        self.face_vqgan = face_vqgan
        self.density = density
        line = torch.arange(-5, 6, dtype=torch.float32)
        bell = torch.exp(-line.square() / (2 * 1.6**2))
        self.register_buffer("kernel", (bell[:, None] * bell)[None, None], persistent=False)

    def forward(
        self, latent: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """latent (1, C, s, s); rectangle (H, W, 3) uint8; crop from :class:`FaceEncoder`; transform
        (2, 3); polygon (P, 2) from :class:`dithead.face.tracker.FaceTracker`.

        Returns:
            Composited rectangle (H, W, 3) uint8, equal to the source where the soft mask is 0; that
            mask (H, W) in [0, 1].
        """
        return self.blend(self.face_vqgan.decode(latent), rectangle, crop, transform, polygon)

    def blend(
        self, face: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, from a face crop (1, 3, S, S) in [-1, 1]."""
        height, width = rectangle.shape[0], rectangle.shape[1]
        softness = self.config.mask_softness
        mask = crop_mask(crop.shape[2], softness, polygon[None])  # (1, 1, S, S)
        matched = self.match_seam(face, crop, mask)  # (1, 3, S, S)
        pasted = paste_face(matched, transform[None], height, width, self.density)
        source = rectangle.float()
        new = (pasted[0].permute(1, 2, 0) + 1.0) * 127.5  # (H, W, 3)
        soft = rectangle_mask(transform[None], height, width, softness, polygon[None])
        weight = soft[0, 0]  # (H, W)
        blended = source + weight[..., None] * (new - source)
        return blended.round().clamp(0, 255).to(torch.uint8), weight

    def match_seam(self, face: Tensor, crop: Tensor, mask: Tensor) -> Tensor:
        """Add the blurred difference to the true crop, known outside the mask, to the generated
        face (1, 3, S, S)."""
        cell = face.shape[2] // SEAM_CELLS
        known = visible(mask)
        difference = F.avg_pool2d((crop - face) * known, cell)  # (1, 3, cells, cells)
        amount = F.avg_pool2d(known, cell)
        blur = self.kernel.expand(3, 1, -1, -1)
        carried = F.conv2d(difference, blur, padding=5, groups=3)
        carried = carried / (F.conv2d(amount, self.kernel, padding=5) + 0.5)
        return face + F.interpolate(carried, size=face.shape[2:], mode="bilinear")


def crop_density(rectangle_px: int, crop_px: int) -> int:
    """Samples along each side of a crop pixel, so that shrinking a large face does not alias."""
    return max(1, round(0.8 * rectangle_px / crop_px))


def paste_density(rectangle_px: int, crop_px: int) -> int:
    """Samples along each side of a rectangle pixel when a crop is shrunk onto a small face."""
    return max(1, round(crop_px / rectangle_px))


RECTANGLE_SIZES: tuple[int, ...] = (
    *(64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192),
)
"""Sides of the square rectangles that are cut out round a face, in pixels."""


def face_rectangle(transform: Tensor) -> tuple[int, int, int]:
    """The rectangle round a crop.

    Args:
        transform: (2, 3), crop units to frame pixels.

    Returns:
        Left, top (even, may be negative) and side, the smallest of RECTANGLE_SIZES that holds the
        crop and the mask's soft edge, which reaches a little beyond it.
    """
    a, b, cx = (float(v) for v in transform[0])
    cy = float(transform[1, 2])
    reach = 1.08 * (abs(a) + abs(b)) + 4.0  # side of the upright square round the turned crop
    side = next((s for s in RECTANGLE_SIZES if s >= reach), RECTANGLE_SIZES[-1])
    left, top = math.floor((cx - side / 2) / 2) * 2, math.floor((cy - side / 2) / 2) * 2
    return left, top, side

"""The graphs that pipelines schedule: traceable modules with fixed shapes. Every computation on
pixels and latents is here.

Names of inputs and outputs follow the table in docs/architecture.md. Rectangles are (H, W, 3) uint8
RGB, cast to float before anything else; transforms map crop units to rectangle pixels.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dithead.config import DiffusionConfig, DitHeadConfig, FaceConfig
from dithead.diffusion import Diffusion, InitialNoise
from dithead.dit import DiT
from dithead.face.crop import (
    crop_face,
    crop_mask,
    fixed_mask,
    mask_out,
    paste_matrix,
    rectangle_mask,
    visible,
)
from dithead.kernels.composite import composite
from dithead.vqgan import VQGAN


class Graphs(Protocol):
    """All graphs of a model by name, whichever back end runs them."""

    @property
    def config(self) -> DitHeadConfig:
        """The model's configuration."""

    @property
    def device(self) -> torch.device:
        """Where inputs must be and outputs are."""

    def run(self, name: str, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run a graph: its inputs in the table's order -> its outputs in the table's order."""


SEAM_CELLS = 16
"""The seam correction uses a grid of so many cells along each side of the crop."""
SEAM_TOLERANCE = 0.15
"""A pixel that differs by this much, of a range of 2, counts half in the seam correction."""


class FaceCrop(nn.Module):
    """``face_crop``: cuts the crop out of a rectangle of one size."""

    def __init__(self, config: FaceConfig, side: int) -> None:
        super().__init__()
        self.crop_px, self.view = config.crop_px, config.view
        self.density = crop_density(side, config)

    def forward(self, rectangle: Tensor, transform: Tensor, light: Tensor) -> tuple[Tensor, Tensor]:
        """Rectangle (H, W, 3) uint8, transform (2, 3), light (2, 3): factor and offset -> face crop
        (1, 3, S, S) in [-1, 1]; the same in that light."""
        image = rectangle.float().permute(2, 0, 1)[None] / 127.5 - 1.0  # (1, 3, H, W)
        crop = crop_face(image, transform[None], self.crop_px, self.density, self.view)
        factor, offset = light[:, :, None, None]
        return crop, (crop * factor + offset).clamp(-1.0, 1.0)


def own_light(device: torch.device | None = None) -> Tensor:
    """The light (2, 3) that changes nothing."""
    return torch.stack([torch.ones(3, device=device), torch.zeros(3, device=device)])


class MaskedEncoder(nn.Module):
    """``masked_encoder``: masks the lower face of a crop and encodes the result.

    With the paper's mask the crop comes masked, from
    :class:`dithead.face.papermask.PaperMask`.
    """

    mask: Tensor

    def __init__(self, config: FaceConfig, masked_vqgan: VQGAN) -> None:
        super().__init__()
        self.masked_vqgan = masked_vqgan
        self.register_buffer("mask", fixed_mask(config), persistent=False)
        self.masked_before = config.mask == "paper"

    def forward(self, crop: Tensor) -> Tensor:
        """Face crop (1, 3, S, S) in [-1, 1] -> masked latent (1, C, s, s)."""
        if self.masked_before:
            return self.masked_vqgan.encode(crop)
        return self.masked_vqgan.encode(mask_out(crop, self.mask))


class ReferenceEncoder(nn.Module):
    """``reference_encoder``: encodes a whole face."""

    def __init__(self, face_vqgan: VQGAN) -> None:
        super().__init__()
        self.face_vqgan = face_vqgan

    def forward(self, crop: Tensor) -> Tensor:
        """Face crop (1, 3, S, S) in [-1, 1] -> reference latent (1, C, s, s)."""
        return self.face_vqgan.encode(crop)


class DiTContext(nn.Module):
    """``dit_context``: the denoiser's audio input, computed once a frame.

    With ``tokens`` conditioning these are the keys and values of every block; with ``paper``
    conditioning, where they depend on the timestep, the projected audio token.
    """

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, window: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """Audio window (B, window_frames, features), landmarks (B, 26, 2) of a model that is shown
        them.

        Returns:
            ``tokens``: (depth, 2, B, heads, M, D / heads); ``paper``: (B, M, D).
        """
        tokens = self.dit.tokens(window, landmarks)
        if self.dit.config.conditioning == "paper":
            return tokens
        pairs = self.dit.context(tokens, tokens[:, :1])
        return torch.stack([torch.stack(pair) for pair in pairs])


class DiTTimestep(nn.Module):
    """``dit_timestep``: the denoiser's timestep input, computed once a stream.

    In ``tiny`` this has 29 % of the denoiser's weights, which otherwise each step would read again.
    """

    def __init__(self, dit: DiT) -> None:
        super().__init__()
        self.dit = dit

    def forward(self, timestep: Tensor) -> Tensor:
        """Timestep (B,) int64 -> modulation (B, R, D), see :meth:`dithead.dit.DiT.modulation`."""
        return self.dit.modulation(timestep)


class DiTStep(nn.Module):
    """``dit_step``: one DDIM step; the schedule's tables and the update are inside."""

    def __init__(self, dit: DiT, diffusion: Diffusion) -> None:
        super().__init__()
        self.dit = dit
        self.diffusion = diffusion

    def forward(
        self,
        noisy: Tensor,
        masked: Tensor,
        reference: Tensor,
        context: Tensor,
        modulation: Tensor,
        timestep: Tensor,
        following: Tensor,
    ) -> Tensor:
        """One step.

        Args:
            noisy, masked, reference: latents, see :meth:`dithead.dit.DiT.forward`.
            context: from :class:`DiTContext`.
            modulation: from :class:`DiTTimestep`, of ``timestep``.
            timestep, following: (B,) int64, where the step starts and where it leads; -1 is the
                clean latent. :func:`dithead.diffusion.ddim_timesteps` lists them.

        Returns:
            The next latent (B, C, s, s) float32.
        """
        if self.dit.config.conditioning == "paper":
            keys = self.dit.context(context, modulation)
        else:
            keys = [(pair[0], pair[1]) for pair in context]
        prediction = self.dit.predict(noisy, masked, reference, modulation, keys)
        return self.diffusion.ddim_update(noisy, prediction, timestep, following)


class Noise(nn.Module):
    """``noise``: the starting point of a frame's denoising, by the configuration's noise mode."""

    def __init__(self, config: DiffusionConfig, initial: InitialNoise) -> None:
        super().__init__()
        self.initial = initial
        self.scale = config.noise_scale
        self.per_frame = int(config.noise == "frame")

    def forward(self, seed: Tensor, frame: Tensor) -> Tensor:
        """seed, frame: (B,) int64, at least 0 -> noise (B, C, s, s) float32."""
        return self.scale * self.initial(seed, frame * self.per_frame)


class FaceDecoder(nn.Module):
    """``face_decoder``: decodes a latent."""

    def __init__(self, face_vqgan: VQGAN) -> None:
        super().__init__()
        self.face_vqgan = face_vqgan

    def forward(self, latent: Tensor, light: Tensor) -> Tensor:
        """Latent (B, C, s, s), light (B, 2, 3) in which it was encoded, see :class:`FaceCrop` ->
        face crop (B, 3, S, S) in [-1, 1], in the frame's own light."""
        factor, offset = light[:, :, :, None, None].unbind(1)  # (B, 3, 1, 1)
        return ((self.face_vqgan.decode(latent) - offset) / factor).clamp(-1.0, 1.0)


class Mix(nn.Module):
    """``looks_mix`` and ``reference_mix``: what is shown while a reference gives way to another."""

    def forward(self, before: Tensor, latest: Tensor, share: Tensor) -> Tensor:
        """The one before, the latest one, share () of the latest in [0, 1] -> their mixture."""
        return before + share * (latest - before)


class FaceBlend(nn.Module):
    """``face_blend``: blends a generated lower face into a rectangle of one size.

    Only the blend's polygon is replaced. First the slow part of the difference between the
    generated and the true face, measured outside the polygon, is extended into it, so that colour
    and light meet at the seam. Nothing of the source inside it is read.
    """

    kernel: Tensor

    def __init__(self, config: FaceConfig, side: int) -> None:
        super().__init__()
        self.softness, self.view = config.mask_softness, config.view
        self.density = paste_density(side, config)
        line = torch.arange(-5, 6, dtype=torch.float32)
        bell = torch.exp(-line.square() / (2 * 1.6**2))
        self.register_buffer("kernel", (bell[:, None] * bell)[None, None], persistent=False)

    def forward(
        self, face: Tensor, rectangle: Tensor, crop: Tensor, transform: Tensor, polygon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Blend.

        Args:
            face: generated crop (1, 3, S, S) in [-1, 1]. rectangle: (H, W, 3) uint8. crop: the true
                one, from :class:`FaceCrop`. transform: (2, 3). polygon: (P, 2) in crop units, from
                :class:`dithead.face.cropsmoother.CropSmoother`.

        Returns:
            Composited rectangle (H, W, 3) uint8, equal to the source where the soft mask is 0; that
            mask (H, W) in [0, 1].
        """
        height, width = rectangle.shape[0], rectangle.shape[1]
        mask = crop_mask(crop.shape[2], self.softness, polygon[None], self.view)  # (1, 1, S, S)
        matched = self.match_seam(face, crop, mask)  # (1, 3, S, S)
        soft = rectangle_mask(transform[None], height, width, self.softness, polygon[None])
        weight = soft[0, 0]  # (H, W)
        matrix = paste_matrix(transform[None], face.shape[2], self.view)
        return composite(matched, matrix, rectangle, weight, self.density), weight

    def match_seam(self, face: Tensor, crop: Tensor, mask: Tensor) -> Tensor:
        """Add the blurred difference to the true crop, known outside the mask, to the generated
        face (1, 3, S, S)."""
        cell = face.shape[2] // SEAM_CELLS
        off = crop - face  # (1, 3, S, S)
        # Where the two differ much, they show different things, such as the background behind the
        # jaw.
        size = off.abs().mean(1, keepdim=True)
        weight = visible(mask) / (1.0 + (size / SEAM_TOLERANCE).square())  # (1, 1, S, S)
        difference = F.avg_pool2d(off * weight, cell)  # (1, 3, cells, cells)
        amount = F.avg_pool2d(weight, cell)
        blur = self.kernel.expand(3, 1, -1, -1)
        carried = F.conv2d(difference, blur, padding=5, groups=3)
        carried = carried / (F.conv2d(amount, self.kernel, padding=5) + 0.1)
        return face + F.interpolate(carried, size=face.shape[2:], mode="bilinear")


def crop_density(rectangle_px: int, config: FaceConfig) -> int:
    """Samples along each side of a crop pixel, so that shrinking a large face does not alias."""
    return max(1, round(0.8 * rectangle_px * _share(config) / config.crop_px))


def paste_density(rectangle_px: int, config: FaceConfig) -> int:
    """Samples along each side of a rectangle pixel when a crop is shrunk onto a small face."""
    return max(1, round(config.crop_px / (rectangle_px * _share(config))))


def _reach(config: FaceConfig) -> float:
    """Side in crop units of the upright square round the crop's middle that holds the crop, and the
    mask's soft edge, which reaches a little beyond it."""
    return max(config.crop_span, 2.0 * (0.54 - config.crop_down))


def _share(config: FaceConfig) -> float:
    """How much of a rectangle's side a crop takes, relative to one that shows all of crop units."""
    return config.crop_span * _reach(FaceConfig()) / _reach(config)


RECTANGLE_SIZES: tuple[int, ...] = (
    *(64, 128, 192, 256, 320, 384, 512, 640, 768, 1024, 1536, 2048, 3072, 4096, 8192),
)
"""Sides of the square rectangles cut out round a face, in pixels."""


def face_rectangle(transform: Tensor, config: FaceConfig) -> tuple[int, int, int]:
    """The rectangle round a crop.

    Args:
        transform: (2, 3), crop units to frame pixels.

    Returns:
        Left, top (even, may be negative) and side, the smallest of RECTANGLE_SIZES that holds the
        crop and the mask's soft edge.
    """
    a, b, cx = (float(v) for v in transform[0])
    cy = float(transform[1, 2])
    cx, cy = cx + b * config.crop_down, cy + a * config.crop_down  # the crop's middle
    # Side of the upright square round the turned one.
    reach = _reach(config) * (abs(a) + abs(b)) + 4.0
    side = next((s for s in RECTANGLE_SIZES if s >= reach), RECTANGLE_SIZES[-1])
    left, top = math.floor((cx - side / 2) / 2) * 2, math.floor((cy - side / 2) / 2) * 2
    return left, top, side

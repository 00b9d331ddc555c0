"""The mask on training pictures: it follows their look, and is shifted at random."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dithead.config import FaceConfig, View
from dithead.face.crop import WHOLE, crop_mask, mask_out, mask_polygon
from dithead.face.papermask import fade_out, paper_mask
from dithead.train.appearance import Appearance, in_picture

SHIFT = 0.015
"""Standard deviation of the mask's shift, in sides of the crop: 4 pixels of 256. *Assumed*: the
paper says a few pixels."""


def masked_pictures(
    image: Tensor,
    look: Appearance,
    meshes: Tensor | None,
    config: FaceConfig,
    generator: torch.Generator,
    jitter: float = 1.0,
) -> Tensor:
    """Pictures without the lower face, by the configuration's mask.

    Args:
        image: (B, 3, S, S) in [-1, 1], with that look. meshes: (B, 468, 2) in crop units, before
            the look; read for the paper's mask only, see :func:`followed`.
        jitter: 0 for the exact mask; 1 for random shifts of it.
    """
    if config.mask == "paper":
        assert meshes is not None
        moved = posed_meshes(meshes, look, config.view)
        shift = torch.randn(len(meshes), 1, 2, generator=generator)
        mask = paper_mask(moved + jitter * SHIFT * config.view.span * shift, config)
        return fade_out(image, mask.to(image.device))
    size, softness = config.crop_px, config.mask_softness
    mask = training_mask(look, size, softness, generator, jitter, config.view)
    return mask_out(image, mask.to(image.device))


def followed(look: Appearance, config: FaceConfig) -> Appearance:
    """The looks that a mask can follow: all for the fixed one, and for the paper's, which is drawn
    on the face's own landmarks, only those that bend nothing."""
    if config.mask == "fixed":
        return look
    return replace(look, warp=torch.zeros_like(look.warp), turn=torch.zeros_like(look.turn))


def posed_meshes(meshes: Tensor, look: Appearance, view: View) -> Tensor:
    """Where meshes (B, 468, 2) in crop units are in pictures of looks that only move them."""
    middle = torch.tensor([0.0, view.down])
    return in_picture((meshes - middle) / view.span, look) * view.span + middle


def training_mask(
    look: Appearance,
    size: int,
    softness: float,
    generator: torch.Generator,
    jitter: float = 1.0,
    view: View = WHOLE,
) -> Tensor:
    """Soft masks (B, 1, size, size) that follow the looks, shifted and bent at random by a few
    pixels.

    Args:
        jitter: 0 for the exact mask; 1 for shifts of about 1.5 % of the crop.
        view: what the model's crops show.
    """
    batch = look.affine.shape[0]
    # Places in an unaugmented crop.
    polygon = (mask_polygon(batch) - torch.tensor([0.0, view.down])) / view.span
    shift = SHIFT * jitter * torch.randn(batch, 1, 2, generator=generator)
    bend = 0.006 * jitter * torch.randn(polygon.shape, generator=generator)
    points = in_picture(polygon + shift + bend, look)
    mirrored = torch.linalg.det(look.affine[:, :, :2]) < 0
    points = torch.where(mirrored[:, None, None], points.flip(1), points)  # keep it clockwise
    return crop_mask(size, softness / view.span, points)

"""Prepared footage: the index, the crops on disk, and the augmentation that turns them into
training pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dithead.errors import MediaError
from dithead.face.crop import crop_face, crop_mask, mask_polygon

STORED_MARGIN = 1.25
"""A stored crop is this much wider than the model's, so that augmentation can turn and shift it."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One prepared clip."""

    name: str
    person: str
    split: str
    """``train`` or ``validation``."""
    frames: int


class Footage:
    """A folder written by ``dithead-train prepare``."""

    def __init__(self, root: Path) -> None:
        index = root / "index.json"
        if not index.is_file():
            raise MediaError(f"{root} holds no prepared footage: run dithead-train prepare first")
        self.root = root
        self.clips = [Clip(**row) for row in json.loads(index.read_text())["clips"]]

    def split(self, name: str) -> list[Clip]:
        """Clips of one split, sorted by name."""
        return sorted((c for c in self.clips if c.split == name), key=lambda c: c.name)

    def crops(self, clip: Clip) -> np.ndarray:
        """(T, S, S, 3) uint8 RGB, read lazily from disk; S is STORED_MARGIN times the model's
        crop."""
        return np.load(self.root / "crops" / f"{clip.name}.npy", mmap_mode="r")

    def track(self, clip: Clip) -> dict[str, np.ndarray]:
        """``transform`` (T, 2, 3), ``mesh`` (T, 468, 2) in frame pixels, ``time_s`` (T,), ``audio``
        (S,) 16 kHz."""
        with np.load(self.root / "track" / f"{clip.name}.npz") as file:
            return {key: file[key] for key in file.files}


@dataclass(frozen=True, slots=True)
class Appearance:
    """One look, applied alike to every picture of a sample; each field has one row per picture."""

    affine: Tensor
    """(B, 2, 3) crop units of the model to crop units of the stored crop."""
    colour: Tensor
    """(B, 3, 4) matrix and offset on RGB in [-1, 1]."""
    gamma: Tensor
    """(B,) exponent on [0, 1]."""
    coarseness: Tensor
    """(B,) fraction of detail kept, 1 = all: pictures from small faces are coarse."""
    warp: Tensor
    """(B, 2, 5, 5) smooth displacement in crop units: another face from the same footage."""

    def take(self, rows: Tensor) -> Appearance:
        """The looks of the given rows."""
        return Appearance(
            self.affine[rows],
            self.colour[rows],
            self.gamma[rows],
            self.coarseness[rows],
            self.warp[rows],
        )


def plain_appearance(batch: int) -> Appearance:
    """No change."""
    affine = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) / STORED_MARGIN
    colour = torch.cat([torch.eye(3), torch.zeros(3, 1)], dim=1)
    return Appearance(
        affine.expand(batch, -1, -1).clone(),
        colour.expand(batch, -1, -1).clone(),
        torch.ones(batch),
        torch.ones(batch),
        torch.zeros(batch, 2, 5, 5),
    )


def random_appearance(batch: int, generator: torch.Generator, strength: float = 1.0) -> Appearance:
    """Random looks: turn, scale, stretch, shift, mirror; colour, contrast, gamma; coarseness; a
    smooth warp."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    s = strength
    roll = uniform(-0.10, 0.10) * s
    scale = 1.0 + uniform(-0.08, 0.08) * s
    stretch = 1.0 + uniform(-0.06, 0.06) * s
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    c, si = torch.cos(roll), torch.sin(roll)
    a = torch.stack([scale * stretch * c * mirror, -scale * si, uniform(-0.03, 0.03) * s], dim=1)
    b = torch.stack(
        [scale * stretch * si * mirror, scale * c / stretch, uniform(-0.03, 0.03) * s], dim=1
    )
    affine = torch.stack([a, b], dim=1) / STORED_MARGIN
    grey = torch.tensor([0.299, 0.587, 0.114])
    saturation = uniform(0.5, 1.3, 1, 1) ** s
    gain = torch.diag_embed(1.0 + uniform(-0.15, 0.15, 3) * s) * (
        1.0 + uniform(-0.2, 0.15, 1, 1) * s
    )
    mix = saturation * torch.eye(3) + (1 - saturation) * grey.expand(3, 3)
    mix = mix + uniform(-0.06, 0.06, 3, 3) * s
    offset = uniform(-0.15, 0.15, 1, 1) * s + uniform(-0.05, 0.05, 3, 1) * s
    coarse = torch.where(
        torch.rand(batch, generator=generator) < 0.4 * s, uniform(0.35, 1.0), torch.ones(batch)
    )
    warp = 0.012 * s * torch.randn(batch, 2, 5, 5, generator=generator)
    return Appearance(
        affine, torch.cat([gain @ mix, offset], dim=2), uniform(0.75, 1.35) ** s, coarse, warp
    )


def render(crops: Tensor, look: Appearance, size: int) -> Tensor:
    """Stored crops (B, S, S, 3) uint8 -> pictures (B, 3, size, size) float32 in [-1, 1] with the
    given looks."""
    image = crops.movedim(-1, 1).float()
    stored = image.shape[2]
    scaled = stored * look.affine
    scaled[:, :, 2] += stored / 2
    if bool((look.warp != 0).any()):
        image = _warp(image, look.warp)
    image = crop_face(image, scaled, size) / 255.0
    image = image.clamp(0, 1) ** look.gamma.view(-1, 1, 1, 1)
    image = torch.einsum("bij,bjhw->bihw", look.colour[:, :, :3], image * 2 - 1)
    image = image + look.colour[:, :, 3:, None]
    return _coarsen(image.clamp(-1, 1), look.coarseness)


def _warp(image: Tensor, warp: Tensor) -> Tensor:
    h, w = image.shape[2:]
    field = F.interpolate(warp, size=(h, w), mode="bicubic", align_corners=True)
    line = (torch.arange(h) + 0.5) / h * 2 - 1
    identity = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)  # (H, W, 2)
    grid = identity + 2 * field.movedim(1, -1) / STORED_MARGIN
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _coarsen(image: Tensor, kept: Tensor) -> Tensor:
    size = image.shape[2]
    out = image.clone()
    for row in torch.nonzero(kept < 0.99).flatten().tolist():
        small = max(16, round(size * float(kept[row])))
        shrunk = F.interpolate(
            image[row : row + 1], size=(small, small), mode="bilinear", antialias=True
        )
        out[row : row + 1] = F.interpolate(shrunk, size=(size, size), mode="bilinear")
    return out


def training_mask(
    look: Appearance, size: int, softness: float, generator: torch.Generator, jitter: float = 1.0
) -> Tensor:
    """Soft masks (B, 1, size, size) that follow the looks, shifted and bent at random by a few
    pixels.

    Args:
        jitter: 0 for the exact mask; 1 for shifts of about 1.5 % of the crop.
    """
    batch = look.affine.shape[0]
    polygon = mask_polygon(batch)  # crop units of an unaugmented crop
    shift = 0.015 * jitter * torch.randn(batch, 1, 2, generator=generator)
    bend = 0.006 * jitter * torch.randn(polygon.shape, generator=generator)
    matrix = look.affine * STORED_MARGIN  # model units -> unaugmented units
    inverse = torch.linalg.inv(matrix[:, :, :2])
    points = (polygon + shift + bend - matrix[:, None, :, 2]) @ inverse.transpose(1, 2)
    mirrored = torch.linalg.det(matrix[:, :, :2]) < 0
    points = torch.where(mirrored[:, None, None], points.flip(1), points)  # keep it clockwise
    return crop_mask(size, softness, points)

"""Stage 1 alone: true face crops are encoded and decoded, and judged in the lower face."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dithead.config import FaceConfig
from dithead.errors import MediaError
from dithead.face.crop import fixed_mask
from dithead.generator import FrameGenerator
from dithead.options import Options
from dithead.runtime.media.sources import VideoSource
from dithead.torchgraphs import TorchGraphs
from dithead.train.evaluation.baselines import through_stage_1
from dithead.train.evaluation.clips import Clip

EVERY = 5
"""One in this many frames of a clip is judged."""
STILLS = (".jpg", ".jpeg", ".png", ".webp")


def lower_face(config: FaceConfig) -> Tensor:
    """Which pixels of a crop lie inside the mask's polygon: (S, S) bool."""
    return fixed_mask(config)[0, 0] >= 0.5


def lower_face_psnr(crop: Tensor, decoded: Tensor, area: Tensor) -> float:
    """PSNR (dB) of two crops (1, 3, S, S) in [-1, 1] within an area (S, S)."""
    error = (decoded - crop)[..., area].clamp(-2, 2).square().mean() / 4
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


@torch.inference_mode()
def reconstruct(
    frames: Sequence[Tensor], times_s: Sequence[float], models: TorchGraphs
) -> list[tuple[Tensor, Tensor]]:
    """True crop and decoded crop, (1, 3, S, S) each, of consecutive frames; those without a face
    are left out."""
    generator = FrameGenerator(models, Options(detail=False))
    pairs = []
    for index, (frame, time_s) in enumerate(zip(frames, times_s, strict=True)):
        on_device = frame.to(models.device)
        prepared = generator.prepare(on_device, time_s, index, lambda time_s: torch.zeros(()))
        if prepared is not None:
            decoded = through_stage_1(prepared.crop, models)
            pairs.append((prepared.crop.cpu(), decoded.cpu()))
    return pairs


def clip_reconstruction(clip: Clip, models: TorchGraphs) -> dict[str, Any]:
    """Mean PSNR in the lower face of every fifth frame of a clip."""
    area = lower_face(models.config.face)
    pairs = reconstruct(clip.frames[::EVERY], clip.times_s[::EVERY], models)
    psnr = [lower_face_psnr(crop, decoded, area) for crop, decoded in pairs]
    return {"lower_face_db": sum(psnr) / len(psnr)}


def list_stills(source: Path) -> list[Path]:
    """The pictures of a folder by name, or those that a text file lists, one per line, relative to
    its own folder."""
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in STILLS)
    elif source.is_file():
        lines = source.read_text().splitlines()
        paths = [source.parent / line.strip() for line in lines if line.strip()]
    else:
        raise MediaError(f"{source} does not exist: expected a folder of pictures, or a list")
    if not paths:
        raise MediaError(f"no still in {source}: expected {', '.join(STILLS)}")
    return paths


def still_reconstruction(
    path: Path, models: TorchGraphs
) -> tuple[dict[str, Any], tuple[Tensor, Tensor]]:
    """PSNR in the lower face of a still, and its crops, true and decoded.

    Raises:
        MediaError: it cannot be read or shows no face.
    """
    with VideoSource(path) as video:
        frame = torch.from_numpy(next(iter(video)).rgb())
    pairs = reconstruct([frame], [0.0], models)
    if not pairs:
        raise MediaError(f"no face in {path.name}")
    psnr = lower_face_psnr(*pairs[0], lower_face(models.config.face))
    return {"lower_face_db": psnr}, pairs[0]

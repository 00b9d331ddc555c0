"""Contact sheets: grids of pictures written as PNG."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor


def grid(images: Tensor, columns: int) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], row by row -> one picture (rows * H, columns * W, 3)
    uint8."""
    b, c, h, w = images.shape
    rows = -(-b // columns)
    padded = torch.zeros(rows * columns, c, h, w)
    padded[:b] = images.cpu()
    sheet = (
        padded.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    )
    return ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte()


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write :func:`grid` as a PNG."""
    save_png(grid(images, columns), path)


def save_png(picture: Tensor, path: Path) -> None:
    """Write a picture (H, W, 3) uint8 RGB as a PNG."""
    frame = av.VideoFrame.from_ndarray(picture.numpy(), format="rgb24")
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "rgb24"
    codec.time_base = Fraction(1, 25)
    packets = [*codec.encode(frame), *codec.encode(None)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(b"".join(bytes(p) for p in packets))
    partial.replace(path)

"""The piece of a frame that is cut out, the patch that is written back, and whether a frame is the
one before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Patch:
    """A generated piece of a frame."""

    left: int
    """May be negative: the rectangle may reach beyond the frame."""
    top: int
    image: Tensor
    """(S, S, 3) uint8 RGB, composited: equal to the source where the mask is 0."""
    mask: Tensor
    """(S, S) float in [0, 1]: where it may differ."""


def cut_rectangle(frame: Tensor, left: int, top: int, side: int) -> Tensor:
    """Square (side, side, 3) of a frame (H, W, 3); beyond the frame its edge pixels are
    repeated."""
    height, width = frame.shape[:2]
    if 0 <= left <= width - side and 0 <= top <= height - side:
        return frame[top : top + side, left : left + side].clone()
    rows = torch.arange(top, top + side, device=frame.device).clamp(0, height - 1)
    columns = torch.arange(left, left + side, device=frame.device).clamp(0, width - 1)
    return frame.index_select(0, rows).index_select(1, columns)


def put_patch(frame: Tensor, patch: Patch) -> Tensor:
    """A copy of a frame (H, W, 3) with a patch written onto it."""
    out = frame.clone()
    x, y, image, _ = inside(patch, frame.shape[1], frame.shape[0])
    out[y : y + image.shape[0], x : x + image.shape[1]] = image
    return out


def inside(patch: Patch, width: int, height: int) -> tuple[int, int, Tensor, Tensor]:
    """The part of a patch inside a frame: left, top, image (h, w, 3), mask (h, w); h or w may be
    0."""
    side = patch.image.shape[0]
    x0, y0 = max(0, min(width, patch.left)), max(0, min(height, patch.top))
    x1, y1 = max(x0, min(width, patch.left + side)), max(y0, min(height, patch.top + side))
    rows, columns = slice(y0 - patch.top, y1 - patch.top), slice(x0 - patch.left, x1 - patch.left)
    return x0, y0, patch.image[rows, columns], patch.mask[rows, columns]


class SamePicture:
    """Tells whether a frame (H, W, 3) on the host shows the same as the one before, to the bit."""

    def __init__(self) -> None:
        self._last: Tensor | None = None

    def __call__(self, frame: Tensor) -> bool:
        """Whether it does; frames must come in order."""
        if self._last is not None and _equal(frame, self._last):
            return True
        self._last = frame.clone()  # whose it is may write the next picture over it
        return False


def _equal(frame: Tensor, last: Tensor) -> bool:
    if frame.shape != last.shape or not torch.equal(frame[::16], last[::16]):
        return False  # most that differ do so here, and little was read
    return torch.equal(frame, last)

"""Tells whether a frame shows a different scene from the frame before.

In 52 cuts between people before the same plain background, in the same place, the share of the
frame that changes is 0.13 at least, and what is round the face differs by 0.13 at least. From one
frame to the next of ordinary footage (8 to 30 frames a second), these are 0.05 and 0.06 at most,
and 0.09 and 0.08 where somebody walks across.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import torch
from torch import Tensor

from dithead.face.search import Read

SCENE, SWAP = 0.6, 0.11
"""Smallest shares of a frame that change at a cut: to another scene; and to somebody else in the
same place, where what is round the face must change as much, too."""
SCENE_RATIO, SWAP_RATIO = 1.5, 2.5
"""The change must also be this many times the smallest change between the frames before: somebody
who walks through the picture does not appear within one frame."""
_GLANCES = 4  # how many are remembered
_ROWS, _COLUMNS, _EACH = 18, 32, 3
_CHANGED = 0.5  # times the frame's own contrast
_FAINT = 8.0  # levels
_ROUND = 0.5  # times the face's size, on each side


class Scene:
    """Remembers what the latest frames showed."""

    def __init__(self) -> None:
        self._glances: deque[Tensor] = deque(maxlen=_GLANCES)
        self._size = 0, 0

    def see(self, frame: Tensor) -> None:
        """Take in a frame (H, W, 3) uint8."""
        self._size = frame.shape[0], frame.shape[1]
        self._glances.append(glance(frame))

    @property
    def is_new(self) -> bool:
        """Whether only one frame has been seen so far."""
        return len(self._glances) == 1

    @property
    def now(self) -> Tensor:
        """The latest glance."""
        return self._glances[-1]

    def has_cut(self, place: Tensor | None, read: Read) -> bool:
        """Whether the latest frame shows a different scene from the one before it; or, given the
        place (4,) of a face on the host, somebody else there."""
        if len(self._glances) < 2:
            return False
        shares = [changed_share(before, after) for before, after in pairwise(self._glances)]
        *earlier, share = read(torch.stack(shares)).tolist()
        usual = min(earlier, default=0.0)
        if share >= max(SCENE, SCENE_RATIO * usual):
            return True
        if place is None or share < max(SWAP, SWAP_RATIO * usual):
            return False
        change = changed_round(self._glances[-2], self.now, place, *self._size)
        return float(read(change)) >= SWAP

    def has_changed(self, before: Tensor, place: Tensor, read: Read) -> bool:
        """Whether both the scene and what is round a place have changed since a glance."""
        changes = [
            changed_share(before, self.now),
            changed_round(before, self.now, place, *self._size),
        ]
        return min(read(torch.stack(changes)).tolist()) >= SWAP


def glance(frame: Tensor) -> Tensor:
    """A frame (H, W, 3) uint8 as a few coarse pixels: (_ROWS, _COLUMNS, 3) float, in levels."""
    height, width = frame.shape[:2]
    rows = _places(height, _ROWS * _EACH, frame.device)
    columns = _places(width, _COLUMNS * _EACH, frame.device)
    pixels = frame[rows[:, None], columns].float()
    return pixels.view(_ROWS, _EACH, _COLUMNS, _EACH, 3).mean((1, 3))


def changed_share(before: Tensor, after: Tensor) -> Tensor:
    """Share of the picture that differs between two glances: (). The overall brightness, contrast
    and colour cast do not count."""
    first, second = (_plain(seen) for seen in (before, after))
    return ((first - second).abs().mean(2) > _CHANGED).float().mean()


def changed_round(before: Tensor, after: Tensor, box: Tensor, height: int, width: int) -> Tensor:
    """How much two glances differ round a face, in [0, 2]: (). ``box``: (4,) on the host, in pixels
    of the frame (height, width)."""
    margin = _ROUND * (box[2:] - box[:2])
    low, high = (box[:2] - margin).tolist(), (box[2:] + margin).tolist()
    left, right = _span(low[0] / width, high[0] / width, _COLUMNS)
    top, bottom = _span(low[1] / height, high[1] / height, _ROWS)
    parts = (seen[top:bottom, left:right] for seen in (before, after))
    a, b = (part - part.mean((0, 1)) for part in parts)
    noise = _FAINT**2 * a.numel()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return 1.0 - ((a * b).sum() + noise) / (size + noise)


def _plain(seen: Tensor) -> Tensor:
    off = seen - seen.mean((0, 1))
    return off / (off.square().mean((0, 1)).sqrt() + _FAINT)


def _span(low: float, high: float, count: int) -> tuple[int, int]:
    """Which of ``count`` equal parts the range from ``low`` to ``high`` of a length (as shares of
    it) touches: the first, and one past the last."""
    first = min(count - 1, max(0, int(low * count)))
    return first, max(first + 1, min(count, int(high * count) + 1))


def _places(length: int, count: int, device: torch.device) -> Tensor:
    """Middles of ``count`` equal parts of a length, as pixel indices."""
    return ((torch.arange(count, device=device) + 0.5) * (length / count)).long()

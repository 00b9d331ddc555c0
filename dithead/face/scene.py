"""Tells whether a frame shows a different scene from the frame before; with the graphs
``frame_glance`` and ``scene_change``, which have no weights.

In 52 cuts between people before the same plain background, in the same place, the share of the
frame that changes is 0.13 at least, and what is round the face differs by 0.13 at least. From one
frame to the next of ordinary footage (8 to 30 frames a second), these are 0.05 and 0.06 at most,
and 0.09 and 0.08 where somebody walks across.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor, nn

from dithead.face.search import Box, Read, Run
from dithead.hosttodevice import to_device

SCENE, SWAP = 0.6, 0.11
"""Smallest shares of a frame that change at a cut: to another scene; and to somebody else in the
same place, where what is round the face must change as much, too."""
SCENE_RATIO, SWAP_RATIO = 1.5, 2.5
"""The change must also be this many times the smallest change between the frames before: somebody
who walks through the picture does not appear within one frame."""
GLANCES = 4
"""How many are remembered."""
ROWS, COLUMNS = 18, 32
"""Of a glance."""
_EACH = 3
_CHANGED = 0.5  # times the frame's own contrast
_FAINT = 8.0  # levels
_ROUND = 0.5  # times the face's size, on each side


class FrameGlance(nn.Module):
    """``frame_glance``: a frame as a few coarse pixels."""

    rows: Tensor
    columns: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, count in (("rows", ROWS * _EACH), ("columns", COLUMNS * _EACH)):
            # Twice the middles of equal parts of a length of 1, times their number.
            self.register_buffer(name, 2 * torch.arange(count) + 1, persistent=False)

    def forward(self, frame: Tensor) -> Tensor:
        """Frame (H, W, 3) uint8 -> glance (ROWS, COLUMNS, 3) float, in levels."""
        rows = self.rows * frame.shape[0] // (2 * ROWS * _EACH)
        columns = self.columns * frame.shape[1] // (2 * COLUMNS * _EACH)
        pixels = frame.index_select(0, rows).index_select(1, columns).float()
        return pixels.view(ROWS, _EACH, COLUMNS, _EACH, 3).mean((1, 3))


class SceneChange(nn.Module):
    """``scene_change``: how much a few glances differ."""

    def forward(self, glances: Tensor, inside: Tensor) -> Tensor:
        """Compare each glance with the next.

        Args:
            glances: (GLANCES, ROWS, COLUMNS, 3), the latest one last. inside: (ROWS, COLUMNS), 1 in
                the part round a face, and 0 elsewhere.

        Returns:
            (GLANCES,): the shares of the picture that differ between one glance and the next, in
            order; then how much the last two differ in the part, in [0, 2]. Overall brightness,
            contrast and colour cast do not count.
        """
        off = glances - glances.mean((1, 2), keepdim=True)
        plain = off / (off.square().mean((1, 2), keepdim=True).sqrt() + _FAINT)
        shares = ((plain[1:] - plain[:-1]).abs().mean(3) > _CHANGED).float().mean((1, 2))
        part, count = inside[:, :, None], inside.sum()
        both = glances[-2:]
        a, b = ((both - (both * part).sum((1, 2), keepdim=True) / count) * part).unbind(0)
        noise = 3.0 * _FAINT**2 * count
        size = (a.square().sum() * b.square().sum()).sqrt()
        round_face = 1.0 - ((a * b).sum() + noise) / (size + noise)
        return torch.cat([shares, round_face[None]])


class Scene:
    """Remembers what the latest frames showed.

    Args:
        run: runs the graphs ``frame_glance`` and ``scene_change``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._glances: deque[Tensor] = deque(maxlen=GLANCES)
        self._size = 0, 0

    def see(self, frame: Tensor) -> None:
        """Take in a frame (H, W, 3) uint8."""
        self._size = frame.shape[0], frame.shape[1]
        self._glances.append(self._run("frame_glance", frame)[0])

    @property
    def is_new(self) -> bool:
        """Whether only one frame has been seen so far."""
        return len(self._glances) == 1

    @property
    def now(self) -> Tensor:
        """The latest glance."""
        return self._glances[-1]

    def has_cut(self, place: Box | None, read: Read) -> bool:
        """Whether the latest frame shows a different scene from the one before it; or, given the
        place of a face, somebody else there."""
        if len(self._glances) < 2:
            return False
        *earlier, share, change = self._changes(list(self._glances), place, read)
        usual = min(earlier, default=0.0)
        if share >= max(SCENE, SCENE_RATIO * usual):
            return True
        return place is not None and share >= max(SWAP, SWAP_RATIO * usual) and change >= SWAP

    def has_changed(self, before: Tensor, place: Box, read: Read) -> bool:
        """Whether both the scene and what is round a place have changed since a glance."""
        return min(self._changes([before, self.now], place, read)) >= SWAP

    def _changes(self, glances: list[Tensor], place: Box | None, read: Read) -> list[float]:
        """The shares that change from one glance to the next, and the change round a place."""
        missing = GLANCES - len(glances)
        inside = torch.zeros(ROWS, COLUMNS)
        rows, columns = part_round(place, *self._size)
        inside[rows, columns] = 1.0
        stacked = torch.stack([*(glances[:1] * missing), *glances])
        (changes,) = self._run("scene_change", stacked, to_device(inside, stacked.device))
        return read(changes).tolist()[missing:]


def part_round(place: Box | None, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a glance that show a place in a frame (height, width) and what is round
    it; all of them without a place."""
    if place is None:
        return slice(0, ROWS), slice(0, COLUMNS)
    x, y = _ROUND * (place[2] - place[0]), _ROUND * (place[3] - place[1])
    rows = _span((place[1] - y) / height, (place[3] + y) / height, ROWS)
    return slice(*rows), slice(*_span((place[0] - x) / width, (place[2] + x) / width, COLUMNS))


def _span(low: float, high: float, count: int) -> tuple[int, int]:
    """Which of ``count`` equal parts the range from ``low`` to ``high`` of a length (as shares of
    it) touches: the first, and one past the last."""
    first = min(count - 1, max(0, int(low * count)))
    return first, max(first + 1, min(count, int(high * count) + 1))

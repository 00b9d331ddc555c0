"""Tells when somebody passes in front of the followed person; with the graph ``face_sides``, which
has no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dithead.face.crop import placement_from_mesh, stable_template, transform_from_placement
from dithead.face.others import Others
from dithead.face.search import Box, Read, Run

NEW_SIDES = 0.2
"""When somebody passes in front, what is beside the lower face differs by more than this 2 to 4
frames before they reach the replaced area. Otherwise it mostly differs by less."""
MOST_SIDES = 4
"""At most this many looks of what is beside the lower face are remembered."""
UNSEEN = 5
"""If the detector loses somebody who was about to pass in front, they count as there for this many
more frames."""
STILL, SETTLED = 0.1, 25
"""If what is beside the lower face differs from one frame to the next by less than the first, for
as many frames as the second, and is not another's face, then this is how it looks now."""
MOST_WAIT = 8
"""If nobody else is known and the detector finds nobody, the next searches wait for 1, 2, 4 frames,
and at most this many: behind a window something moves all the time."""
_COLUMNS = (-0.50, -0.44, -0.38, -0.32, -0.26, 0.26, 0.32, 0.38, 0.44, 0.50)
_ROWS = tuple(-0.14 + 0.08 * row for row in range(8))
_SPOT = 0.012  # half the side of a spot
SIDES_SHAPE = (len(_COLUMNS), len(_ROWS), 3)
"""Shape of what is seen beside a lower face: the columns on its left, then those on its right."""


class FaceSides(nn.Module):
    """``face_sides``: what is seen beside a lower face, and how much it has changed."""

    template: Tensor
    spots: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("template", stable_template(), persistent=False)
        self.register_buffer("spots", _spots(), persistent=False)

    def forward(
        self, frame: Tensor, mesh: Tensor, looks: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Look beside a face.

        Args:
            frame: (H, W, 3) uint8. mesh: (468, 3) in frame pixels. looks: LOOKS_SHAPE, of the face.
            known: (MOST_SIDES + 1, *SIDES_SHAPE), what was seen there before.

        Returns:
            Colours relative to the upper face, as logarithms, SIDES_SHAPE. For the host, (2
            MOST_SIDES + 10,): by how much the left and the right side differ from each of the
            known; then the boxes round the places on the left and on the right.
        """
        placement = placement_from_mesh(mesh[None], self.template)
        transform = transform_from_placement(placement)[0]
        places = self.spots @ transform[:, :2].T + transform[:, 2]  # (columns, rows, 9, 2)
        height, width = frame.shape[0], frame.shape[1]
        columns = places[..., 0].long().clamp(min=0).clamp(max=width - 1)
        rows = places[..., 1].long().clamp(min=0).clamp(max=height - 1)
        pixels = frame.reshape(-1, 3).index_select(0, (rows * width + columns).flatten())
        seen = pixels.view(*columns.shape, 3).float().mean(2)  # (columns, rows, 3)
        sides = ((seen + 8.0) / (looks.mean((1, 2)) + 8.0)).log()
        ends = places.unflatten(0, (2, -1)).flatten(1, 3)  # (2, spots of a side, 2)
        boxes = torch.cat([ends.amin(1), ends.amax(1)], dim=1)  # (2, 4)
        return sides, torch.cat([unlike_sides(known, sides).flatten(), boxes.flatten()])


class Passing:
    """Tells when somebody else passes in front of the lower face of the person who is followed.

    The detector sees who is near, but not who is in front, and it is too slow for every frame. So
    it is asked only when the picture beside the lower face has changed: left and right of the
    replaced area, and along its edges. Somebody who passes in front is first seen there; somebody
    who passes behind is not.

    Args:
        run: runs the graph ``face_sides``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known: list[Tensor] = []  # each SIDES_SHAPE: what the sides looked like
        self._latest: Tensor | None = None  # the same, in the frame before
        self._unseen = UNSEEN  # frames since somebody was seen to reach into the sides
        self._still = 0  # for how many frames nothing has moved there
        self._wait = 0  # frames until it may be asked again if nobody else is known
        self._in_vain = 0  # how often it was asked in vain

    def __call__(
        self,
        frame: Tensor,
        mesh: Tensor,
        looks: Tensor,
        others: Others,
        look: Callable[[], None],
        read: Read,
    ) -> bool:
        """Whether somebody is in front of a face, or soon will be.

        Args:
            frame: (H, W, 3) uint8. mesh, looks: of the face, see
                :class:`~dithead.face.tracker.TrackedFace`. look: updates where the others are, from
                this frame.
        """
        sides, unlike, boxes = self._look(frame, mesh, looks, read)
        self._latest = sides
        self._wait = max(0, self._wait - 1)
        if not self._known:
            self._known = [sides]
            return False
        new = [min(known[side] for known in unlike[:-1]) > NEW_SIDES for side in (0, 1)]
        if not any(new):
            self._unseen, self._still = UNSEEN, 0
            if self._wait == 0:
                self._in_vain = max(0, self._in_vain - 1)
            return False
        if self._wait > 0 and not others:
            return False
        look()
        reached = any(others.reach(boxes[side], head=True) for side in (0, 1) if new[side])
        self._unseen = 0 if reached else self._unseen + 1
        self._still = self._still + 1 if max(unlike[-1]) < STILL else 0
        settled = self._still >= SETTLED and not others.reach(_round(*boxes), head=False)
        if self._unseen < UNSEEN and not settled:
            self._wait = self._in_vain = 0
            return True
        last = self._known[-1]
        learnt = [(sides if new[side] else last).chunk(2)[side] for side in (0, 1)]
        self._known = [*self._known, torch.cat(learnt)][-MOST_SIDES:]
        self._unseen, self._still = UNSEEN, 0
        self._wait, self._in_vain = min(MOST_WAIT, 2**self._in_vain), self._in_vain + 1
        return False

    def _look(
        self, frame: Tensor, mesh: Tensor, looks: Tensor, read: Read
    ) -> tuple[Tensor, list[list[float]], list[Box]]:
        """What is beside a lower face now; by how much the left and the right side differ from each
        of the known, and from the frame before; the boxes round both."""
        before = self._known if self._latest is None else [*self._known, self._latest]
        missing = MOST_SIDES + 1 - len(before)
        filled = [*before, *[torch.zeros(SIDES_SHAPE, device=frame.device)] * missing]
        sides, seen = self._run("face_sides", frame, mesh, looks, torch.stack(filled))
        values = read(seen).tolist()
        unlike = [values[2 * n : 2 * n + 2] for n in range(len(before))]
        left, right = values[-8:-4], values[-4:]
        return sides, unlike, [_box(left), _box(right)]


def _box(values: Sequence[float]) -> Box:
    left, top, right, bottom = values
    return left, top, right, bottom


def _round(a: Box, b: Box) -> Box:
    """The box round two boxes."""
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def unlike_sides(before: Tensor, now: Tensor) -> Tensor:
    """How much each side differs from earlier looks (N, columns, rows, 3), by its column that
    differs most: (N, 2). A column may match its neighbour, since the face's own edge moves a
    little."""
    there = before.unflatten(1, (2, -1))  # per side
    places = torch.stack(
        [
            there,
            torch.cat([there[:, :, :1], there[:, :, :-1]], dim=2),
            torch.cat([there[:, :, 1:], there[:, :, -1:]], dim=2),
        ]
    )  # (3, N, 2, columns of a side, rows, 3)
    off = (places - now.unflatten(0, (2, -1))).abs().mean((4, 5))
    return off.amin(0).amax(2)


def _spots() -> Tensor:
    """Places in crop units: (columns, rows, 9, 2)."""
    line = torch.tensor([-_SPOT, 0.0, _SPOT])
    middles = torch.stack(
        torch.meshgrid(torch.tensor(_COLUMNS), torch.tensor(_ROWS), indexing="ij"), dim=-1
    )
    return middles[:, :, None] + torch.cartesian_prod(line, line)

"""Who else is in the picture, remembered so that none of them is taken for the one followed, nor
altered as they come in front."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dithead.face.crop import placement_from_mesh, stable_template, transform_from_placement
from dithead.face.judge import unlikeness
from dithead.face.search import Read, Sighting, overlap
from dithead.hosttodevice import to_device

MIN_OVERLAP = 0.2
"""Boxes that share so much are of the same face."""
MOST_OTHERS = 8
"""So many others are remembered."""
NEW_SIDES = 0.2
"""What is beside the lower face differs by more where somebody comes in front, 2 to 4 frames before
they are over what is replaced, and mostly by less else."""
MOST_SIDES = 4
"""So many looks of it are remembered."""
UNSEEN = 5
"""Who was about to come in front is there for so many frames more if the detector loses them."""
STILL, SETTLED = 0.1, 25
"""What differs from one frame to the next by less than the first, for so many frames, and is not
another's face, is how it looks there now."""
MOST_WAIT = 8
"""Where nobody else is known and looks for them are in vain, the next ones wait for 1, 2, 4 frames,
and so many at most: behind a window something moves all the time."""
_COLUMNS = (-0.50, -0.44, -0.38, -0.32, -0.26, 0.26, 0.32, 0.38, 0.44, 0.50)
_ROWS = tuple(-0.14 + 0.08 * row for row in range(8))
_SPOT = 0.012  # half the side of a spot
_HEAD, _HAIR = 0.55, 0.8  # of a box: how far a head reaches beyond it, at the sides and above


@dataclass(frozen=True, slots=True)
class Other:
    """Somebody who is not followed."""

    box: Tensor
    """(4,) on the host, where they were seen last."""
    looks: Tensor
    """LOOKS_SHAPE, as they were first seen."""


class Others:
    """Everybody but the person who is followed."""

    def __init__(self) -> None:
        self._known: list[Other] = []

    def __bool__(self) -> bool:
        return bool(self._known)

    def at(self, face: Sighting) -> Other | None:
        """Whom of them a face goes on from."""
        best = max(self._known, key=lambda one: overlap(face.box, one.box), default=None)
        return best if best is not None and overlap(face.box, best.box) > MIN_OVERLAP else None

    def unlike(self, looks: Tensor, read: Read) -> float:
        """How little looks differ from those of the one who is most like them."""
        return min((unlike for unlike, _ in self._compared(looks, read)), default=float("inf"))

    def like(self, looks: Tensor, limit: float, read: Read) -> Other | None:
        """Whom of them looks show, wherever that is."""
        best = min(self._compared(looks, read), key=lambda pair: pair[0], default=None)
        return best[1] if best is not None and best[0] <= limit else None

    def near(self, place: Tensor) -> bool:
        """Whether somebody was seen next to a box (4,) on the host."""
        margin = place[2:] - place[:2]
        wide = torch.cat([place[:2] - margin, place[2:] + margin])
        return any(overlap(wide, one.box) > 0 for one in self._known)

    def reach(self, place: Tensor, head: bool) -> bool:
        """Whether somebody's face, or with ``head`` hair and shoulders, reaches into a box (4,) on
        the host."""
        return any(overlap(place, _whole(one.box) if head else one.box) > 0 for one in self._known)

    def replace(self, seen: Iterable[Other | None], keep: bool) -> None:
        """Take those who were seen just now, as :func:`seen_at` gives them; ``keep``: the rest are
        still somewhere."""
        now = [one for one in seen if one is not None]
        rest = self._known if keep else []
        before = [one for one in rest if not any(other.looks is one.looks for other in now)]
        self._known = [*now, *before][:MOST_OTHERS]

    def _compared(self, looks: Tensor, read: Read) -> list[tuple[float, Other]]:
        if not self._known:
            return []
        unlike = unlikeness(torch.stack([one.looks for one in self._known]), looks)
        return list(zip(read(unlike).tolist(), self._known, strict=True))


def seen_at(box: Tensor, known: Other | None, looks: Tensor | None) -> Other | None:
    """Somebody at a box: one who was known, or who is seen there first, if there is a face."""
    if known is not None:
        return replace(known, box=box)
    return None if looks is None else Other(box, looks)


class Passing:
    """Tells when somebody else comes in front of the lower face of the person who is followed.

    The detector sees who is near, not who is in front, and takes too long for every frame. So it is
    asked where what is beside the lower face has changed: left and right of what is replaced, and
    along its edges. There somebody who comes in front is first seen; who passes behind is not.
    """

    def __init__(self) -> None:
        self._known: list[Tensor] = []  # (columns, rows, 3), what the sides looked like
        self._latest: Tensor | None = None  # likewise
        self._template: Tensor | None = None
        self._spots: Tensor | None = None
        self._unseen = UNSEEN  # frames since somebody was seen to reach into it
        self._still = 0  # frames for which nothing has moved there
        self._wait = 0  # frames until the detector may be asked in vain again
        self._in_vain = 0  # times that it was

    def __call__(
        self,
        frame: Tensor,
        mesh: Tensor,
        looks: Tensor,
        others: Others,
        look: Callable[[], None],
        read: Read,
    ) -> bool:
        """Whether somebody is in front of a face, or about to be.

        Args:
            frame: (H, W, 3) uint8. mesh, looks: of the face, see
                :class:`~dithead.face.tracker.TrackedFace`. look: sees where the others are in this
                frame.
        """
        sides, boxes = self._sides(frame, mesh, looks)
        before = [*self._known, sides if self._latest is None else self._latest]
        unlike = _unlike_sides(torch.stack(before), sides)  # (N, 2)
        values = read(torch.cat([unlike.flatten(), boxes.flatten()]))
        unlike, boxes = values[:-8].view(-1, 2), values[-8:].view(2, 4)
        self._latest = sides
        self._wait = max(0, self._wait - 1)
        if not self._known:
            self._known = [sides]
            return False
        new = [bool(side) for side in unlike[:-1].amin(0) > NEW_SIDES]
        if not any(new):
            self._unseen, self._still = UNSEEN, 0
            if self._wait == 0:
                self._in_vain = max(0, self._in_vain - 1)
            return False
        if self._wait > 0 and not others:
            return False
        look()
        whole = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        reached = any(others.reach(boxes[side], head=True) for side in (0, 1) if new[side])
        self._unseen = 0 if reached else self._unseen + 1
        self._still = self._still + 1 if float(unlike[-1].amax()) < STILL else 0
        settled = self._still >= SETTLED and not others.reach(whole, head=False)
        if self._unseen < UNSEEN and not settled:
            self._wait = self._in_vain = 0
            return True
        last = self._known[-1]
        learnt = [(sides if new[side] else last).chunk(2)[side] for side in (0, 1)]
        self._known = [*self._known, torch.cat(learnt)][-MOST_SIDES:]
        self._unseen, self._still = UNSEEN, 0
        self._wait, self._in_vain = min(MOST_WAIT, 2**self._in_vain), self._in_vain + 1
        return False

    def _sides(self, frame: Tensor, mesh: Tensor, looks: Tensor) -> tuple[Tensor, Tensor]:
        """Colours beside a lower face, against those of the upper face, as logarithms (columns,
        rows, 3); the boxes (2, 4) that those on the left and on the right are in."""
        if self._spots is None or self._template is None:
            self._template = to_device(stable_template(), frame.device)
            self._spots = to_device(_spots(), frame.device)
        placement = placement_from_mesh(mesh[None], self._template)
        transform = transform_from_placement(placement)[0]
        places = self._spots @ transform[:, :2].T + transform[:, 2]  # (columns, rows, 9, 2)
        columns = places[..., 0].long().clamp(0, frame.shape[1] - 1)
        rows = places[..., 1].long().clamp(0, frame.shape[0] - 1)
        seen = frame[rows, columns].float().mean(2)  # (columns, rows, 3)
        ends = places.unflatten(0, (2, -1)).flatten(1, 3)  # (2, spots of a side, 2)
        sides = ((seen + 8.0) / (looks.mean((1, 2)) + 8.0)).log()
        return sides, torch.cat([ends.amin(1), ends.amax(1)], dim=1)


def _unlike_sides(before: Tensor, now: Tensor) -> Tensor:
    """How much the column of each side that differs most does from looks (N, columns, rows, 3):
    (N, 2). A column may be where its neighbour was, as an edge of the face's own moves a little."""
    there = before.unflatten(1, (2, -1))  # of each side
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


def _whole(box: Tensor) -> Tensor:
    """A detector's box with the hair, and everything below."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    margin = torch.tensor([-_HEAD * width, -_HAIR * height, _HEAD * width, 8.0 * height])
    return box + margin

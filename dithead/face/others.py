"""Remembers who else is in the picture, so that none of them is taken for the followed person, or
altered when they pass in front."""

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
"""Boxes that overlap by more than this belong to the same face."""
MOST_OTHERS = 8
"""At most this many others are remembered."""
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
_HEAD, _HAIR = 0.55, 0.8  # of a box: how far a head extends beyond it at the sides and above


@dataclass(frozen=True, slots=True)
class Other:
    """Somebody who is not followed."""

    box: Tensor
    """(4,) on the host: where they were seen last."""
    looks: Tensor
    """LOOKS_SHAPE: what they looked like when first seen."""


class Others:
    """Everybody except the person who is followed."""

    def __init__(self) -> None:
        self._known: list[Other] = []

    def __bool__(self) -> bool:
        return bool(self._known)

    def at(self, face: Sighting) -> Other | None:
        """Which of the others a face continues, by its place."""
        best = max(self._known, key=lambda one: overlap(face.box, one.box), default=None)
        return best if best is not None and overlap(face.box, best.box) > MIN_OVERLAP else None

    def unlike(self, looks: Tensor, read: Read) -> float:
        """Difference between the given looks and those of the most similar other."""
        return min((unlike for unlike, _ in self._compared(looks, read)), default=float("inf"))

    def like(self, looks: Tensor, limit: float, read: Read) -> Other | None:
        """Which of the others the looks show, at any place, if they differ by ``limit`` at most."""
        best = min(self._compared(looks, read), key=lambda pair: pair[0], default=None)
        return best[1] if best is not None and best[0] <= limit else None

    def near(self, place: Tensor) -> bool:
        """Whether somebody else was seen next to a box (4,) on the host."""
        margin = place[2:] - place[:2]
        wide = torch.cat([place[:2] - margin, place[2:] + margin])
        return any(overlap(wide, one.box) > 0 for one in self._known)

    def reach(self, place: Tensor, head: bool) -> bool:
        """Whether somebody else's face reaches into a box (4,) on the host; with ``head``, hair and
        shoulders count, too."""
        return any(overlap(place, _whole(one.box) if head else one.box) > 0 for one in self._known)

    def replace(self, seen: Iterable[Other | None], keep: bool) -> None:
        """Store those who were just seen, as :func:`seen_at` gives them. With ``keep``, the rest
        are still somewhere and are remembered, too."""
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
    """Somebody at a box: one who is known already, or else a new one, if there is a face."""
    if known is not None:
        return replace(known, box=box)
    return None if looks is None else Other(box, looks)


class Passing:
    """Tells when somebody else passes in front of the lower face of the person who is followed.

    The detector sees who is near, but not who is in front, and it is too slow for every frame. So
    it is asked only when the picture beside the lower face has changed: left and right of the
    replaced area, and along its edges. Somebody who passes in front is first seen there; somebody
    who passes behind is not.
    """

    def __init__(self) -> None:
        self._known: list[Tensor] = []  # each (columns, rows, 3): what the sides looked like
        self._latest: Tensor | None = None  # the same, in the frame before
        self._template: Tensor | None = None
        self._spots: Tensor | None = None
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
        """Colours beside a lower face, relative to the upper face, as logarithms (columns, rows,
        3); and the boxes (2, 4) round the places on the left and on the right."""
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


def _whole(box: Tensor) -> Tensor:
    """A detector's box, extended by the hair and by everything below."""
    width, height = float(box[2] - box[0]), float(box[3] - box[1])
    margin = torch.tensor([-_HEAD * width, -_HAIR * height, _HEAD * width, 8.0 * height])
    return box + margin

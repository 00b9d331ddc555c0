"""Remembers who else is in the picture, so that none of them is taken for the followed person."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dithead.face.likeness import MOST_COMPARED
from dithead.face.search import Box, Read, Run, Sighting, overlap

MIN_OVERLAP = 0.2
"""Boxes that overlap by more than this belong to the same face."""
MOST_OTHERS = MOST_COMPARED
"""At most this many others are remembered."""
_HEAD, _HAIR = 0.55, 0.8  # of a box: how far a head extends beyond it at the sides and above


@dataclass(frozen=True, slots=True)
class Other:
    """Somebody who is not followed."""

    box: Box
    """Where they were seen last."""
    looks: Tensor
    """LOOKS_SHAPE: what they looked like when first seen."""


class Others:
    """Everybody except the person who is followed.

    Args:
        run: runs the graph ``face_likeness``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
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

    def near(self, place: Box) -> bool:
        """Whether somebody else was seen next to a box."""
        left, top, right, bottom = place
        x, y = right - left, bottom - top
        wide = left - x, top - y, right + x, bottom + y
        return any(overlap(wide, one.box) > 0 for one in self._known)

    def reach(self, place: Box, head: bool) -> bool:
        """Whether somebody else's face reaches into a box; with ``head``, hair and shoulders count,
        too."""
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
        unlike = compared([one.looks for one in self._known], looks, self._run, read)
        return list(zip(unlike, self._known, strict=True))


def seen_at(box: Box, known: Other | None, looks: Tensor | None) -> Other | None:
    """Somebody at a box: one who is known already, or else a new one, if there is a face."""
    if known is not None:
        return replace(known, box=box)
    return None if looks is None else Other(box, looks)


def compared(known: list[Tensor], looks: Tensor, run: Run, read: Read) -> list[float]:
    """How unlike looks are to each of up to MOST_COMPARED others, LOOKS_SHAPE each."""
    missing = [torch.zeros_like(looks)] * (MOST_COMPARED - len(known))
    (unlike,) = run("face_likeness", torch.stack([*known, *missing]), looks)
    return read(unlike).tolist()[: len(known)]


def _whole(box: Box) -> Box:
    """A detector's box, extended by the hair and by everything below."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    return left - _HEAD * width, top - _HAIR * height, right + _HEAD * width, bottom + 8.0 * height

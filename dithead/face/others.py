"""Who else is in the picture, remembered so that none of them is taken for the one followed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dithead.face.judge import unlikeness
from dithead.face.search import Read, Sighting, overlap

MIN_OVERLAP = 0.2
"""Boxes that share so much are of the same face."""
MOST_OTHERS = 8
"""So many others are remembered."""


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

"""Whether something is in front of the mouth: a hand, a microphone, a cup."""

from __future__ import annotations

import torch
from torch import Tensor

from dithead.face.judge import GALLERY
from dithead.face.locate import Located

COVERED, BARE = 0.2, 0.15
"""A mouth that differs from all its looks by more than the first is covered, until it differs by
less than the second for BARE_FRAMES frames."""
BARE_FRAMES = 3
NEW_LOOK, OLD_LOOK = 0.07, 0.12
"""A mouth that differs by something between these has one look more."""
REDDER = 0.03
"""Where the lips are so much redder than in the first look, that was of something else."""
FOR_GOOD_S = 4.0
"""What has not changed for so long is how the mouth looks now."""


class MouthWatch:
    """Watches the mouth of one person as frames come.

    Attributes:
        known: (GALLERY, *MOUTH_SHAPE), what the mouth was seen to look like; None at first.
        anew: whether the latest frame shows the mouth for the first time, after something that was
            taken for it.
    """

    def __init__(self) -> None:
        self.known: Tensor | None = None
        self.anew = False
        self._redness = 0.0
        self._since_s: float | None = None  # covered since
        self._bare = 0

    def __call__(self, face: Located, time_s: float) -> bool:
        """Whether the mouth of a face is covered; faces come in order."""
        seen = face.measures
        self.anew = False
        if self.known is None:
            self._begin(face)
            return False
        if self._since_s is None:
            if seen.unlike_mouth <= COVERED:
                if NEW_LOOK < seen.unlike_mouth < OLD_LOOK:
                    self.known = torch.cat([self.known[:1], self.known[2:], face.mouth[None]])
                return False
            if seen.redness > self._redness + REDDER:
                self._begin(face)
                self.anew = True
                return False
            self._since_s, self._bare = time_s, 0
            return True
        self._bare = self._bare + 1 if seen.unlike_mouth < BARE else 0
        if self._bare >= BARE_FRAMES:
            self._since_s = None
        elif time_s - self._since_s > FOR_GOOD_S:
            self._begin(face)
            self.anew = True
        return self._since_s is not None

    def _begin(self, face: Located) -> None:
        self.known = torch.stack([face.mouth] * GALLERY)
        self._redness = face.measures.redness
        self._since_s = None

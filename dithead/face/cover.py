"""Tells whether something is in front of the mouth: a hand, a microphone, a cup."""

from __future__ import annotations

import torch
from torch import Tensor

from dithead.face.judge import GALLERY
from dithead.face.reference import quality
from dithead.face.tracker import TrackedFace

COVERED, BARE = 0.16, 0.125
"""A mouth that differs from all its looks by more than the first counts as covered, until it
differs by less than the second for BARE_FRAMES frames. In 40 clips, at 8 to 30 frames a second, no
bare mouth differs by more than 0.115."""
BARE_FRAMES = 3
NEW_LOOK, OLD_LOOK = 0.07, 0.12
"""If a mouth differs by an amount between these, its look is stored, too."""
CLEAR = 0.5
"""A face of lower quality does not show what the mouth looks like."""
NO_LIPS, LIPS, NOT_LIPS = 0.03, 0.06, 0.2
"""If the lips of the first look are less red than the first, and later are as red as lips usually
are (between the second and the third) for BARE_FRAMES frames, that look showed something else."""
SAME_RED = 0.03
"""Lips count as equally red if their redness has dropped by at most this."""
FOR_GOOD_S, AT_LEAST_S = 4.0, 1.0
"""A mouth that stays covered for longer than the first is taken to look like that now. If its lips
are as red as before, the time for which the face was known is enough if it is shorter, but never
less than the second."""


class MouthWatch:
    """Watches the mouth of one person, frame by frame.

    Attributes:
        known: (GALLERY, *MOUTH_SHAPE), the stored looks of the mouth; None at first.
        anew: whether the latest frame is the first to show the mouth, after something else was
            taken for it.
    """

    def __init__(self) -> None:
        self.known: Tensor | None = None
        self.anew = False
        self._quality = 0.0
        self._redness = 0.0
        self._begun_s: float | None = None
        self._since_s: float | None = None  # when it was covered
        self._for_good_s = FOR_GOOD_S
        self._bare = 0  # for how many frames it has been bare since
        self._lips = 0  # for how many frames lips were seen where there were none at first

    def __call__(self, face: TrackedFace, time_s: float) -> bool:
        """Whether the mouth of a face is covered; faces must come in order."""
        seen = face.measures
        self.anew = False
        lips = self._redness < NO_LIPS and LIPS < seen.redness < NOT_LIPS
        self._lips = self._lips + 1 if lips and seen.unlike_mouth > BARE else 0
        if self.known is None or self._quality < CLEAR:
            self._begin(face, time_s)
            return False
        if self._since_s is None:
            if seen.unlike_mouth <= COVERED:
                if NEW_LOOK < seen.unlike_mouth < OLD_LOOK and self._is_near(face):
                    self.known = torch.cat([self.known[:1], self.known[2:], face.mouth[None]])
                return False
            self._since_s, self._bare, self._for_good_s = time_s, 0, FOR_GOOD_S
            if seen.redness > self._redness - SAME_RED:
                known_s = max(AT_LEAST_S, time_s - (self._begun_s or 0.0))
                self._for_good_s = min(FOR_GOOD_S, known_s)
            return True
        self._bare = self._bare + 1 if seen.unlike_mouth < BARE else 0
        if self._bare >= BARE_FRAMES:
            self._since_s, self._lips = None, 0
        elif self._lips >= BARE_FRAMES or time_s - self._since_s > self._for_good_s:
            self._begin(face, time_s)
            self.anew = True
        return self._since_s is not None

    def _is_near(self, face: TrackedFace) -> bool:
        """Whether a mouth is close to the first look; one that a hand slides over is not."""
        assert self.known is not None
        seen = face.measures
        return seen.unlike_first_mouth < COVERED and seen.redness > self._redness - SAME_RED

    def _begin(self, face: TrackedFace, time_s: float) -> None:
        self.known = torch.stack([face.mouth] * GALLERY)
        self._quality = quality(face.measures)
        self._redness = face.measures.redness
        if self._begun_s is None:
            self._begun_s = time_s
        self._since_s = None

"""Whether something is in front of the mouth: a hand, a microphone, a cup."""

from __future__ import annotations

import torch
from torch import Tensor

from dithead.face.judge import GALLERY
from dithead.face.locate import Located
from dithead.face.reference import quality

COVERED, BARE = 0.16, 0.125
"""A mouth that differs from all its looks by more than the first is covered, until it differs by
less than the second for BARE_FRAMES frames. In 40 clips, at 8 to 30 frames a second, none that is
bare differs by more than 0.115."""
BARE_FRAMES = 3
NEW_LOOK, OLD_LOOK = 0.07, 0.12
"""A mouth that differs by something between these has one look more."""
CLEAR = 0.5
"""A face of less quality does not tell how the mouth looks."""
REDDER = 0.03
"""Where the lips are so much redder than in the first look, that was of something else."""
FOR_GOOD_S, AT_LEAST_S = 4.0, 0.3
"""What has not changed for so long is how the mouth looks now. Where the lips are as red as before,
it is so already after the time for which the look before was known, though not sooner than the
second."""


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
        self._quality = 0.0
        self._redness = 0.0
        self._begun_s = 0.0
        self._since_s: float | None = None  # covered since
        self._for_good_s = FOR_GOOD_S
        self._bare = 0

    def __call__(self, face: Located, time_s: float) -> bool:
        """Whether the mouth of a face is covered; faces come in order."""
        seen = face.measures
        self.anew = False
        if self.known is None or self._quality < CLEAR:
            self._begin(face, time_s)
            return False
        if self._since_s is None:
            if seen.unlike_mouth <= COVERED:
                if NEW_LOOK < seen.unlike_mouth < OLD_LOOK:
                    self.known = torch.cat([self.known[:1], self.known[2:], face.mouth[None]])
                return False
            if seen.redness > self._redness + REDDER:
                self._begin(face, time_s)
                self.anew = True
                return False
            self._since_s, self._bare, self._for_good_s = time_s, 0, FOR_GOOD_S
            if seen.redness > self._redness - REDDER:
                known_s = max(AT_LEAST_S, time_s - self._begun_s)
                self._for_good_s = min(FOR_GOOD_S, known_s)
            return True
        self._bare = self._bare + 1 if seen.unlike_mouth < BARE else 0
        if self._bare >= BARE_FRAMES:
            self._since_s = None
        elif time_s - self._since_s > self._for_good_s:
            self._begin(face, time_s)
            self.anew = True
        return self._since_s is not None

    def _begin(self, face: Located, time_s: float) -> None:
        self.known = torch.stack([face.mouth] * GALLERY)
        self._quality = quality(face.measures)
        self._redness, self._begun_s = face.measures.redness, time_s
        self._since_s = None

"""What comes out of a stream."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dithead.pipeline import LeftAlone
from dithead.runtime.speech import SpeechEvent


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """A finished picture, with the sound that belongs to it."""

    index: int
    """Number of the pushed frame; of one made between two, that of the later."""
    time_s: Fraction
    """Presentation time, as it was pushed."""
    image: np.ndarray
    """uint8, in the stream's layout; see :data:`dithead.runtime.pictures.LAYOUTS`."""
    face: bool
    """Whether a face was found and re-voiced; else the picture is as it was pushed."""
    left_alone: LeftAlone | None = None
    """Why it was not."""
    between: bool = False
    """Whether it was made between two pushed frames (``interpolate=2``)."""
    samples: np.ndarray | None = None
    """(S,) float32, the sound from where the last frame's ended to where the next frame is due;
    None with a frame made between two."""
    sample_rate_hz: int = 0
    """Of the sound."""
    events: tuple[SpeechEvent, ...] = ()
    """What happens in it to pieces of speech that :meth:`Stream.mark` has named."""

"""The frames that a stream returns."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from dithead.generator import LeftAlone
from dithead.runtime.speech import SpeechEvent


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """A finished picture, with the sound that belongs to it."""

    index: int
    """Number of the pushed frame; for a frame made between two, number of the later one."""
    time_s: Fraction
    """Presentation time, as it was pushed."""
    image: np.ndarray
    """uint8, in the stream's layout; see :data:`dithead.runtime.pictures.LAYOUTS`."""
    face: bool
    """Whether a face was found and re-voiced; otherwise the picture is as it was pushed."""
    left_alone: LeftAlone | None = None
    """Why no face was re-voiced."""
    between: bool = False
    """Whether it was made between two pushed frames (``interpolate=2``)."""
    samples: np.ndarray | None = None
    """(S,) float32, the sound from the end of the last frame's to the time when the next frame is
    due; None for a frame made between two."""
    sample_rate_hz: int = 0
    """Sample rate of the sound."""
    events: tuple[SpeechEvent, ...] = ()
    """What happens in this frame to pieces of speech named by :meth:`Stream.mark`."""

"""Which frame the model is shown of a person: a lit, sharp one, from the front."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dithead.face.judge import Measures
from dithead.face.tracker import TrackedFace

BETTER = 0.35
"""A frame replaces the reference where its quality is higher by so much,"""
SHARPER = 2.2
"""or where it is so many times as sharp. Within a clip of ordinary footage it is 1.7 at most."""
REPLACED_OVER = 10
"""Over so many frames a reference gives way to the next."""
FAINT = 3.0
"""Where the standard deviation of the face's levels is smaller, there is nothing to be seen: too
dark, washed out, or out of focus."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the model is shown beside a frame."""

    looks: Tensor
    """Of that: LOOKS_SHAPE."""
    taken: bool
    """Whether this frame becomes the reference."""
    share: float
    """How much the latest reference counts against the one before, in (0, 1]."""


class ReferenceChoice:
    """Chooses the reference as the frames of one person come."""

    def __init__(self) -> None:
        self._before: Tensor | None = None  # looks that the latest reference gives way from
        self._latest: Tensor | None = None
        self._quality = 0.0
        self._sharpness = 0.0
        self._frames = 0  # since the latest reference

    def __call__(self, face: TrackedFace, anew: bool = False) -> Shown:
        """What goes with a face. ``anew``: the reference is bad, whatever it looked like."""
        found, seen = quality(face.measures), face.measures
        sharper = found > self._quality - 0.1 and seen.sharpness > SHARPER * self._sharpness
        taken = anew or self._latest is None or found > self._quality + BETTER or sharper
        if taken:
            self._before = None if self._latest is None else self._shown()
            self._latest, self._quality, self._sharpness = face.looks, found, seen.sharpness
            self._frames = 0
        self._frames += 1
        return Shown(self._shown(), taken, self._share)

    @property
    def _share(self) -> float:
        return 1.0 if self._before is None else min(1.0, self._frames / REPLACED_OVER)

    def _shown(self) -> Tensor:
        assert self._latest is not None
        if self._before is None:
            return self._latest
        return torch.lerp(self._before, self._latest, self._share)


def quality(seen: Measures) -> float:
    """What a frame is worth as a reference, in [0, 1]."""
    lit = _rise(seen.level, 12.0, 90.0) * (1.0 - _rise(seen.level, 215.0, 245.0))
    clear = _rise(seen.contrast, FAINT, 12.0)
    frontal = 1.0 - _rise(abs(seen.turn), 0.4, 0.75)
    return lit * clear * frontal


def _rise(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, and linear between them."""
    return min(1.0, max(0.0, (value - low) / (high - low)))

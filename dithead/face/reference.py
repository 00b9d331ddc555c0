"""Chooses the frame of a person that the model is shown: well lit, sharp, and from the front."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dithead.face.judge import Measures
from dithead.face.search import Run
from dithead.face.tracker import TrackedFace

BETTER = 0.35
"""A frame replaces the reference if its quality is higher by more than this,"""
SHARPER = 2.2
"""or if it is more than this many times as sharp. Within a clip of ordinary footage, this ratio is
1.7 at most."""
REPLACED_OVER = 10
"""A reference gives way to the next over this many frames."""
FAINT = 3.0
"""If the standard deviation of the face's levels is smaller, nothing can be seen: the face is too
dark, washed out, or out of focus."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What the model is shown along with a frame."""

    looks: Tensor
    """LOOKS_SHAPE, the looks of what is shown."""
    taken: bool
    """Whether this frame becomes the reference."""
    share: float
    """Weight of the latest reference against the one before, in (0, 1]."""


class ReferenceChoice:
    """Chooses the reference for one person, frame by frame.

    Args:
        run: runs the graph ``looks_mix``.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._before: Tensor | None = None  # looks that give way to the latest reference
        self._latest: Tensor | None = None
        self._quality = 0.0
        self._sharpness = 0.0
        self._frames = 0  # since the latest reference

    def __call__(self, face: TrackedFace, anew: bool = False) -> Shown:
        """What to show along with a face. ``anew``: the reference is bad, whatever its quality."""
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
        share = torch.full((), self._share, device=self._latest.device)
        return self._run("looks_mix", self._before, self._latest, share)[0]


def quality(seen: Measures) -> float:
    """How good a frame is as a reference, in [0, 1]."""
    lit = _rise(seen.level, 12.0, 90.0) * (1.0 - _rise(seen.level, 215.0, 245.0))
    clear = _rise(seen.contrast, FAINT, 12.0)
    frontal = 1.0 - _rise(abs(seen.turn), 0.4, 0.75)
    return lit * clear * frontal


def _rise(value: float, low: float, high: float) -> float:
    """0 up to ``low``, 1 from ``high`` on, linear in between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))
